"""The description of a job for HTTP answers and for its webhook."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field

from deployments.jobs.store import Job, State, WebhookState
from deployments.results import Answer, FailedFile, FileName, JudgedFile

Instant = str


class JobFileAnswer(Answer):
    """The progress of one file of a job."""

    filename: FileName
    status: State = Field(description="`done` if it has its result, either a verdict or an error.")
    stage: str | None = Field(description="The stage that works on it now; null if none does.")
    progress: float = Field(description="How much is done, 0 to 1: an estimate.")
    attempts: int = Field(description="How often it was started. It is started again if its process was lost.")


class WebhookAnswer(Answer):
    """The state of the webhook."""

    status: Literal["waiting", "cancelled", WebhookState] = Field(
        description="`waiting` until the job is done; `cancelled` if the job was cancelled, so that none is sent."
    )
    attempts: int = Field(description="How often it was tried.")


class JobSummary(Answer):
    """A job without its results."""

    job_id: str = Field(description="The id of the job, for all requests about it.")
    status: State = Field(description="`done` if every file has its result, either a verdict or an error.")
    stage: str | None = Field(description="The stage that works on it now; null if none does.")
    progress: float = Field(description="How much is done, 0 to 1: an estimate.")
    seconds_left: float | None = Field(description="About how long it will still take; null if unknown.")
    created_at: Instant = Field(description="UTC, ISO 8601.")
    started_at: Instant | None = Field(description="When the first file was begun; null if none was.")
    finished_at: Instant | None = Field(description="When the job was done or cancelled; null until then.")
    kept_until: Instant | None = Field(
        description="When job and results are deleted, unless its webhook is still pending; null until it is finished."
    )
    total_files: int = Field(description="Number of files that were sent.")
    files: list[JobFileAnswer] = Field(description="One entry per file, in the order sent.")
    webhook: WebhookAnswer | None = Field(description="Null if the job has none.")


class JobAnswer(JobSummary):
    successful: int = Field(description="Number of files with an answer, including those without speech.")
    failed: int = Field(description="Number of files with an error.")
    results: list[JudgedFile | FailedFile] = Field(description="One entry per finished file, in the order sent.")


class JobsAnswer(Answer):
    jobs: list[JobSummary] = Field(description="Newest first.")
    next: str | None = Field(description="The value of `before` for the next page; null if there is none.")


def summary(job: Job, keep_seconds: float) -> dict[str, Any]:
    """A JobSummary."""
    size = sum(max(file.size, 1) for file in job.files)
    progress = sum(max(file.size, 1) * file.progress for file in job.files) / size
    unsent = "cancelled" if job.state == "cancelled" else "waiting"
    webhook = {"status": job.webhook_state or unsent, "attempts": job.webhook_attempts} if job.webhook else None
    return {
        "job_id": job.id,
        "status": job.state,
        "stage": next((file.stage for file in job.files if file.stage), None),
        "progress": round(progress, 4),
        "seconds_left": _seconds_left(job, progress),
        "created_at": _instant(job.created_at),
        "started_at": _instant(job.started_at),
        "finished_at": _instant(job.finished_at),
        "kept_until": None if job.finished_at is None else _instant(job.finished_at + keep_seconds),
        "total_files": len(job.files),
        "files": [
            {
                "filename": file.name,
                "status": file.state,
                "stage": file.stage,
                "progress": round(file.progress, 4),
                "attempts": file.attempts,
            }
            for file in job.files
        ],
        "webhook": webhook,
    }


def document(job: Job, keep_seconds: float) -> dict[str, Any]:
    """A JobAnswer. Results are returned as they were stored, even if an older version of the service wrote them."""
    results = [file.result for file in job.files if file.result is not None]
    failed = sum(result["status"] == "failed" for result in results)
    counts = {"successful": len(results) - failed, "failed": failed}
    return {**summary(job, keep_seconds), **counts, "results": results}


def _seconds_left(job: Job, progress: float) -> float | None:
    """The estimated time for the rest, if it goes at the same speed as the part that is done."""
    if job.state != "running" or job.started_at is None or not progress:
        return None
    return round((time.time() - job.started_at) * (1 - progress) / progress, 1)


def _instant(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
