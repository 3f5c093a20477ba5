from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigurationError
from pipeline.tkan import PRESETS, NeuronStatistics, TkanSpec, load_spec, vectors


def test_statistics_over_chunks_equal_those_of_the_whole() -> None:
    frames = torch.randn(7, 300) * 3 + 100
    chosen = torch.zeros(300)
    chosen[40:260] = 1
    statistics = NeuronStatistics(windows=2)
    for start, end in ((0, 120), (120, 300)):
        statistics.add(frames[:, start:end], chosen[None, start:end], rows=[1])
    mean, sd = statistics.mean_and_sd()
    torch.testing.assert_close(mean[1], frames[:, 40:260].mean(dim=1), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(sd[1], frames[:, 40:260].std(dim=1, correction=0), rtol=1e-3, atol=1e-3)


def test_top_k_takes_the_highest_means_of_each_layer() -> None:
    spec = TkanSpec(name="x", layers=("a", "b"), reduction="top_k", k=2)
    layers = []
    for means in ([1.0, 4.0, 3.0], [7.0, 5.0, 6.0]):
        layers.append(NeuronStatistics(1))
        layers[-1].add(torch.tensor(means)[:, None].expand(3, 10), torch.ones(1, 10), [0])
    np.testing.assert_allclose(vectors(spec, layers).numpy(), [[4, 3, 7, 6]])


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_load_under_their_own_name(path: Path) -> None:
    assert load_spec(path.stem).name == path.stem


def test_a_misspelt_layer_is_named() -> None:
    spec = TkanSpec(name="x", layers=("head.layer1", "hed"))
    with pytest.raises(ConfigurationError, match="hed"):
        spec.expand_layers(["head", "head.layer1"])


def test_a_misspelt_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("name: x\nlayers: [head]\nstatistic: [mean]\n")
    with pytest.raises(ConfigurationError, match="statistic"):
        load_spec(str(tmp_path / "spec.yaml"))


def test_spec_id_is_of_the_recipe_not_of_its_name() -> None:
    one, other = TkanSpec(name="x", layers=("head",)), TkanSpec(name="y", layers=("head",))
    assert one.spec_id == other.spec_id
    assert one.spec_id != TkanSpec(name="x", layers=("head",), statistics=("sd",)).spec_id
