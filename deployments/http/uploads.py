"""Reads a multipart form. Anybody may have sent it, so it is not trusted."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import PureWindowsPath
from typing import Any, BinaryIO, Self, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from deployments.http.admission import AdmissionConfig, Arrived
from deployments.jobs.webhooks import MAX_URL_LENGTH
from pipeline.config import Limits, describe_misfits
from pipeline.errors import InputError, MissingInput, TooManyFiles, UploadTooLarge, UploadTooSlow
from pipeline.types import MAX_SPEAKERS, MAX_TRACK, Channels, OperatingPoint, SpeakerCount

MAX_FIELDS = 16
MAX_FIELD_BYTES = 4 * MAX_URL_LENGTH
"""The most bytes of a field. The longest is the address of a webhook, whose characters take up to 4 bytes each."""

FRAMING_BYTES = 64 * 1024
"""The most bytes of a form besides its files: boundaries, headers and fields."""

SEVERAL = 4
"""A form is refused unread if its declared size is this many times the allowed size. A smaller form may hold two files;
it is read, so that the error can say so."""

GRACE_SECONDS = 10.0
"""How long a body may take to begin."""

SLOW_UPLINK_BYTES_PER_SECOND = 32 * 1024
"""The highest average speed that is asked of a body that declares no size. A slow connection at home is faster."""

MAX_NAME_LENGTH = 120


class Options(BaseModel):
    """The fields of a form besides its files."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    use_diarization: bool = False
    """Tell speakers apart, and judge each by itself."""
    operating_point: OperatingPoint = "balanced"
    """Which errors to avoid: `recall` misses few fakes, `precision` accuses few humans."""
    explain: bool = False
    """Say which moments, bands of frequency and layers of the network the answer is based on; takes longer."""
    channels: Channels = "mix"
    """`split` judges each channel by itself. Use it for call recorders, which write each party to a channel."""
    track: int | None = Field(None, ge=0, le=MAX_TRACK)
    """The audio track to judge, counted from 0; only needed if the file holds several."""
    num_speakers: int | None = Field(None, ge=1, le=MAX_SPEAKERS)
    """How many people speak, if known; only with `use_diarization`, and without the next two."""
    min_speakers: int | None = Field(None, ge=1, le=MAX_SPEAKERS)
    """How many people speak at least; only with `use_diarization`."""
    max_speakers: int | None = Field(None, ge=1, le=MAX_SPEAKERS)
    """How many people speak at most; only with `use_diarization`."""

    @property
    def is_slow(self) -> bool:
        """Whether the verdict takes long even on a short recording."""
        return self.use_diarization or self.channels == "split" or self.explain

    @model_validator(mode="after")
    def _count_is_possible(self) -> Self:
        """Raises InputError, which pydantic does not convert, before the recording is read."""
        SpeakerCount(self.num_speakers, self.min_speakers, self.max_speakers).when(self.use_diarization)
        return self


FILE = {"type": "string", "format": "binary", "description": "The recording. Its format is found by its content."}
FILES = {"type": "array", "items": FILE, "description": "The recordings, each as a field of its own with this name."}
"""The OpenAPI schema of a field with several files; FILE is that of one file."""

Fields = TypeVar("Fields", bound=BaseModel)


@dataclass(frozen=True)
class Upload:
    """One file of a form. `name` is only for display."""

    name: str | None
    data: bytes


def body_bytes(request: Request, limits: Limits, max_files: int) -> int:
    """How much room the body of a form may need: its declared size, or the maximum if it declares none.

    Raises UploadTooLarge for a body that could hold several times the allowed files.
    """
    most = max_form_bytes(limits, max_files)
    declared = _declared_bytes(request)
    if declared is None:
        return most
    if declared > SEVERAL * most:
        raise _too_large(limits)
    return min(declared, most)


def slowest_bytes_per_second(request: Request, max_bytes: int, pace: AdmissionConfig) -> float:
    """How fast the body must arrive at least, on average.

    It must be fast enough to be complete in time, or what has arrived of it would take room for nothing. A body that
    declares no size may have `max_bytes`, but it may also be a small one from a slow sender.
    """
    declared = _declared_bytes(request)
    if declared is None:
        fitting = min(max_bytes / pace.max_body_seconds, SLOW_UPLINK_BYTES_PER_SECOND)
    else:
        fitting = min(declared, max_bytes) / pace.max_body_seconds
    return max(pace.min_bytes_per_second, fitting)


async def read_form(
    request: Request, field: str, limits: Limits, pace: AdmissionConfig, max_files: int, arrived: Arrived
) -> tuple[list[Upload], Options]:
    """The files in `field` and the options of a multipart form. They are read into memory, never written to a disk.

    Raises as `receive_form` does.
    """
    async with receive_form(request, field, limits, pace, max_files, arrived, Options) as (files, options):
        return [Upload(display_name(file.filename), await file.read()) for file in files], options


@asynccontextmanager
async def receive_form(
    request: Request,
    field: str,
    limits: Limits,
    pace: AdmissionConfig,
    max_files: int,
    arrived: Arrived,
    fields: type[Fields],
    open_file: Callable[[], BinaryIO] | None = None,
) -> AsyncIterator[tuple[list[UploadFile], Fields]]:
    """The files in `field` and the other fields of a multipart form. The files are closed afterwards.

    A file is kept in memory, or in the file that `open_file` opens for it. After the upload it is at its beginning. A
    field without a value counts as absent: a browser sends all fields of a form, also those that were left empty.
    Raises MissingInput (as soon as a file in another field begins), TooManyFiles, UploadTooLarge (as soon as the form
    is too large, however it is sent), UploadTooSlow, InputError for a form that is broken or has a bad value, or what
    `arrived` raises.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise MissingInput(f"Send a multipart/form-data form with a file in the field {field}.")
    max_bytes = max_form_bytes(limits, max_files)
    parser = _Parser(
        request.headers,
        _at_most(max_bytes, _in_time(request, max_bytes, pace, arrived), limits),
        max_files=max_files,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    parser.take_files(field, open_file)
    try:
        files, values = [], {}
        for name, value in (await parser.parse()).multi_items():
            if isinstance(value, UploadFile):
                files.append(value)
            elif value:
                values[name] = value
        if not files:
            raise MissingInput(f"Send the recording as a file in the field {field}.")
        yield files, fields.model_validate(values)
    except MultiPartException as error:
        if parser.files_begun > max_files:
            raise TooManyFiles(
                f"Send one file in the field {field}; /batch-predict takes several."
                if max_files == 1
                else f"Send at most {max_files} files in one request."
            ) from error
        raise InputError(
            "The form is not valid multipart/form-data, or its fields are too many or too long."
        ) from error
    except ValidationError as error:
        raise InputError(describe_misfits(error)) from error
    finally:
        parser.close()


def describe_form(field: str, files: dict[str, Any], fields: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI request body of an endpoint that reads its form by itself."""
    properties = {field: files, **fields.model_json_schema()["properties"]}
    schema = {"type": "object", "required": [field], "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


async def read_body(request: Request, max_mib: float, pace: AdmissionConfig, arrived: Arrived) -> bytes:
    """A body that is not a form. Raises UploadTooLarge, UploadTooSlow, or what `arrived` raises."""
    body, max_bytes = bytearray(), int(max_mib * 2**20)
    async for chunk in _in_time(request, max_bytes, pace, arrived):
        body += chunk
        if len(body) > max_bytes:
            raise UploadTooLarge(f"Send at most {max_mib:g} MiB.")
    return bytes(body)


def check_size(upload: Upload, limits: Limits) -> None:
    """Raises UploadTooLarge for a file over the limit."""
    if len(upload.data) > limits.max_upload_bytes:
        raise _too_large(limits)


def display_name(name: str | None) -> str | None:
    """The last part of a file name, without unprintable characters; None if nothing is left.

    It is only for display: it is not used as a path, and no decoder sees it.
    """
    last = PureWindowsPath(name or "").name
    return "".join(character for character in last if character.isprintable()).strip()[:MAX_NAME_LENGTH] or None


class _Parser(MultiPartParser):
    spool_max_size = 0  # never onto a disk, so that nothing of a recording is left behind
    _has_ended = False

    def take_files(self, field: str, open_file: Callable[[], BinaryIO] | None) -> None:
        """Take files in `field` only. If `open_file` is given, each is written to a file that it opens."""
        self._field = field
        self._open_file = open_file

    async def parse(self) -> FormData:
        """Raises MultiPartException, also if the form is not in the charset that it names.

        Raises InputError for a form without its last boundary, whose last file or field would be left out.
        """
        try:
            form = await super().parse()
        except UnicodeError as error:
            raise MultiPartException("The form is not in the charset that it names.") from error
        if not self._has_ended:
            raise InputError("The form has no end: its last boundary is missing. Send the form again.")
        return form

    def on_end(self) -> None:
        self._has_ended = True

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        part = self._current_part
        if part.file is None:
            return
        if part.field_name != self._field:
            raise MissingInput(f"Send files in the field {self._field} only; this form has one in another field.")
        if self._open_file:
            part.file.file = self._open_file()
            self._files_to_close_on_error.append(part.file.file)  # type: ignore[arg-type]

    @property
    def files_begun(self) -> int:
        return self._current_files

    def close(self) -> None:
        """Close every file, including those of a form that ended early."""
        for file in self._files_to_close_on_error:
            file.close()


async def _in_time(
    request: Request, max_bytes: int, pace: AdmissionConfig, arrived: Arrived
) -> AsyncGenerator[bytes, None]:
    """The body in chunks as they arrive. Raises UploadTooSlow if it takes too long or is too slow on average, and what
    `arrived` raises."""
    started = asyncio.get_running_loop().time()
    received, slowest = 0, slowest_bytes_per_second(request, max_bytes, pace)
    chunks = request.stream()
    while True:
        patience = min(pace.max_body_seconds, GRACE_SECONDS + received / slowest)
        try:
            async with asyncio.timeout_at(started + patience):
                chunk = await anext(chunks, None)
        except TimeoutError as error:
            raise UploadTooSlow(
                f"The upload is too slow: send at least {math.ceil(slowest)} bytes a second, and all of it within "
                f"{pace.max_body_seconds:g} seconds."
            ) from error
        if chunk is None:
            return
        arrived(len(chunk))
        received += len(chunk)
        yield chunk


def _declared_bytes(request: Request) -> int | None:
    """The size that a body declares; None if it declares none."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isascii() and declared.isdigit() else None


def max_form_bytes(limits: Limits, max_files: int) -> int:
    """The most bytes that a form with this many files may have."""
    return max_files * limits.max_upload_bytes + FRAMING_BYTES


async def _at_most(max_bytes: int, body: AsyncIterator[bytes], limits: Limits) -> AsyncGenerator[bytes, None]:
    received = 0
    async for chunk in body:
        received += len(chunk)
        if received > max_bytes:
            raise _too_large(limits)
        yield chunk


def _too_large(limits: Limits) -> UploadTooLarge:
    return UploadTooLarge(f"Send at most {limits.max_upload_mib:g} MiB a file.")
