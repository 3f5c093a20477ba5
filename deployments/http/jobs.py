"""The endpoints of /jobs: recordings that are judged in the background."""

# No `from __future__ import annotations` here, because FastAPI reads the annotations of the endpoints.

import asyncio
import hashlib
import itertools
import json
import os
import re
import secrets
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from typing import Annotated, Any, BinaryIO

from fastapi import Depends, FastAPI, Path, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field, ValidationError

from deployments.args import JobSettings
from deployments.http import answers, problems
from deployments.http.admission import Admission, AdmissionConfig, Arrived, Room
from deployments.http.uploads import (
    FILES,
    Options,
    body_bytes,
    describe_form,
    display_name,
    max_form_bytes,
    receive_form,
)
from deployments.jobs import answer
from deployments.jobs.sound import NO_ROOM, SoundFolder
from deployments.jobs.store import UNFINISHED, Job, JobStore, NewFile, not_found
from deployments.jobs.webhooks import NO_NAMES, NOT_REACHED, Webhooks, read_secret
from deployments.threads import in_threads
from pipeline.config import Limits, Strict, describe_misfits
from pipeline.errors import (
    IdempotencyConflict,
    InputError,
    JobNotFound,
    NamesUnavailable,
    Overloaded,
    RateExceeded,
    StoreUnavailable,
    UploadTooLarge,
    WebhookRefused,
)

POLL_SECONDS = 0.5
"""How often the state of a followed job is read."""

KEEP_ALIVE_SECONDS = 15.0
"""How often something is sent to a client that follows a job, so that no proxy closes the connection as idle."""

UPLOADS_AT_ONCE = 2
"""How many of the largest jobs a replica receives at a time, or more smaller ones of as many bytes."""

THREADS = 8
"""How many calls of the database, and files that are flushed to the disk, a replica waits for at a time."""

ID_PATTERN = "^[0-9a-f]{32}$"
"""What the id of a job looks like. No other text is looked for in the database, which cannot store every text."""

JobId = Annotated[str, Path(description="The id of the job, as `POST /jobs` answered it.")]

TOO_MANY_FOLLOWERS = "Too many clients follow jobs now. Ask for /jobs/{job_id} from time to time instead."

MAX_KEY_LENGTH = 200
CHUNK_BYTES = 1 << 20


class JobFields(Options):
    """The fields of a form besides its files."""

    webhook: str | None = Field(None, description="The http or https address to call when the job is done.")


class Page(Strict):
    """The query of GET /jobs."""

    limit: int = Field(20, ge=1, le=100, description="How many jobs at most.")
    before: str | None = Field(None, pattern=ID_PATTERN, description="Only jobs older than this one, by its id.")


class Jobs:
    """Accepts jobs and reports on them. The JobRunner does the work; both share the database and the folder."""

    def __init__(self, settings: JobSettings, pace: AdmissionConfig, admission: Admission) -> None:
        self._settings = settings
        self._pace = pace
        self._admission = admission
        self._limits: Limits = settings.limits
        self._store = JobStore(settings.database_url)
        self._sound = SoundFolder(settings.sound_path)
        self._sound.create()
        secret = settings.webhook_secret_file
        self._webhooks = Webhooks(read_secret(secret), settings.webhook_networks) if secret else None
        self._threads = ThreadPoolExecutor(THREADS, "jobs")
        self._followers = 0
        self._uploads = Room(UPLOADS_AT_ONCE * max_form_bytes(self._limits, self._limits.max_files))

    def add_routes(self, app: FastAPI) -> None:
        """Add these paths to `app`."""
        form = describe_form("files", FILES, JobFields) | IDEMPOTENCY_KEY
        app.add_api_route(
            "/jobs",
            self.create,
            methods=["POST"],
            status_code=202,
            operation_id="create_job",
            responses=CREATE,
            openapi_extra=form,
        )
        app.add_api_route("/jobs", self.latest, operation_id="list_jobs", responses=LATEST, openapi_extra=QUERY)
        app.add_api_route("/jobs/{job_id}", self.get, operation_id="get_job", responses=ONE)
        app.add_api_route("/jobs/{job_id}", self.cancel, methods=["DELETE"], operation_id="cancel_job", responses=ONE)
        app.add_api_route(
            "/jobs/{job_id}/events",
            self.events,
            operation_id="follow_job",
            dependencies=[Depends(self._count_follower)],
            responses=EVENTS,
            response_class=StreamingResponse,
        )

    def describe(self) -> dict[str, Any]:
        """The part of /info about jobs."""
        return {
            "limits": self._limits.model_dump(),
            "keep_results_hours": self._settings.keep_results_hours,
            "webhooks": self._webhooks is not None,
        }

    async def create(self, request: Request) -> JSONResponse:
        """Accept recordings to judge in the background. A second request with the same Idempotency-Key gets the same
        job."""
        key = request.headers.get("idempotency-key")
        if key is not None and not (0 < len(key) <= MAX_KEY_LENGTH and key.isprintable()):
            raise InputError(f"Idempotency-Key: send 1 to {MAX_KEY_LENGTH} printable characters.")
        job_id = secrets.token_hex(16)
        size = body_bytes(request, self._limits, self._limits.max_files)
        with self._uploads.receive(size) as arrived, self._admission.arrival():
            await in_threads(
                self._threads, self._store.check_room, owner(request), key, self._settings.max_waiting_files
            )
            try:
                files, fields, fingerprint = await self._receive(request, job_id, arrived)
            except BaseException:
                await in_threads(self._threads, self._sound.delete, job_id, range(self._limits.max_files))
                raise
        adding = in_threads(
            self._threads,
            self._store.add,
            owner(request),
            files,
            fields.model_dump(exclude={"webhook"}),
            job_id=job_id,
            fingerprint=fingerprint,
            request_id=problems.request_id(request),
            idempotency_key=key,
            webhook=fields.webhook,
            max_waiting=self._settings.max_waiting_files,
        )
        # After any other error the sound stays, because the job may exist by now. If not, it is deleted later.
        try:
            job, is_new = await adding
        except (IdempotencyConflict, Overloaded, RateExceeded):
            await in_threads(self._threads, self._sound.delete, job_id, range(len(files)))
            raise
        if not is_new:
            await in_threads(self._threads, self._sound.delete, job_id, range(len(files)))
        return JSONResponse(self._document(job), HTTPStatus.ACCEPTED, {"Location": f"/jobs/{job.id}"})

    async def latest(self, request: Request) -> JSONResponse:
        """The latest jobs of the calling key, without their results."""
        try:
            page = Page.model_validate(dict(request.query_params))
        except ValidationError as error:
            raise InputError(describe_misfits(error)) from error
        jobs = await in_threads(self._threads, self._store.latest, owner(request), page.limit + 1, page.before)
        shown = jobs[: page.limit]
        summaries = [answer.summary(job, self._settings.keep_seconds) for job in shown]
        return JSONResponse({"jobs": summaries, "next": shown[-1].id if len(jobs) > len(shown) else None})

    async def get(self, request: Request, job_id: JobId) -> JSONResponse:
        """The progress of a job, and the results of its files."""
        return JSONResponse(self._document(await self._find(request, job_id)))

    async def cancel(self, request: Request, job_id: JobId) -> JSONResponse:
        """Stop a job and delete its recordings. A finished job is deleted with its results. Returns the job's last
        state."""
        job = await self._find(request, job_id)
        if job.state in UNFINISHED:
            job = await in_threads(self._threads, self._store.cancel, owner(request), job_id)
            await in_threads(self._threads, self._sound.delete, job_id, range(len(job.files)))
            if job.state == "cancelled":
                return JSONResponse(self._document(job))
            # It was finished before it could be stopped.
        await in_threads(self._threads, self._store.delete, owner(request), job_id)
        return JSONResponse(self._document(job))

    async def events(self, request: Request, job_id: JobId) -> StreamingResponse:
        """The job after each change, as server-sent events, until it is finished. The last event has the results."""
        job = await self._current(owner(request), checked_id(job_id))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would hold events back
        return StreamingResponse(self._follow(job), headers=headers, media_type="text/event-stream")

    async def _find(self, request: Request, job_id: str) -> Job:
        """A job of the calling key. Raises JobNotFound."""
        return await in_threads(self._threads, self._store.get, owner(request), checked_id(job_id))

    async def _count_follower(self) -> AsyncIterator[None]:
        """Counts a request until its answer is over, however it ends. Raises Overloaded if there are too many."""
        if self._followers >= self._settings.max_followers:
            raise Overloaded(TOO_MANY_FOLLOWERS)
        self._followers += 1
        try:
            yield
        finally:
            self._followers -= 1

    async def _follow(self, job: Job) -> AsyncIterator[str]:
        """The events of a job. Only the last has its results. While the database does not answer, there are none."""
        sent, sent_at = "", 0.0
        with suppress(JobNotFound):
            while job.state in UNFINISHED:
                state = answer.summary(job, self._settings.keep_seconds)
                what = json.dumps(state | {"seconds_left": None})
                if what != sent:
                    yield _event(state)
                    sent, sent_at = what, time.monotonic()
                elif time.monotonic() - sent_at > KEEP_ALIVE_SECONDS:
                    yield ": the job goes on\n\n"
                    sent_at = time.monotonic()
                await asyncio.sleep(POLL_SECONDS)
                with suppress(StoreUnavailable):
                    job = await self._current(job.owner, job.id)
            yield _event(self._document(job))

    async def _current(self, owner: str, job_id: str) -> Job:
        """A job as it is now, with its results only if it is finished. Raises JobNotFound."""
        job = await in_threads(self._threads, self._store.get, owner, job_id, with_results=False)
        if job.state in UNFINISHED:
            return job
        return await in_threads(self._threads, self._store.get, owner, job_id)

    async def _receive(self, request: Request, job_id: str, arrived: Arrived) -> tuple[list[NewFile], JobFields, str]:
        """Write the files of a form to the folder. Returns them, the fields, and a fingerprint of both."""
        limits, positions = self._limits, itertools.count()

        def open_file() -> BinaryIO:
            return self._sound.write(job_id, next(positions))

        form = receive_form(request, "files", limits, self._pace, limits.max_files, arrived, JobFields, open_file)
        try:
            async with form as (parts, fields):
                files = [NewFile(display_name(part.filename), part.size or 0) for part in parts]
                if any(file.size > limits.max_upload_bytes for file in files):
                    raise UploadTooLarge(f"Send at most {limits.max_upload_mib:g} MiB a file.")
                digests = [await in_threads(self._threads, _settle, part.file) for part in parts]
        except OSError as error:
            raise StoreUnavailable(NO_ROOM) from error
        if fields.webhook is not None:
            if self._webhooks is None:
                raise WebhookRefused("webhook: this service sends none. Ask for /jobs/{job_id} instead.")
            await self._webhooks.check(fields.webhook)
        named = [f"{file.name} {digest}" for file, digest in zip(files, digests, strict=True)]
        fingerprint = hashlib.sha256("\n".join([fields.model_dump_json(), *named]).encode()).hexdigest()
        return files, fields, fingerprint

    def _document(self, job: Job) -> dict[str, Any]:
        return answer.document(job, self._settings.keep_seconds)


def owner(request: Request) -> str:
    """The owner of a request's jobs: the name of its key; empty if the service has no keys."""
    key = getattr(request.state, "key", None)
    return key.name if key else ""


def checked_id(job_id: str) -> str:
    """The id of a job, as it came in a path. Raises JobNotFound if it cannot be one."""
    if not re.fullmatch(ID_PATTERN, job_id):
        raise not_found()
    return job_id


def _event(state: dict[str, Any]) -> str:
    return f"event: state\ndata: {json.dumps(state)}\n\n"


def _settle(file: BinaryIO) -> str:
    """Flush a written file to the disk, and return its SHA-256."""
    os.fsync(file.fileno())
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


_JOB: dict[str, Any] = {
    "job_id": "2f1c0e8a6b5d4c3f9e7a1b2c3d4e5f60",
    "status": "running",
    "stage": "TkanExtractor",
    "progress": 0.74,
    "seconds_left": 21.5,
    "created_at": answers.TIMESTAMP,
    "started_at": answers.TIMESTAMP,
    "finished_at": None,
    "kept_until": None,
    "total_files": 2,
    "files": [
        {"filename": "notes.txt", "status": "done", "stage": None, "progress": 1.0, "attempts": 1},
        {"filename": "call.webm", "status": "running", "stage": "TkanExtractor", "progress": 0.74, "attempts": 1},
    ],
    "webhook": {"status": "waiting", "attempts": 0},
}
_RESULTS = answers.BATCH[200]["content"]["application/json"]["examples"]["one_broken_file"]["value"]["results"][::-1]
_RUNNING = _JOB | {"successful": 0, "failed": 1, "results": _RESULTS[:1]}
_DONE = _RUNNING | {
    "status": "done",
    "stage": None,
    "progress": 1.0,
    "seconds_left": None,
    "finished_at": "2026-01-01T00:01:20Z",
    "kept_until": "2026-01-02T00:01:20Z",
    "files": [file | {"status": "done", "stage": None, "progress": 1.0} for file in _JOB["files"]],
    "webhook": {"status": "delivered", "attempts": 1},
    "successful": 1,
    "results": _RESULTS,
}
_QUEUED = _RUNNING | {
    "status": "queued",
    "stage": None,
    "progress": 0.0,
    "seconds_left": None,
    "started_at": None,
    "files": [file | {"status": "queued", "stage": None, "progress": 0.0, "attempts": 0} for file in _JOB["files"]],
    "failed": 0,
    "results": [],
}

JOB_ERRORS = (
    not_found(),
    StoreUnavailable("The jobs cannot be reached at present. Try again in a while."),
)

CREATE = {
    202: answers.ok(answer.JobAnswer, queued=_QUEUED)[200],
    **answers.problems(
        *answers.COMMON_ERRORS,
        *answers.FORM_ERRORS,
        WebhookRefused(NOT_REACHED),
        IdempotencyConflict("This Idempotency-Key came with another request before. Use a new key for each job."),
        NamesUnavailable(NO_NAMES),
        JOB_ERRORS[1],
    ),
}
CREATE[202]["headers"] = {"Location": {"description": "Where to ask for the job.", "schema": {"type": "string"}}}

LATEST = {
    **answers.ok(answer.JobsAnswer, one_running={"jobs": [_JOB], "next": None}),
    **answers.problems(
        *answers.COMMON_ERRORS,
        InputError("limit: Input should be less than or equal to 100"),
        *JOB_ERRORS,
    ),
}

ONE = {
    **answers.ok(answer.JobAnswer, running=_RUNNING, done=_DONE),
    **answers.problems(*answers.COMMON_ERRORS, *JOB_ERRORS),
}

EVENTS = {
    200: {
        "description": "Events of the type `state`. The data is the job, in one line.",
        "content": {"text/event-stream": {"example": f"event: state\ndata: {json.dumps(_JOB)}\n\n"}},
    },
    **answers.problems(*answers.COMMON_ERRORS, *JOB_ERRORS, Overloaded(TOO_MANY_FOLLOWERS)),
}

EXAMPLES = {
    "/jobs": {**LATEST, **CREATE},
    "/jobs/{job_id}": ONE,
    "/jobs/{job_id}/events": EVENTS,
}

IDEMPOTENCY_KEY = {
    "parameters": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": "A text of your choice. The same request with the same text gets the same job.",
            "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH},
        }
    ]
}

QUERY = {
    "parameters": [
        {"name": name, "in": "query", "required": False, "description": schema["description"], "schema": schema}
        for name, schema in Page.model_json_schema()["properties"].items()
    ]
}
