"""ONNX Runtime computes the same as torch."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from pipeline.networks.front import LAYERS, Fronts, FrontsForCpu, join_fronts, published_front
from pipeline.networks.onnx import for_cpu
from pipeline.networks.pyannote import load_segmentation


@pytest.fixture(scope="module")
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def fronts() -> Fronts:
    """Three fronts that differ."""
    fronts = join_fronts(published_front(), published_front())
    with torch.no_grad():
        for front, added in ((fronts.tuned_1, 0.3), (fronts.tuned_2, 0.6)):
            for bias in front.conv1.bias, front.conv2.bias:
                assert bias is not None
                bias += added
    return fronts


@torch.inference_mode()
def test_fronts_give_the_same_whatever_the_length(fronts: Fronts, generator: torch.Generator) -> None:
    for_this_cpu = FrontsForCpu(fronts)
    for frames in (50, 51, 333, 1_000):
        energies = torch.randn(1, 80, frames, generator=generator)
        expected = [outputs[layer] for outputs in fronts(energies).values() for layer in LAYERS]
        for one, other in zip(for_this_cpu(energies), expected, strict=True):
            assert torch.allclose(one, other, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("at_once", [2, 3])
def test_fronts_give_the_same_however_many_are_computed_at_once(
    fronts: Fronts, generator: torch.Generator, at_once: int
) -> None:
    for_this_cpu = FrontsForCpu(fronts)
    energies = torch.randn(1, 80, 333, generator=generator)
    one_by_one = for_this_cpu(energies)
    for_this_cpu.at_once = at_once
    assert all(torch.equal(one, other) for one, other in zip(for_this_cpu(energies), one_by_one, strict=True))


def test_as_many_fronts_as_asked_for_are_computed_at_once(fronts: Fronts, monkeypatch: pytest.MonkeyPatch) -> None:
    everyone = threading.Barrier(3, timeout=10)  # nobody passes before all three have come

    def meet(energies: Tensor) -> tuple[Tensor, ...]:
        everyone.wait()
        return energies, energies

    for_this_cpu = FrontsForCpu(fronts)
    monkeypatch.setattr(for_this_cpu, "_compute", [meet] * 3)
    for_this_cpu.at_once = 3
    assert len(for_this_cpu(torch.zeros(1, 80, 100))) == 6


@torch.inference_mode()
def test_segmentation_gives_the_same_whatever_the_length(generator: torch.Generator) -> None:
    network = load_segmentation()
    compute = for_cpu(load_segmentation(), torch.zeros(1, 1, 16_000))
    for samples in (2_000, 16_001, 160_000):
        sound = torch.randn(1, 1, samples, generator=generator)
        (found,) = compute(sound)
        assert torch.allclose(found, network(sound), atol=1e-3)
