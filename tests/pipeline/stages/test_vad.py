"""Voice activity: speech is found where people speak and nowhere else, and the segments are always valid."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pyannote.audio
import pytest
import torch
from numpy.typing import NDArray
from pyannote.core import Annotation
from pyannote.core import Segment as PyannoteSegment
from pyannote.core import Timeline as PyannoteTimeline
from pyannote.database.util import load_rttm
from pyannote.metrics.detection import DetectionErrorRate
from safetensors.torch import load_file

from pipeline.audio.decode import decode
from pipeline.config import DetectorConfig, Limits, VoiceActivity
from pipeline.models import weights
from pipeline.networks.silero import BLOCK, SileroVad
from pipeline.stages.vad import WINDOW_FRAMES, VoiceActivityDetector, binarize, window_starts
from pipeline.types import Recording, Segment, Speech, Waveform
from pipeline.verdict.reasons import AnswerWarning

Model = Literal["segmentation-3.0", "silero"]
MODELS: tuple[Model, ...] = ("segmentation-3.0", "silero")
Samples = NDArray[np.float32]


@cache
def detector(model: Model) -> VoiceActivityDetector:
    return VoiceActivityDetector(DetectorConfig(device="cpu", voice_activity=VoiceActivity(model=model)))


def detect(model: Model, samples: Samples) -> Speech:
    return detector(model).detect(Recording(Waveform(samples), "wav", (AnswerWarning.DAMAGED,), "a1"))


@pytest.fixture(scope="module")
def sample(sample_wav: bytes) -> Samples:
    samples: Samples = decode(sample_wav, Limits()).waveform.samples
    return samples


def error_rate(speech: Speech) -> float:
    """The detection error rate on the sample: missed plus falsely found speech, divided by the annotated speech."""
    reference = load_rttm(Path(pyannote.audio.__file__).parent / "sample" / "sample.rttm")["sample"]
    hypothesis = Annotation()
    for segment in speech.segments:
        hypothesis[PyannoteSegment(segment.start, segment.end)] = "speech"
    whole = PyannoteTimeline([PyannoteSegment(0, speech.duration_seconds)])
    return float(DetectionErrorRate()(reference, hypothesis, uem=whole))


def assert_sane(speech: Speech) -> None:
    assert all(0 <= s.start < s.end <= speech.duration_seconds for s in speech.segments)
    assert all(a.end < b.start for a, b in zip(speech.segments[:-1], speech.segments[1:], strict=True))


@pytest.mark.parametrize("model", MODELS)
def test_the_sample_is_segmented_as_people_did(model: Model, sample: Samples) -> None:
    speech = detect(model, sample)
    assert_sane(speech)
    assert error_rate(speech) < 0.025
    assert (speech.duration_seconds, speech.original_format) == (30.0, "wav")
    assert (speech.warnings, speech.file_sha256) == ((AnswerWarning.DAMAGED,), "a1")


@pytest.mark.parametrize("model", MODELS)
def test_the_same_samples_give_the_same_speech(model: Model, sample: Samples) -> None:
    assert detect(model, sample) == detect(model, sample)


@pytest.mark.parametrize("model", MODELS)
def test_threads_may_share_a_detector(model: Model, sample: Samples) -> None:
    clips = [sample[start : start + 32_000 + start // 8] for start in range(0, 400_000, 40_000)]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda clip: detect(model, clip), clips))
    assert together == [detect(model, clip) for clip in clips]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("level", [0.01, 0.3])
def test_silence_and_noise_are_no_speech(model: Model, level: float) -> None:
    noise = np.random.default_rng(0).normal(scale=level, size=80_000).astype(np.float32)
    hum = (level * np.sin(2 * np.pi * 50 / 16_000 * np.arange(80_000))).astype(np.float32)
    assert not detect(model, np.zeros(80_000, np.float32)).segments
    assert not detect(model, noise).segments
    assert not detect(model, hum).segments


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("samples", [0, 1, 100, 990, 1_261, 1_999, 2_000, 4_000, 16_000])
def test_very_short_recordings_are_taken(model: Model, samples: int, sample: Samples) -> None:
    speech = detect(model, sample[110_000 : 110_000 + samples])
    assert_sane(speech)
    assert speech.duration_seconds == samples / 16_000
    if samples < 1_600:
        assert not speech.segments, "these recordings are shorter than `min_speech_seconds`"
    if samples == 16_000:
        assert speech.speech_seconds > 0.2


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("seconds", [9.99, 10.0, 10.06, 13.0, 20.11])
def test_recordings_of_any_length_are_covered(model: Model, seconds: float, sample: Samples) -> None:
    """If somebody speaks until the end of the recording, this end is found, whatever the position of the windows."""
    speech = detect(model, sample[-round(seconds * 16_000) :])
    assert_sane(speech)
    assert speech.segments[-1].end == pytest.approx(speech.duration_seconds, abs=0.15)


def test_windows_cover_every_frame_and_overlap_little() -> None:
    for frames in (4, 589, WINDOW_FRAMES, WINDOW_FRAMES + 1, 1_775, 35_552):
        starts = window_starts(frames)
        covered = np.zeros(frames, int)
        for start in starts:
            covered[start : start + WINDOW_FRAMES] += 1
        assert covered.min() == 1
        assert starts[-1] + WINDOW_FRAMES == frames or starts == [0]
        assert len(starts) == -(-frames // WINDOW_FRAMES)


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([0.9, 0.9, 0.1, 0.1], [(0, 2)]),
        ([0.5, 0.5, 0.5, 0.9], [(3, 4)]),  # between the thresholds no speech begins
        ([0.9, 0.5, 0.5, 0.3], [(0, 3)]),  # between the thresholds no speech ends
        ([0.1, 0.1, 0.1, 0.1], []),
        ([0.9, 0.9, 0.9, 0.9], [(0, 4)]),
        ([0.9, 0.1, 0.9, 0.9], [(0, 1), (2, 4)]),
    ],
)
def test_hysteresis(probabilities: list[float], expected: list[tuple[float, float]]) -> None:
    config = VoiceActivity(onset=0.6, offset=0.4, min_speech_seconds=0, min_silence_seconds=0)
    segments = binarize(np.array(probabilities, np.float32), np.arange(5.0), config)
    assert segments == tuple(Segment(*bounds) for bounds in expected)


def test_short_silences_are_filled_before_short_speech_is_dropped() -> None:
    config = VoiceActivity(min_speech_seconds=2.5, min_silence_seconds=1.5)
    probabilities = np.array([1, 0, 1, 0, 0, 1, 1, 0], np.float32)
    assert binarize(probabilities, np.arange(9.0), config) == (Segment(0, 3),)


def test_edges_past_the_end_make_no_segment() -> None:
    edges = np.minimum(np.arange(4) * 0.032, 0.05)
    config = VoiceActivity(min_speech_seconds=0, min_silence_seconds=0)
    assert binarize(np.array([0, 0, 1], np.float32), edges, config) == ()


def test_silero_computes_what_the_published_network_does(sample: Samples) -> None:
    """Compares the TorchScript network of the package with our code, with the same parameters."""
    from silero_vad import load_silero_vad

    published = load_silero_vad()
    parameters = {name.removeprefix("_model."): value for name, value in published.state_dict().items()}
    names = {"stft.forward_basis_buffer": "stft_conv.weight"}
    for kind in ("weight", "bias"):
        names |= {f"encoder.{i}.reparam_conv.{kind}": f"conv{i + 1}.{kind}" for i in range(4)}
        names |= {f"decoder.rnn.{kind}_{gate}": f"lstm_cell.{kind}_{gate}" for gate in ("ih", "hh")}
        names[f"decoder.decoder.2.{kind}"] = f"final_conv.{kind}"
    ours = SileroVad()
    ours.load({ours_name: parameters[name] for name, ours_name in names.items()})
    samples = torch.from_numpy(np.concatenate([sample, sample[:100_000]]))  # more samples than are encoded at once
    encoded: list[int] = []
    ours.stft_conv.register_forward_hook(lambda module, inputs, output: encoded.append(len(output)))
    with torch.inference_mode():
        torch.testing.assert_close(ours(samples), published.audio_forward(samples[None], 16_000)[0], rtol=0, atol=1e-5)
    assert encoded == [BLOCK, -(-len(samples) // 512) - BLOCK]


def test_silero_carries_its_state_from_chunk_to_chunk(sample: Samples) -> None:
    network = SileroVad()
    network.load(load_file(weights("silero")))
    with torch.inference_mode():
        whole = network(torch.from_numpy(sample[100_000:140_000]))
        alone = network(torch.from_numpy(sample[100_000 + 512 * 50 : 140_000]))
    assert whole.shape == (79,)
    assert not torch.allclose(whole[50], alone[0], atol=0.01)
