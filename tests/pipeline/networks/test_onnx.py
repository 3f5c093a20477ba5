"""ONNX Runtime computes the same as torch."""

from __future__ import annotations

import pytest
import torch

from pipeline.networks.front import LAYERS, FrontsForCpu, join_fronts, published_front
from pipeline.networks.onnx import for_cpu
from pipeline.networks.pyannote import load_segmentation


@pytest.fixture(scope="module")
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@torch.inference_mode()
def test_fronts_give_the_same_whatever_the_length(generator: torch.Generator) -> None:
    fronts = join_fronts(published_front(), published_front())
    for front, added in ((fronts.tuned_1, 0.3), (fronts.tuned_2, 0.6)):
        for bias in front.conv1.bias, front.conv2.bias:
            assert bias is not None
            bias += added  # so that the three fronts differ
    for_this_cpu = FrontsForCpu(fronts)
    for frames in (50, 51, 333, 1_000):
        energies = torch.randn(1, 80, frames, generator=generator)
        expected = [outputs[layer] for outputs in fronts(energies).values() for layer in LAYERS]
        for one, other in zip(for_this_cpu(energies), expected, strict=True):
            assert torch.allclose(one, other, atol=1e-4)


@torch.inference_mode()
def test_segmentation_gives_the_same_whatever_the_length(generator: torch.Generator) -> None:
    network = load_segmentation()
    compute = for_cpu(load_segmentation(), torch.zeros(1, 1, 16_000))
    for samples in (2_000, 16_001, 160_000):
        sound = torch.randn(1, 1, samples, generator=generator)
        (found,) = compute(sound)
        assert torch.allclose(found, network(sound), atol=1e-3)
