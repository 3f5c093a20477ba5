"""What a verdict is based on: which moments, which bands of frequency and which layers of the network.

All three are in the unit of the answer's score, a log-likelihood ratio: above 0 speaks for a machine, below 0 for a
human. If a part decided for the whole, that part is explained.

Moments: the windows whose scores have the most weight in the score of the answer. Layers: how much the score falls if
the features of a layer are set to the mean of the training data. Bands: how much the score of those moments falls if
the energies of a band are set to their mean over time, so that nothing happens in it (occlusion). If the bundle holds
the ranges that are usual for recordings of humans, each score is compared with its range.

Source for layers and bands: Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014,
section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Features, Seconds, Window
from pipeline.verdict.answer import BandShare, DecidedBy, Explanation, LayerShare, MomentShare, Verdict
from pipeline.verdict.bundle import BundleInfo, HumanRanges, Range, Scorer
from pipeline.verdict.evidence import log_odds
from pipeline.verdict.head import raw_scores
from pipeline.verdict.parts import Indices, window_seconds

MOMENTS = 6
"""The most moments of an explanation. Occlusion computes the features of each of them again for each band."""

NO_WEIGHT = 0.1
"""A share nearer to 0 than this speaks for neither side. It is a log-likelihood ratio: it moves a probability of 0.5 by
0.025."""

RECORDINGS, MOMENTS_OF_SPEECH = "recordings of humans", "moments of human speech"

Matrix = NDArray[np.float32]
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Band:
    """A band of frequency, from `low_hz` to below `high_hz`, and what a person hears in it."""

    low_hz: float
    high_hz: float
    description: str


BANDS = (
    Band(0, 500, "the lowest tones, where the pitch of a voice lies"),
    Band(500, 1_500, "the lower tones, which make vowels loud"),
    Band(1_500, 3_000, "the middle tones, which tell vowels apart"),
    Band(3_000, 5_000, "the higher tones, which make speech clear"),
    Band(5_000, 8_000, "the highest tones, where s and f hiss"),
)

LAYERS = {
    "tuned_1.layer2": "Fine patterns of the sound, learnt by telling machines from humans",
    "tuned_1.out": "Broad patterns of the sound, learnt by telling machines from humans",
    "tuned_2.layer2": "Fine patterns of the sound, learnt by telling machines from humans in a second training",
    "tuned_2.out": "Broad patterns of the sound, learnt by telling machines from humans in a second training",
    "published.layer2": "Fine patterns of the sound, learnt by telling people apart",
    "published.out": "Broad patterns of the sound, learnt by telling people apart",
}
"""What the layers of the default bundle hold, for people. `out` joins two frequencies of `layer2` into one."""


def explain(
    verdict: Verdict,
    features: Features,
    scores: Scores,
    standardized: Matrix,
    scorer: Scorer,
    info: BundleInfo,
    prior: float,
) -> Explanation:
    """Moments and layers behind `verdict`, from the `scores` (windows,) of its windows and their `standardized`
    features (windows, dimension)."""
    rows = _rows(features.windows, verdict.decided_by)
    seconds = window_seconds(features.windows)[rows]
    share = _share(verdict, scores[rows], seconds, prior)
    contributions = share * scores[rows]
    strongest = _strongest([features.windows[row] for row in rows], np.abs(contributions) * seconds)
    humans = scorer.humans.moments if scorer.humans else None
    return Explanation(
        moments=tuple(_moment(features.windows[rows[i]], float(contributions[i]), humans) for i in strongest),
        bands=(),
        layers=tuple(_layers(standardized[rows], share * seconds / seconds.sum(), scorer, info)),
    )


def moments_of(explanation: Explanation, windows: Sequence[Window]) -> tuple[int, ...]:
    """Which of `windows` the moments of an explanation are, in the same order."""
    places = {(w.speaker, w.parts[0].start, w.parts[-1].end): row for row, w in enumerate(windows)}
    return tuple(places[moment.speaker, moment.start, moment.end] for moment in explanation.moments)


def with_bands(
    verdict: Verdict,
    features: Features,
    scores: Scores,
    with_all: Scores,
    without: Sequence[Scores],
    humans: HumanRanges | None,
    prior: float,
) -> Explanation:
    """The explanation of `verdict` with its bands.

    `scores` (windows,) are the scores of all windows of the recording. `with_all` (moments,) are the scores of the
    moments, computed again, and `without` are their scores with each of BANDS hidden.
    """
    assert verdict.explanation is not None
    rows = _rows(features.windows, verdict.decided_by)
    share = _share(verdict, scores[rows], window_seconds(features.windows)[rows], prior)
    seconds = window_seconds([features.windows[row] for row in moments_of(verdict.explanation, features.windows)])
    ranges = humans.bands if humans else [None] * len(BANDS)
    bands = []
    for band, hidden, usual in zip(BANDS, without, ranges, strict=True):
        added = share * float(np.average(with_all - hidden, weights=seconds))
        sentence = f"{_kilohertz(band)}, {band.description}: {_direction(added, usual, RECORDINGS)}."
        bands.append(BandShare(low_hz=band.low_hz, high_hz=band.high_hz, score=added, humans=usual, sentence=sentence))
    return verdict.explanation.model_copy(update={"bands": tuple(bands)})


def _rows(windows: Sequence[Window], part: DecidedBy | None) -> Indices:
    """The windows behind a verdict: those of the part that decided, or all."""
    if part is None:
        return np.arange(len(windows))
    return np.flatnonzero(
        [
            w.speaker == part.speaker and w.parts[0].start >= part.start - 1e-6 and w.parts[-1].end <= part.end + 1e-6
            for w in windows
        ]
    )


def _share(verdict: Verdict, scores: Scores, seconds: Scores, prior: float) -> float:
    """The answer's score divided by the mean score of the windows behind it. Uncertainty usually makes it below 1."""
    score = verdict.score or 0.0
    if verdict.decided_by is not None:
        score = log_odds(float(np.clip(verdict.decided_by.probability, 1e-9, 1 - 1e-9))) - log_odds(prior)
    seen = float(np.average(scores, weights=seconds))
    return score / seen if seen else 0.0


def _strongest(windows: Sequence[Window], strengths: Scores) -> list[int]:
    """The indices of the strongest windows that do not overlap each other, the strongest first."""
    chosen: list[int] = []
    for i in np.argsort(-strengths, kind="stable").tolist():
        if len(chosen) < MOMENTS and not any(_overlap(windows[i], windows[other]) for other in chosen):
            chosen.append(i)
    return chosen


def _overlap(one: Window, other: Window) -> bool:
    return one.parts[0].start < other.parts[-1].end and other.parts[0].start < one.parts[-1].end


def _moment(window: Window, score: float, humans: Range | None) -> MomentShare:
    start, end = window.parts[0].start, window.parts[-1].end
    sentence = f"{clock(start)} to {clock(end)}: {_direction(score, humans, MOMENTS_OF_SPEECH)}."
    return MomentShare(speaker=window.speaker, start=start, end=end, score=score, humans=humans, sentence=sentence)


def _layers(standardized: Matrix, weights: Scores, scorer: Scorer, info: BundleInfo) -> list[LayerShare]:
    sizes = [1] * len(info.layers) if info.features.reduction == "acn" else list(info.layers.values())
    edges = np.cumsum([0, *sizes])
    with_all = raw_scores(scorer.arrays, standardized)
    found = []
    for layer, start, end in zip(info.layers, edges[:-1], edges[1:], strict=True):
        without = standardized.copy()
        without[:, start:end] = 0
        fall = with_all - raw_scores(scorer.arrays, without)
        added = scorer.calibration.scale * float(fall @ weights)
        humans = scorer.humans.layers.get(layer) if scorer.humans else None
        sentence = f"{_describe(layer)}: {_direction(added, humans, RECORDINGS)}."
        found.append(LayerShare(layer=layer, score=added, humans=humans, sentence=sentence))
    return found


def _direction(score: float, humans: Range | None, among: str) -> str:
    """What a score speaks for, compared with its range `humans` among many recordings or moments of humans."""
    if abs(score) < NO_WEIGHT:
        return "says little either way"
    much = "strongly " if abs(score) >= math.log(10) else ""
    if score < 0:
        return f"speaks {much}for a human"
    compared = ""
    if humans:
        rare = score > humans[1]
        compared = f", more than in 95 of 100 {among}" if rare else f", as in some {among}"
    return f"speaks {much}for a machine{compared}"


def clock(seconds: Seconds, digits: int = 1) -> str:
    """A time within a recording, in minutes and seconds, for people."""
    minutes, rest = divmod(round(seconds, digits), 60)
    return f"{minutes:.0f}:{rest:0{digits + 3 if digits else 2}.{digits}f}"


def _describe(layer: str) -> str:
    words = LAYERS.get(layer)
    return f"{words} ({layer})" if words else f"Layer {layer}"


def _kilohertz(band: Band) -> str:
    return f"{band.low_hz / 1000:g} to {band.high_hz / 1000:g} kHz"
