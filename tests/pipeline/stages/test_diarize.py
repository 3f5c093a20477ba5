"""Diarization: each of the pipelines that can be configured finds who speaks when."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pyannote.audio
import pytest
import torch
from numpy.typing import NDArray
from pyannote.audio.models.embedding import WeSpeakerResNet34
from pyannote.core import Annotation
from pyannote.core import Segment as PyannoteSegment
from pyannote.core import Timeline as PyannoteTimeline
from pyannote.database.util import load_rttm
from pyannote.metrics.diarization import DiarizationErrorRate

from pipeline import models
from pipeline.audio.decode import decode
from pipeline.config import ROOT, DetectorConfig, Diarization, Limits
from pipeline.errors import ModelUnavailable
from pipeline.networks.pyannote import BlockFrames, CampplusEmbedding
from pipeline.stages.diarize import Diarizer
from pipeline.types import Recording, Segment, SpeakerCount, Speech, Turn, Waveform
from pipeline.verdict.reasons import AnswerWarning
from tests.pipeline.conftest import InstallWeights

Published = Literal["pyannote/speaker-diarization-3.1", "pyannote/speaker-diarization-community-1"]
Samples = NDArray[np.float32]

SPEECH = Speech((Segment(0.0, 30.0),), 30.0, "wav")

SETTINGS_31 = """\
version: 3.1.0

pipeline:
  name: pyannote.audio.pipelines.SpeakerDiarization
  params:
    clustering: AgglomerativeClustering
    embedding: pyannote/wespeaker-voxceleb-resnet34-LM
    embedding_batch_size: 32
    embedding_exclude_overlap: true
    segmentation: pyannote/segmentation-3.0
    segmentation_batch_size: 32

params:
  clustering:
    method: centroid
    min_cluster_size: 12
    threshold: 0.7045654963945799
  segmentation:
    min_duration_off: 0.0
"""
SETTINGS_COMMUNITY_1 = """\
dependencies:
  pyannote.audio: 4.0.0

pipeline:
  name: pyannote.audio.pipelines.SpeakerDiarization
  params:
    clustering: VBxClustering
    segmentation: $model/segmentation
    segmentation_batch_size: 32
    embedding: $model/embedding
    embedding_batch_size: 32
    embedding_exclude_overlap: true
    plda: $model/plda

params:
  clustering:
    threshold: 0.6
    Fa: 0.07
    Fb: 0.8
  segmentation:
    min_duration_off: 0.0
"""


@pytest.fixture(scope="module")
def diarizer() -> Diarizer:
    return Diarizer(DetectorConfig(device="cpu"))


@pytest.fixture(scope="module")
def sample(sample_wav: bytes) -> Samples:
    samples: Samples = decode(sample_wav, Limits()).waveform.samples
    return samples


def recording(samples: Samples) -> Recording:
    return Recording(Waveform(samples), "wav")


def error_rate(turns: tuple[Turn, ...]) -> float:
    """Diarization error rate on the sample against its annotation, with no collar."""
    reference = load_rttm(Path(pyannote.audio.__file__).parent / "sample" / "sample.rttm")["sample"]
    hypothesis = Annotation()
    for index, turn in enumerate(turns):
        hypothesis[PyannoteSegment(turn.start, turn.end), index] = turn.speaker
    return float(DiarizationErrorRate()(reference, hypothesis, uem=PyannoteTimeline([PyannoteSegment(0, 30)])))


def test_the_sample_has_its_two_speakers(diarizer: Diarizer, sample: Samples) -> None:
    turns = diarizer.diarize(recording(sample))
    assert {turn.speaker for turn in turns} == {"SPEAKER_00", "SPEAKER_01"}
    assert error_rate(turns) < 0.12
    assert list(turns) == sorted(turns, key=lambda turn: turn.start)
    assert turns[0].speaker == "SPEAKER_00", "speakers are numbered in the order in which they first speak"
    assert all(0 <= turn.start < turn.end <= 30 for turn in turns)
    assert diarizer.diarize(recording(sample)) == turns, "the same samples give the same turns"


@pytest.mark.parametrize("samples", [0, 1, 100, 399, 1_600, 24_000])
def test_very_short_recordings_are_taken(diarizer: Diarizer, samples: int, sample: Samples) -> None:
    turns = diarizer.diarize(recording(sample[110_000 : 110_000 + samples]))
    assert all(turn.speaker == "SPEAKER_00" and turn.end <= samples / 16_000 for turn in turns)
    assert bool(turns) == (samples >= 1_600)


def test_silence_has_no_turns(diarizer: Diarizer) -> None:
    assert diarizer.diarize(recording(np.zeros(48_000, np.float32))) == ()


@pytest.mark.parametrize(
    ("count", "found"),
    [
        (SpeakerCount(num_speakers=1), 1),
        (SpeakerCount(num_speakers=3), 3),
        (SpeakerCount(min_speakers=3), 3),
        (SpeakerCount(max_speakers=1), 1),
        (SpeakerCount(min_speakers=1, max_speakers=5), 2),
    ],
)
def test_as_many_speakers_are_found_as_there_are_said_to_be(
    diarizer: Diarizer, sample: Samples, count: SpeakerCount, found: int
) -> None:
    turns = diarizer.diarize(recording(sample), count)
    assert len({turn.speaker for turn in turns}) == found
    assert SPEECH.check(count, turns) == SPEECH


def test_too_many_speakers_for_what_is_heard_are_warned_of_and_printed_nowhere(
    diarizer: Diarizer, sample: Samples, capfd: pytest.CaptureFixture[str]
) -> None:
    count = SpeakerCount(num_speakers=40)
    turns = diarizer.diarize(recording(sample[:160_000]), count)
    assert capfd.readouterr() == ("", "")
    assert SPEECH.check(count, turns).warnings == (AnswerWarning.OTHER_SPEAKER_COUNT,)


def test_the_configuration_decides_how_many_speakers_there_are(sample: Samples) -> None:
    keen = Diarization(clustering_threshold=0.3, min_cluster_size=1)
    turns = Diarizer(DetectorConfig(device="cpu", diarization=keen)).diarize(recording(sample))
    assert len({turn.speaker for turn in turns}) > 2


def test_a_voice_that_says_little_in_a_long_recording_is_kept(diarizer: Diarizer) -> None:
    """Nine embeddings of one voice among two hundred of another one."""
    rng = np.random.default_rng(0)
    voices = np.repeat(np.eye(2, 192), [200, 9], axis=0) + rng.normal(0, 0.01, (209, 192))
    clusters = diarizer.pipeline.clustering.cluster(voices, min_clusters=1, max_clusters=20, num_clusters=None)
    assert len(set(clusters[:200])) == len(set(clusters[200:])) == 1
    assert clusters[0] != clusters[200]


def test_each_second_goes_through_campplus_once(diarizer: Diarizer, sample: Samples) -> None:
    passes: list[int] = []
    network = diarizer.pipeline._embedding.model_.network
    hook = network.head.register_forward_hook(lambda module, inputs, output: passes.append(output.shape[-1]))
    try:
        diarizer.diarize(recording(sample))
    finally:
        hook.remove()
    assert passes == [1_000, 1_000, 998], "three blocks of 10 s, at 100 frames a second"


def test_an_embedding_is_campplus_own_and_each_speakers_frames_count_for_it_alone(sample: Samples) -> None:
    from pipeline.networks.campplus import filterbank

    embedding, samples = CampplusEmbedding().eval(), torch.from_numpy(sample[120_000:160_000])
    frames = embedding.frames(samples)
    with torch.inference_mode():
        (expected,) = embedding.network(filterbank(samples)[None])
    masks = torch.zeros(2, frames.shape[1])
    masks[0, :60] = masks[1, 60:] = 1
    torch.testing.assert_close(embedding.embed(frames, torch.ones(1, 10))[0], expected, rtol=0, atol=1e-4)
    first, second = embedding.embed(frames, masks)
    torch.testing.assert_close(first, embedding.embed(frames[:, :60], torch.ones(1, 60))[0], rtol=0, atol=1e-4)
    assert not torch.allclose(first, second, atol=0.1)


def test_chunks_are_cut_from_blocks(sample: Samples) -> None:
    """Each block is computed once, and the last one is padded with zeros."""
    embedding, samples = CampplusEmbedding().eval(), torch.from_numpy(sample[: 25 * 16_000])
    blocks = BlockFrames(samples, embedding)
    first, second, third = (embedding.frames(samples[i * 160_000 :][: 160_000 + 240]) for i in range(3))
    assert (first.shape[1], second.shape[1], third.shape[1]) == (500, 500, 249)
    torch.testing.assert_close(blocks.between(0, 500), first)
    torch.testing.assert_close(blocks.between(375, 875), torch.cat([first[:, 375:], second[:, :375]], dim=1))
    end = blocks.between(900, 1_400)
    torch.testing.assert_close(end, torch.cat([second[:, 400:], third, torch.zeros(512, 151)], dim=1))


def test_pyannote_is_imported_quietly_and_without_torchcodec() -> None:
    """torchcodec cannot be imported on a machine without FFmpeg. And pyannote must not send usage statistics."""
    script = (
        "import sys; sys.modules['torchcodec'] = None\n"
        "import pipeline.stages.diarize\n"
        "from pyannote.audio.telemetry.metrics import is_metrics_enabled\n"
        "assert not is_metrics_enabled()"
    )
    command = [sys.executable, "-W", "error::UserWarning", "-c", script]
    environment = {k: v for k, v in os.environ.items() if k != "PYANNOTE_METRICS_ENABLED"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


@pytest.mark.parametrize("pipeline", ["pyannote/speaker-diarization-3.1", "pyannote/speaker-diarization-community-1"])
def test_the_published_pipelines_need_a_token(pipeline: Published, empty_hub_cache: Path) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        Diarizer(DetectorConfig(device="cpu", diarization=Diarization(pipeline=pipeline)))
    assert f"accept it at https://huggingface.co/{pipeline}" in caught.value.detail
    assert "HUGGING_FACE_TOKEN" in caught.value.detail


@pytest.fixture
def wespeaker(tmp_path: Path) -> Path:
    """A checkpoint of pyannote's WeSpeaker network with random parameters."""
    torch.manual_seed(0)
    torch.save({"state_dict": WeSpeakerResNet34().state_dict()}, tmp_path / "wespeaker.bin")
    return tmp_path / "wespeaker.bin"


def test_speaker_diarization_31_runs_as_published(
    wespeaker: Path, sample: Samples, tmp_path: Path, install_weights: InstallWeights
) -> None:
    settings = tmp_path / "config.yaml"
    settings.write_text(SETTINGS_31)
    published = models.REGISTRY["speaker-diarization-3.1/config"].sha256
    assert install_weights("speaker-diarization-3.1/config", settings) == published
    install_weights("wespeaker", wespeaker)
    config = Diarization(pipeline="pyannote/speaker-diarization-3.1")
    diarizer = Diarizer(DetectorConfig(device="cpu", diarization=config))
    assert diarizer.pipeline.clustering.threshold == 0.7045654963945799
    assert diarizer.pipeline.embedding_exclude_overlap
    assert diarizer.pipeline.segmentation_step == 0.1
    assert diarizer.diarize(recording(sample[110_000:150_000]))


def test_community_1_runs_as_published(
    wespeaker: Path, sample: Samples, tmp_path: Path, install_weights: InstallWeights
) -> None:
    settings = tmp_path / "config.yaml"
    settings.write_text(SETTINGS_COMMUNITY_1)
    random = np.random.default_rng(0)
    np.savez(tmp_path / "transform.npz", mean1=np.zeros(256), mean2=np.zeros(128), lda=random.normal(size=(256, 128)))
    np.savez(tmp_path / "plda.npz", mu=np.zeros(128), tr=np.eye(128), psi=np.linspace(2, 1, 128))
    install_weights("community-1/config", settings)
    install_weights("community-1/segmentation", models.weights("segmentation-3.0"))
    install_weights("community-1/embedding", wespeaker)
    install_weights("community-1/plda-transform", tmp_path / "transform.npz")
    install_weights("community-1/plda", tmp_path / "plda.npz")
    config = Diarization(pipeline="pyannote/speaker-diarization-community-1")
    diarizer = Diarizer(DetectorConfig(device="cpu", diarization=config))
    assert (diarizer.pipeline.clustering.Fa, diarizer.pipeline.clustering.Fb) == (0.07, 0.8)
    assert diarizer.diarize(recording(sample[110_000:150_000]))
