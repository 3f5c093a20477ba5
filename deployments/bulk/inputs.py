"""Finds the files to score in a folder, a bucket, a manifest or a Parquet table.

A place is as `pipeline.storage` describes it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from pipeline.errors import MissingInput
from pipeline.storage import first_line, locate, shown


@dataclass(frozen=True)
class File:
    """A file to score: its `name` in the results, its place, and its size in bytes if known."""

    name: str
    place: str
    size: int = 0


def find_files(place: str) -> list[File]:
    """The files at `place`. The largest come first, so that no large file runs alone at the end.

    A folder or bucket is searched with all its subfolders, except hidden files; the names are relative to it. A `.csv`
    or a Parquet table with a column `path` lists files, with paths relative to the list. The names are those in the
    list, and a file that is listed twice counts once. A name that is not UTF-8 is escaped; its file cannot be opened,
    so it gets an error as its answer. Raises MissingInput if there is nothing to score.
    """
    filesystem, path = locate(place)
    try:
        kind = filesystem.get_file_info(path).type
        if kind is FileType.NotFound:
            raise MissingInput(f"There is nothing at {shown(place)}: name a folder, a bucket or a list of files.")
        if path.endswith(".csv"):
            files = list(_listed(place, _paths_of_csv(filesystem, path)))
        elif path.endswith(".parquet"):
            files = list(_listed(place, _paths_of_parquet(filesystem, path)))
        elif kind is FileType.Directory:
            files = list(_below(place, filesystem, path))
        else:
            raise MissingInput(f"{shown(place)} is one file: name a folder, a .csv or a .parquet that lists files.")
    except OSError as error:
        raise MissingInput(
            f"{shown(place)} cannot be read: check address, network and credentials. ({first_line(error)})"
        ) from error
    if not files:
        raise MissingInput(f"There is no file at {shown(place)}.")
    return sorted({file.name: file for file in files}.values(), key=lambda file: (-file.size, file.name))


def _below(place: str, filesystem: FileSystem, folder: str) -> Iterator[File]:
    for found in filesystem.get_file_info(FileSelector(folder, recursive=True)):
        path = _path_of(found)
        name = path.removeprefix(folder.rstrip("/") + "/")
        if found.type is FileType.File and not any(part.startswith(".") for part in name.split("/")):
            yield File(name, path, found.size)


def _path_of(found: FileInfo) -> str:
    try:
        return str(found.path)
    except UnicodeDecodeError as error:
        return bytes(error.object).decode(errors="backslashreplace")


def _paths_of_csv(filesystem: FileSystem, path: str) -> list[str]:
    with filesystem.open_input_stream(path) as file:
        try:
            rows = csv.DictReader(io.StringIO(file.read().decode("utf-8-sig")))
        except UnicodeDecodeError as error:
            raise MissingInput(f"The manifest {Path(path).name} is not in UTF-8: save it as UTF-8.") from error
        if "path" not in (rows.fieldnames or ()):
            raise MissingInput(f"The manifest {Path(path).name} has no column `path`.")
        return [row["path"] for row in rows if row["path"]]


def _paths_of_parquet(filesystem: FileSystem, path: str) -> list[str]:
    try:
        table = pq.read_table(path, columns=["path"], filesystem=filesystem)
        return [name for name in table["path"].to_pylist() if name]
    except (KeyError, pa.ArrowInvalid) as error:
        raise MissingInput(f"{Path(path).name} is not a Parquet table with a column `path`.") from error


def _listed(place: str, names: Iterable[str]) -> Iterator[File]:
    """The files that a list at `place` names, by URI, by absolute path, or by a path relative to the list."""
    _, path = locate(place)
    folder = path.rpartition("/")[0]
    for name in names:
        yield File(name, name if "://" in name or name.startswith("/") else f"{folder}/{name}")


class Opener:
    """Opens files by their places. Places without a scheme are on the file system of `root`."""

    def __init__(self, root: str) -> None:
        self._root, _ = locate(root)
        self._folders: dict[str, tuple[FileSystem, str]] = {}

    def open(self, place: str) -> Any:
        """An open file to read bytes from. Raises OSError or MissingInput."""
        if "://" not in place:
            return self._root.open_input_stream(place)
        folder, _, name = place.rpartition("/")
        if folder not in self._folders:
            self._folders[folder] = locate(folder)
        filesystem, path = self._folders[folder]
        return filesystem.open_input_stream(f"{path}/{name}")
