"""Stores the sound of jobs until it is judged. The service writes recordings to a disk only here.

A file exists from the start of its upload until it is judged, or until its job is cancelled or deleted. Files that a
crash left behind are deleted when a runner starts and every minute; those of an unfinished upload stay an hour
(`SPARE_SECONDS`) longer than an upload may take. Only the service's own user may read the files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ConfigurationError, SoundLost, StoreUnavailable

SPARE_SECONDS = 3600.0
"""How much longer than an upload may take the sound of a job that is not in the database is kept."""

NO_ROOM = "The service cannot take files for jobs at present. Try again in a while."

SoundFile = tuple[str, int]
"""A file of a job: the job's id, and its position in it."""


class SoundFolder:
    """A folder that holds the sound of jobs. Every node that accepts or judges jobs must see it.

    It lies in the folder of the jobs, which also holds their database.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self) -> None:
        """Make both folders, readable by this user only. Raises ConfigurationError if they cannot be made."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)
            with suppress(PermissionError):  # the folder of the jobs may be a volume of another user
                self._folder.parent.chmod(0o700)
        except OSError as error:
            raise ConfigurationError(f"jobs.folder: {self._folder} cannot be made ({error.strerror})") from error

    def write(self, job_id: str, position: int) -> BinaryIO:
        """A new file to write sound to. Raises StoreUnavailable if it cannot be made."""
        try:
            descriptor = os.open(self._path(job_id, position), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreUnavailable(NO_ROOM) from error
        return os.fdopen(descriptor, "w+b")

    def read(self, job_id: str, position: int) -> bytes:
        """The sound of a file. Raises SoundLost if it is not there."""
        try:
            return self._path(job_id, position).read_bytes()
        except OSError as error:
            raise SoundLost("The sound of this file is lost. Send it again.") from error

    def delete(self, job_id: str, positions: Iterable[int]) -> None:
        """Delete these files of a job. Files that do not exist are ignored."""
        for position in positions:
            self._path(job_id, position).unlink(missing_ok=True)

    def files(self) -> dict[SoundFile, float]:
        """Every file in the folder, and its age in seconds."""
        found = {}
        now = time.time()
        for path in self._folder.iterdir():
            job_id, _, position = path.name.partition(".")
            try:
                found[job_id, int(position)] = now - path.stat().st_mtime
            except (ValueError, FileNotFoundError):  # not one of ours, or gone by now
                continue
        return found

    def _path(self, job_id: str, position: int) -> Path:
        return self._folder / f"{job_id}.{position}"
