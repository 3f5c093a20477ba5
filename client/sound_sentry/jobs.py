"""`sound-sentry jobs`: recordings that are judged in the background."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from sound_sentry.client import SoundSentry
from sound_sentry.files import find, judging_options
from sound_sentry.models import Job, JobSummary
from sound_sentry.output import Output, print_to_output


def submit(arguments: argparse.Namespace) -> int:
    """Submit files as one job, and print its id, or wait for its results if asked to."""
    with _service(arguments) as sentry:
        paths = find(arguments.files, sentry.info().supported_formats)
        recordings = [sys.stdin.buffer.read() if path == "-" else path for path in paths]
        job = sentry.submit(
            recordings,
            webhook=arguments.webhook,
            idempotency_key=arguments.idempotency_key,
            **judging_options(arguments),
        )
        if arguments.wait:
            return _wait(sentry, job.job_id, arguments)
        print(job.job_id)
        return 0


def wait(arguments: argparse.Namespace) -> int:
    """Wait for a job, and show its results."""
    with _service(arguments) as sentry:
        return _wait(sentry, arguments.job, arguments)


def show(arguments: argparse.Namespace) -> int:
    """Show the results of a job, or its progress."""
    with _service(arguments) as sentry:
        return _results(sentry, sentry.job(arguments.job), arguments)


def latest(arguments: argparse.Namespace) -> int:
    """Show the latest jobs."""
    with _service(arguments) as sentry:
        _print_states(sentry.jobs().jobs, arguments)
    return 0


def cancel(arguments: argparse.Namespace) -> int:
    """Stop a job, or delete a finished one."""
    with _service(arguments) as sentry:
        _print_states([sentry.cancel(arguments.job)], arguments)
    return 0


def _service(arguments: argparse.Namespace) -> SoundSentry:
    return SoundSentry(arguments.url, arguments.api_key)


def _wait(sentry: SoundSentry, job_id: str, arguments: argparse.Namespace) -> int:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(job_id, total=1.0)
        for state in sentry.events(job_id):
            left = "" if state.seconds_left is None else f", about {state.seconds_left:.0f} s left"
            bar.update(task, completed=state.progress, description=f"{state.stage or state.status}{left}")
    return _results(sentry, state, arguments)


def _results(sentry: SoundSentry, state: JobSummary, arguments: argparse.Namespace) -> int:
    if not isinstance(state, Job) or state.status != "done":
        _print_states([state], arguments)
        return 2
    output = Output(arguments, sentry.info())
    for result in state.results:
        output.add(result)
    return output.finish()


def _print_states(states: Iterable[JobSummary], arguments: argparse.Namespace) -> None:
    """Show one row per job, or one JSON object per line."""
    if arguments.output == "json":
        for state in states:
            print(state.model_dump_json(exclude_unset=True))
        return
    table = Table("JOB", "STATUS", "FILES", "SUBMITTED", "DONE", "SECONDS LEFT", "STAGE", box=None, pad_edge=False)
    for state in states:
        left = "" if state.seconds_left is None else f"{state.seconds_left:.0f}"
        submitted = f"{state.created_at:%Y-%m-%dT%H:%M:%SZ}"
        done = f"{100 * state.progress:.0f} %"
        table.add_row(state.job_id, state.status, str(state.total_files), submitted, done, left, state.stage or "")
    print_to_output(table)
