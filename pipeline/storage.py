"""Places: paths on this machine, and URIs of object stores such as s3://bucket/calls.

pyarrow.fs knows s3, gs, hdfs and, as fsspec+NAME, every file system that is installed for fsspec.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from pyarrow.fs import FileSystem, LocalFileSystem

from pipeline.errors import MissingInput


def locate(place: str) -> tuple[FileSystem, str]:
    """The file system that holds `place`, and the path within it. Raises MissingInput if it cannot be reached."""
    if "://" not in place:
        return LocalFileSystem(), Path(place).absolute().as_posix()
    try:
        filesystem, path = FileSystem.from_uri(place)
    except (OSError, ValueError, ImportError) as error:
        raise MissingInput(
            f"{shown(place)} cannot be reached: check address, network and credentials. ({first_line(error)})"
        ) from error
    return filesystem, path


def shown(place: str) -> str:
    """A place as it may be printed: a URI without the key, secret and settings that it may hold."""
    parts = urlsplit(place)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if parts.scheme else place


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, without a trace."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
