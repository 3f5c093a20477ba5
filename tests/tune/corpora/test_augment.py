from __future__ import annotations

import io
import shutil
import wave
from itertools import islice, product

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.types import SAMPLE_RATE, Segment, Waveform
from tune.corpora import augment as module
from tune.corpora.augment import (
    CONDITIONS,
    RANDOM_CHANNEL,
    Channel,
    Codec,
    apply_channel,
    augment,
    draw_channel,
    through_codec,
)
from tune.errors import CorpusError

EVERY_CODEC = [
    *(
        Codec(name, rate, kbit)
        for name, _, rates, kbits in module._CODEC_CHOICES
        for rate, kbit in product(rates, kbits)
    ),
    *(Codec(name, 8_000, kbit) for name, _, kbits in module._LINES for kbit in kbits),
    Codec("vorbis_native", 16_000, 48),
]
needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None, reason="needs ffmpeg: on Debian, apt-get install ffmpeg"
)


@pytest.fixture(scope="module")
def speech(sample_wav: bytes) -> Waveform:
    """Six seconds of pyannote's sample that are full of speech."""
    with wave.open(io.BytesIO(sample_wav)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / np.float32(2**15)
    return Waveform(samples).crop(Segment(7, 13))


@pytest.fixture(scope="module")
def broadband() -> Waveform:
    return Waveform(np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32))


def power_above(waveform: Waveform, hertz: float) -> float:
    """Share of the power above `hertz`, in dB."""
    power = np.abs(np.fft.rfft(waveform.samples)) ** 2
    frequencies = np.fft.rfftfreq(len(waveform.samples), 1 / waveform.sample_rate)
    return float(10 * np.log10(power[frequencies > hertz].sum() / power.sum() + 1e-12))


def envelope(waveform: Waveform) -> NDArray[np.float32]:
    frames = waveform.samples[: len(waveform.samples) // 400 * 400].reshape(-1, 400)
    power: NDArray[np.float32] = np.square(frames).mean(axis=1)
    return np.sqrt(power)


@pytest.mark.parametrize(
    "codec",
    [
        pytest.param(codec, marks=[needs_ffmpeg] if name in module._FFMPEG else [], id=name)
        for name, codec in {codec.name: codec for codec in reversed(EVERY_CODEC)}.items()
    ],
)
def test_every_codec_gives_the_speech_back_changed(speech: Waveform, codec: Codec) -> None:
    decoded = through_codec(speech, codec)
    assert decoded.sample_rate == SAMPLE_RATE
    assert 0 <= decoded.duration_seconds - speech.duration_seconds < 0.2
    sent, received = envelope(speech), envelope(decoded)
    aligned = max(np.corrcoef(sent[: 200 - d], received[d:200])[0, 1] for d in range(8))
    assert aligned > 0.9
    levels = [np.sqrt(np.square(part).mean()) for part in (speech.samples, decoded.samples)]
    assert levels[1] == pytest.approx(levels[0], rel=0.2)
    assert not np.array_equal(decoded.samples[: len(speech.samples)], speech.samples)


@needs_ffmpeg
def test_every_setting_of_a_codec_can_be_encoded(speech: Waveform) -> None:
    second = Waveform(speech.samples[:SAMPLE_RATE])
    for codec in EVERY_CODEC:
        assert through_codec(second, codec).duration_seconds == pytest.approx(1, abs=0.2), codec


def test_there_are_no_other_codecs() -> None:
    assert {codec.name for codec in EVERY_CODEC} == {*module._LIBAV, *module._FFMPEG}


@needs_ffmpeg
def test_a_random_channel_depends_on_samples_and_seed_alone(speech: Waveform) -> None:
    first, again, other = (augment(speech, RANDOM_CHANNEL, seed) for seed in (3, 3, 4))
    assert np.array_equal(first.samples, again.samples)
    assert not np.array_equal(first.samples[:16_000], other.samples[:16_000])
    beginning = Waveform(speech.samples[:48_000])
    assert not np.array_equal(augment(beginning, RANDOM_CHANNEL, 3).samples[:8_000], first.samples[:8_000])


@needs_ffmpeg
def test_every_draw_is_usable_speech(speech: Waveform) -> None:
    for seed in range(12):
        drawn = augment(speech, RANDOM_CHANNEL, seed)
        assert drawn.sample_rate == SAMPLE_RATE
        assert 0.9 < drawn.duration_seconds < 8.3
        assert np.abs(drawn.samples).max() <= 1
        assert np.square(drawn.samples).mean() > 1e-5


def test_random_channels_use_every_step() -> None:
    rng = np.random.default_rng(0)
    draws = list(islice(iter(lambda: draw_channel(rng), None), 400))
    for name, default in Channel().__dict__.items():
        assert any(getattr(channel, name) != default for channel in draws), name
    assert 0.65 < np.mean([channel.codec is not None for channel in draws]) < 0.85
    assert all(1 <= channel.crop_seconds <= 8 for channel in draws if channel.crop_seconds)


def test_a_round_trip_through_a_lower_rate_loses_the_band_above_it(broadband: Waveform) -> None:
    rng = np.random.default_rng(0)
    narrow = apply_channel(broadband, Channel(through_rate=8_000), rng)
    low = apply_channel(broadband, Channel(cutoff_hz=3_400), rng)
    assert power_above(broadband, 4_600) > -5
    assert power_above(narrow, 4_600) < -40
    assert power_above(low, 4_600) < -9
    assert len(narrow.samples) == len(broadband.samples)


def test_conditions_are_fixed_and_named() -> None:
    assert list(CONDITIONS) == [
        "mp3_32k",
        "opus_12k",
        "telephone",
        "noise_10db",
        "reverb",
        "noisereduce",
        "silence_trimmed",
        "silence_added",
    ]


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_changes_speech_and_changes_it_the_same_way_again(speech: Waveform, name: str) -> None:
    quiet = Waveform(np.pad(speech.samples, 8_000))
    once, again = augment(quiet, name), augment(quiet, name, seed=5)
    assert np.array_equal(once.samples, again.samples)
    assert once.samples.dtype == np.float32
    assert len(once.samples) != len(quiet.samples) or np.abs(once.samples - quiet.samples).max() > 1e-3


def test_conditions_do_what_their_names_say(speech: Waveform, broadband: Waveform) -> None:
    noise = CONDITIONS["noise_10db"](speech).samples - speech.samples
    assert 10 * np.log10(np.square(speech.samples).mean() / np.square(noise).mean()) == pytest.approx(10, abs=0.01)
    assert power_above(CONDITIONS["telephone"](broadband), 4_600) < -40
    assert power_above(CONDITIONS["mp3_32k"](broadband), 7_600) < power_above(broadband, 7_600) - 10
    added = CONDITIONS["silence_added"](speech)
    assert added.duration_seconds == speech.duration_seconds + 1
    assert CONDITIONS["silence_trimmed"](added).duration_seconds < speech.duration_seconds + 0.06
    decay = CONDITIONS["reverb"](Waveform(np.pad(speech.samples, (0, 8_000)))).samples[-8_000:]
    assert np.abs(decay[:1_600]).max() > 10 * np.abs(decay[-1_600:]).max()


def test_silence_stays_silence() -> None:
    silence = Waveform(np.zeros(32_000, np.float32))
    for name in CONDITIONS:
        assert np.isfinite(augment(silence, name).samples).all()
    assert np.isfinite(augment(silence, RANDOM_CHANNEL, 1).samples).all()


def test_an_unknown_augmentation_is_named() -> None:
    with pytest.raises(CorpusError, match=r"'mp3_32'.*mp3_32k"):
        augment(Waveform(np.zeros(16_000, np.float32)), "mp3_32")
