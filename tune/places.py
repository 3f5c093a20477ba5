"""Copies corpora from an object store, and results to it.

The commands read and write only the disk of this machine. Input from a store is copied to the disk first. Output for a
store is copied to the store at the end.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from urllib.parse import urlsplit

from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem, copy_files

from pipeline.errors import MissingInput
from pipeline.storage import first_line, locate, shown

CORPORA = Path(".cache") / "corpora"
RUNS = Path("runs")


def fetched(place: str) -> Path:
    """The path on this machine of the manifest or folder at `place`, which is a path or a URI.

    If `place` is a URI, the folder is copied to this machine first. For a manifest the whole folder around it is
    copied. Files that are already here are not copied again. Raises MissingInput if the store cannot be read.
    """
    if "://" not in place:
        return Path(place)
    filesystem, path = locate(place)
    with _explained(place, "read"):
        kind = filesystem.get_file_info(path).type
        if kind is FileType.NotFound:
            raise MissingInput(f"There is nothing at {shown(place)}: name a manifest or a folder.")
        folder, _, name = path.rpartition("/") if kind is FileType.File else (path, "", "")
        copy = CORPORA / hashlib.sha256(f"{shown(place)} {folder}".encode()).hexdigest()[:16]
        _copy(filesystem, folder, LocalFileSystem(), copy.absolute().as_posix())
    return copy / name


@contextmanager
def local_folder(place: str) -> Iterator[Path]:
    """The path on this machine of the folder at `place`, which is a path or a URI.

    If `place` is a URI, this is a folder below `runs`. The files in the store are copied to it first. At the end it is
    copied to the store, also if the work fails or is interrupted, so that it can go on elsewhere. Raises MissingInput
    if the store cannot be used.
    """
    if "://" not in place:
        yield Path(place)
        return
    filesystem, path = locate(place.rstrip("/"))
    # The hash tells two places apart that end in the same name.
    folder = RUNS / hashlib.sha256(shown(place).encode()).hexdigest()[:8] / path.rpartition("/")[2]
    here = folder.absolute().as_posix()
    with _explained(place, "read"):
        if filesystem.get_file_info(path).type is FileType.Directory:
            _copy(filesystem, path, LocalFileSystem(), here)

    def copy_back() -> None:
        with _explained(place, "written"):
            _copy(LocalFileSystem(), here, filesystem, path)
        print(f"copied {folder} to {shown(place)}", file=sys.stderr)

    try:
        yield folder
    except BaseException:
        # What ended the work is told, not what this copy may end with.
        with suppress(MissingInput):
            copy_back()
        raise
    copy_back()


def beside(place: str, ending: str) -> str:
    """The place beside `place` whose name has `ending` added."""
    if "://" not in place:
        return f"{Path(place).resolve()}{ending}"
    parts = urlsplit(place)
    return parts._replace(path=f"{parts.path.rstrip('/')}{ending}").geturl()


def make_writable(folder: Path) -> None:
    """Make a folder for results, if it is not there. Raises MissingInput if no file can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MissingInput(f"The folder {folder} cannot be written: {error.strerror}. Choose another --out.") from error


@contextmanager
def _explained(place: str, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MissingInput(
            f"{shown(place)} cannot be {what}: check address, network and credentials. ({first_line(error)})"
        ) from error


def _copy(source: FileSystem, folder: str, target: FileSystem, copy: str) -> None:
    """Copy a file of `folder` to `copy` if it is missing there, has another size there, or is older there."""
    there = {found.path.removeprefix(copy): found for found in _files(target, copy)}
    for found in _files(source, folder):
        name = found.path.removeprefix(folder)
        old = there.get(name)
        if old and old.size == found.size and old.mtime >= found.mtime:
            continue
        if ".." in name.split("/"):
            raise MissingInput(f"The name {name} leads out of its folder: rename the file.")
        target.create_dir(f"{copy}{name}".rpartition("/")[0], recursive=True)
        copy_files(found.path, f"{copy}{name}", source_filesystem=source, destination_filesystem=target)


def _files(filesystem: FileSystem, folder: str) -> Iterator[FileInfo]:
    for found in filesystem.get_file_info(FileSelector(folder, allow_not_found=True, recursive=True)):
        if found.type is FileType.File:
            yield found
