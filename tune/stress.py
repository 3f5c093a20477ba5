"""Tests a detector on sites it was not trained on: through other channels, at any length, in mixed recordings.

    python -m tune.stress --config configs/train.yaml --manifest corpus/manifest.csv --out runs/stress

Every clip is judged by a detector whose training, calibration and thresholds did not use the fold of the clip.
Recordings are assembled from clips of one fold. They go through the same voice activity detection, extraction and
classification as a user's recording, but not through decoding. Writes `stress.json` and `stress.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.audio.decode import decode
from pipeline.config import DetectorConfig, parse
from pipeline.errors import MissingInput
from pipeline.networks.spec import load_spec
from pipeline.stages.classify import Classifier
from pipeline.stages.extract import TkanExtractor
from pipeline.stages.vad import VoiceActivityDetector
from pipeline.types import SAMPLE_RATE, Recording, Seconds, Turn, Waveform
from pipeline.verdict.answer import Verdict
from pipeline.verdict.bundle import Bundle
from tune.cluster import connect
from tune.command import at_least, finish, run
from tune.corpora.augment import CONDITIONS
from tune.corpora.manifest import Clip
from tune.errors import CorpusError
from tune.extract import Recipe, add_corpus_arguments, extract, load_clips, load_table
from tune.places import local_folder, make_writable
from tune.reports.metrics import auc, eer
from tune.train import describe, train_folds
from tune.training.folds import Fold, FoldsConfig, make_folds
from tune.training.table import Table
from tune.training.validate import Trained, TrainingConfig, require_calibration, require_no_front

FOLDS = FoldsConfig(by="site", at_once=5)
LENGTHS: tuple[Seconds, ...] = (2, 5, 10, 30, 60, 300, 600)
REAL_CLIPS = 5
HEADING = "## Under stress"
PREAMBLE = """The results of detectors that were trained in the same way (`python -m tune.stress`). Each detector judges
sites that it was not trained on.
"""
GAP = np.zeros(SAMPLE_RATE // 4, np.float32)
"""Silence between the clips of an assembled recording."""


@dataclass(frozen=True)
class Judge:
    """A fold's detector, which was not trained on the clips of that fold."""

    voice_activity: VoiceActivityDetector
    extractor: TkanExtractor
    classifier: Classifier

    def verdict(self, samples: NDArray[np.float32], turns: tuple[Turn, ...] | None = None) -> Verdict:
        recording = Recording(Waveform(samples), "wav")
        speech = self.voice_activity.detect(recording)
        if not speech.segments:
            return self.classifier.no_speech(speech, use_diarization=turns is not None)
        return self.classifier.classify(self.extractor.extract(recording, speech, turns))


def robustness(
    trained: Sequence[Trained], folds: Sequence[Fold], clean: Table, tables: dict[str, Table]
) -> dict[str, dict[str, float]]:
    """EER and AUC of the held-out clips through each condition. `clean` is without a condition."""
    rows = {}
    for name, table in tables.items():
        scores = np.full(len(table.clips), np.nan)
        for detector, fold in zip(trained, folds, strict=True):
            # A file may be in the corpus twice, so a path may be that of several clips.
            held_out = {clean.clips[i].path for i in fold.test}
            part = np.array([i for i, clip in enumerate(table.clips) if clip.path in held_out], dtype=np.intp)
            scores[part] = detector.score(table, part)
        rows[name] = {"eer": eer(table.labels, scores), "auc": auc(table.labels, scores), "clips": len(scores)}
    return rows


def real_speech(clips: Sequence[Clip]) -> list[list[Clip]]:
    """The clips of real speech of each site that has at least REAL_CLIPS of them."""
    by_site = defaultdict(list)
    for clip in clips:
        if not clip.is_spoof:
            by_site[clip.site].append(clip)
    return [clips_of_site for clips_of_site in by_site.values() if len(clips_of_site) >= REAL_CLIPS]


def require_real_speech(clips: Sequence[Clip], folds: Sequence[Fold]) -> None:
    """Raises CorpusError if the test part of a fold has no site that `real_speech` can use."""
    if not all(real_speech([clips[i] for i in fold.test]) for fold in folds):
        raise CorpusError(
            f"sites are tested in groups of {FOLDS.at_once}, and one group has no site with {REAL_CLIPS} clips of "
            "real speech: add recordings"
        )


def false_alarms(judge: Judge, clips: Sequence[Clip], rng: np.random.Generator, seconds: Seconds) -> dict[str, Any]:
    """Verdicts on recordings of real speech of each of LENGTHS, about `seconds` in total for each length. A recording
    is assembled from clips of one site."""
    sites = real_speech(clips)
    found: dict[str, Any] = {}
    for length in LENGTHS:
        counts: dict[str, int] = defaultdict(int)
        for _ in range(max(2, round(seconds / length))):
            clips_of_site = sites[rng.integers(len(sites))]
            counts[judge.verdict(assemble(clips_of_site, rng, length)).overall] += 1
        found[f"{length:g}"] = dict(counts)
    return found


def assemble(clips: Sequence[Clip], rng: np.random.Generator, seconds: Seconds) -> NDArray[np.float32]:
    """Clips in random order, repeated if needed, up to a length of `seconds`."""
    parts: list[NDArray[np.float32]] = []
    while sum(map(len, parts)) < seconds * SAMPLE_RATE:
        parts += [GAP, samples_of(clips[int(rng.integers(len(clips)))])]
    return np.concatenate(parts)[: round(seconds * SAMPLE_RATE)]


def samples_of(clip: Clip) -> NDArray[np.float32]:
    """The clip at the same level as all others, so that the level does not reveal where clips are joined."""
    samples = decode(clip.path.read_bytes(), DetectorConfig().limits).waveform.samples
    return samples * np.float32(0.1 / max(float(np.sqrt(np.square(samples).mean())), 1e-6))


def mixtures(judge: Judge, clips: Sequence[Clip], rng: np.random.Generator, count: int) -> list[dict[str, Any]]:
    """Verdicts on two kinds of mixed recordings: three real speakers and a synthetic one, with the true turns; and a
    real speaker with an inserted synthetic passage. All clips of a recording come from one site, so that the channel
    does not reveal the synthetic one."""
    by_site: dict[str, dict[bool, dict[str, list[Clip]]]] = defaultdict(lambda: {True: {}, False: {}})
    for clip in clips:
        by_site[clip.site][clip.is_spoof].setdefault(clip.voice, []).append(clip)
    rows = []
    talkers = [by_class for by_class in by_site.values() if len(by_class[False]) >= 3 and by_class[True]]
    spliced = [
        by_class
        for by_class in by_site.values()
        if by_class[True] and max(map(len, by_class[False].values()), default=0) >= 4
    ]
    for _ in range(count if talkers else 0):
        by_class = talkers[rng.integers(len(talkers))]
        voices = [by_class[False][name] for name in rng.choice(sorted(by_class[False]), 3, replace=False)]
        voices.append(by_class[True][str(rng.choice(sorted(by_class[True])))])
        samples, turns = lay_turns([(str(i), clip) for i in (0, 3, 1, 3, 2) for clip in pick(voices[int(i)], rng, 2)])
        for speaker in judge.verdict(samples, turns).speakers:
            rows.append(
                {
                    "kind": "speaker",
                    "spoof": speaker.speaker == "3",
                    "result": speaker.result,
                    "probability": speaker.probability,
                }
            )
    for _ in range(count if spliced else 0):
        by_class = spliced[rng.integers(len(spliced))]
        voice = max(by_class[False].values(), key=len)
        fakes = by_class[True][str(rng.choice(sorted(by_class[True])))]
        real, fake = pick(voice, rng, 6), pick(fakes, rng, 1)
        samples, turns = lay_turns(
            [("r", c) for c in real[:3]] + [("f", c) for c in fake] + [("r", c) for c in real[3:]]
        )
        verdict = judge.verdict(samples)
        passage = next(turn for turn in turns if turn.speaker == "f")
        step = verdict.timeline.step_seconds
        for number, probability in enumerate(verdict.timeline.probability):
            if probability is not None:
                inside = passage.start <= (number + 0.5) * step < passage.end
                rows.append({"kind": "step", "spoof": inside, "probability": probability})
        rows.append({"kind": "splice", "spoof": True, "result": verdict.overall, "reasons": list(verdict.reasons)})
    return rows


def shares(count: int, parts: int) -> list[int]:
    """`count` divided among `parts` as evenly as whole numbers allow."""
    return [count // parts + (part < count % parts) for part in range(parts)]


def pick(clips: Sequence[Clip], rng: np.random.Generator, count: int) -> list[Clip]:
    return [clips[i] for i in rng.choice(len(clips), count, replace=len(clips) < count)]


def lay_turns(clips: Sequence[tuple[str, Clip]]) -> tuple[NDArray[np.float32], tuple[Turn, ...]]:
    """The clips in a row, and who speaks when."""
    parts: list[NDArray[np.float32]] = []
    turns, at = [], 0
    for speaker, clip in clips:
        samples = samples_of(clip)
        turns.append(Turn(at / SAMPLE_RATE, (at + len(samples)) / SAMPLE_RATE, speaker))
        parts += [samples, GAP]
        at += len(samples) + len(GAP)
    return np.concatenate(parts), tuple(turns)


def report(results: dict[str, Any]) -> str:
    """The tables of a model card."""
    lines = ["| condition | EER % | AUC | clips |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {100 * row['eer']:.1f} | {row['auc']:.3f} | {row['clips']} |"
        for name, row in results["robustness"].items()
    ]
    lines += ["", "| seconds of real speech | recordings | Fake | Inconclusive | Real | false alarms an hour |"]
    lines.append("|---|---|---|---|---|---|")
    for length, counts in results["false_alarms"].items():
        total = sum(counts.values())
        fake, unsure, real = (counts.get(name, 0) for name in ("Fake", "Inconclusive", "Real"))
        hours = total * float(length) / 3600
        lines.append(f"| {length} | {total} | {fake} ({fake / total:.0%}) | {unsure} | {real} | {fake / hours:.1f} |")
    mixed = results["mixed"]
    lines += ["", "| mixed recordings | |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {value} |" for name, value in mixed.items()]
    return "\n".join(lines) + "\n"


def summarise(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for kind, name in (("speaker", "speaker"), ("step", "half_second")):
        rows_of_kind = [row for row in rows if row["kind"] == kind]
        labels = np.array([row["spoof"] for row in rows_of_kind], dtype=bool)
        if labels.any() and not labels.all():
            scores = np.array([row["probability"] for row in rows_of_kind])
            summary[f"{name}_eer_percent"] = round(100 * eer(labels, scores), 1)
            summary[f"{name}_auc"] = round(auc(labels, scores), 3)
    speakers = [row for row in rows if row["kind"] == "speaker"]
    for spoof, name in ((True, "synthetic_speakers"), (False, "real_speakers")):
        called = [row["result"] for row in speakers if row["spoof"] == spoof]
        summary[name] = ", ".join(f"{called.count(r)} {r}" for r in ("Fake", "Inconclusive", "Real"))
    splices = [row["result"] for row in rows if row["kind"] == "splice"]
    summary["spliced_recordings"] = ", ".join(f"{splices.count(r)} {r}" for r in ("Fake", "Inconclusive", "Real"))
    return summary


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tune.stress", description=__doc__.split("\n")[0])
    add_corpus_arguments(parser)
    parser.add_argument("--config", type=Path, required=True, help="configuration of the training, as for tune.train")
    parser.add_argument("--out", required=True, help="folder or URI of stress.json and stress.md")
    parser.add_argument(
        "--clips", type=at_least(1), default=400, help="clips sent through each condition (default %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=1200, help="seconds of real speech for each length (default %(default)s)"
    )
    parser.add_argument(
        "--mixtures", type=at_least(0), default=40, help="mixed recordings of each kind (default %(default)s)"
    )
    parser.add_argument("--card", type=Path, help="model card to put the tables into")
    arguments = parser.parse_args(argv)
    config = parse(TrainingConfig, arguments.config)
    require_no_front(config)
    clips = load_clips(arguments, config.speakers_of)
    require_calibration(clips, make_folds(clips, FOLDS), config.calibration)
    require_real_speech(clips, make_folds(clips, FOLDS))
    if arguments.card:
        require_card(arguments.card)
    with local_folder(arguments.out) as out:
        make_writable(out)
        results = measure(arguments, config, clips)
        (out / "stress.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        (out / "stress.md").write_text(report(results), encoding="utf-8")
        print(report(results))
        if arguments.card:
            card = arguments.card.read_text(encoding="utf-8")
            arguments.card.write_text(with_section(card, f"{PREAMBLE}\n{report(results)}"), encoding="utf-8")
        finish(
            f"stress.json and stress.md in {out}",
            "see in stress.md which channels, lengths and mixtures cause the most errors; --card writes its tables "
            "into a model card",
        )


def require_card(card: Path) -> None:
    """Raises MissingInput unless `card` is a file that can be read and written."""
    try:
        card.open("r+b").close()
    except OSError as error:
        raise MissingInput(
            f"The model card {card.name} cannot be read and written: {error.strerror}. Name another by --card."
        ) from error


def with_section(card: str, section: str) -> str:
    """The card with `section` under HEADING, instead of what was there before. Later sections stay."""
    before, heading, after = card.partition(HEADING)
    _, next_heading, later = after.partition("\n## ")
    rest = f"\n## {later}" if heading and next_heading else ""
    return f"{before.rstrip()}\n\n{HEADING}\n{section}{rest}"


def measure(arguments: argparse.Namespace, config: TrainingConfig, clips: Sequence[Clip]) -> dict[str, Any]:
    """Train the detectors of the folds on `clips`, and test each on its fold: the content of `stress.json`."""
    clean = load_table(arguments, clips, config.features, config.draws, config.vocoded)
    folds = make_folds(clean.clips, FOLDS)
    require_real_speech(clean.clips, folds)  # again, because bad files are left out now
    connect(arguments.address)
    trained = train_folds(config, clean, folds)
    print(f"{len(folds)} detectors trained", file=sys.stderr)

    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(np.flatnonzero(clean.judged))[: arguments.clips])
    recipe = Recipe(load_spec(config.features), DetectorConfig.load(arguments.detector))
    tables = {}
    with local_folder(arguments.cache) as cache:
        for condition in ("clean", *CONDITIONS):
            tables[condition], _ = extract(
                [clean.clips[i] for i in chosen],
                replace(recipe, augmentation=condition),
                cache_folder=cache,
                address=arguments.address,
                actors=arguments.actors,
                num_gpus=arguments.gpu,
            )
    robust = robustness(trained, folds, clean, tables)

    alarms: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    mixed: list[dict[str, Any]] = []
    voice_activity, extractor = VoiceActivityDetector(recipe.detector), TkanExtractor(recipe.detector, recipe.spec)
    for detector, fold, count in zip(trained, folds, shares(arguments.mixtures, len(folds)), strict=True):
        bundle = Bundle(describe(config, clean, detector, "stress"), detector.arrays, "")
        judge = Judge(voice_activity, extractor, Classifier(recipe.detector, bundle))
        held_out = [clean.clips[i] for i in fold.test]
        for length, counts in false_alarms(judge, held_out, rng, arguments.seconds / len(folds)).items():
            for result, times in counts.items():
                alarms[length][result] += times
        mixed += mixtures(judge, held_out, rng, count)
    return {"robustness": robust, "false_alarms": alarms, "mixed": summarise(mixed)}


if __name__ == "__main__":
    # Imported under the module's name, because Ray's workers cannot find what __main__ defines.
    from tune.stress import main as importable_main

    run(importable_main)
