"""What is told of a job, over HTTP and to its webhook."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field

from deployments.http.answers import Answer, FailedFile, FileName, JudgedFile
from deployments.jobs.store import Job, State, WebhookState

Instant = str


class JobFileAnswer(Answer):
    """How far one file of a job is."""

    filename: FileName
    status: State
    stage: str | None = Field(description="The stage that is at work on it; null where none is.")
    progress: float = Field(description="How much is done, 0 to 1: an estimate.")
    attempts: int = Field(description="How often it was begun: again where what judged it was lost.")


class WebhookAnswer(Answer):
    """How telling the webhook went."""

    status: Literal["waiting", WebhookState] = Field(description="`waiting` until the job is done.")
    attempts: int = Field(description="How often it was tried.")


class JobSummary(Answer):
    """A job without its results."""

    job_id: str
    status: State = Field(description="`done` once every file has its result, be it a verdict or an error.")
    stage: str | None = Field(description="The stage that is at work; null where none is.")
    progress: float = Field(description="How much is done, 0 to 1: an estimate.")
    seconds_left: float | None = Field(description="About how long it will take; null while nobody can tell.")
    created_at: Instant = Field(description="UTC, ISO 8601.")
    started_at: Instant | None
    finished_at: Instant | None
    kept_until: Instant | None = Field(description="When job and results will be gone; null until it is finished.")
    total_files: int
    files: list[JobFileAnswer] = Field(description="One entry a file, in the order sent.")
    webhook: WebhookAnswer | None = Field(description="Null where none was asked for.")


class JobAnswer(JobSummary):
    successful: int = Field(description="Files that were answered, those without speech included.")
    failed: int
    results: list[JudgedFile | FailedFile] = Field(description="One entry a file that is done, in the order sent.")


class JobsAnswer(Answer):
    jobs: list[JobSummary] = Field(description="Newest first.")
    next: str | None = Field(description="What `before` has to be for the next page; null where there is none.")


def summary(job: Job, keep_seconds: float) -> dict[str, Any]:
    """A JobSummary."""
    size = sum(max(file.size, 1) for file in job.files)
    progress = sum(max(file.size, 1) * file.progress for file in job.files) / size
    webhook = {"status": job.webhook_state or "waiting", "attempts": job.webhook_attempts} if job.webhook else None
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
    """A JobAnswer. Results are told as they were written, by whichever version of the service that was."""
    results = [file.result for file in job.files if file.result is not None]
    failed = sum(result["status"] == "failed" for result in results)
    counts = {"successful": len(results) - failed, "failed": failed}
    return {**summary(job, keep_seconds), **counts, "results": results}


def _seconds_left(job: Job, progress: float) -> float | None:
    """What is left takes as long, by its share, as what is done has taken."""
    if job.state != "running" or job.started_at is None or not progress:
        return None
    return round((time.time() - job.started_at) * (1 - progress) / progress, 1)


def _instant(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
