"""`sound-sentry predict`: the verdicts on files, a few at a time."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Iterable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sound_sentry.calls import Options
from sound_sentry.client import AsyncSoundSentry
from sound_sentry.errors import SoundSentryError
from sound_sentry.files import find, judging_options
from sound_sentry.models import FileResult
from sound_sentry.output import Output, failed_file, file_result

FILES_AT_ONCE = 4


def predict(arguments: argparse.Namespace) -> int:
    """Judge files, and show the result of each."""

    async def judge() -> int:
        async with AsyncSoundSentry(arguments.url, arguments.api_key) as sentry:
            info = await sentry.info()  # a wrong address is reported once, not for every file
            paths = find(arguments.files, info)
            with Output(arguments, info) as output, _progress(arguments) as bar:
                task = bar.add_task("", total=len(paths))
                async for result in _judge_all(sentry, paths, judging_options(arguments)):
                    output.add(result)
                    bar.advance(task)
            return output.exit_code

    return asyncio.run(judge())


async def _judge_all(sentry: AsyncSoundSentry, paths: Iterable[str], options: Options) -> AsyncIterator[FileResult]:
    """The result of each file, in their order. A few files are sent to the service at a time."""
    slots = asyncio.Semaphore(FILES_AT_ONCE)

    async def judge(path: str) -> FileResult:
        async with slots:
            try:
                answer = await sentry.predict(sys.stdin.buffer.read() if path == "-" else path, **options)
            except (SoundSentryError, OSError) as error:
                return failed_file(error, path)
            return file_result(answer, path)

    tasks = [asyncio.create_task(judge(path)) for path in paths]
    try:
        for task in tasks:
            yield await task
    finally:
        for task in tasks:
            task.cancel()


def _progress(arguments: argparse.Namespace) -> Progress:
    """A progress bar on standard error, if that is a terminal and no answers are written to a terminal meanwhile."""
    written_to = arguments.output != "table" and sys.stdout.isatty()
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=written_to or not sys.stderr.isatty(),
    )
