"""Measures who-speaks-when on mixtures of single voices, for several settings of the clustering.

    python -m tests.bench_diarization --manifest field-dev/manifest.csv --split dev

A mixture holds two to five people (`--voices`) who speak in turn for a minute (`--seconds`). A turn is one clip;
between two turns are up to 1.2 s of silence, or up to 0.4 s of both voices. The error is pyannote's diarization error
rate, overlap included, without a collar. One half of the mixtures chooses the setting, and the other half measures the
error of the chosen setting. The networks run once for each mixture; only the clustering is repeated.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyannote.core import Annotation
from pyannote.core import Segment as Stretch
from pyannote.metrics.diarization import DiarizationErrorRate

from pipeline.audio.decode import decode
from pipeline.config import DetectorConfig
from pipeline.progress import with_progress
from pipeline.stages.diarize import Diarizer
from pipeline.stages.vad import VoiceActivityDetector
from pipeline.types import SAMPLE_RATE, Recording, Segment, Turn, Waveform
from tune.command import run
from tune.corpora.manifest import Clip, add_split_argument, of_split
from tune.corpora.readers import read_corpus

TURNS_EACH = 3
"""How many clips a voice must have at least to be in a mixture."""


@dataclass(frozen=True)
class Mixture:
    """Samples (time,), and who speaks when."""

    samples: NDArray[np.float32]
    spoken: Annotation
    voices: int


@dataclass(frozen=True)
class Spoken:
    """A clip's samples, and when it holds speech."""

    samples: NDArray[np.float32]
    speech: tuple[Segment, ...]


def mix(voices: Sequence[Sequence[Spoken]], seconds: float, rng: np.random.Generator) -> Mixture:
    """`seconds` of turns of `voices`, each given by its clips. The same voice never speaks twice in a row."""
    samples = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
    spoken, end, last = Annotation(), 0.5, -1
    while True:
        voice = int(rng.choice([number for number in range(len(voices)) if number != last]))
        clip = voices[voice][int(rng.integers(len(voices[voice])))]
        start = max(0.0, end + float(rng.uniform(-0.4, 1.2)))
        first = round(start * SAMPLE_RATE)
        if first + len(clip.samples) > len(samples):
            return Mixture(samples, spoken, len(voices))
        samples[first : first + len(clip.samples)] += clip.samples
        for segment in clip.speech:
            spoken[Stretch(start + segment.start, start + segment.end), voice] = str(voice)
        end, last = start + len(clip.samples) / SAMPLE_RATE, voice


def make_mixtures(
    clips: Sequence[Clip], count: int, seconds: float, voices: Sequence[int], config: DetectorConfig
) -> list[Mixture]:
    """`count` mixtures of the bona fide clips. All voices are equally likely. The number of people goes through
    `voices`, again and again."""
    rng = np.random.default_rng(0)
    voice_activity = VoiceActivityDetector(config)

    @cache
    def read(path: Path) -> Spoken:
        waveform = decode(path.read_bytes(), config.limits).waveform
        level = float(np.sqrt(np.square(waveform.samples).mean())) or 1.0
        recording = Recording(Waveform(waveform.samples * np.float32(0.05 / level)), "wav")
        return Spoken(recording.waveform.samples, voice_activity.detect(recording).segments)

    of_voice: dict[str, list[Path]] = defaultdict(list)
    for clip in clips:
        if not clip.is_spoof and clip.speaker:
            of_voice[clip.voice].append(clip.path)
    names = sorted(name for name, paths in of_voice.items() if len(paths) >= TURNS_EACH)
    mixtures = []
    for number in range(count):
        chosen = rng.choice(names, voices[number % len(voices)], replace=False)
        mixtures.append(mix([[read(path) for path in of_voice[name]] for name in chosen], seconds, rng))
    return mixtures


def remember_networks(diarizer: Diarizer) -> None:
    """Let the networks of `diarizer` run once for each recording. One sample per second tells recordings apart."""
    pipeline = diarizer.pipeline
    known: dict[tuple[str, bytes], Any] = {}

    def once(name: str) -> None:
        compute = getattr(pipeline, name)

        def remembered(file: Any, *arguments: Any, **options: Any) -> Any:
            key = name, file["waveform"].numpy().tobytes()[:: 4 * SAMPLE_RATE]
            if key not in known:
                known[key] = compute(file, *arguments, **options)
            return known[key]

        setattr(pipeline, name, remembered)

    for name in ("get_segmentations", "get_embeddings"):
        once(name)


def error_of(mixture: Mixture, turns: Sequence[Turn]) -> float:
    """The diarization error rate of `turns` in percent."""
    found = Annotation()
    for number, turn in enumerate(turns):
        found[Stretch(turn.start, turn.end), number] = turn.speaker
    return 100 * float(DiarizationErrorRate()(mixture.spoken, found))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench_diarization", description=__doc__.split("\n")[0])
    parser.add_argument("--manifest", type=Path, required=True, help="a corpus with several recordings of each speaker")
    add_split_argument(parser)
    parser.add_argument("--mixtures", type=int, default=40, help="how many mixtures (default: 40)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long a mixture is (default: 60)")
    parser.add_argument(
        "--voices", type=int, nargs="+", default=[2, 3, 4, 5], help="how many people speak in a mixture"
    )
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9])
    parser.add_argument("--least", type=int, nargs="+", default=[8], help="values of min_cluster_size")
    arguments = parser.parse_args(argv)
    config = DetectorConfig.load()
    clips = of_split(read_corpus(None, arguments.manifest), arguments.split)
    mixtures = make_mixtures(clips, arguments.mixtures, arguments.seconds, arguments.voices, config)
    diarizer = Diarizer(config)
    remember_networks(diarizer)
    settings = [(threshold, least) for least in arguments.least for threshold in arguments.thresholds]
    errors, counts = (np.zeros((len(mixtures), len(settings))) for _ in range(2))
    for row, mixture in enumerate(with_progress(mixtures, len(mixtures), "mixtures")):
        recording = Recording(Waveform(mixture.samples), "wav")
        for column, (threshold, least) in enumerate(settings):
            diarizer.pipeline.instantiate(
                {
                    "clustering": {"method": "centroid", "threshold": threshold, "min_cluster_size": least},
                    "segmentation": {"min_duration_off": 0.0},
                }
            )
            turns = diarizer.diarize(recording)
            errors[row, column] = error_of(mixture, turns)
            counts[row, column] = len({turn.speaker for turn in turns}) - mixture.voices
    # Each number of voices is equally frequent in both halves.
    chooses = np.arange(len(mixtures)) // len(arguments.voices) % 2 == 0
    chosen = int(errors[chooses].mean(axis=0).argmin())
    print("| threshold | min_cluster_size | error % (chooses) | error % (tests) | too few voices | too many |")
    print("|---|---|---|---|---|---|")
    for column, (threshold, least) in enumerate(settings):
        chose, tested = (errors[part, column].mean() for part in (chooses, ~chooses))
        few, many = (counts[:, column] < 0).mean(), (counts[:, column] > 0).mean()
        mark = " **chosen**" if column == chosen else ""
        print(f"| {threshold:g}{mark} | {least} | {chose:.1f} | {tested:.1f} | {few:.0%} | {many:.0%} |")


if __name__ == "__main__":
    run(main)
