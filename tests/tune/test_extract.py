"""Which clips a command uses. Old cached features must not be used after the computation has changed."""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.audio.decode import decode
from pipeline.config import Decision, DetectorConfig
from pipeline.networks.spec import load_spec
from pipeline.stages.extract import TkanExtractor
from pipeline.stages.vad import VoiceActivityDetector
from pipeline.types import Recording, Waveform
from tests.audio import encode
from tests.tune.synthetic import make_clips, make_table
from tune import extract
from tune.corpora.manifest import NO_SPEECH, Clip, write_manifest
from tune.corpora.vocoded import PARTNER, VOCODED
from tune.errors import CorpusError
from tune.extract import FEATURES_VERSION, Recipe, add_corpus_arguments, load_clips
from tune.training.folds import FoldsConfig, make_folds


@pytest.mark.parametrize(
    ("preset", "version", "pinned"),
    [
        ("linear-textures", 4, [-0.1558, 0.2373, 2.4292, 2.1184]),
        ("sound-sentry-45", 4, [0.8228, 6.0409, 15.0668, 6.0787]),
    ],
)
def test_other_features_from_the_same_recording_want_another_version(
    preset: str, version: int, pinned: list[float], sample_wav: bytes
) -> None:
    """If these results change, raise FEATURES_VERSION, because existing caches hold the old results."""
    config = DetectorConfig()
    samples = decode(sample_wav, config.limits).waveform.samples[: 10 * 16_000].copy()
    samples[8 * 16_000 : 8 * 16_000 + 2_000] = 0
    recording = Recording(Waveform(samples), "wav")
    speech = VoiceActivityDetector(config).detect(recording)
    vectors = TkanExtractor(config, load_spec(preset)).extract(recording, speech, None).vectors
    found = [float(value) for value in (*np.quantile(vectors[0], [0.1, 0.5, 0.9]), *vectors.std(axis=1))]
    assert version == FEATURES_VERSION
    assert found == pytest.approx(pinned, rel=1e-3, abs=1e-3)


def test_features_with_other_bands_hidden_are_other_features() -> None:
    spec = load_spec("linear-textures")
    detectors = [DetectorConfig(decision=Decision(max_drop_db=decibels)) for decibels in (25, 35, 1_000)]
    assert len({Recipe(spec, detector).key("0" * 64) for detector in detectors}) == 3


def test_arrays_say_which_windows_may_be_tested(tmp_path: Path) -> None:
    clips = make_clips(speakers=4, per_speaker=2, sites=2)
    clips[-1] = replace(clips[-1], background=True, speaker="")
    table = make_table(clips, copies=1, vocoded=True)
    extract.write_arrays(tmp_path, table)
    with (tmp_path / "clips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = np.load(tmp_path / "labels.npy")
    assert len(rows) == len(labels) == len(np.load(tmp_path / "features.npy"))
    assert [int(row["copy"]) for row in rows] == table.copy.tolist()
    assert [row["vocoded"] == "1" for row in rows] == table.vocoded.tolist()
    assert {row["path"] for row in rows if row["background"] == "1"} == {str(clips[-1].path)}
    assert {row["voice"] for row in rows if row["background"] == "1"} == {clips[-1].voice} != {""}
    assert all(label == 1 for row, label in zip(rows, labels, strict=True) if row["vocoded"] == "1")


def test_an_actor_fetches_the_vocoder_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Silent:
        segments = ()

        def __init__(self, *_: object) -> None: ...

        def detect(self, _: Recording) -> Silent:
            return self

    fetched: list[Path] = []
    for name, stand_in in (("VoiceActivityDetector", Silent), ("TkanExtractor", Silent)):
        monkeypatch.setattr(extract, name, stand_in)
    monkeypatch.setattr(extract, "fetch_hifigan", fetched.append)
    monkeypatch.setattr(extract, "vocode", lambda waveform, *_: waveform)
    actor = extract.Extraction(Recipe(load_spec("linear-textures"), DetectorConfig()), tmp_path)
    sound = encode(np.sin(np.arange(16_000) / 9).astype(np.float32))
    rows = [extract.Row(tmp_path, how, 0, tmp_path, sound) for how in ("clean", VOCODED, PARTNER, VOCODED)]
    assert [actor.extract(row) for row in rows[:1]] == [NO_SPEECH] and not fetched
    assert [actor.extract(row) for row in rows[1:]] == [NO_SPEECH] * 3 and fetched == [tmp_path]


def corpus_of(*arguments: str) -> list[Clip]:
    parser = argparse.ArgumentParser()
    add_corpus_arguments(parser)
    return load_clips(parser.parse_args(arguments))


def test_a_corpus_that_names_nobody_is_divided_clip_by_clip_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("real", "fake"):
        (tmp_path / "plain" / label).mkdir(parents=True)
        for number in range(6):
            (tmp_path / "plain" / label / f"{number}.wav").touch()
    clips = corpus_of(f"--manifest={tmp_path / 'plain'}")
    assert "12 of 12 clips name neither speaker nor site" in capsys.readouterr().err
    assert len({clip.voice for clip in clips}) == 12
    folds = make_folds(clips, FoldsConfig(k=3))
    assert [len(fold.test) for fold in folds] == [4, 4, 4]
    # A name tells nothing about the clips without one.
    write_manifest(tmp_path / "manifest.csv", [replace(clip, speaker="ann" * (n < 2)) for n, clip in enumerate(clips)])
    some_named = corpus_of(f"--manifest={tmp_path / 'manifest.csv'}")
    assert "10 of 12 clips name neither speaker nor site" in capsys.readouterr().err
    assert len({clip.voice for clip in some_named}) == 11
    write_manifest(tmp_path / "manifest.csv", [replace(clip, speaker="ann") for clip in clips])
    corpus_of(f"--manifest={tmp_path / 'manifest.csv'}")
    assert capsys.readouterr().err == ""


def test_a_folder_with_named_speakers_and_unnamed_fakes_can_be_divided(tmp_path: Path) -> None:
    for folder, count in (("real/ann", 3), ("real/bob", 3), ("real/carl", 3), ("fake", 9)):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(count):
            (tmp_path / folder / f"{number}.wav").touch()
    folds = make_folds(corpus_of(f"--manifest={tmp_path}"), FoldsConfig(k=3))
    assert [len(fold.test) for fold in folds] == [6, 6, 6]


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"there is no .*/gone\.csv"):
        corpus_of(f"--manifest={tmp_path / 'gone.csv'}")
    (tmp_path / "m.csv").write_text("path,label\nsub/lost.wav,real\n")
    with pytest.raises(CorpusError, match=r"1 of 1 files are missing: sub/lost\.wav"):
        corpus_of(f"--manifest={tmp_path / 'm.csv'}")


def test_only_the_split_that_is_named_is_taken(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.wav").touch()
    (tmp_path / "m.csv").write_text(
        "path,label,split,speaker\na.wav,real,dev,x\nb.wav,fake,dev,y\nc.wav,fake,check,z\n"
    )
    clips = corpus_of(f"--manifest={tmp_path / 'm.csv'}", "--split=dev")
    assert [clip.path.name for clip in clips] == ["a.wav", "b.wav"]
