"""Verdicts on a folder, a bucket or a list of files, on Ray Data: one row a file.

    python -m deployments.bulk recordings --out verdicts.csv
    python -m deployments.bulk s3://bucket/calls --out s3://bucket/verdicts.parquet --address auto

A file that cannot be answered has its error in its row. Run again after it was stopped, the same command goes on where
it was; run again later, it scores what is new. The results are written at the end; meanwhile the answers are kept in a
folder beside them whose name ends in .journal.
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

from pipeline.errors import ConfigurationError, SoundSentryError
from pipeline.predict import add_settings, settings_of

if TYPE_CHECKING:
    from deployments.bulk.journal import Journal

DECIDING = {"limits", "voice_activity", "diarization", "windows", "decision"}
"""The sections of the configuration that answers depend on."""
CONNECT_SECONDS = 10.0
JOURNAL_SECONDS, JOURNAL_ROWS = 2.0, 1_000
"""Answers are kept at the latest when they are this old or this many."""


def connect(address: str | None) -> None:
    """Connect to the Ray cluster at `address`, or at RAY_ADDRESS; without either to one of this process's own, which
    listens on the loopback address alone."""
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    if address is None and not os.environ.get("RAY_ADDRESS"):
        # Only where Ray holds that this machine forms no clusters does it listen on no other address. Read at import.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        folder = tempfile.mkdtemp(prefix="sound-sentry-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        options |= {"_temp_dir": folder, "include_dashboard": False}
    import ray

    if ray.is_initialized():
        return
    atexit.register(ray.shutdown)  # the last registered is first: Ray stops before its folder goes
    place = address or os.environ.get("RAY_ADDRESS", "")
    try:
        # Ray would knock for minutes at a door that nobody opens.
        if found := re.fullmatch(r"([^:/]+):(\d+)", place):
            socket.create_connection((found[1], int(found[2])), CONNECT_SECONDS).close()
        ray.init(**options)
    except OSError as error:
        raise ConfigurationError(f"There is no Ray cluster at {place}: start one, or name another.") from error


def keep(answers: Iterable[dict[str, Any]], journal: Journal) -> Generator[dict[str, Any]]:
    """Pass `answers` on, and add them to the journal, some at a time; at the end, or when closed, the last ones."""
    waiting: list[dict[str, Any]] = []
    since = time.monotonic()
    try:
        for answer in answers:
            waiting.append(answer)
            if len(waiting) >= JOURNAL_ROWS or time.monotonic() - since > JOURNAL_SECONDS:
                journal.add(waiting)
                waiting, since = [], time.monotonic()
            yield answer
    finally:
        if waiting:
            journal.add(waiting)


def run(options: argparse.Namespace) -> str:
    """Score what has no answer yet and write the results; returns what to tell. Raises SoundSentryError."""
    from deployments.bulk.inputs import find_files
    from deployments.bulk.journal import Journal
    from pipeline.config import DetectorConfig
    from pipeline.progress import with_progress
    from pipeline.storage import locate, shown
    from pipeline.verdict.bundle import Bundle

    config, asked = DetectorConfig.load(options.config), settings_of(options)
    settings = {
        "model": Bundle.load(config.bundle_path).sha256,
        "config": config.model_dump(mode="json", include=DECIDING),
        "asked": asked,
    }
    journal = Journal(options.out, settings)
    _, out = locate(options.out)
    files = [file for file in find_files(options.input) if not file.place.startswith(out)]
    done = journal.done(again_failed=options.again_failed)
    pending = [file for file in files if file.name not in done]
    if pending:
        connect(options.address)
        from deployments.bulk.scoring import Scorer, default_gpu_share, places, score

        num_gpus = default_gpu_share() if options.gpu is None else options.gpu
        answers = score(
            pending,
            Scorer,
            (config, options.input, asked),
            actors=options.actors or places(num_gpus),
            num_gpus=num_gpus,
        )
        with closing(keep(answers, journal)) as kept:  # closed at Ctrl-C, too
            for _ in with_progress(kept, len(pending), "files"):
                pass
    counts = journal.write_results()
    told = ", ".join(f"{count} {result}" for result, count in sorted(counts.items()))
    return f"{shown(options.out)}: {told}; {len(pending)} of {sum(counts.values())} scored in this run"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m deployments.bulk",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit code: 0 every file has its row, be it an error; 2 it could not be done; 130 it was interrupted",
    )
    parser.add_argument("input", metavar="IN", help="a folder, a bucket, or a .csv or .parquet with a column `path`")
    parser.add_argument(
        "--out", required=True, help="where the results go: .csv, .jsonl or .parquet, here or in a bucket"
    )
    parser.add_argument("--address", help="Ray cluster to work on, such as auto (default: one of its own)")
    parser.add_argument("--actors", type=int, help="processes at most (default: as the cluster has room for now)")
    parser.add_argument("--gpu", type=float, metavar="SHARE", help="share of a GPU a process (default: 0.25 if any)")
    add_settings(parser)
    parser.add_argument("--again-failed", action="store_true", help="score files anew whose answer is an error")
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
