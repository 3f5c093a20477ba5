from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.networks.backbones import load_backbone
from pipeline.networks.campplus import filterbank
from pipeline.networks.spec import load_spec
from pipeline.networks.tkan import layer_features
from pipeline.stages.extract import ABOVE_TELEPHONE
from pipeline.types import SAMPLE_RATE, Segment, Waveform
from pipeline.verdict.head import raw_scores, standardize
from tune.training.front import (
    LAYER_FEATURES,
    Drawing,
    FrontConfig,
    Sample,
    Tuned,
    TuningHead,
    batch_features,
    cut,
    disturb,
    hide_above_telephone,
    tune_front,
)


def make_sample(*, spoof: bool, page: str = "a", kind: str = "k", seconds: float = 3, seed: int = 0) -> Sample:
    """A sample of noise. In a spoof the loudness of the noise rises and falls."""
    rng = np.random.default_rng([seed, spoof])
    samples = rng.standard_normal(round(seconds * SAMPLE_RATE)).astype(np.float32) * np.float32(0.1)
    if spoof:
        swing = 1 + 0.9 * np.sin(2 * np.pi * 8 * np.arange(len(samples)) / SAMPLE_RATE)
        samples *= swing.astype(np.float32)
    return Sample(samples, (Segment(0.2, seconds - 0.2),), spoof, page, kind)


def test_statistics_are_those_of_the_recipe() -> None:
    """Tuning and serving compute the same features. Only the frames of the window are used."""
    activations = torch.rand(1, 32, 10, 90, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 90)
    mask[0, 40:60] = 0
    spec = load_spec("tuned-fronts")
    expected = layer_features(spec, "tuned_1.out", [activations[0, ..., :40], activations[0, ..., 60:]])
    assert torch.allclose(batch_features(activations, mask)[0], expected, atol=2e-3)


def test_gradients_are_those_of_the_features() -> None:
    """The gradients are written by hand. They are compared with differences of the features."""
    generator = torch.Generator().manual_seed(0)
    activations = torch.rand(2, 3, 5, 12, generator=generator, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, 12, dtype=torch.float64)
    mask[0, 5:7] = 0
    assert torch.autograd.gradcheck(batch_features, (activations, mask))


def test_a_neuron_that_never_fires_keeps_the_gradient_finite() -> None:
    activations = torch.zeros(1, 32, 10, 20, requires_grad=True)
    batch_features(activations, torch.ones(1, 20)).sum().backward()
    assert activations.grad is not None and torch.isfinite(activations.grad).all()


def test_pages_and_classes_are_drawn_alike() -> None:
    """A page is drawn in proportion to the square root of its number of clips. On each page both classes are equally
    likely."""
    samples = [make_sample(spoof=True, page="large", kind=f"g{i % 2}", seed=i) for i in range(64)]
    samples += [make_sample(spoof=False, page="large", seed=i) for i in range(36)]
    samples += [make_sample(spoof=spoof, page="small", seed=i) for i in range(2) for spoof in (True, False)]
    draw, rng = Drawing(samples, FrontConfig(background_share=0)), np.random.default_rng(0)
    drawn = Counter((samples[index].page, samples[index].spoof) for index in (draw(rng) for _ in range(4_000)))
    assert sum(count for (_, spoof), count in drawn.items() if spoof) == pytest.approx(2_000, abs=150)
    assert (drawn["large", True] + drawn["large", False]) / 4_000 == pytest.approx(10 / 12, abs=0.03)


@pytest.mark.parametrize("only", [False, True])
def test_a_background_of_one_class_is_drawn_for_this_class_alone(only: bool) -> None:
    samples = [make_sample(spoof=spoof, page="page") for spoof in (True, False)]
    samples.append(replace(make_sample(spoof=only, page="other"), background=True))
    draw, rng = Drawing(samples, FrontConfig(background_share=0.5)), np.random.default_rng(0)
    drawn = Counter((samples[index].background, samples[index].spoof) for index in (draw(rng) for _ in range(1_000)))
    assert drawn[True, only] == pytest.approx(250, abs=50) and drawn[True, not only] == 0
    assert drawn[False, not only] == pytest.approx(500, abs=60)


def test_a_crop_is_cut_from_speech_and_says_which_frames_hold_any() -> None:
    sample = make_sample(spoof=False, seconds=2)
    crop, mask = cut(sample, 3 * SAMPLE_RATE, np.random.default_rng(0))
    assert len(crop) == 3 * SAMPLE_RATE
    assert (crop[: round(1.6 * SAMPLE_RATE)] == sample.samples[3_200 : 3_200 + 25_600]).all()
    assert (crop[round(1.6 * SAMPLE_RATE) :] == 0).all()
    assert mask.sum() == pytest.approx(160, abs=2)


@pytest.mark.parametrize("seed", range(6))
def test_a_line_changes_a_crop_but_not_its_length_or_peak(seed: int) -> None:
    crop = make_sample(spoof=False).samples
    changed, is_line = disturb(crop, FrontConfig(channel_share=0, telephone_share=1), np.random.default_rng(seed))
    assert is_line
    assert changed.shape == crop.shape and changed.dtype == np.float32
    assert np.abs(changed).max() == pytest.approx(1, abs=1e-3)
    assert not np.allclose(changed, crop / np.abs(crop).max(), atol=1e-3)


def test_lines_are_heard_as_they_are_served() -> None:
    """In tuning the network gets the same input as in service: nothing above the band of a telephone."""
    energies = torch.ones(3, 80, 5)
    hidden = hide_above_telephone(energies, torch.tensor([True, False, True]))
    waveform = Waveform(make_sample(spoof=False).samples)
    front_end = load_backbone("campplus-front", spectrum="linear").front_end
    served = front_end(torch.tensor(waveform.samples), [ABOVE_TELEPHONE])[0]
    assert ((hidden[0] == 0).all(dim=1) == (served == 0).all(dim=1)).all() and (hidden[0] == 0).any()
    assert (hidden[1] == 1).all() and (hidden[2] == hidden[0]).all() and (energies == 1).all()


def test_features_in_bfloat16_are_nearly_the_same() -> None:
    energies = torch.randn(2, 80, 60, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 60)
    tuned = Tuned(FrontConfig()).eval()
    with torch.no_grad():
        full, rounded = (tuned.features(energies, mask, bfloat16=bfloat16) for bfloat16 in (False, True))
    assert not torch.equal(full, rounded) and rounded.dtype == torch.float32
    assert torch.corrcoef(torch.stack([full.flatten(), rounded.flatten()]))[0, 1] > 0.999


def test_a_head_serves_as_it_was_tuned() -> None:
    head = TuningHead(hidden=4, dropout=0.5).eval()
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(head.linear.weight, std=0.05, generator=generator)
    features = torch.randn(5, sum(LAYER_FEATURES.values()), generator=generator) * 2
    head.standardizer.follow(features, 0.5)
    with torch.no_grad():
        tuned = head(features).numpy()
    arrays = head.arrays()
    served = raw_scores(arrays, standardize(arrays, features.numpy(), list(LAYER_FEATURES.values())))
    assert served == pytest.approx(tuned, abs=1e-4)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_tuning_learns_what_tells_the_classes_apart_and_moves_the_front(bfloat16: bool) -> None:
    samples = [make_sample(spoof=spoof, page=f"p{i % 3}", seed=i) for i in range(12) for spoof in (True, False)]
    config = FrontConfig(
        steps=40,
        batch_size=8,
        min_crop_seconds=0.5,
        max_crop_seconds=0.6,
        hidden=4,
        average_steps=5,
        channel_share=0.1,
        telephone_share=0,
        background_share=0,
        learning_rate=5e-4,
        head_learning_rate=3e-3,
        bfloat16=bfloat16,
    )
    losses: list[float] = []
    before = tune_front(samples, config.model_copy(update={"steps": 1}))
    tuned = tune_front(samples, config, start=before, watch=lambda step, loss, model: losses.append(loss))
    with torch.no_grad():
        crops = torch.from_numpy(np.stack([sample.samples[:9_696] for sample in samples]))
        energies = filterbank(crops, "linear").transpose(1, 2)
        logits = tuned(energies, torch.ones(len(crops), energies.shape[2]))
    spoof = torch.tensor([sample.spoof for sample in samples])
    assert len(losses) == 2 and losses[1] < losses[0]
    assert logits[spoof].mean() > logits[~spoof].mean() + 3
    pairs = zip(before.front.parameters(), tuned.front.parameters(), strict=True)
    assert not any(torch.equal(one, other) for one, other in pairs)
