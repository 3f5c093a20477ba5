from collections import defaultdict

import numpy as np
import pytest
import torch
from scipy.signal import butter, sosfilt

from pipeline.audio.decode import decode
from pipeline.config import DetectorConfig, Limits
from pipeline.networks.spec import load_spec
from pipeline.networks.tkan import layer_features
from pipeline.stages.extract import TkanExtractor, choose_device, layer_sizes, normalize_peak, spoken_stretches
from pipeline.types import Features, Recording, Segment, Speech, Turn, Waveform, Window
from pipeline.verdict.windows import plan_chunks, plan_windows


def test_frames_of_a_window_come_in_stretches() -> None:
    frames = torch.arange(100.0)[None, None]
    window = Window((Segment(10.0, 10.2), Segment(10.5, 10.7)))
    stretches = spoken_stretches(frames, Segment(10.0, 11.0), window)
    assert [(s[0, 0, 0].item(), s.shape[2]) for s in stretches] == [(0, 20), (50, 20)]
    assert spoken_stretches(frames, Segment(11.0, 12.0), window) == []


def test_a_window_narrower_than_a_frame_gets_one() -> None:
    assert len(spoken_stretches(torch.zeros(1, 1, 10), Segment(0, 10), Window((Segment(3.1, 3.2),)))) == 1


def test_a_gpu_computes_with_full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's default
    assert choose_device("cpu") == "cpu"
    assert torch.backends.cudnn.allow_tf32
    assert choose_device("cuda") == "cuda"
    assert not torch.backends.cudnn.allow_tf32


@pytest.fixture(scope="module")
def extractor() -> TkanExtractor:
    return TkanExtractor(DetectorConfig(), load_spec("sound-sentry-45"))


def noise(seconds: float) -> Waveform:
    samples = np.random.default_rng(0).standard_normal(int(seconds * 16_000), dtype=np.float32)
    return Waveform(samples * np.float32(0.1))


def speech(*bounds: tuple[float, float], duration_seconds: float) -> Speech:
    return Speech(tuple(Segment(a, b) for a, b in bounds), duration_seconds, "wav")


def test_features_are_one_vector_a_window(extractor: TkanExtractor) -> None:
    found = speech((0.5, 9.0), (14.0, 20.0), duration_seconds=25.0)
    features = extractor.extract(Recording(noise(25.0), "wav"), found, None)
    assert features.vectors.shape == (len(features.windows), 45) == (7, 45)
    assert sum(layer_sizes(extractor).values()) == 45
    assert np.isfinite(features.vectors).all()
    assert features.spec_id == extractor.spec.spec_id


def test_level_does_not_matter(extractor: TkanExtractor) -> None:
    loud = noise(3.0)
    quiet = Waveform(loud.samples * np.float32(0.01))
    found = speech((0.0, 3.0), duration_seconds=3.0)
    first, second = (extractor.extract(Recording(w, "wav"), found, None).vectors for w in (loud, quiet))
    np.testing.assert_allclose(first, second, rtol=1e-3, atol=1e-3)


def test_what_lies_above_a_telephones_band_is_not_heard_in_a_narrow_recording(sample_wav: bytes) -> None:
    """Above this band there are only traces of a lossy format, which are no evidence for or against a machine."""
    extractor = TkanExtractor(DetectorConfig(device="cpu"), load_spec("linear-textures"))
    telephone = decode(sample_wav, Limits()).waveform.samples[7 * 16_000 : 17 * 16_000]
    hiss = np.random.default_rng(0).standard_normal(len(telephone))
    above = sosfilt(butter(16, 5_000, "highpass", fs=16_000, output="sos"), hiss).astype(np.float32)
    found = speech((0.0, 10.0), duration_seconds=10.0)

    def features(level: float) -> Features:
        return extractor.extract(Recording(Waveform(telephone + np.float32(level) * above), "wav"), found, None)

    alone, traced, wide = features(0), features(1e-6), features(1e-2)
    assert (alone.narrow, traced.narrow, wide.narrow) == (True, True, False)
    np.testing.assert_allclose(alone.vectors, traced.vectors, atol=0.02)
    assert np.abs(alone.vectors - wide.vectors).mean() > 0.1


def test_a_tenth_of_a_second_has_features(extractor: TkanExtractor) -> None:
    found = speech((0.0, 0.1), duration_seconds=0.1)
    assert extractor.extract(Recording(noise(0.1), "wav"), found, None).vectors.shape == (1, 45)


def test_windows_of_speakers_get_their_frames_of_every_chunk(extractor: TkanExtractor) -> None:
    """Windows are in the order of speakers, overlap in time, and may reach over chunks of another speaker."""
    bounds = {"A": [(0.5, 9.0), (30.0, 41.0)], "B": [(6.0, 21.0), (21.5, 24.0)], "C": [(2.0, 2.9), (41.0, 44.5)]}
    turns = tuple(Turn(start, end, speaker) for speaker, spans in bounds.items() for start, end in spans)
    found = speech((0.5, 44.5), duration_seconds=45.0)
    waveform = noise(45.0)
    windows = plan_windows(found, turns, extractor.windows)
    assert [w.parts[0].start for w in windows] != sorted(w.parts[0].start for w in windows)
    assert any(w.parts[0].end + 20 < w.parts[-1].start for w in windows)
    frames: dict[int, dict[str, list[torch.Tensor]]] = defaultdict(lambda: defaultdict(list))
    with torch.inference_mode():
        for chunk in plan_chunks(windows, waveform.duration_seconds):
            activations = extractor.backbone.activations(normalize_peak(waveform.crop(chunk)), extractor.layers)
            for row, window in enumerate(windows):
                for layer, found_frames in activations.items():
                    frames[row][layer] += spoken_stretches(found_frames, chunk, window)
        expected = [
            torch.cat([layer_features(extractor.spec, layer, frames[row][layer]) for layer in extractor.layers])
            for row in range(len(windows))
        ]
    vectors = extractor.extract(Recording(waveform, "wav"), found, turns).vectors
    np.testing.assert_array_equal(vectors, torch.stack(expected).cpu().numpy())


def test_every_window_has_features_wherever_speech_ends(extractor: TkanExtractor) -> None:
    """The edges of chunks and of windows are computed by different sums, so they can differ by rounding errors."""
    rng = np.random.default_rng(1)
    for _ in range(5):
        a, b, c, d, e, f = np.sort(rng.uniform(0, 25, size=6)).tolist()
        found = speech((a, b), (c, d), (e, f), duration_seconds=25.0)
        features = extractor.extract(Recording(noise(25.0), "wav"), found, None)
        assert len(features.vectors) == len(features.windows)
