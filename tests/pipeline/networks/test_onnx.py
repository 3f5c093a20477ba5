"""What ONNX Runtime computes is what torch does."""

from __future__ import annotations

import pytest
import torch

from pipeline.networks.front import LAYERS, FrontForCpu, published_front
from pipeline.networks.onnx import for_cpu
from pipeline.networks.pyannote import load_segmentation


@pytest.fixture(scope="module")
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@torch.inference_mode()
def test_a_front_gives_the_same_whatever_the_length(generator: torch.Generator) -> None:
    front = published_front()
    for_this_cpu = FrontForCpu(front)
    for frames in (50, 51, 333, 1_000):
        energies = torch.randn(1, 80, frames, generator=generator)
        expected, found = front(energies), for_this_cpu(energies)
        assert tuple(found) == LAYERS
        for layer in LAYERS:
            assert torch.allclose(found[layer], expected[layer], atol=1e-4)


@torch.inference_mode()
def test_segmentation_gives_the_same_whatever_the_length(generator: torch.Generator) -> None:
    network = load_segmentation()
    compute = for_cpu(load_segmentation(), torch.zeros(1, 1, 16_000))
    for samples in (2_000, 16_001, 160_000):
        sound = torch.randn(1, 1, samples, generator=generator)
        (found,) = compute(sound)
        assert torch.allclose(found, network(sound), atol=1e-3)
