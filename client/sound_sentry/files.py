"""Reads the arguments of a command: the files, and how they are judged."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Sequence
from glob import glob
from pathlib import Path
from typing import cast

from sound_sentry.calls import Options
from sound_sentry.models import Info


def find(names: Sequence[str], info: Info) -> list[str]:
    """The files that the names stand for.

    A folder stands for the recordings in it and its subfolders, without hidden ones. The service says in `info` which
    endings the names of recordings have. A pattern stands for the files that match it, and `-` for standard input. A
    name that stands for no file is kept as it is; its row will hold the error. So is everything that cannot be looked
    at.
    """
    endings = info.endings or tuple(f".{name}" for name in info.supported_formats)
    files: list[str] = []
    for name in names:
        if name == "-" or os.path.isfile(name):
            files.append(name)
        elif os.path.isdir(name):
            files += _recordings_in(name, endings) or [name]
        else:
            files += sorted(filter(os.path.isfile, glob(name, recursive=True))) or [name]
    return files


def judging_options(arguments: argparse.Namespace) -> Options:
    """The options for judging that the arguments give."""
    given = {name: value for name, value in vars(arguments).items() if name in Options.__annotations__}
    return cast(Options, {name: value for name, value in given.items() if value is not None})


def _recordings_in(folder: str, endings: Collection[str]) -> list[str]:
    """The recordings in a folder, and its subfolders that cannot be read."""
    unreadable: list[OSError] = []
    found: list[Path] = []
    for place, subfolders, names in os.walk(folder, onerror=unreadable.append):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        paths = [Path(place, name) for name in names if not name.startswith(".")]
        found += [path for path in paths if path.suffix.lower() in endings and _is_file_or_unknown(path)]
    found += [Path(error.filename) for error in unreadable]
    return [str(path) for path in sorted(found)]


def _is_file_or_unknown(path: Path) -> bool:
    return os.path.isfile(path) or not os.path.exists(path)
