"""Compares the speed of `tune.extract` with several actors and with one, in one run on one machine.

    python -m tests.bench_extract [--actors N] [--manifest M.csv]

One actor and several actors extract the same clips in turns. One process and several processes without Ray do the same,
which shows what the machine allows. The clips are 6 s each, cut from pyannote's sample, unless a manifest names others.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.numpy import save_file

from pipeline.config import DetectorConfig
from pipeline.networks.spec import load_spec
from tests.audio import encode
from tests.bench import pyannote_sample
from tune.cluster import connect
from tune.corpora.augment import RANDOM_CHANNEL
from tune.corpora.manifest import Clip, read_manifest
from tune.extract import Extraction, Recipe, Row, extract

RATE = 16_000
CLIP_SECONDS = 6.0
SPEECH_STARTS = 6.7
"""The second of the sample at which speech begins."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench_extract", description="Measure tune.extract.")
    parser.add_argument("--actors", type=int, default=2, help="actors to compare with one (default %(default)s)")
    parser.add_argument("--clips", type=int, default=200, help="clips to extract (default %(default)s)")
    parser.add_argument("--draws", type=int, default=0, help="augmented copies of each clip (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each setup is timed (default %(default)s)")
    parser.add_argument("--features", default="linear-shapes", help="preset or YAML file (default %(default)s)")
    parser.add_argument("--manifest", type=Path, help="take the clips from this corpus, evenly spread")
    arguments = parser.parse_args()
    # Ray sets this for its actors. The processes without Ray must use the same number of threads.
    os.environ["OMP_NUM_THREADS"] = "1"

    recipe, draws = Recipe(load_spec(arguments.features), DetectorConfig()), arguments.draws
    connect(None)
    with tempfile.TemporaryDirectory() as folder:
        clips = read_manifest(arguments.manifest) if arguments.manifest else crops(Path(folder), arguments.clips)
        clips = [clips[i] for i in np.linspace(0, len(clips) - 1, min(arguments.clips, len(clips))).astype(int)]

        def with_ray(cache: Path, actors: int) -> None:
            extract(clips, recipe, draws=draws, cache_folder=cache, actors=actors)

        def without_ray(cache: Path, actors: int) -> None:
            extract_in_processes(clips, recipe, draws, cache, actors)

        with_ray(Path(folder) / "warm-up", arguments.actors)
        ways: dict[str, tuple[Callable[[Path, int], None], int]] = {
            f"{count} {what}": (way, count)
            for way, one, several in ((with_ray, "actor", "actors"), (without_ray, "process", "processes"))
            for count, what in ((1, one), (arguments.actors, several))
        }
        rounds = [
            {name: timed(way, count) for name, (way, count) in ways.items()}
            for _ in track(range(arguments.rounds), description="Measuring", transient=True)
        ]
    what = f"{len(clips)} clips" + (f" and {draws} augmented copies of each" if draws else "")
    Console().print(report(rounds, f"{what}, {arguments.features}, {len(rounds)} rounds"))


def crops(folder: Path, count: int) -> list[Clip]:
    """Cuts of the conversation in the sample, each a little later than the one before. Their labels alternate."""
    samples = np.frombuffer(pyannote_sample()[44:], "<i2").astype(np.float32) / 2**15
    starts = np.linspace(SPEECH_STARTS * RATE, len(samples) - CLIP_SECONDS * RATE, count).astype(int)
    clips = []
    for number, start in enumerate(starts):
        path = folder / f"{number}.flac"
        path.write_bytes(encode(samples[start : start + round(CLIP_SECONDS * RATE)], "flac"))
        clips.append(Clip(path, "spoof" if number % 2 else "bonafide"))
    return clips


def extract_in_processes(clips: Sequence[Clip], recipe: Recipe, draws: int, cache: Path, count: int) -> None:
    """The same work as `extract`, in `count` processes that each get an equal share at the start."""
    rows = [
        Row(clip.path, RANDOM_CHANNEL if draw else "clean", draw, cache / f"{number}-{draw}")
        for draw in range(1 + draws)
        for number, clip in enumerate(clips)
    ]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=extract_share, args=(recipe, rows[start::count])) for start in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


def extract_share(recipe: Recipe, rows: Sequence[Row]) -> None:
    extraction = Extraction(recipe)
    for row in rows:
        vectors = extraction.extract(row.read())
        assert not isinstance(vectors, str)
        save_file({"vectors": vectors}, row.stem.with_suffix(".safetensors"))


def timed(way: Callable[[Path, int], None], count: int) -> tuple[float, float]:
    """For one extraction: clips per second between the first and the last finished clip, and the total seconds."""
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        way(Path(cache), count)
        seconds = time.perf_counter() - start
        finished = [path.stat().st_mtime for path in Path(cache).rglob("*") if path.is_file()]
    return (len(finished) - 1) / (max(finished) - min(finished)), seconds


def report(rounds: Sequence[dict[str, tuple[float, float]]], title: str) -> Table:
    """One row per setup: medians, and the ratio to a single actor or process, with its range over the rounds."""
    table = Table(title=title, title_justify="left")
    for heading in ("", "clips/s at work", "x one", "s in all", "x one"):
        table.add_column(heading, justify="left" if not heading else "right")
    one = ""
    for name in rounds[0]:
        one = name if name.startswith("1 ") else one
        rates, seconds = zip(*(times[name] for times in rounds), strict=True)
        cells = [f"{statistics.median(rates):.1f}", "", f"{statistics.median(seconds):.1f}", ""]
        if name != one:
            cells[1] = spread([times[name][0] / times[one][0] for times in rounds])
            cells[3] = spread([times[one][1] / times[name][1] for times in rounds])
        table.add_row(name, *cells)
    return table


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} - {max(values):.2f})"


if __name__ == "__main__":
    # Ray's workers cannot import from __main__, so the module is imported by its name.
    from tests.bench_extract import main as command

    command()
