"""`sound-sentry jobs`: recordings that are judged in the background."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Collection, Iterable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from sound_sentry.client import SoundSentry
from sound_sentry.files import find, judging_options
from sound_sentry.models import FailedFile, Job, JobSummary
from sound_sentry.output import Output, failed_file, print_to, shown


def submit(arguments: argparse.Namespace) -> int:
    """Submit files as one job, and show its id, or wait for its results if asked to.

    Files that cannot be read are left out, and told. Raises ValueError if `--csv` or `--report` is given without
    `--wait`.
    """
    if not arguments.wait and (arguments.output == "csv" or arguments.report):
        raise ValueError("--csv and --report show results: add --wait, or ask for them with `sound-sentry jobs wait`.")
    with _service(arguments) as sentry:
        info = sentry.info()
        files, failed = _readable(find(arguments.files, info))
        if arguments.wait:
            with Output(arguments, info) as output:
                return _submit_and_wait(sentry, files, failed, output, arguments)
        for result in failed:
            print(f"{shown(result.filename or '')}: {result.error.detail}", file=sys.stderr)
        if files:
            job = _submit(sentry, files, arguments)
            if arguments.output == "json":
                _print_states([job], arguments)
            else:
                print(job.job_id)
    return 2 if failed else 0


def wait(arguments: argparse.Namespace) -> int:
    """Wait for a job, and show its results."""
    with _service(arguments) as sentry, Output(arguments, sentry.info()) as output:
        return _wait(sentry, arguments.job, output, arguments)


def show(arguments: argparse.Namespace) -> int:
    """Show the results of a job, or its progress."""
    with _service(arguments) as sentry, Output(arguments, sentry.info()) as output:
        return _results(sentry.job(arguments.job), output, arguments)


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


def _readable(paths: Iterable[str]) -> tuple[list[str], list[FailedFile]]:
    """The files that can be read, and the results of the others. A pipe is not tried: it can be read only once."""
    files: list[str] = []
    failed: list[FailedFile] = []
    for path in paths:
        try:
            if path != "-" and not stat.S_ISFIFO(os.stat(path).st_mode):
                open(path, "rb").close()
            files.append(path)
        except OSError as error:
            failed.append(failed_file(error, path))
    return files, failed


def _submit(sentry: SoundSentry, files: Iterable[str], arguments: argparse.Namespace) -> Job:
    return sentry.submit(
        [sys.stdin.buffer.read() if path == "-" else path for path in files],
        webhook=arguments.webhook,
        idempotency_key=arguments.idempotency_key,
        **judging_options(arguments),
    )


def _submit_and_wait(
    sentry: SoundSentry,
    files: Collection[str],
    failed: Iterable[FailedFile],
    output: Output,
    arguments: argparse.Namespace,
) -> int:
    for result in failed:
        output.add(result)
    if not files:
        return output.exit_code
    job = _submit(sentry, files, arguments)
    print(job.job_id, file=sys.stderr)  # so that the job is not lost if the wait is ended
    return _wait(sentry, job.job_id, output, arguments)


def _service(arguments: argparse.Namespace) -> SoundSentry:
    return SoundSentry(arguments.url, arguments.api_key)


def _wait(sentry: SoundSentry, job_id: str, output: Output, arguments: argparse.Namespace) -> int:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(job_id, total=1.0)
        for state in sentry.events(job_id):
            left = "" if state.seconds_left is None else f", about {state.seconds_left:.0f} s left"
            bar.update(task, completed=state.progress, description=f"{state.stage or state.status}{left}")
    return _results(state, output, arguments)


def _results(state: JobSummary, output: Output, arguments: argparse.Namespace) -> int:
    if not isinstance(state, Job) or state.status != "done":
        _print_states([state], arguments)
        return 2
    for result in state.results:
        output.add(result)
    return output.exit_code


def _print_states(states: Iterable[JobSummary], arguments: argparse.Namespace) -> None:
    """Show one row per job, or one JSON object per line. With --csv the rows of jobs are not among those of files."""
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
    print_to(sys.stderr if arguments.output == "csv" else sys.stdout, table)
