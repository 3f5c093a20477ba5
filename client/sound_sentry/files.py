"""What the arguments of a command name: files, and how they are judged."""

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
    """The files that names stand for.

    A folder stands for the files in it, and in its folders, that end in one of `formats` or as audio and video do; a
    pattern for the files that match; `-` for standard input. Raises NothingToSend where there is none.
    """
    files = [file for name in names for file in _named(name, formats)]
    if not files:
        raise NothingToSend("There is no recording in what was named.")
    return files


def judging_options(arguments: argparse.Namespace) -> Options:
    """How the arguments say that recordings are judged."""
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
