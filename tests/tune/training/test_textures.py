from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from pipeline.types import Segment
from pipeline.verdict.head import raw_scores, standardize
from tune.training.front import LAYER_FEATURES, Sample, TuningHead
from tune.training.textures import TEXTURES, Textured, TexturesConfig, fit_textures, join, weigh

FEATURES = sum(TEXTURES.values())


def make_sample(*, spoof: bool, page: str, kind: str, background: bool = False) -> Sample:
    return Sample(np.zeros(1, np.float32), (Segment(0.0, 1.0),), spoof, page, kind, background)


def test_pages_count_by_the_root_of_what_they_hold_and_classes_alike() -> None:
    samples = [make_sample(spoof=True, page="large", kind=f"g{i % 3}") for i in range(75)]
    samples += [make_sample(spoof=False, page="large", kind="real") for _ in range(25)]
    samples += [make_sample(spoof=spoof, page="small", kind="k") for spoof in (True, False) for _ in range(2)]
    total: dict[tuple[str, bool], float] = defaultdict(float)
    textured_clips = [Textured(sample, np.zeros((1, 1), np.float32)) for sample in samples]
    for sample, weight in zip(samples, weigh(textured_clips, TexturesConfig()), strict=True):
        total[sample.page, sample.spoof] += weight
    assert total["large", True] == pytest.approx(total["large", False])
    assert total["large", True] == pytest.approx(5 * total["small", True])


def test_the_background_counts_for_its_share() -> None:
    samples = [make_sample(spoof=spoof, page="page", kind="k") for spoof in (True, False) for _ in range(3)]
    samples += [make_sample(spoof=bool(i % 2), page=f"b{i}", kind="b", background=True) for i in range(40)]
    textured_clips = [Textured(sample, np.zeros((1, 1), np.float32)) for sample in samples]
    weights = weigh(textured_clips, TexturesConfig(background_share=0.1))
    assert weights[6:].sum() == pytest.approx(0.1 * weights[:6].sum())


def test_a_joined_head_adds_the_mean_of_the_tuned_heads_and_the_textures() -> None:
    rng = np.random.default_rng(0)
    samples = [make_sample(spoof=bool(i % 2), page=f"p{i % 3}", kind="k") for i in range(30)]
    textured_clips = [Textured(sample, rng.normal(size=(2, FEATURES)).astype(np.float32)) for sample in samples]
    for textured in textured_clips:
        textured.vectors[:, :20] += 2 * textured.sample.spoof
    textures = fit_textures(textured_clips, TexturesConfig())
    count = sum(LAYER_FEATURES.values())
    heads = [TuningHead(hidden=4, dropout=0.5).eval().arrays() for _ in range(2)]
    for head in heads:
        head["weight"] = rng.normal(0, 0.01, count).astype(np.float32)
        head["mean"] = rng.normal(size=count).astype(np.float32)
        head["scale"] = rng.uniform(1, 2, count).astype(np.float32)
    features = rng.normal(size=(5, 2 * count + FEATURES)).astype(np.float32)

    of_each = [
        raw_scores(head, standardize(head, features[:, i * count : (i + 1) * count], []))
        for i, head in enumerate(heads)
    ]
    beside = textures | {"limit": heads[0]["limit"]}
    added = raw_scores(beside, standardize(beside, features[:, 2 * count :], []))
    joined = join(heads, textures, 5.0)
    expected = np.mean(of_each, axis=0) + 5 * added
    assert raw_scores(joined, standardize(joined, features, [])) == pytest.approx(expected, abs=1e-3)

    means = np.stack([textured.vectors.mean(axis=0) for textured in textured_clips])
    found = raw_scores(beside, standardize(beside, means, []))
    spoof = np.array([sample.spoof for sample in samples])
    assert found[spoof].min() > found[~spoof].max()
