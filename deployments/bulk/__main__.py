"""Verdicts on a folder, a bucket or a list of files with Ray Data: one row per file.

    python -m deployments.bulk recordings --out verdicts.csv
    python -m deployments.bulk s3://bucket/calls --out s3://bucket/verdicts.parquet --address auto

If a file cannot be judged, its row holds the error. If the command was stopped, the same command goes on where it was.
Later the same command scores only new and changed files. The results are written at the end. Until then the answers are
kept in a folder next to the results whose name ends in .journal.
"""

from __future__ import annotations

import argparse
import atexit
import logging
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits

from pipeline.errors import ConfigurationError, SoundSentryError, StageUnavailable
from pipeline.predict import add_settings, settings_of

if TYPE_CHECKING:
    from deployments.bulk.journal import Journal, Versions

DECIDING = {"limits", "voice_activity", "diarization", "windows", "decision"}
"""The sections of the configuration that the answers depend on."""
CONNECT_SECONDS = 10.0
MAX_PORT = 65_535
JOURNAL_SECONDS, JOURNAL_ROWS = 2.0, 1_000
"""Answers are written to the journal when the first is this old, or when there are this many."""


def connect(address: str | None) -> None:
    """Connect to the Ray cluster at `address` or RAY_ADDRESS. Without either, start a private one that listens on the
    loopback address only.

    Raises ConfigurationError if this is no address, or if there is no cluster at it.
    """
    place = address or os.environ.get("RAY_ADDRESS", "")
    found = re.fullmatch(r"auto|local|(?:ray://)?[^/\s]+:(\d+)", place)
    if place and not (found and int(found[1] or 0) <= MAX_PORT):
        raise ConfigurationError(f"{place!r} is no address of a Ray cluster: write HOST:PORT, or auto.")
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    if address is None and not os.environ.get("RAY_ADDRESS"):
        # Ray listens on the loopback address only if it takes this machine for one that forms no clusters. It reads
        # this variable when it is imported.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # Ray puts sockets into this folder. The path of a socket may have 107 bytes, of which Ray needs up to 64.
        is_short = len(os.fsencode(tempfile.gettempdir())) <= 20
        folder = tempfile.mkdtemp(prefix="sound-sentry-", dir=None if is_short else "/tmp")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        options |= {"_temp_dir": folder, "include_dashboard": False}
    import ray

    if ray.is_initialized():
        return
    atexit.register(ray.shutdown)  # the last one registered runs first: Ray stops before its folder is deleted
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else Ray prints notes about itself as errors
    try:
        # Ray itself would try to connect for minutes.
        if found := re.fullmatch(r"([^:/]+):(\d+)", place):
            socket.create_connection((found[1], int(found[2])), CONNECT_SECONDS).close()
        ray.init(**options)
    except OSError as error:
        if not place:
            raise
        raise ConfigurationError(f"There is no Ray cluster at {place}: start one, or name another.") from error


def keep(answers: Iterable[dict[str, Any]], journal: Journal, versions: Versions) -> Generator[dict[str, Any]]:
    """Yield `answers` unchanged, and add them to the journal in groups; the last group when this ends or is closed."""
    waiting: list[dict[str, Any]] = []
    since = time.monotonic()
    try:
        for answer in answers:
            waiting.append(answer)
            if len(waiting) >= JOURNAL_ROWS or time.monotonic() - since > JOURNAL_SECONDS:
                journal.add(waiting, versions)
                waiting, since = [], time.monotonic()
            yield answer
    finally:
        if waiting:
            journal.add(waiting, versions)


def run(options: argparse.Namespace) -> str:
    """Score the files without an answer, and write the results. Returns the summary. Raises SoundSentryError."""
    from deployments.bulk.inputs import find_files, unambiguous
    from deployments.bulk.journal import Journal
    from pipeline.config import DetectorConfig
    from pipeline.progress import with_progress
    from pipeline.storage import first_line, locate, shown
    from pipeline.verdict.bundle import Bundle

    config, asked = DetectorConfig.load(options.config), settings_of(options)
    settings = {
        "input": unambiguous(options.input),
        "model": Bundle.load(config.bundle_path).sha256,
        "config": config.model_dump(mode="json", include=DECIDING),
        "asked": asked,
    }
    journal = Journal(options.out, settings)
    _, out = locate(options.out)
    files = [file for file in find_files(options.input) if not file.place.startswith(out)]
    versions = {file.name: file.version for file in files}
    done = journal.done(versions, again_failed=options.again_failed)
    pending = [file for file in files if file.name not in done]
    if pending:
        connect(options.address)
        from ray.exceptions import RayError

        from deployments.bulk.scoring import Scorer, gpu_share, places, score

        num_gpus = gpu_share(options.gpu)
        answers = score(
            pending,
            Scorer,
            (config, options.input, asked),
            actors=options.actors or places(num_gpus),
            num_gpus=num_gpus,
        )
        try:
            with closing(keep(answers, journal, versions)) as kept:  # closed at Ctrl-C, too
                for _ in with_progress(kept, len(pending), "files"):
                    pass
        except (RayError, OSError) as error:
            raise StageUnavailable(
                f"The run broke off. The same command goes on where it was. ({first_line(error)})"
            ) from error
    counts = journal.write_results(versions)
    counted = ", ".join(f"{count} {result}" for result, count in sorted(counts.items()))
    return f"{shown(options.out)}: {counted}; {len(pending)} of {sum(counts.values())} scored in this run"


def processes(text: str) -> int:
    """A type for an option: a number of processes, at least 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is too small: give at least 1")
    return int(text)


def share(text: str) -> float:
    """A type for an option: a share of a GPU, from 0 to 1. Ray counts in steps of 0.0001."""
    if not (0 <= float(text) <= 1 and round(float(text), 4) == float(text)):
        raise argparse.ArgumentTypeError(f"{text} is no share: give a number from 0 to 1, with at most four decimals")
    return float(text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m deployments.bulk",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit code: 0 every file has a row, with its answer or its error; 2 the command failed; 130 interrupted",
    )
    parser.add_argument("input", metavar="IN", help="a folder, a bucket, or a .csv or .parquet with a column `path`")
    parser.add_argument(
        "--out", required=True, help="where the results go: .csv, .jsonl or .parquet, here or in a bucket"
    )
    parser.add_argument("--address", help="Ray cluster to use, such as auto (default: RAY_ADDRESS, or a private one)")
    parser.add_argument(
        "--actors",
        type=processes,
        metavar="N",
        help="most processes at a time (default: as many as the cluster can run)",
    )
    parser.add_argument(
        "--gpu", type=share, metavar="SHARE", help="share of a GPU per process (default: 0.25 if there are GPUs)"
    )
    add_settings(parser)
    parser.add_argument("--again-failed", action="store_true", help="score files again whose answer is an error")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration, instead of configs/detector.yaml")
    options = parser.parse_args(arguments)
    try:
        with threadpool_limits(1):
            print(run(options), file=sys.stderr)
        return 0
    except SoundSentryError as error:
        print(f"{error.title}: {error.detail}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on where it was.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
