"""The channels of a recording: which need no verdict of their own, and why."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.audio.channels import notes
from pipeline.audio.decode import decode, decode_channels
from pipeline.audio.pool import DecoderPool
from pipeline.config import Limits
from pipeline.errors import EmptyAudio, RecordingTooLong, UnreadableAudio
from pipeline.verdict.reasons import AnswerWarning
from tests.audio import encode
from tests.hostile import wav

LIMITS = Limits()
Samples = NDArray[np.float32]


@pytest.fixture(scope="module")
def noise() -> Samples:
    """Three different channels, (3, time)."""
    return np.random.default_rng(0).normal(scale=0.1, size=(3, 48_000)).astype(np.float32)


def test_each_channel_is_what_was_recorded_on_it(noise: Samples) -> None:
    channels = decode_channels(encode(noise, codec="pcm_f32le"), LIMITS)
    assert [channel.name for channel in channels] == ["CHANNEL_1", "CHANNEL_2", "CHANNEL_3"]
    for channel, samples in zip(channels, noise, strict=True):
        assert channel.note is None and channel.recording is not None
        np.testing.assert_array_equal(channel.recording.waveform.samples, samples)
        assert channel.recording.original_format == "wav"


@pytest.mark.parametrize(("name", "count"), [("opus", 8), ("m4a", 6), ("flac", 8), ("mp3", 2)])
def test_any_format_has_its_channels(name: str, count: int) -> None:
    """Each channel has another tone, so that it is recognised in whatever order the channels come."""
    time = np.arange(48_000) / 48_000
    hertz = [300 + 250 * i for i in range(count)]
    samples = np.stack([0.1 * np.sin(2 * np.pi * h * time) for h in hertz]).astype(np.float32)
    layout = "5.1(side)" if count == 6 else None
    found = decode_channels(encode(samples, name, rate=48_000, layout=layout), LIMITS)
    peaks = []
    for channel in found:
        assert channel.recording
        spectrum = np.abs(np.fft.rfft(channel.recording.waveform.samples))
        peaks.append(np.argmax(spectrum) / channel.recording.waveform.duration_seconds)
    low = [h for h in hertz if name != "m4a" or h != hertz[3]]  # this channel (LFE) keeps only low tones
    assert len(found) == count
    assert all(min(abs(peak - h) for peak in peaks) < 10 for h in low)


def test_silent_and_equal_channels_are_told_and_not_given_out(noise: Samples) -> None:
    silence = np.zeros_like(noise[0])
    hiss = np.full_like(silence, 5e-5)
    samples = np.stack([noise[0], silence, noise[1], noise[0], noise[1], hiss])
    channels = decode_channels(encode(samples, codec="pcm_f32le"), LIMITS)
    expected = [None, "silent", None, "same_as_CHANNEL_1", "same_as_CHANNEL_3", "silent"]
    assert [channel.note for channel in channels] == expected
    assert [channel.recording is None for channel in channels] == [note is not None for note in expected]


@pytest.mark.parametrize("name", ["mp3", "ogg", "opus", "m4a", "wma"])
def test_copies_are_known_through_a_codec(name: str, sample_wav: bytes) -> None:
    speech = decode(sample_wav, LIMITS).waveform.samples[110_000:190_000]
    first, second = decode_channels(encode(np.stack([speech, speech]), name), LIMITS)
    assert (first.note, second.note) == (None, "same_as_CHANNEL_1")


def test_channels_that_only_resemble_each_other_are_not_the_same(noise: Samples) -> None:
    assert notes([noise[0], noise[0] + 0.1 * noise[1]]) == [None, None]
    assert notes([noise[0], -noise[0]]) == [None, None]


def test_of_silent_channels_the_first_is_judged(noise: Samples) -> None:
    """One channel must be judged, because its answer has the length of the recording."""
    first, second = decode_channels(encode(np.zeros((2, 16_000), np.float32)), LIMITS)
    assert (first.note, second.note) == ("silent", "silent")
    assert first.recording and first.recording.waveform.duration_seconds == 1
    assert second.recording is None


def test_what_is_odd_about_the_file_is_odd_about_each_channel(noise: Samples) -> None:
    whole = encode(noise[:2])
    for channel in decode_channels(whole[: len(whole) // 2], LIMITS):
        assert channel.recording and channel.recording.warnings == (AnswerWarning.TRUNCATED,)


def test_opposite_channels_are_split_without_a_warning(noise: Samples) -> None:
    data = encode(np.stack([noise[0], -noise[0]]))
    assert decode(data, LIMITS).warnings == (AnswerWarning.ANTI_PHASE,)
    assert [channel.recording.warnings for channel in decode_channels(data, LIMITS) if channel.recording] == [(), ()]


def test_mono_is_one_channel(noise: Samples) -> None:
    (channel,) = decode_channels(encode(noise[0]), LIMITS)
    assert channel.name == "CHANNEL_1" and channel.recording


def test_errors_are_the_same(noise: Samples) -> None:
    with pytest.raises(EmptyAudio):
        decode_channels(encode(noise[:2, :0]), LIMITS)
    with pytest.raises(UnreadableAudio, match="3 channels; at most 2"):
        decode_channels(encode(noise), Limits(max_channels=2))


@pytest.mark.parametrize(("count", "longest_seconds"), [(1, 4), (2, 4), (3, 8 / 3), (8, 1)])
def test_more_than_two_channels_must_be_shorter(count: int, longest_seconds: float) -> None:
    """All channels together take as much memory as two of the longest recordings at most."""
    limits = Limits(max_duration_seconds=4, max_split_durations=2)
    samples = np.random.default_rng(0).normal(scale=0.1, size=(count, 5 * 8_000)).astype(np.float32)
    longest = int(longest_seconds * 8_000)
    assert len(decode_channels(encode(samples[:, :longest], rate=8_000), limits)) == count
    too_long = encode(samples[:, : longest + 4_000], rate=8_000)
    with pytest.raises(RecordingTooLong, match="judge each of them by itself" if count > 2 else "parts"):
        decode_channels(too_long, limits)
    if count > 2:
        assert decode(too_long, limits).waveform.duration_seconds == pytest.approx(longest_seconds + 0.5, abs=0.01)


@pytest.mark.parametrize("count", [2, 8])
def test_a_process_of_its_own_has_room_for_the_longest_recordings(count: int) -> None:
    """Ten minutes of a call with two parties, or a quarter of it with eight, all of them different."""
    seconds = 1_200 // count
    noise = np.random.default_rng(0).normal(scale=0.1, size=8_000 * seconds + count).astype(np.float32)
    samples = np.stack([noise[channel : channel + 8_000 * seconds] for channel in range(count)])
    pcm = (samples.T * 2**15).astype("<i2").tobytes()
    pool = DecoderPool(Limits(max_split_durations=2), workers=1)
    found = pool.decode_channels(wav(8_000, count, len(pcm), 0) + pcm)
    lengths = [channel.recording.waveform.duration_seconds for channel in found if channel.recording]
    assert lengths == pytest.approx([seconds] * count, abs=0.01)


def test_a_process_of_its_own_gives_the_same(noise: Samples) -> None:
    pool = DecoderPool(LIMITS, workers=1)
    silence = np.zeros_like(noise[0])
    for samples in (np.stack([noise[0], silence, noise[1], noise[0]]), noise[:1], np.stack([silence, silence])):
        data = encode(samples)
        for here, apart in zip(decode_channels(data, LIMITS), pool.decode_channels(data), strict=True):
            assert (here.name, here.note) == (apart.name, apart.note)
            assert (here.recording is None) == (apart.recording is None)
            if here.recording and apart.recording:
                np.testing.assert_array_equal(here.recording.waveform.samples, apart.recording.waveform.samples)
                assert here.recording.file_sha256 == apart.recording.file_sha256
