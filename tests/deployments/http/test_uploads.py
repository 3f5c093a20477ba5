from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import Request

from deployments.http import uploads
from deployments.http.admission import AdmissionConfig
from deployments.http.uploads import (
    FRAMING_BYTES,
    Options,
    Upload,
    body_bytes,
    display_name,
    read_form,
    slowest_bytes_per_second,
)
from pipeline.config import Limits
from pipeline.errors import InputError, MissingInput, SoundSentryError, TooManyFiles, UploadTooLarge
from tests.ingress import CONFIG, problem, run, served

LIMITS = Limits(max_upload_mib=1)
CHUNK = 16 * 1024


class Form:
    """A form as it arrives over HTTP, chunk by chunk. `taken` counts the bytes that were read, and `counted` those for
    which room was asked."""

    def __init__(self, files: Any = None, data: dict[str, Any] | None = None, *, declared: bool = True) -> None:
        self.request = httpx.Request("POST", "http://test/predict", files=files, data=data)
        self.body = self.request.read()
        self.declared = declared
        self.taken = self.counted = 0

    def read(self, field: str = "audio", max_files: int = 1) -> tuple[list[Upload], Options]:
        headers = [
            (name.lower(), value)
            for name, value in self.request.headers.raw
            if self.declared or name.lower() != b"content-length"
        ]
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers}
        chunks = self._chunks()

        async def receive() -> dict[str, Any]:
            return next(chunks)

        form = read_form(Request(scope, receive), field, LIMITS, AdmissionConfig(), max_files, self._count)
        return asyncio.run(form)

    def _count(self, part_bytes: int) -> None:
        self.counted += part_bytes

    def _chunks(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self.body), CHUNK):
            part = self.body[start : start + CHUNK]
            self.taken += len(part)
            yield {"type": "http.request", "body": part, "more_body": start + CHUNK < len(self.body)}


def audio(data: bytes = b"RIFF", name: str = "audio.webm") -> list[tuple[str, tuple[str, bytes]]]:
    return [("audio", (name, data))]


def test_a_file_and_the_defaults() -> None:
    form = Form(audio(b"RIFF..."))
    uploads, options = form.read()
    assert form.counted == len(form.body)
    assert uploads == [Upload("audio.webm", b"RIFF...")]
    assert options == Options(use_diarization=False, operating_point="balanced", explain=False)


@pytest.mark.parametrize(("value", "meaning"), [("true", True), ("on", True), ("1", True), ("false", False)])
def test_the_ways_to_say_yes_and_no(value: str, meaning: bool) -> None:
    _, options = Form(audio(), {"use_diarization": value}).read()
    assert options.use_diarization is meaning


def test_channels_and_track() -> None:
    _, options = Form(audio(), {"channels": "split", "track": "1"}).read()
    assert options == Options(channels="split", track=1)


def test_a_field_without_a_value_is_absent() -> None:
    """A browser sends all fields of a form, also those that were left empty."""
    empty = dict.fromkeys(Options.model_fields, "")
    assert Form(audio(), empty).read()[1] == Options()
    assert Form(audio(), empty | {"track": "1"}).read()[1] == Options(track=1)


def test_a_large_file_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an upload was written to a file")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", refuse)
    data = bytes(LIMITS.max_upload_bytes)
    assert Form(audio(data)).read()[0][0].data == data


@pytest.mark.parametrize(
    ("files", "fields", "error", "says"),
    [
        (None, {"audio": "not a file"}, MissingInput, "audio"),
        ([("other", ("a.wav", b"RIFF"))], {}, MissingInput, "audio"),
        ([("other", ("a.wav", b"RIFF")), *audio()], {}, MissingInput, "field audio only"),
        (audio() * 2, {}, TooManyFiles, "one file"),
        (audio(), {"use_diarization": "maybe"}, InputError, "use_diarization"),
        (audio(), {"operating_point": "best"}, InputError, "operating_point"),
        (audio(), {"channels": "both"}, InputError, "channels"),
        (audio(), {"track": "first"}, InputError, "track"),
        (audio(), {"track": "-1"}, InputError, "track"),
        (audio(), {"track": "9" * 1_000}, InputError, "track"),
        (audio(), {f"field{i}": "x" for i in range(1_500)}, InputError, "too many"),
        (audio(), {"use_diarization": "x" * 5_000_000}, SoundSentryError, ""),
        (audio(), {"use_diarization": "x" * 10_000}, InputError, "too long"),
    ],
)
def test_forms_that_are_refused(files: Any, fields: Any, error: type[SoundSentryError], says: str) -> None:
    with pytest.raises(error) as refusal:
        Form(files, fields).read()
    assert says in refusal.value.detail
    assert refusal.value.status in (413, 422)


def test_a_body_that_is_no_form() -> None:
    form = Form(audio())
    form.request.headers["content-type"] = "application/json"
    with pytest.raises(MissingInput, match="multipart/form-data"):
        form.read()


@pytest.mark.parametrize("charset", ["undefined", "punycode"])
def test_a_form_that_its_charset_cannot_decode(charset: str) -> None:
    form = Form([("a\\d800", ("a.wav", b"RIFF"))])
    form.request.headers["content-type"] += f"; charset={charset}"
    with pytest.raises(InputError, match="not valid multipart/form-data"):
        form.read()


@pytest.mark.parametrize("cut", [0.2, 0.9])
def test_a_form_that_breaks_off(cut: float) -> None:
    form = Form(audio(b"RIFF" * 100))
    form.body = form.body[: int(len(form.body) * cut)]
    with pytest.raises(InputError):
        form.read()


@pytest.mark.parametrize("last", [("audio", ("b.wav", b"RIFF")), ("channels", (None, "split"))])
def test_a_form_without_its_last_boundary_loses_nothing_in_silence(last: Any) -> None:
    """The last part of such a form would be left out, and the rest answered."""
    files, options = Form([*audio(), last]).read(max_files=2)
    assert len(files) == 2 or options.channels == "split"
    for missing in (3, 20):
        cut = Form([*audio(), last])
        cut.body = cut.body[: len(cut.body) - missing]
        with pytest.raises(InputError, match="no end"):
            cut.read(max_files=2)


def test_a_declared_size_is_refused_unread() -> None:
    request = Request({"type": "http", "headers": [(b"content-length", b"1000000000")]})
    with pytest.raises(UploadTooLarge, match="1 MiB"):
        body_bytes(request, LIMITS, 1)


@pytest.mark.parametrize(
    ("declared", "max_mib", "slowest"),
    [
        (100_000, 25, 4_096),
        (25 * 2**20, 25, 25 * 2**20 / 600),
        (80 * 2**20, 25, 25 * 2**20 / 600),
        (None, 4, 4 * 2**20 / 600),
        (None, 25, 32_768),
        (1_000 * 2**20, 4_000, 1_000 * 2**20 / 600),
        (None, 4_000, 32_768),
    ],
)
def test_a_body_must_be_as_fast_as_its_size_needs(declared: int | None, max_mib: int, slowest: float) -> None:
    headers = [] if declared is None else [(b"content-length", str(declared).encode())]
    request = Request({"type": "http", "headers": headers})
    assert slowest_bytes_per_second(request, max_mib * 2**20, AdmissionConfig()) == slowest


def test_an_undeclared_size_is_refused_while_reading() -> None:
    form = Form(audio(bytes(3 * LIMITS.max_upload_bytes)), declared=False)
    with pytest.raises(UploadTooLarge):
        form.read()
    assert form.taken <= LIMITS.max_upload_bytes + FRAMING_BYTES + CHUNK


def test_a_file_in_another_field_is_refused_before_its_content_is_read() -> None:
    form = Form([("other", ("a.wav", bytes(LIMITS.max_upload_bytes)))])
    with pytest.raises(MissingInput, match="field audio only"):
        form.read()
    assert form.taken == CHUNK


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("call.webm", "call.webm"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\call.wav", "call.wav"),
        ("a\x00b\r\nSet-Cookie: x\u202e.wav", "abSet-Cookie: x.wav"),
        ("Gespräch.mp3", "Gespräch.mp3"),
        ("x" * 500, "x" * 120),
        ("", None),
        (None, None),
        ("\x00", None),
    ],
)
def test_file_names_are_only_shown(name: str | None, shown: str | None) -> None:
    assert display_name(name) == shown


def test_two_files_are_said_to_be_two() -> None:
    async def test() -> None:
        async with served() as (client, _):
            for size in (100, int(0.6 * CONFIG.limits.max_upload_bytes)):
                files = [("audio", ("a.wav", io.BytesIO(bytes(size)))) for _ in range(2)]
                refused = problem(await client.post("/predict", files=files), 413)
                assert refused.title == "Too many files"
                assert "one file in the field audio" in refused.detail

    run(test)


@pytest.mark.parametrize(("pause", "size"), [(30.0, 10), (0.02, 1)], ids=["stops", "drops"])
def test_a_body_that_comes_too_slowly_is_refused(pause: float, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "GRACE_SECONDS", 0.2)

    async def test() -> None:
        async def body() -> AsyncIterator[bytes]:
            yield b"--b\r\n"
            while True:
                await asyncio.sleep(pause)
                yield b"x" * size

        async with served(min_bytes_per_second=1_000_000) as (client, _):
            refused = await client.post(
                "/predict", content=body(), headers={"Content-Type": "multipart/form-data; boundary=b"}
            )
            assert problem(refused, 408).title == "Upload too slow"
            assert refused.headers["connection"] == "close"

    run(test)


def test_a_body_that_cannot_be_complete_in_time_is_refused_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would keep its room for minutes, although it is faster than any body must be."""
    monkeypatch.setattr(uploads, "GRACE_SECONDS", 0.2)

    async def test() -> None:
        async def body() -> AsyncIterator[bytes]:
            yield b"--b\r\n"
            while True:
                await asyncio.sleep(0.02)
                yield b"x" * 10

        async with served(min_bytes_per_second=1, max_body_seconds=600) as (client, _):
            headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(25 * 2**20)}
            refused = problem(await client.post("/predict", content=body(), headers=headers), 408)
            assert "at least 43691 bytes a second" in refused.detail

    run(test)
