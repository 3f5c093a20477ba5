"""Measures how much the answer for a recording changes with the format in which it is sent.

    python -m tests.bench_formats --manifest field-dev/manifest.csv --split dev

Each recording is encoded by the ffmpeg program in the formats of `FORMATS`, at its own sample rate and with FFmpeg's
defaults if no bit rate is named. A recording's difference is its highest minus its lowest probability.
"""

from __future__ import annotations

import argparse
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.config import DetectorConfig
from pipeline.detector import Detector
from pipeline.progress import with_progress
from tune.command import run
from tune.corpora.manifest import Clip, add_split_argument, of_split
from tune.corpora.readers import read_corpus

FORMATS = {
    "WAV": ["-f", "wav"],
    "FLAC": ["-f", "flac"],
    "MP3": ["-f", "mp3"],
    "MP3, 64 kb/s": ["-b:a", "64k", "-f", "mp3"],
    "AAC": ["-c:a", "aac", "-f", "adts"],
    "Ogg Vorbis, FFmpeg's own encoder": ["-c:a", "vorbis", "-strict", "-2", "-ac", "2", "-f", "ogg"],
    "Opus": ["-c:a", "libopus", "-f", "ogg"],
    "WebM": ["-c:a", "libopus", "-f", "webm"],
}
"""The ffmpeg program's options for the output. FFmpeg's own encoder of Vorbis makes stereo only."""
BOUND = 0.15


def encode(path: Path, options: Sequence[str]) -> bytes:
    """The bytes of the recording at `path` in a format."""
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", str(path), "-vn", *options, "-"]
    return subprocess.run(command, check=True, capture_output=True).stdout


def choose(clips: Sequence[Clip], count: int) -> list[Clip]:
    """`count` clips, half recordings and half spoofs. They are drawn from the pages in turn."""
    rng = np.random.default_rng(0)
    chosen: list[Clip] = []
    for spoof in (False, True):
        by_page: dict[str, list[Clip]] = defaultdict(list)
        for i in rng.permutation(len(clips)):
            if clips[i].is_spoof is spoof:
                by_page[clips[i].site].append(clips[i])
        rounds = max(map(len, by_page.values()), default=0)
        in_turn = [of[number] for number in range(rounds) for of in by_page.values() if number < len(of)]
        chosen += in_turn[: count // 2]
    return chosen


def as_text(probabilities: np.ndarray, scores: np.ndarray) -> str:
    """The results of (recordings, formats) probabilities and log-likelihood ratios, for each format and in total."""
    lines = [
        "| format | mean change of the score | median change of the probability | 95th percentile | most |",
        "|---|---|---|---|---|",
    ]
    for column, name in enumerate(FORMATS):
        moved = np.abs(probabilities[:, column] - probabilities[:, 0])
        change = float((scores[:, column] - scores[:, 0]).mean())
        lines.append(
            f"| {name} | {change:+.2f} | {np.median(moved):.3f} | {np.quantile(moved, 0.95):.3f} | {moved.max():.3f} |"
        )
    spread = np.ptp(probabilities, axis=1)
    lines += [
        "",
        f"{len(spread)} recordings in {len(FORMATS)} formats: the largest difference in probability has median "
        f"{np.median(spread):.3f}, 95th percentile {np.quantile(spread, 0.95):.3f}, maximum {spread.max():.3f}; "
        f"{(spread <= BOUND).mean():.0%} of recordings stay within {BOUND}.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench_formats", description=__doc__.split("\n")[0])
    parser.add_argument("--manifest", type=Path, required=True)
    add_split_argument(parser)
    parser.add_argument("--clips", type=int, default=100, help="clips, half of them spoofs (default %(default)s)")
    parser.add_argument("--bundle", type=Path, help="the model bundle (default: that of the configuration)")
    parser.add_argument("--out", type=Path, help="a file for all probabilities, .npz")
    arguments = parser.parse_args(argv)
    clips = choose(of_split(read_corpus(None, arguments.manifest), arguments.split), arguments.clips)
    config = DetectorConfig.load(None)
    if arguments.bundle:
        config = config.model_copy(update={"bundle": arguments.bundle.resolve()})
    detector = Detector(config)
    found = []
    for clip in with_progress(clips, len(clips), "recordings"):
        verdicts = [detector.predict(encode(clip.path, options)) for options in FORMATS.values()]
        if all(verdict.score is not None for verdict in verdicts):
            found.append([(verdict.mean_probability, verdict.score) for verdict in verdicts])
    values = np.array(found, dtype=np.float64)
    print(as_text(values[:, :, 0], values[:, :, 1]), end="")
    if arguments.out:
        np.savez(arguments.out, probabilities=values[:, :, 0], scores=values[:, :, 1])


if __name__ == "__main__":
    run(main)
