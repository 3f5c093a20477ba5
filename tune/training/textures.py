"""The part of a tuned detector's head that reads textures: a ridge on the channel correlations of the published front.

It is fitted separately from the parts that the fronts are tuned with. Each often finds what the others miss.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.preprocessing import StandardScaler

from pipeline.config import Strict
from pipeline.networks.front import CHANNELS, LAYERS
from pipeline.networks.tkan import RANGES
from pipeline.verdict.bundle import Arrays
from tune.training.estimator import kernel_ridge
from tune.training.front import LIMIT, Sample

TEXTURES = {f"published.{layer}": RANGES * CHANNELS * (CHANNELS - 1) // 2 for layer in LAYERS}
"""The number of features of each layer of the published front in the preset `tuned-fronts`, in their order."""


class TexturesConfig(Strict):
    """How the textures are fitted.

    `penalty`: the penalty on the squared weights; the features are divided by the square root of their number. The
    ridge has scores near -1 for bona fide clips and near 1 for spoofs. `share` times this score is added to the mean
    logit of the tuned heads. A clip has weight 1, each clip of a copy-synthesis pair `vocoded_weight`, and a copy
    through a channel `copies_weight`. The whole background has `background_share` of the weight of all other clips.
    """

    penalty: float = Field(0.2, gt=0)
    share: float = Field(1.25, gt=0)
    vocoded_weight: float = Field(0.4, gt=0)
    copies_weight: float = Field(0.1, gt=0)
    background_share: float = Field(0.04, gt=0)


@dataclass(frozen=True)
class Textured:
    """The textures of a clip, or of a copy of it through a channel: `vectors` (windows, features). `narrow`: whether
    they are for the head for narrow bands. The clip then went over a telephone line, and higher bands are hidden."""

    sample: Sample
    vectors: NDArray[np.float32]
    is_copy: bool = False
    narrow: bool = False


def fit_textures(clips: Sequence[Textured], config: TexturesConfig) -> Arrays:
    """`mean`, `scale`, `weight` (features,) and `bias` (1,) of the ridge on `clips`."""
    rows = np.concatenate([textured.vectors for textured in clips])
    counts = [len(textured.vectors) for textured in clips]
    plain = np.array([not (textured.is_copy or textured.sample.vocoded) for textured in clips])
    scaler = StandardScaler().fit(rows[np.repeat(plain, counts)])
    scale = np.maximum(scaler.scale_, 1e-6)
    standardized = np.clip((rows - scaler.mean_) / scale, -LIMIT, LIMIT)
    starts = np.cumsum([0, *counts[:-1]])
    means = np.add.reduceat(standardized, starts) / np.array(counts)[:, None]
    spoof = np.array([textured.sample.spoof for textured in clips])
    features = means.shape[1]
    dual = kernel_ridge(means @ means.T / features + 1, spoof, weigh(clips, config), config.penalty)
    found = {"mean": scaler.mean_, "scale": scale, "weight": means.T @ dual / features, "bias": np.array([dual.sum()])}
    return {name: values.astype(np.float32) for name, values in found.items()}


def weigh(clips: Sequence[Textured], config: TexturesConfig) -> NDArray[np.float64]:
    """The weight of each of `clips`, (clips,).

    A page weighs by the square root of its number of clips. In a page both classes weigh the same, and in a class each
    kind weighs by the square root of its number of clips. The background is one page with a fixed share. Over all clips
    both classes weigh the same.
    """
    samples = [textured.sample for textured in clips]
    page_of = ["" if sample.background else sample.page for sample in samples]
    pages = Counter(page_of)
    kinds = Counter((page, sample.spoof, sample.kind) for page, sample in zip(page_of, samples, strict=True))
    roots: dict[tuple[str, bool], float] = defaultdict(float)
    for (page, is_spoof, _), count in kinds.items():
        roots[page, is_spoof] += count**0.5
    weights = np.array(
        [
            (config.copies_weight if textured.is_copy else config.vocoded_weight if sample.vocoded else 1)
            * pages[page] ** 0.5
            / roots[page, sample.spoof]
            / kinds[page, sample.spoof, sample.kind] ** 0.5
            for textured, sample, page in zip(clips, samples, page_of, strict=True)
        ]
    )
    background = np.array([sample.background for sample in samples])
    if background.any():
        weights[background] *= config.background_share * weights[~background].sum() / weights[background].sum()
    spoof = np.array([sample.spoof for sample in samples])
    weights[spoof] *= weights[~spoof].sum() / weights[spoof].sum()
    mean_one: NDArray[np.float64] = weights / weights.mean()
    return mean_one


def join(tuned: Sequence[Arrays], textures: Arrays, share: float) -> Arrays:
    """The arrays of a head whose raw score is the mean score of the heads in `tuned`, plus `share` times the score of
    `textures`.

    The features of `tuned` come first, in their order.
    """

    def all_of(name: str) -> list[NDArray[np.float32]]:
        return [head[name] for head in tuned]

    of_each, of_textures = np.float32(1 / len(tuned)), np.float32(share)
    return {
        "limit": tuned[0]["limit"],
        "mean": np.concatenate([*all_of("mean"), textures["mean"]]),
        "scale": np.concatenate([*all_of("scale"), textures["scale"]]),
        "weight": np.concatenate([of_each * np.concatenate(all_of("weight")), of_textures * textures["weight"]]),
        "bias": np.mean(all_of("bias"), axis=0) + of_textures * textures["bias"],
        "hidden": np.concatenate(all_of("hidden")),
        "hidden_bias": np.concatenate(all_of("hidden_bias")),
        "output": of_each * np.concatenate(all_of("output")),
    }
