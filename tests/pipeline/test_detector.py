"""The whole graph in one process, on real recordings and on what is not speech."""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import resample_poly

from pipeline.audio.decode import decode
from pipeline.config import DetectorConfig, Limits
from pipeline.detector import Detector
from pipeline.errors import EmptyAudio, UnreadableAudio, UnsupportedFormat
from pipeline.verdict.answer import Verdict
from pipeline.verdict.explanation import BANDS
from pipeline.verdict.head import raw_scores, standardize
from tests.audio import by_espeak, encode, remux

RATE = 16_000
FIELD_DEV = Path(os.environ.get("SOUND_SENTRY_FIELD_DEV", Path(__file__).parents[3] / "shared" / "field-dev"))


def chords(seconds: float) -> NDArray[np.float64]:
    """Plucked chords: music without a voice."""
    t = np.arange(int(seconds * RATE)) / RATE
    decay = np.exp(-3 * (t % 0.5))
    notes = np.array([[262, 330, 392], [294, 349, 440]])[((t // 0.5) % 2).astype(int)]
    tones: list[NDArray[np.float64]] = [np.sin(2 * np.pi * notes * k * t[:, None]).sum(axis=1) / k for k in range(1, 6)]
    chord: NDArray[np.float64] = 0.1 * decay * np.sum(tones, axis=0)
    return chord


@pytest.mark.parametrize(
    "samples",
    [np.zeros(3 * RATE), 0.1 * np.random.default_rng(0).standard_normal(5 * RATE), chords(6)],
    ids=["silence", "noise", "music"],
)
def test_what_is_not_speech_gets_no_confident_answer(detector: Detector, samples: NDArray[np.float64]) -> None:
    assert detector.predict(encode(samples.astype(np.float32))).overall in ("No Speech", "Inconclusive")


def test_a_phone_line_is_inconclusive(detector: Detector, sample_wav: bytes) -> None:
    verdict = detector.predict(sample_wav)
    assert verdict.overall == "Inconclusive"
    assert verdict.warnings == ("narrow_band_head",)
    assert verdict.mean_probability is not None


def test_two_speakers_are_told_apart(detector: Detector, sample_wav: bytes) -> None:
    verdict = detector.predict(sample_wav, use_diarization=True)
    assert [speaker.speaker for speaker in verdict.speakers] == ["SPEAKER_00", "SPEAKER_01"]
    assert {detail.speaker for detail in verdict.details} == {"SPEAKER_00", "SPEAKER_01"}
    assert verdict.duration_config.use_diarization


def test_the_same_bytes_give_the_same_verdict(detector: Detector, sample_wav: bytes) -> None:
    assert detector.predict(sample_wav) == detector.predict(sample_wav)


def test_threads_get_the_answers_that_one_by_one_would_get(sample_wav: bytes) -> None:
    """The recordings have different lengths. So if threads mixed two of them, the answer would be wrong or an error."""
    detector = Detector.from_config()
    samples = decode(sample_wav, Limits()).waveform.samples
    starts = range(0, len(samples) - 4 * RATE, 2 * RATE)
    clips = [encode(samples[start : start + (4 + i % 5) * RATE // 2]) for i, start in enumerate(starts)]
    requests = [(clip, index % 4 == 0) for index, clip in enumerate(clips)]

    def answer(request: tuple[bytes, bool]) -> Verdict:
        return detector.predict(request[0], use_diarization=request[1])

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(answer, requests * 2))  # the first of them to need the diarizer builds it meanwhile
    assert together == [answer(request) for request in requests] * 2
    assert len({verdict.score for verdict in together}) > len(clips) / 2


def test_channels_are_judged_one_by_one(detector: Detector, sample_wav: bytes) -> None:
    """A call recorder's file with one party per channel; one channel is a copy and one is silent."""
    samples = decode(sample_wav, Limits()).waveform.samples
    first, second = samples[6 * RATE : 16 * RATE], samples[18 * RATE : 28 * RATE]
    data = encode(np.stack([first, np.zeros_like(first), second, first]), codec="pcm_f32le")
    verdict = detector.predict(data, channels="split")
    assert [(c.channel, c.note) for c in verdict.channels] == [
        ("CHANNEL_1", None),
        ("CHANNEL_2", "silent"),
        ("CHANNEL_3", None),
        ("CHANNEL_4", "same_as_CHANNEL_1"),
    ]
    assert [speaker.speaker for speaker in verdict.speakers] == ["CHANNEL_1", "CHANNEL_3"]
    assert {detail.channel for detail in verdict.details} == {"CHANNEL_1", "CHANNEL_3"}
    for channel, part in ((verdict.channels[0], first), (verdict.channels[2], second)):
        alone = detector.predict(encode(part, codec="pcm_f32le"))
        assert alone.headline and channel.probability == pytest.approx(alone.headline[0], abs=1e-6)
        assert channel.speech_seconds == alone.speech_seconds


def test_channels_have_speakers_of_their_own(detector: Detector, sample_wav: bytes) -> None:
    samples = decode(sample_wav, Limits()).waveform.samples
    data = encode(np.stack([samples, np.roll(samples, len(samples) // 2)]))
    verdict = detector.predict(data, channels="split", use_diarization=True)
    assert {speaker.channel for speaker in verdict.speakers} == {"CHANNEL_1", "CHANNEL_2"}
    names = [speaker.speaker for speaker in verdict.speakers]
    assert names == [f"SPEAKER_{number:02d}" for number in range(len(names))]
    assert len(names) >= 4


def test_a_track_is_chosen(detector: Detector, sample_wav: bytes) -> None:
    samples = decode(sample_wav, Limits()).waveform.samples
    parts = [encode(part, muxer="mov", codec="pcm_s16le") for part in (samples[: 10 * RATE], samples[10 * RATE :])]
    data = remux("mov", *parts)
    with pytest.raises(UnreadableAudio, match="2 audio tracks"):
        detector.predict(data)
    assert [detector.predict(data, track=track).duration_seconds for track in (0, 1)] == [10, 20]


@pytest.mark.parametrize("model", ["segmentation-3.0", "silero"])
def test_a_long_recording_gives_its_memory_back(model: str, sample_wav: bytes) -> None:
    """The samples of five minutes take 19 MiB. Every stage works in blocks, so it needs little more."""
    config = DetectorConfig.load()
    config = config.model_copy(update={"voice_activity": config.voice_activity.model_copy(update={"model": model})})
    detector, status = Detector(config), Path("/proc/self/status")
    data = encode(np.tile(decode(sample_wav, config.limits).waveform.samples, 10))

    def mib(kind: str) -> float:
        return int(status.read_text().split(f"{kind}:")[1].split()[0]) / 1024

    detector.predict(data[: len(data) // 5])
    before = mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak (proc(5))
    assert detector.predict(data).duration_seconds == 300
    assert mib("VmHWM") < before + 150

    def in_use() -> float:
        ctypes.CDLL(None).malloc_trim(0)  # without what the allocator keeps, which varies by 50 MiB
        return mib("VmRSS")

    settled = in_use()
    detector.predict(data)
    assert in_use() < settled + 15


def test_an_explanation_names_moments_bands_and_every_layer(detector: Detector, sample_wav: bytes) -> None:
    body = detector.predict(sample_wav, explain=True).model_dump(mode="json")
    assert {part["layer"] for part in body["explanation"]["layers"]} == set(detector.classifier.bundle.info.layers)
    assert len(body["explanation"]["bands"]) == len(BANDS)
    assert body["explanation"]["moments"]
    assert "explanation" not in detector.predict(sample_wav).model_dump(mode="json")


def test_a_layers_share_is_what_the_score_loses_without_it(detector: Detector, sample_wav: bytes) -> None:
    verdict = detector.predict(sample_wav, explain=True)
    assert verdict.explanation and verdict.score is not None and verdict.decided_by is None
    recording = decode(sample_wav, detector.config.limits)
    features = detector.extractor.extract(recording, detector.voice_activity.detect(recording), None)
    bundle = detector.classifier.bundle
    scorer, sizes = bundle.scorer(narrow=features.narrow), list(bundle.info.layers.values())
    inputs = standardize(scorer.arrays, features.vectors, sizes)
    seconds = [window.speech_seconds for window in features.windows]

    def score(given: NDArray[np.float32]) -> float:
        raw = raw_scores(scorer.arrays, given)
        return float(np.average(scorer.calibration.scale * raw + scorer.calibration.offset, weights=seconds))

    found = {share.layer: share.score for share in verdict.explanation.layers}
    for layer, end, size in zip(bundle.info.layers, np.cumsum(sizes), sizes, strict=True):
        without = inputs.copy()
        without[:, end - size : end] = 0
        lost = (score(inputs) - score(without)) * verdict.score / score(inputs)
        assert found[layer] == pytest.approx(lost, abs=1e-3), layer
    assert max(map(abs, found.values())) > 0.02


@pytest.mark.parametrize(("data", "error"), [(b"", EmptyAudio), (b"not audio at all" * 99, UnsupportedFormat)])
def test_an_error_is_never_a_verdict(detector: Detector, data: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        detector.predict(data)


def test_a_synthesizer_is_told_from_humans_without_any_corpus(detector: Detector, sample_wav: bytes) -> None:
    """Both over the same telephone line, so that only the speech differs. The synthesizer is in the training data: a
    failure here is a bug of the code, not a limit of the detector. The humans score near 0 over a line, on either side
    of it, so their distance from the machine is what counts."""
    line = [resample_poly(samples, 1, 2).astype(np.float32) for samples in (by_espeak(), samples_of(sample_wav))]
    machine, humans = (detector.predict(encode(samples, rate=RATE // 2)) for samples in line)
    assert machine.score is not None and humans.score is not None
    assert machine.score > 0 and machine.score - humans.score > 1
    assert machine.overall != "Real" and humans.overall != "Fake"


def samples_of(recording: bytes) -> NDArray[np.float32]:
    return decode(recording, Limits()).waveform.samples


@pytest.mark.skipif(not FIELD_DEV.is_dir(), reason="the field-dev corpus is not here")
def test_known_recordings_are_told_apart(detector: Detector) -> None:
    """Clips that the detector was trained on: a failure here is a bug of the code, not a limit of the detector."""
    folder = FIELD_DEV / "audio" / "edresson"
    rows = (FIELD_DEV / "manifest.csv").read_text(encoding="utf-8").splitlines()[1:]
    labels = dict(row.split(",")[:2] for row in rows)
    paths = sorted(folder.iterdir())[::12]
    verdicts = {path: detector.predict(path.read_bytes()) for path in paths}
    right = [
        (verdict.mean_probability or 0.5) > 0.5
        for path, verdict in verdicts.items()
        if labels[str(path.relative_to(FIELD_DEV))] == "spoof"
    ] + [
        (verdict.mean_probability or 0.5) < 0.5
        for path, verdict in verdicts.items()
        if labels[str(path.relative_to(FIELD_DEV))] == "bonafide"
    ]
    assert np.mean(right) > 0.9


def test_less_than_a_second_of_speech_is_too_short(detector: Detector, sample_wav: bytes) -> None:
    verdict = detector.predict(encode(samples_of(sample_wav)[8 * RATE :][: int(0.7 * RATE)]))
    assert verdict.overall == "Inconclusive"
    assert "too_short" in verdict.reasons
