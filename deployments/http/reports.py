"""Makes a report to print from an answer of the service. The page saves it; any client with an answer can get it."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

from fastapi.responses import HTMLResponse
from pydantic import Field, ValidationError

from deployments.http.answers import Timestamp
from deployments.results import FileName
from pipeline.config import describe_misfits
from pipeline.errors import InputError
from pipeline.report import MAX_PEAKS, Reported, render_report
from pipeline.verdict.answer import Several, Verdict

MAX_MIB = 4
"""The largest accepted answer. An answer for many hours of audio is smaller."""

HEADERS = {
    "Content-Disposition": 'attachment; filename="report.html"',
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'",
}
"""An answer may be forged. So a browser saves the report instead of showing it here, and no script in it runs."""


class ReportRequest(Verdict):
    """An answer of /predict as it was received, and the waveform to draw with it."""

    filename: FileName
    timestamp: Timestamp | None = None
    peaks: Several[Annotated[float, Field(ge=0, le=1)]] = Field((), max_length=MAX_PEAKS)
    """The loudest sample in each of this number of equal stretches of the recording, relative to the loudest of all;
    empty to draw no waveform."""


def describe() -> tuple[dict[str, Any], dict[str, Any]]:
    """The OpenAPI request body, and the schemas that it refers to."""
    schema = ReportRequest.model_json_schema(ref_template="#/components/schemas/Reported{model}")
    parts = {f"Reported{name}": part for name, part in schema.pop("$defs").items()}
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
    return body, parts


async def respond(body: bytes) -> HTMLResponse:
    """The report on the answer in `body`. Raises InputError if it is not an answer."""
    try:
        # Not model_validate_json: while it checks 4 MB of small objects, it holds 2.5 GB.
        request = ReportRequest.model_validate(json.loads(body))
    except ValidationError as error:
        raise _no_answer(describe_misfits(error).partition(";")[0]) from error
    except (ValueError, RecursionError) as error:
        raise _no_answer("the file: Invalid JSON") from error
    recording = Reported(request.filename, request, request.timestamp, request.peaks)
    text = await asyncio.to_thread(render_report, [recording])
    try:
        return HTMLResponse(text, headers=HEADERS)
    except UnicodeEncodeError as error:  # JSON may escape half of a character
        raise _no_answer("the file: Invalid Unicode") from error


def _no_answer(fault: str) -> InputError:
    return InputError(f"This is not an answer of this service: {fault}. Send one as it was received.")
