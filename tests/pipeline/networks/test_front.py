from __future__ import annotations

import numpy as np
import torch

from pipeline.config import DetectorConfig
from pipeline.networks.campplus import filterbank, load_campplus
from pipeline.networks.front import front_parameters, join_fronts, load_fronts, parameters_sha256, published_front
from pipeline.networks.spec import load_spec
from pipeline.stages.extract import TkanExtractor
from pipeline.types import Segment, Waveform, Window


def test_the_front_computes_what_the_front_of_campplus_does() -> None:
    energies = torch.randn(2, 80, 60, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        folded = published_front()(energies)["out"].flatten(1, 2)
        published = load_campplus().head(energies)
    assert torch.allclose(folded, published, atol=1e-4)


def test_tuned_parameters_come_back_from_plain_arrays() -> None:
    parameters = front_parameters(join_fronts(published_front(), published_front()))
    again = front_parameters(load_fronts(parameters))
    assert parameters.keys() == again.keys()
    assert all((parameters[name] == again[name]).all() for name in parameters)
    assert parameters_sha256(parameters) == parameters_sha256(again)


def test_the_linear_bank_hears_each_of_a_batch_as_if_alone() -> None:
    samples = torch.randn(3, 8_000, generator=torch.Generator().manual_seed(0))
    samples[1, :4_000] = 0  # digital silence, which must not change the mean
    samples[2] = 0
    together = filterbank(samples, "linear")
    for one, alone in zip(together, samples, strict=True):
        assert torch.allclose(one, filterbank(alone, "linear"), atol=1e-4)
    assert (together[2] == 0).all()


def test_other_parameters_give_other_features_and_another_hash() -> None:
    spec, config = load_spec("tuned-fronts"), DetectorConfig(device="cpu")
    parameters = front_parameters(join_fronts(published_front(), published_front()))
    moved = parameters | {"tuned_2.conv1.bias": parameters["tuned_2.conv1.bias"] + np.float32(0.5)}
    noise = Waveform(np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32))
    window = (Window((Segment(0.0, 1.0),)),)
    published, tuned = (TkanExtractor(config, spec, front) for front in (None, moved))
    assert published.backbone.sha256 != tuned.backbone.sha256
    one, other = published.window_vectors(noise, window), tuned.window_vectors(noise, window)
    textures = 2 * 5 * 32 * 31 // 2
    of_tuned = 5 * 32 * 30 + textures
    assert one.shape == other.shape == (1, 2 * of_tuned + textures)
    first, second, published_part = np.split(one == other, [of_tuned, 2 * of_tuned], axis=1)
    assert first.all() and published_part.all() and second.mean() < 0.5
