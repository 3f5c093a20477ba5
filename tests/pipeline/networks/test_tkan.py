from typing import get_args

import numpy as np
import torch
from scipy.stats import kurtosis, skew
from torch import Tensor

from pipeline.networks.spec import Statistic, TkanSpec
from pipeline.networks.tkan import STATISTICS, Frames, layer_features


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def features(stretches: list[Tensor], *statistics: str) -> Tensor:
    """The features of neurons. `stretches`: their activations, (neurons, frames) each; a neuron is a channel at the
    only frequency."""
    channels = [stretch.unsqueeze(1) for stretch in stretches]
    return layer_features(TkanSpec(name="x", layers=("a",), statistics=statistics), "a", channels)


def test_statistics_over_stretches_equal_those_of_the_whole() -> None:
    frames = noise(7, 300) * 3 + 100
    whole = features([frames], "mean", "sd", "skewness", "upper_tail", "lower_tail", "peak")
    parts = features([frames[:, :120], frames[:, 120:]], "mean", "sd", "skewness", "upper_tail", "lower_tail", "peak")
    torch.testing.assert_close(parts, whole)


def test_moments_and_quantiles_match_numpy_and_scipy() -> None:
    frames = torch.from_numpy(np.random.default_rng(0).gamma(2.0, size=(5, 400)).astype(np.float32))
    found = features([frames], "mean", "sd", "skewness", "log_kurtosis", "upper_tail").reshape(5, 5)
    values = frames.numpy()
    upper = np.quantile(values, 0.95, axis=1) - np.quantile(values, 0.5, axis=1)
    expected = [
        values.mean(axis=1),
        values.std(axis=1),
        skew(values, axis=1),
        np.log1p(kurtosis(values, axis=1, fisher=False)),
        upper / values.std(axis=1),
    ]
    np.testing.assert_allclose(found.numpy(), np.stack(expected), rtol=0.06)


def test_shape_statistics_are_free_of_gain_and_offset() -> None:
    frames = noise(5, 400).abs() * 2
    shape = ("skewness", "log_kurtosis", "change_1", "change_4", "upper_tail", "lower_tail", "peak")
    torch.testing.assert_close(features([frames * 10 - 3], *shape), features([frames], *shape), rtol=1e-2, atol=2e-2)


def test_change_is_not_measured_across_a_gap() -> None:
    still = [torch.zeros(1, 1, 10), torch.full((1, 1, 10), 5.0)]
    assert Frames(still).change(1).item() == 0
    assert Frames([torch.cat(still, dim=2)]).change(1).item() > 0


def test_correlations_are_of_channels_at_the_same_frequency() -> None:
    frames = noise(4, 7, 300) * 3 + 1
    found = layer_features(TkanSpec(name="x", layers=("a",), statistics=("correlation",)), "a", [frames])
    by_frequency = np.stack([np.corrcoef(frames[:, f].numpy())[np.triu_indices(4, 1)] for f in range(7)])
    ranges = [by_frequency[part].mean(axis=0) for part in np.array_split(np.arange(7), 5)]
    np.testing.assert_allclose(found.numpy(), np.concatenate(ranges), atol=1e-5)


def test_one_frame_has_features() -> None:
    assert torch.isfinite(features([noise(3, 1)], *STATISTICS)).all()


def test_top_k_takes_the_highest_means() -> None:
    spec = TkanSpec(name="x", layers=("a",), reduction="top_k", k=2)
    frames = torch.tensor([1.0, 4.0, 3.0])[:, None].expand(3, 10)
    assert layer_features(spec, "a", [frames[:, None]]).tolist() == [4, 3]


def test_each_statistic_of_a_recipe_can_be_computed() -> None:
    assert tuple(STATISTICS) == get_args(Statistic)
