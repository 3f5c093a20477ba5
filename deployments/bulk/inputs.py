"""Finds the files to score in a folder, a bucket, a manifest or a Parquet table.

A place is as `pipeline.storage` describes it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from pipeline.errors import MissingInput
from pipeline.storage import first_line, locate, shown

LOOKUPS = 32
"""How many files of a list are looked up at a time. An object store answers each in some hundredths of a second."""


@dataclass(frozen=True)
class File:
    """A file to score: its `name` in the results, its place, and its size in bytes if known.

    `version` changes when the file is replaced or changed. It is None if the file system tells nothing about the file.
    """

    name: str
    place: str
    size: int = 0
    version: str | None = None


def unambiguous(place: str) -> str:
    """`place` as a key for it: an absolute path, or a URI without credentials. Raises MissingInput as `locate` does."""
    filesystem, path = locate(place)
    return path if isinstance(filesystem, LocalFileSystem) else shown(place).rstrip("/")


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
            yield _file(name, path, found)


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
    places = {name: name if "://" in name or name.startswith("/") else f"{folder}/{name}" for name in names}
    with ThreadPoolExecutor(LOOKUPS) as lookups:
        infos = lookups.map(Opener(place).look_up, places.values())
        for (name, where), found in zip(places.items(), infos, strict=True):
            yield _file(name, where, found)


def _file(name: str, place: str, found: FileInfo | None) -> File:
    if found is None or found.type is not FileType.File:
        return File(name, place)
    return File(name, place, found.size or 0, f"{found.size} bytes of {found.mtime_ns}")


class Opener:
    """Opens files by their places. Places without a scheme are on the file system of `root`."""

    def __init__(self, root: str) -> None:
        self._root, _ = locate(root)
        self._folders: dict[str, tuple[FileSystem, str]] = {}

    def open(self, place: str) -> Any:
        """An open file to read bytes from. Raises OSError or MissingInput."""
        filesystem, path = self._locate(place)
        return filesystem.open_input_stream(path)

    def look_up(self, place: str) -> FileInfo | None:
        """What the file system says about a file; None if it cannot be asked."""
        try:
            filesystem, path = self._locate(place)
            return filesystem.get_file_info(path)
        except (OSError, ValueError, MissingInput):  # a ValueError is a path that the file system does not allow
            return None

    def _locate(self, place: str) -> tuple[FileSystem, str]:
        if "://" not in place:
            return self._root, place
        folder, _, name = place.rpartition("/")
        if folder not in self._folders:
            self._folders[folder] = locate(folder)
        filesystem, path = self._folders[folder]
        return filesystem, f"{path}/{name}"
