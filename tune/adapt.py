"""Adapt a bundle to your own channel, with 20 to 200 labelled clips of this channel.

    python -m tune.adapt --bundle pipeline/bundles/default --manifest mine.csv --out bundles/mine

The scores are recalibrated. If it helps, the head is moved, too: a linear function of the same features is added to
its score. The function is fitted by ridge regression. Few clips give little evidence, so all changes are kept small.
Nested leave-one-out measures the bundle before and after. If the difference may be chance, no bundle is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from pipeline.audio.decode import decode
from pipeline.config import DetectorConfig
from pipeline.errors import BundleError, InputError
from pipeline.progress import with_progress
from pipeline.stages.extract import TkanExtractor
from pipeline.stages.vad import VoiceActivityDetector
from pipeline.verdict.bundle import NARROW, Arrays, Bundle, BundleInfo, Calibration, Thresholds, save_bundle
from pipeline.verdict.head import raw_scores, standardize
from pipeline.verdict.parts import window_seconds
from tune.command import finish, run
from tune.corpora.manifest import (
    NO_SPEECH,
    Clip,
    add_split_argument,
    of_split,
    require_usable,
    set_unnamed_apart,
    with_contents,
)
from tune.corpora.readers import read_corpus
from tune.errors import CorpusError
from tune.places import make_writable
from tune.reports.breakdown import rates
from tune.reports.metrics import (
    Indices,
    Interval,
    Intervals,
    Labels,
    Scores,
    bootstrap,
    bootstrap_statistics,
    cllr,
    coverage_errors,
    eer,
    min_cllr,
)
from tune.training.calibrate import NARROW_EER_LIMIT, OperatingPoints, choose_thresholds
from tune.training.evidence import USUAL
from tune.training.folds import tied_groups

Matrix = NDArray[np.float32]

MIN_CLIPS = 8
"""The least number of clips of each class. With fewer clips, a single unusual recording would decide the result."""
MIN_GROUPS = 4
"""The least number of sites of each class for leaving out whole sites. The same number applies to speakers."""
MAX_FOLDS = 200
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""The penalties of the ridge regression to choose from. Inner products are divided by the number of features."""
SCALE_SD, OFFSET_SD, SHARE_SD = 0.3, 2.0, 2.0
"""Standard deviations of three normal priors: of the logarithm of the scale, of the offset (a log-likelihood ratio),
and of the share of the linear function. The priors have the mean 0, which changes nothing."""
MOVE_CLIPS = 20
"""The least number of clips of each class for moving the head. With fewer clips, moving it did more harm than good."""
MOVE_ERRORS = 2.0
"""The head is moved only if the gain is more than this many standard errors, for the same reason."""
MIN_GAIN_NATS = 2.0
"""The least fall of Cllr, in nats, summed over clips. Clips of the same group and class count as one clip, because they
are alike. If adapting does not help at all, the fall is still larger than this in one of fifty cases: with two fitted
parameters, the fall in leave-one-out is the log likelihood ratio minus the penalty of Akaike's criterion (Stone, JRSS B
1977)."""
THRESHOLD_CLIPS = 60
"""The least number of clips of a class for a new operating point that allows errors on 5 % of them."""
VARIANCES = ("score_variance", "window_variance", "snr_variance", "novelty_variance", "line_variance")
HEADING = "## Adapted to a channel"
ALONE = (
    "so each of them is left out by itself. If a voice has several of them, the figures after adapting are better than "
    "on new voices. Name the speakers in the manifest."
)
FEW_SPEAKERS = (
    f"warning: a class has clips of fewer than {MIN_GROUPS} independent speakers, so single clips are left out. The "
    "head is calibrated again but not moved, because it would learn these voices. The figures hold for these speakers "
    "only. Label clips of more speakers."
)


@dataclass(frozen=True)
class ScoredClips:
    """The results of a bundle for clips. Windows are weighted by their seconds of speech, as in a verdict.

    `labels`: (clips,). `scores`: (clips,) log-likelihood ratios. `inputs`: (clips, dimension) mean standardised
    features. `novelty`: (clips,) mean squared standardised features, as in `pipeline.verdict.bundle.Uncertainty`.
    `groups`: (clips,) the number of each clip's group; a group is left out as a whole. `unit`: what a group is: `site`,
    `speaker` or `clip`. `may_move`: whether the head may be moved. With clips of few speakers it would learn their
    voices.
    """

    labels: Labels
    scores: Scores
    inputs: Matrix
    novelty: NDArray[np.float64]
    groups: Indices
    unit: str = "clip"
    may_move: bool = True

    def of(self, rows: Indices) -> ScoredClips:
        """Only the clips of `rows`."""
        arrays = {name: getattr(self, name)[rows] for name in ("labels", "scores", "inputs", "novelty", "groups")}
        return replace(self, **arrays)


@dataclass(frozen=True)
class Adaptation:
    """The adapted score is scale * score + offset + inputs @ direction. `direction` (dimension,) is None if the head is
    not moved."""

    scale: float
    offset: float
    direction: NDArray[np.float64] | None = None

    def __call__(self, scored: ScoredClips) -> Scores:
        scores = self.scale * scored.scores + self.offset
        return scores if self.direction is None else scores + scored.inputs @ self.direction


def fit_adaptation(scored: ScoredClips) -> Adaptation:
    """Calibrate, then add a linear function of the inputs if it helps for groups that are left out of its fit."""
    weights = _class_weights(scored.labels)
    nothing = np.zeros_like(scored.scores)
    scale, offset, _ = _calibrate(scored.labels, scored.scores, nothing, weights)
    scores = scale * scored.scores + offset
    if not scored.may_move or min(scored.labels.sum(), (~scored.labels).sum()) < MOVE_CLIPS:
        return Adaptation(scale, offset)
    # The error of the recalibrated head: the true answer (-1 or 1) minus its answer (between -1 and 1).
    residuals = np.where(scored.labels, 1.0, -1.0) - np.tanh(scores / 2)
    middle = np.average(scored.inputs, axis=0, weights=weights)
    centred = scored.inputs - middle
    dimension = centred.shape[1]
    products = (centred @ centred.T).astype(np.float64) / dimension

    best_gain, best_penalty, best_predicted = 0.0, 0.0, nothing
    for penalty in PENALTIES:
        predicted = _predict_left_out(products, residuals, weights, scored.groups, penalty)
        gains = np.bincount(scored.groups, weights * (np.square(residuals) - np.square(residuals - predicted)))
        gains = gains[np.bincount(scored.groups) > 0]
        if gains.sum() > max(best_gain, MOVE_ERRORS * np.sqrt(len(gains)) * gains.std()):
            best_gain, best_penalty, best_predicted = float(gains.sum()), penalty, predicted
    if not best_gain:
        return Adaptation(scale, offset)
    again, further, share = _calibrate(scored.labels, scores, best_predicted, weights)
    if not share:
        return Adaptation(scale, offset)
    dual = np.linalg.solve(products + best_penalty * np.diag(1 / weights), residuals)
    direction = share * (centred.T @ dual) / dimension
    return Adaptation(again * scale, again * offset + further - float(middle @ direction), direction)


def _class_weights(labels: Labels) -> NDArray[np.float64]:
    """The weight of each clip, (clips,). Both classes have the same total weight. The mean weight is 1."""
    weights: NDArray[np.float64] = np.where(labels, 0.5 / labels.mean(), 0.5 / (~labels).mean())
    return weights


def _calibrate(
    labels: Labels, scores: Scores, predicted: Scores, weights: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Scale, offset and share for which scale * scores + offset + share * predicted are log-likelihood ratios.

    They are fitted by logistic regression with the priors above. With few clips, the priors keep them near 1, 0 and 0.
    """
    signs = np.where(labels, 1.0, -1.0)
    spread = np.array([SCALE_SD, OFFSET_SD, SHARE_SD])

    def cost(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scaled = np.exp(values[0]) * scores
        margins = signs * (scaled + values[1] + values[2] * predicted)
        slopes = -weights * signs * expit(-margins)
        loss = weights @ np.logaddexp(0, -margins) + np.square(values / spread).sum() / 2
        gradient = np.array([slopes @ scaled, slopes.sum(), slopes @ predicted]) + values / spread**2
        return float(loss), gradient

    bounds = [(None, None), (None, None), (0, None)]
    found = minimize(cost, np.zeros(3), jac=True, method="L-BFGS-B", bounds=bounds).x
    return float(np.exp(found[0])), float(found[1]), float(found[2])


def _predict_left_out(
    products: NDArray[np.float64], residuals: Scores, weights: NDArray[np.float64], groups: Indices, penalty: float
) -> Scores:
    """(clips,) the prediction for each clip by the ridge regression on all other groups.

    Source: the closed form of leaving rows out of least squares (Cook and Weisberg, Residuals and Influence, 1982).
    """
    inverse = np.linalg.inv(products + penalty * np.diag(1 / weights))
    dual = inverse @ residuals
    predicted = np.empty_like(residuals)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        predicted[rows] = residuals[rows] - np.linalg.solve(inverse[np.ix_(rows, rows)], dual[rows])
    return predicted


def nested_scores(scored: ScoredClips) -> Scores:
    """(clips,) the score of each clip by an adaptation that was fitted without its group.

    The penalty is also chosen without its group. If there are more than MAX_FOLDS groups, several are left out at once.
    """
    found = np.full(len(scored.labels), np.nan)
    numbers = np.unique(scored.groups)
    for part in np.array_split(numbers, min(len(numbers), MAX_FOLDS)):
        out = np.isin(scored.groups, part)
        if len(np.unique(scored.labels[~out])) < 2:
            raise CorpusError(
                f"if one {scored.unit} is left out, a class has no clip left: label clips of more sites or speakers"
            )
        found[out] = fit_adaptation(scored.of(np.flatnonzero(~out)))(scored.of(np.flatnonzero(out)))
    return found


def compare(scored: ScoredClips, after: Scores, *, draws: int = 1000) -> dict[str, Intervals]:
    """Metrics with their intervals: `before` for the scores of the bundle, `after` for those of the adapted bundle.

    `gain` says how much Cllr falls. For its interval, both values of Cllr are computed from the same drawn clips.
    """
    metrics = {"eer": eer, "cllr": cllr, "min_cllr": min_cllr, **rates(0.0)}
    speakers = [str(group) for group in scored.groups]

    def gain(rows: Indices) -> dict[str, float]:
        labels = scored.labels[rows]
        return {"cllr": cllr(labels, scored.scores[rows]) - cllr(labels, after[rows])}

    return {
        "before": bootstrap(metrics, scored.labels, scored.scores, speakers, draws=draws),
        "after": bootstrap(metrics, scored.labels, after, speakers, draws=draws),
        "gain": bootstrap_statistics(gain, scored.labels, speakers, draws=draws),
    }


def is_beyond_chance(gain: Interval, scored: ScoredClips) -> bool:
    """Whether the fall of Cllr, a `gain` in bits, is too large to be chance: at least MIN_GAIN_NATS in total.

    Cllr is the mean of the means of both classes, so the smaller class decides how much of the fall may be chance. The
    fall counts for as many clips as two equal classes would need for a mean as certain.
    """
    of_class = [len(np.unique(scored.groups[scored.labels == label])) for label in (False, True)]
    equal = 4 / sum(1 / count for count in of_class)
    return gain.value * equal * float(np.log(2)) >= MIN_GAIN_NATS


def score_clips(bundle: Bundle, config: DetectorConfig, clips: Sequence[Clip]) -> tuple[ScoredClips, list[Clip], bool]:
    """Score `clips` with the bundle that `config` names.

    Returns the scores, the clips that have one, and whether the head for narrow bands gave the scores. Only one head is
    adapted: the one that judges most of the clips. Clips that the other head judges, and clips without speech, are left
    out and listed on the standard error. Raises CorpusError if too few clips of a class remain.
    """
    voice_activity, extractor = VoiceActivityDetector(config), TkanExtractor(config)
    sizes = list(bundle.info.layers.values())
    found: list[tuple[Clip, bool, float, Matrix, float]] = []
    for clip in with_progress(clips, len(clips), "clips"):
        try:
            recording = decode(clip.path.read_bytes(), config.limits)
        except InputError as error:
            _leave_out(clip, error.detail)
            continue
        speech = voice_activity.detect(recording)
        if not speech.segments:
            _leave_out(clip, NO_SPEECH)
            continue
        features = extractor.extract(recording, speech, turns=None)
        narrow = features.narrow and bundle.info.narrow is not None
        scorer = bundle.scorer(narrow=narrow)
        standardized = standardize(scorer.arrays, features.vectors, sizes)
        shares = window_seconds(features.windows)
        raw = float(np.average(raw_scores(scorer.arrays, standardized), weights=shares))
        found.append(
            (
                clip,
                narrow,
                scorer.calibration.scale * raw + scorer.calibration.offset,
                np.average(standardized, axis=0, weights=shares).astype(np.float32),
                float(np.mean(np.square(standardized, dtype=np.float64))),
            )
        )
    narrow = sum(one[1] for one in found) > len(found) / 2
    for clip, of_narrow, *_ in found:
        if of_narrow != narrow:
            _leave_out(clip, f"its band is {'narrow' if of_narrow else 'wide'}, so the other head judges it")
    kept = [one for one in found if one[1] == narrow]
    labels = np.array([one[0].is_spoof for one in kept], dtype=bool)
    for label, count in (("bonafide", int((~labels).sum())), ("spoof", int(labels.sum()))):
        if count < MIN_CLIPS:
            raise CorpusError(
                f"there are {count} {label} clips to judge by, and at least {MIN_CLIPS} are needed to tell whether "
                "adapting helps: label more clips, from as many speakers as possible"
            )
    good, _, scores, inputs, novelty = zip(*kept, strict=True)
    scored = ScoredClips(labels, np.array(scores), np.array(inputs), np.array(novelty), *groups_of(good))
    return scored, list(good), narrow


def _leave_out(clip: Clip, why: str) -> None:
    print(f"left out: {clip.listed or clip.path.name}: {why}", file=sys.stderr)


def groups_of(clips: Sequence[Clip]) -> tuple[Indices, str, bool]:
    """(clips,) the number of each clip's group; what a group is: `site`, `speaker` or `clip`; whether a head may be
    moved.

    A group is a site, if enough sites are named; else a speaker; else a single clip. Clips of one site are alike: if
    only some of them were left out, the others would tell too much about them. So are clips of one speaker. If only few
    are named, a group is still a single clip, but no head may be moved, and a warning says what the figures are about.
    Clips of one utterance and copies of one file are always in one group.
    """
    clips, unnamed = set_unnamed_apart(clips)
    labels = np.array([clip.is_spoof for clip in clips])

    def are_enough(groups: Indices) -> bool:
        return min(len(set(groups[labels])), len(set(groups[~labels]))) >= MIN_GROUPS

    _, sites = np.unique([clip.site for clip in clips], return_inverse=True)
    if are_enough(sites):
        return sites, "site", True
    if unnamed:
        print(f"warning: {unnamed}, {ALONE}", file=sys.stderr)
    speakers = tied_groups(clips)
    if are_enough(speakers):
        return speakers, "speaker" if any(clip.speaker or clip.site for clip in clips) else "clip", True
    print(FEW_SPEAKERS, file=sys.stderr)
    return tied_groups([replace(clip, alone=True) for clip in clips]), "clip", False


def adapt(
    bundle: Bundle, adaptation: Adaptation, scored: ScoredClips, after: Scores, *, narrow: bool
) -> tuple[BundleInfo, Arrays]:
    """The `bundle.json` and the arrays of the adapted bundle. `narrow` says which head is adapted.

    `after` (clips,) are the scores of `nested_scores`. Variances grow with the square of the scale. The novelty of most
    of the clips now counts as normal. If the head for wide bands is adapted, new operating points are chosen if
    their class has enough clips; both heads use the operating points. The metric `coverage` is then measured with these
    clips, because a service compares its scores with it. If the head for narrow bands is adapted, it may give answers
    if its EER is low enough.
    """
    info, scorer = bundle.info, bundle.scorer(narrow=narrow)
    calibration = Calibration(
        scale=adaptation.scale * scorer.calibration.scale,
        offset=adaptation.scale * scorer.calibration.offset + adaptation.offset,
    )
    grown, uncertainty = adaptation.scale**2, scorer.uncertainty
    uncertainty = uncertainty.model_copy(
        update={
            **{name: grown * getattr(uncertainty, name) for name in VARIANCES},
            "novelty": max(uncertainty.novelty, float(np.quantile(scored.novelty, USUAL))),
        }
    )
    arrays = dict(bundle.arrays)
    if adaptation.direction is not None:
        prefix = NARROW if narrow else ""
        if not any(name.startswith(NARROW) for name in arrays) and info.narrow:
            # Until now one head served both bands. It is copied, because only one of the two copies is moved.
            arrays |= {NARROW + name: array.copy() for name, array in arrays.items()}
        correction = adaptation.direction / calibration.scale + arrays.get(f"{prefix}correction", 0.0)
        arrays[f"{prefix}correction"] = np.asarray(correction, np.float32)
    changed = {"calibration": calibration, "uncertainty": uncertainty}
    if narrow:
        assert info.narrow is not None
        trusted = eer(scored.labels, after) <= NARROW_EER_LIMIT
        band = info.narrow.model_copy(update={**changed, "trusted": trusted})
        return info.model_copy(update={"narrow": band}), arrays
    chosen, kept = choose_thresholds(scored.labels, after, OperatingPoints()), info.thresholds
    thresholds = Thresholds(
        balanced=0.0,
        recall=min((chosen if scored.labels.sum() >= THRESHOLD_CLIPS else kept).recall, 0.0),
        precision=max((chosen if (~scored.labels).sum() >= THRESHOLD_CLIPS else kept).precision, 0.0),
    )
    metrics = {**info.metrics, "coverage": coverage_errors(scored.labels, after)}
    # The ranges for recordings of humans are dropped, because they were measured with the old head.
    return info.model_copy(update={**changed, "thresholds": thresholds, "humans": None, "metrics": metrics}), arrays


def describe_change(old: BundleInfo, new: BundleInfo, *, narrow: bool, is_moved: bool) -> str:
    """What adapting one head of a bundle changed, and whether the head may still answer, without a full stop."""
    what = f"its head {'for narrow bands ' if narrow else ''}calibrated again{' and' if is_moved else ', not'} moved"
    if old.narrow is None or new.narrow is None or old.narrow.trusted == new.narrow.trusted:
        return what
    limit = f"its EER on these clips is {'at most' if new.narrow.trusted else 'above'} {100 * NARROW_EER_LIMIT:.0f} %"
    may = "may now answer" if new.narrow.trusted else "may no longer answer"
    return f"{what}. For narrow bands the bundle {may} Real or Fake, because {limit}"


def with_record(metrics: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a bundle with the record of an adaptation. Earlier records are kept, the oldest first."""
    earlier = [*metrics.get("adapted_before", []), *([metrics["adapted"]] if "adapted" in metrics else [])]
    return {**metrics, "adapted": record} | ({"adapted_before": earlier} if earlier else {})


def as_table(found: dict[str, Intervals]) -> str:
    """A table of the metrics before and after. Error rates are in percent."""
    units = {"eer": (100, 1), "miss_rate": (100, 1), "false_alarm_rate": (100, 1), "cllr": (1, 3), "min_cllr": (1, 3)}
    names = {
        "eer": "EER %",
        "cllr": "Cllr",
        "min_cllr": "least Cllr",
        "miss_rate": "fakes missed %",
        "false_alarm_rate": "recordings accused %",
    }
    lines = ["| metric | before | after |", "|---|---|---|"]
    lines += [
        f"| {names[name]} | {found['before'][name].text(*unit)} | {found['after'][name].text(*unit)} |"
        for name, unit in units.items()
    ]
    return "\n".join(lines) + "\n"


def read_card(bundle: Path) -> str:
    """The model card of a bundle. Raises BundleError if it cannot be read."""
    try:
        return (bundle / "model_card.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(
            f"model bundle {bundle.name} has no model_card.md that can be read: copy the bundle again"
        ) from error


def _card(old: str, bundle: Bundle, record: dict[str, Any], table: str) -> str:
    return (
        f"{old.rstrip()}\n\n{HEADING}\n"
        f"Made by `python -m tune.adapt` from `{bundle.info.name}` ({bundle.sha256[:16]}) with {record['bonafide']} "
        f"bona fide and {record['spoof']} spoofed clips: {record['what']}. The figures above are those of the old "
        "bundle.\nThe figures below are for the clips of the channel. "
        f"Each {record['unit']} is judged by an adaptation that was fitted without it. Intervals are 95 %.\n\n{table}"
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tune.adapt", description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True, help="the bundle to start from")
    parser.add_argument(
        "--manifest", type=Path, required=True, help="the labelled clips, or a folder with real/ and fake/ in it"
    )
    add_split_argument(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the adapted bundle")
    parser.add_argument("--name", help="name of the model (default: that of the folder)")
    parser.add_argument("--detector", type=Path, help="configuration of the detector (default: configs/detector.yaml)")
    arguments = parser.parse_args(argv)
    if arguments.out.resolve() == arguments.bundle.resolve():
        parser.error("--out is the bundle to start from: choose another folder")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    arguments = _arguments(argv)
    # All that can be refused is refused before the work.
    bundle = Bundle.load(arguments.bundle)
    old_card = read_card(arguments.bundle)
    # The folder itself is made only if there is a bundle to write.
    make_writable(arguments.out if arguments.out.exists() else arguments.out.parent)
    clips = of_split(read_corpus(None, arguments.manifest), arguments.split)
    require_usable(clips)
    clips = with_contents(clips)
    config = DetectorConfig.load(arguments.detector).model_copy(update={"bundle": arguments.bundle.resolve()})
    hashes = {clip.sha256[:12] for clip in clips}
    if known := len(hashes & set(bundle.info.corpus.get("clips", ()))):
        print(
            f"warning: the bundle was trained on {known} of these clips, so the figures before adapting are too good",
            file=sys.stderr,
        )
    scored, clips, narrow = score_clips(bundle, config, clips)
    after = nested_scores(scored)
    found = compare(scored, after)
    table = as_table(found)
    print(table, end="")
    gain = found["gain"]["cllr"]
    if not is_beyond_chance(gain, scored):
        raise CorpusError(
            f"these {len(clips)} clips do not show that an adapted bundle is better: Cllr falls by {gain.text()}. "
            "So few clips may show this by chance. No bundle is written: label more clips, or keep the bundle as it is"
        )
    adaptation = fit_adaptation(scored)
    info, arrays = adapt(bundle, adaptation, scored, after, narrow=narrow)
    record = {
        "from": bundle.sha256,
        "bonafide": int((~scored.labels).sum()),
        "spoof": int(scored.labels.sum()),
        "unit": scored.unit,
        "what": describe_change(bundle.info, info, narrow=narrow, is_moved=adaptation.direction is not None),
        **{side: {name: interval._asdict() for name, interval in of.items()} for side, of in found.items()},
    }
    info = info.model_copy(
        update={
            "name": arguments.name or arguments.out.resolve().name,
            "metrics": with_record(info.metrics, record),
            "corpus": {**info.corpus, "clips": sorted({*info.corpus.get("clips", ()), *hashes})},
        }
    )
    card = _card(old_card, bundle, record, table)
    adapted = save_bundle(arguments.out, info, arrays, card, bundle.front)
    print(f"{record['what']}. Cllr falls by {gain.text()}, measured by leaving out each {scored.unit} in turn")
    finish(
        f"the bundle {adapted.sha256[:16]} in {arguments.out}",
        f"set bundle: {arguments.out} in configs/detector.yaml. For a running service, set it under the Classifier's "
        "user_config in serve_config.yaml instead, and run serve deploy serve_config.yaml",
    )


if __name__ == "__main__":
    run(main)
