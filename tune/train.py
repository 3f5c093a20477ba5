"""One training run: a corpus in, a model bundle out.

python -m tune.train --manifest corpus/manifest.csv --out bundles/mine
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import DetectorConfig, parse
from pipeline.networks.front import TUNED, Parameters, parameters_sha256
from pipeline.networks.spec import load_spec
from pipeline.progress import with_progress
from pipeline.stages.extract import choose_device
from pipeline.verdict.bundle import Arrays, Bundle, BundleInfo, HumanRanges, save_bundle
from tune.cluster import connect, default_actors, map_with_actors, map_with_tasks
from tune.command import finish, run
from tune.corpora.generators import plain_name
from tune.corpora.manifest import Clip, with_contents
from tune.corpora.vocoded import fetch_hifigan
from tune.extract import add_corpus_arguments, load_clips, load_table
from tune.places import beside, local_folder, make_writable
from tune.reports.breakdown import as_markdown, break_down
from tune.reports.metrics import SUMMARY, Interval, Intervals, Labels, Scores, auc, bootstrap, coverage_errors, eer
from tune.scoring import Explaining, read_bundle
from tune.training.folds import Fold, make_folds
from tune.training.front import LAYER_FEATURES, FrontConfig, Sample, Tuned, tune_front
from tune.training.humans import human_ranges
from tune.training.table import Table
from tune.training.textures import TEXTURES, Textured
from tune.training.tuned import (
    TUNED_PRESET,
    Evidence,
    TuningConfig,
    Versions,
    assemble,
    calibrate,
    extract_textures,
    hold_out,
    is_for_tests,
    measure_versions,
    of_front,
    read_samples,
)
from tune.training.validate import (
    FEWEST_WITH_WINDOWS,
    Trained,
    TrainingConfig,
    break_down_folds,
    cross_validate,
    measure,
    require_calibration,
    train,
)

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "train.yaml"
KEPT_APART = {
    "corpus": "no clip that shares a speaker or an utterance\nwith them was used for training.",
    "clip": "but some clips name no speaker, so a voice may be in both parts:\nexpect more errors on new voices.",
    "site": "a voice that is also on another site, such as LJ Speech,\nmay have been in the training.",
}
PART = 32
"""Clips that a process of the cluster gets at a time."""
PACKAGES = ("torch", "scikit-learn", "imbalanced-learn", "numpy")


def train_folds(config: TrainingConfig, table: Table, folds: Sequence[Fold]) -> list[Trained]:
    """Run `train` without the test part of each fold, in parallel on the cluster this process is connected to."""
    trained: list[Trained] = map_with_tasks(train, (config, table), [fold.train for fold in folds])
    return trained


def train_bundle(config: TrainingConfig, table: Table, name: str, folder: Path) -> Bundle:
    """Train on all of `table`, test the same procedure on the folds of `config`, and write the bundle to `folder`."""
    folds = make_folds(table.clips, config.folds)
    scores = cross_validate(table, folds, train_folds(config, table, folds))
    metrics = measure(SUMMARY, table, scores)
    trained = train(config, table, np.arange(len(table.clips)))
    tested = {
        "of": f"clips of each {config.folds.by} left out of training, calibration and thresholds",
        "folds": len(folds),
        "interval": "95 % over speakers",
        **{key: interval._asdict() for key, interval in metrics.items()},
        "coverage": coverage_errors(table.labels[table.judged], scores[table.judged]),
        "breakdown": break_down_folds(table, folds, scores),
        "assumes_windows": trained.assumes_windows,
    }
    info = describe(config, table, trained, name, tested)
    return save_bundle(folder, info, trained.arrays, model_card(info, config, table.clips, metrics))


@dataclass(frozen=True)
class Material:
    """What the fronts are tuned on for one clip: its samples, the clip itself first, and the textures of these.

    `held_out`: whether the first detector is measured with the clip. `is_new`: whether only the second detector is
    tuned on it.
    """

    clip: Clip
    samples: list[Sample]
    textures: list[Textured]
    held_out: bool
    is_new: bool


def train_tuned_bundle(
    config: TrainingConfig,
    tuning: TuningConfig,
    clips: Sequence[Clip],
    detector: DetectorConfig,
    packages: Path,
    name: str,
    folder: Path,
    held_out_folder: Path,
) -> Bundle:
    """Tune both fronts without the held-out sites, measure and calibrate with these sites, then tune the fronts further
    on all sites. Write the bundle to `folder`.

    The figures in the bundle are those of the first detector, which was not tuned on the held-out sites. The first
    detector is also written, to `held_out_folder`.
    """
    material = gather(config, tuning, clips, detector, packages)
    kept = [row for row in material if not row.is_new]
    judged = [row for row in material if row.held_out]

    device = choose_device(detector.device)
    samples = [sample for row in kept for sample in row.samples]
    watch = tell("without the sites held out", tuning.first)
    first = [tune_front(samples, of_front(tuning.first, n), device=device, watch=watch) for n in range(len(TUNED))]
    arrays, fronts = assemble(first, [textured for row in kept for textured in row.textures], tuning.textures)
    whole = [row.samples[0] for row in judged]
    versions: list[Versions] = in_parts(measure_versions, (detector, arrays, fronts), whole, "clips held out")
    evidence = calibrate(versions, config.operating_points, tuning, detector.windows.seconds)
    tuned_on, judged_clips = [row.clip for row in kept], [row.clip for row in judged]
    metrics, tested = measure_held_out(judged_clips, evidence, tuned_on)
    save_tuned(config, arrays, fronts, evidence, tuned_on, tested, metrics, f"{name}-held-out", held_out_folder)
    humans = listen_to_humans(detector, held_out_folder, judged_clips)

    # Clips that are new to the fronts count three times.
    drawn = [sample for row in material for sample in row.samples * (3 if row.is_new else 1)]
    watch = tell("with all sites", tuning.further)
    further = [
        tune_front(drawn, of_front(tuning.further, n), start=front, device=device, watch=watch)
        for n, front in enumerate(first)
    ]
    arrays, fronts = assemble(further, [textured for row in material for textured in row.textures], tuning.textures)
    trained_on = [row.clip for row in material]
    return save_tuned(config, arrays, fronts, evidence, trained_on, tested, metrics, name, folder, humans)


def gather(
    config: TrainingConfig, tuning: TuningConfig, clips: Sequence[Clip], detector: DetectorConfig, packages: Path
) -> list[Material]:
    """Read the clips, copy the recordings if the configuration says so, and extract the textures of all. Clips that
    cannot be read or have no speech are left out, and listed on the standard error."""
    if config.vocoded:
        # Fetched here first, so that a failure ends the command before the work.
        fetch_hifigan(packages)
    # A worker may run in another folder.
    arguments = (detector, packages.resolve() if config.vocoded else None)
    found: list[list[Sample] | str] = in_parts(read_samples, arguments, clips, "reading")
    good, samples = [], []
    for clip, samples_or_reason in zip(clips, found, strict=True):
        if isinstance(samples_or_reason, str):
            print(f"left out: {clip.path.name}: {samples_or_reason}", file=sys.stderr)
        else:
            good.append(clip)
            samples.append(samples_or_reason)
    held_out = hold_out(good, tuning)
    everything = [sample for samples_of_clip in samples for sample in samples_of_clip]
    textures: list[list[Textured]] = in_parts(extract_textures, (detector,), everything, "textures")
    of_sample = iter(textures)
    return [
        Material(
            clip,
            samples_of_clip,
            [textured for _ in samples_of_clip for textured in next(of_sample)],
            held_out=bool(out),
            is_new=bool(out) or is_for_tests(clip, tuning),
        )
        for clip, samples_of_clip, out in zip(good, samples, held_out, strict=True)
    ]


def in_parts(function: Callable[..., list[Any]], shared: Sequence[Any], items: Sequence[Any], what: str) -> list[Any]:
    """What `function(*shared, part)` returns for parts of `items`, on the cluster, joined in the order of the items. A
    clip travels with the bytes of its file, so that no node needs the disk of another."""
    parts = [items[start : start + PART] for start in range(0, len(items), PART)]
    shown = with_progress(parts, len(parts), f"{what}, in parts of {PART}")
    sent = ([(one, one.path.read_bytes()) if isinstance(one, Clip) else one for one in part] for part in shown)
    return [one for found in map_with_tasks(function, shared, sent) for one in found]


def listen_to_humans(detector: DetectorConfig, bundle: Path, clips: Sequence[Clip]) -> HumanRanges | None:
    """The ranges of the shares of explanations by `bundle` for the recordings of humans among `clips`. The bundle must
    not be tuned on `clips`."""
    recordings = (clip.path.read_bytes() for clip in clips if not clip.is_spoof)
    arguments = (detector, read_bundle(bundle))
    explained = map_with_actors(Explaining, arguments, recordings, actors=default_actors())
    return human_ranges([explanation for explanation in explained if explanation])


def measure_held_out(
    judged: Sequence[Clip], evidence: Evidence, tuned_on: Sequence[Clip]
) -> tuple[Intervals, dict[str, Any]]:
    """Metrics of the held-out clips `judged`, and everything that the bundle says about their scores.

    `tuned_on` are the clips that the detector was tuned on.
    """
    labels = np.array([clip.is_spoof for clip in judged])
    metrics = bootstrap(SUMMARY, labels, evidence.scores, [clip.voice for clip in judged])
    names = {plain_name(clip.generator) for clip in tuned_on if clip.is_spoof} - {""}
    met = np.array([clip.is_spoof and plain_name(clip.generator) in names for clip in judged])
    return metrics, {
        "of": f"clips of {len({clip.site for clip in judged})} sites left out of training",
        "folds": 1,
        "interval": "95 % over speakers",
        **{key: interval._asdict() for key, interval in metrics.items()},
        "coverage": coverage_errors(labels, evidence.scores),
        "breakdown": break_down(judged, evidence.scores, met=met),
        "telephone": measure_lines(labels, evidence.telephone_scores) | evidence.telephone_words,
    }


def tell(what: str, config: FrontConfig) -> Callable[[int, float, Tuned], None]:
    """A function that prints the progress of tuning on the standard error."""
    return lambda step, loss, _: print(
        f"tuning {what}: step {step} of {config.steps}, loss {loss:.3f}", file=sys.stderr, flush=True
    )


def measure_lines(labels: Labels, scores: Scores) -> dict[str, float]:
    """EER and AUC of clips over a telephone line. Clips in which no speech is found after the line are left out; their
    score is NaN."""
    has_speech = ~np.isnan(scores)
    return {"eer": eer(labels[has_speech], scores[has_speech]), "auc": auc(labels[has_speech], scores[has_speech])}


def save_tuned(
    config: TrainingConfig,
    arrays: Arrays,
    fronts: Parameters,
    evidence: Evidence,
    clips: Sequence[Clip],
    tested: dict[str, Any],
    metrics: Intervals,
    name: str,
    folder: Path,
    humans: HumanRanges | None = None,
) -> Bundle:
    """Write the bundle of a tuned detector, with its model card."""
    info = BundleInfo(
        name=name,
        features=load_spec(TUNED_PRESET),
        layers={f"{front}.{layer}": size for front in TUNED for layer, size in LAYER_FEATURES.items()} | TEXTURES,
        backbone_sha256=parameters_sha256(fronts),
        head="tuned",
        classifier_sha256="",
        calibration=evidence.calibration,
        thresholds=evidence.thresholds,
        uncertainty=evidence.uncertainty,
        narrow=evidence.narrow,
        humans=humans,
        metrics=tested,
        corpus=describe_corpus(clips),
        versions={package: version(package) for package in PACKAGES},
        seed=config.front.first.seed if config.front else config.estimator.seed,
    )
    return save_bundle(folder, info, arrays, model_card(info, config, clips, metrics), fronts)


def describe(
    config: TrainingConfig, table: Table, trained: Trained, name: str, metrics: dict[str, Any] | None = None
) -> BundleInfo:
    """The `bundle.json` of a trained detector, without the hash of its arrays. The hash is added on saving."""
    return BundleInfo(
        name=name,
        features=table.kind.spec,
        layers=table.kind.layers,
        backbone_sha256=table.kind.backbone_sha256,
        head={"mlp": "mlp", "quadratic": "quadratic"}.get(config.estimator.head.kind, "linear"),
        classifier_sha256="",
        calibration=trained.calibration,
        thresholds=trained.thresholds,
        uncertainty=trained.uncertainty,
        metrics=metrics or {},
        corpus=describe_corpus(table.clips),
        versions={package: version(package) for package in PACKAGES},
        seed=config.estimator.seed,
    )


def describe_corpus(clips: Sequence[Clip]) -> dict[str, Any]:
    """Counts, a fingerprint of contents and labels, the start of each file's SHA-256, and plain names of generators.

    The last two tell `tune.evaluate` what the bundle was trained on.
    """
    rows = sorted(f"{clip.sha256} {clip.label}" for clip in clips)
    spoof = np.array([clip.is_spoof for clip in clips])
    return {
        "fingerprint": hashlib.sha256("\n".join(rows).encode()).hexdigest(),
        "bonafide": int((~spoof).sum()),
        "spoof": int(spoof.sum()),
        "background": sum(clip.background for clip in clips),
        "speakers": len({clip.voice for clip in clips}),
        "generators": len({clip.generator for clip in clips if clip.is_spoof}),
        "clips": [row[:12] for row in rows],
        "generator_names": sorted({plain_name(clip.generator) for clip in clips if clip.is_spoof} - {""}),
    }


def model_card(info: BundleInfo, config: TrainingConfig, clips: Sequence[Clip], metrics: Intervals) -> str:
    """What a person should know before relying on the bundle."""
    corpus = info.corpus
    shown = "\n".join(f"| {name.replace('_', ' ')} | {interval.text()} |" for name, interval in metrics.items())
    # A tuned front is tested on whole sites, whatever their speakers are called.
    kept_apart = KEPT_APART[
        "clip" if any(clip.alone for clip in clips) else "site" if config.front else config.speakers_of
    ]
    # With a front the estimator is not used.
    recipe = config.front or config.estimator
    seeds = f"seed {info.seed}"
    if config.front:
        of_fronts = (
            f"{of_front(config.front.first, n).seed} and {of_front(config.front.further, n).seed} ({front})"
            for n, front in enumerate(TUNED)
        )
        seeds = f"seeds {config.front.seed} (sites held out), {', '.join(of_fronts)}"
    sources = Counter(clip.source or clip.site or "unnamed" for clip in clips if not clip.is_spoof)
    generators = Counter(clip.generator or "unnamed" for clip in clips if clip.is_spoof)
    return f"""# {info.name}

Tells machine-made speech from a human's. Features: `{info.features.name}` of the speaker-recognition network
{info.features.backbone}, {sum(info.layers.values())} for each window. Head: {info.head},
`{recipe.model_dump_json()}`.

## Trained on
{corpus["bonafide"]} bona fide and {corpus["spoof"]} spoofed clips of {corpus["speakers"]} speakers and
{corpus["generators"]} generators; fingerprint `{corpus["fingerprint"][:16]}`. The audio is not part of this bundle.

- Bona fide from: {_listed(sources)}.
- Spoofed by: {_listed(generators)}.{_further_clips(config, corpus["background"])}

## How well it does on clips that it was not trained on
{info.metrics["of"][0].upper() + info.metrics["of"][1:]}; {kept_apart}
Rates are at the balanced threshold. Intervals: {info.metrics["interval"]}.

| metric | value [interval] |
|---|---|
{shown}

## Where it errs
The same clips; errors are at the balanced threshold. Spoofs of each generator are compared with all bona fide clips.

{as_markdown(info.metrics["breakdown"])}
## Fewer errors with Inconclusive answers
The same clips. Those with a score near the balanced threshold get no answer.

| answered | no answer if nearer than | fakes missed | recordings accused |
|---|---|---|---|
{_coverage_rows(info)}

## Thresholds
Log-likelihood ratios: balanced {info.thresholds.balanced:.2f}, recall {info.thresholds.recall:.2f} (at most
{config.operating_points.recall_miss:.0%} of held-out spoofs missed), precision {info.thresholds.precision:.2f} (at most
{config.operating_points.precision_false_alarm:.0%} of held-out recordings called fake). A recording is Inconclusive if
its 80 % interval contains the threshold, or at precision also if it contains a score between the balanced threshold and
that of precision.

## Limits
- For generators, languages and channels unlike those above, expect as many errors as in the table, or more.
- Singing, music, and speech changed by heavy editing were not tested.
- A verdict is evidence to be weighed with other evidence, not proof.{_assumptions(info)}

Made by `python -m tune.train`, {seeds}, with {", ".join(f"{k} {v}" for k, v in info.versions.items())}.
"""


def _further_clips(config: TrainingConfig, background: int) -> str:
    """Lines of the card about clips that are only used for training."""
    lines = ""
    if background:
        lines = (
            f"\n- {background} of the clips are background: they are not used for tests or calibration. "
            "Their generators may also be in the test."
        )
    if config.draws:
        lines += f"\n- Copies of each clip, except background, through random channels: {config.draws}."
    if config.vocoded:
        lines += (
            "\n- Two copies of each recording, except background: one by HiFi-GAN as a spoof, and one through the same "
            "resampling as bona fide."
        )
    return lines


def _coverage_rows(info: BundleInfo) -> str:
    return "\n".join(
        f"| {row['answered']:.0%} | {row['distance']:.2f} | {row['miss_rate']:.1%} | {row['false_alarm_rate']:.1%} |"
        for row in info.metrics["coverage"]
    )


def _assumptions(info: BundleInfo) -> str:
    """A line of the card about what could not be measured."""
    if not info.metrics.get("assumes_windows"):
        return ""
    return (
        f"\n- Fewer than {FEWEST_WITH_WINDOWS} clips have several windows, so how much a window's score varies is "
        "assumed and not\n  measured. Intervals may be too narrow or too wide. Longer clips correct this."
    )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tune.train", description=__doc__.split("\n")[0])
    add_corpus_arguments(parser)
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="default: configs/train.yaml")
    parser.add_argument("--out", required=True, help="folder of the bundle, or its URI on an object store")
    parser.add_argument("--name", help="name of the model (default: that of the folder)")
    arguments = parser.parse_args(argv)
    config = parse(TrainingConfig, arguments.config)
    clips = load_clips(arguments, config.speakers_of)
    # All that can be refused is refused before the work.
    if config.front:
        hold_out(clips, config.front)
    else:
        require_calibration(clips, make_folds(clips, config.folds), config.calibration)
        make_folds(clips, config.calibration)  # also checked for the bundle itself, which is trained on all clips
    with ExitStack() as stack:
        out = stack.enter_context(local_folder(arguments.out))
        make_writable(out)
        name = arguments.name or out.resolve().name
        if config.front:
            held_out = stack.enter_context(local_folder(beside(arguments.out, "-held-out")))
            make_writable(held_out)
            connect(arguments.address)
            detector = DetectorConfig.load(arguments.detector)
            clips = with_contents(clips)
            bundle = train_tuned_bundle(config, config.front, clips, detector, arguments.packages, name, out, held_out)
        else:
            table = load_table(arguments, clips, config.features, config.draws, config.vocoded)
            connect(arguments.address)
            bundle = train_bundle(config, table, name, out)
        say(bundle, out)


def say(bundle: Bundle, out: Path) -> None:
    """Print the main metrics of the bundle and where it is."""
    for name in ("eer", "auc", "cllr", "min_cllr"):
        print(f"{name:9} {Interval(**bundle.info.metrics[name]).text()}")
    finish(
        f"the bundle {bundle.sha256[:16]} in {out}; its model_card.md says how good it is",
        f"python -m tune.evaluate --manifest UNSEEN.csv --bundle {out} --out {out}-evaluation; to "
        f"serve it, set bundle: {out} in configs/detector.yaml",
    )


if __name__ == "__main__":
    run(main)
