"""Reads the arguments of a command: the files, and how they are judged."""

from __future__ import annotations

import argparse
import mimetypes
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import cast

from sound_sentry.calls import Options
from sound_sentry.errors import NothingToSend


def find(names: Sequence[str], formats: Sequence[str]) -> list[str]:
    """The files that the names stand for.

    A folder stands for the files in it and its subfolders whose names end in one of `formats`, or like audio or video.
    A pattern stands for the files that match it, and `-` for standard input. Raises NothingToSend if there is none.
    """
    files = [file for name in names for file in _named(name, formats)]
    if not files:
        raise NothingToSend("There is no recording among these names.")
    return files


def judging_options(arguments: argparse.Namespace) -> Options:
    """The options for judging that the arguments give."""
    given = {name: value for name, value in vars(arguments).items() if name in Options.__annotations__}
    return cast(Options, {name: value for name, value in given.items() if value is not None})


def _named(name: str, formats: Sequence[str]) -> Iterator[str]:
    if name != "-" and Path(name).is_dir():
        yield from sorted(str(path) for path in Path(name).rglob("*") if path.is_file() and _sounds(path, formats))
    elif has_magic(name) and not Path(name).exists():
        yield from sorted(glob(name, recursive=True)) or [name]
    else:
        yield name


def _sounds(path: Path, formats: Sequence[str]) -> bool:
    kind = mimetypes.guess_type(path.name)[0] or ""
    return path.suffix[1:].lower() in formats or kind.startswith(("audio/", "video/"))
