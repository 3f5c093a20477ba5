"""Decoding: every format is recognised by content, and no upload can do harm."""

from __future__ import annotations

import re
import socket
import struct
import time
import wave
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.audio.decode import decode, decode_channels
from pipeline.audio.formats import ACCEPTED, FORMATS, SUPPORTED_FORMATS
from pipeline.config import Limits
from pipeline.errors import (
    EmptyAudio,
    InputError,
    RecordingTooLong,
    UnreadableAudio,
    UnsupportedFormat,
)
from pipeline.types import SAMPLE_RATE, Waveform
from tests.audio import CODECS, amr_wb, encode, remux, with_ffmpeg
from tests.hostile import flac_of_silence
from tune.corpora.augment import resample

LIMITS = Limits()
Samples = NDArray[np.float32]

MAGIC = (b"RIFF\xff\xff\xff\xffWAVE", b"OggS", b"\x1aE\xdf\xa3", b"\x00\x00\x00\x18ftyp", b"fLaC", b"ID3\x04", b"")

# For each codec: the longest delay in samples at 16 kHz, and the lowest signal-to-noise ratio in dB.
CODEC_TOLERANCE = {
    "wav": (0, 200),
    "flac": (0, 200),
    "mp3": (1_200, 18),
    "webm": (150, 22),
    "opus": (150, 22),
    "ogg": (1_100, 25),
    "m4a": (1_100, 25),
    "aac": (1_100, 25),
    "aiff": (0, 200),
    "caf": (0, 200),
    "amr": (100, 5),
    "wma": (600, 30),
    "au": (0, 200),
    "mp2": (600, 30),
    "w64": (0, 200),
}


@pytest.fixture(scope="module")
def sample(sample_wav: bytes) -> Samples:
    """The samples of pyannote's recording, read without the code of the product."""
    with wave.open(BytesIO(sample_wav)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / np.float32(2**15)


@pytest.fixture(scope="module")
def clips(sample: Samples) -> dict[str, bytes]:
    """Two seconds of the sample in each format."""
    return {name: encode(sample[:32_000], name) for name in CODECS}


def tone(hertz: float, rate: int, seconds: float = 1.0) -> Samples:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def level_db(samples: Samples) -> float:
    """The level of the middle half of `samples`, relative to a tone of amplitude 0.5."""
    middle = samples[len(samples) // 4 : -len(samples) // 4].astype(np.float64)
    return float(10 * np.log10(np.mean(middle**2) / 0.125 + 1e-20))


def wav_header(rate: int, channels: int, size: int) -> bytes:
    block = channels * 2
    fields = (16, 1, channels, rate, rate * block & 0xFFFFFFFF, block & 0xFFFF, 16)
    form = b"WAVEfmt " + struct.pack("<IHHIIHH", *fields)
    return b"RIFF" + struct.pack("<I", 36) + form + b"data" + struct.pack("<I", size)


def aligned(decoded: Samples, reference: Samples) -> tuple[int, float]:
    """The delay of `decoded` in samples, and its signal-to-noise ratio in dB without this delay."""
    size = 2 ** int(np.ceil(np.log2(len(decoded) + len(reference))))
    correlation = np.fft.irfft(np.fft.rfft(decoded, size) * np.conj(np.fft.rfft(reference, size)))
    delay = int(np.argmax(correlation[: size // 2]))
    part = decoded[delay : delay + len(reference)].astype(np.float64)
    noise = part - reference[: len(part)]
    return delay, float(10 * np.log10(np.sum(part**2) / (np.sum(noise**2) + 1e-20)))


def ogg_checksum(page: bytes) -> int:
    """CRC-32 of a page whose checksum field is zero (RFC 3533 section 6)."""
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value & 2**31 else 0)) & 0xFFFFFFFF
    return value


class TestFormats:
    def test_there_is_a_sample_of_each(self) -> None:
        assert set(FORMATS) == set(CODECS)
        assert {*FORMATS, "mkv", "mp4", "mov", "3gp"} == set(SUPPORTED_FORMATS)

    @pytest.mark.parametrize("name", FORMATS)
    def test_is_told_by_content_and_sounds_the_same(
        self, name: str, sample_versions: dict[str, bytes], sample: Samples
    ) -> None:
        recording = decode(sample_versions[name], LIMITS)
        max_delay, min_snr = CODEC_TOLERANCE[name]
        delay, snr = aligned(recording.waveform.samples, sample)
        assert (recording.original_format, recording.warnings) == (name, ())
        assert recording.waveform.sample_rate == SAMPLE_RATE
        assert recording.waveform.samples.dtype == np.float32
        assert recording.waveform.duration_seconds == pytest.approx(30, abs=0.15)
        assert delay <= max_delay
        assert snr >= min_snr

    @pytest.mark.parametrize("name", ["webm", "ogg", "opus", "wav", "flac", "au", "caf", "wma", "amr", "mp2"])
    def test_live_recordings_of_unknown_length_are_whole(self, name: str, sample: Samples) -> None:
        recording = decode(encode(sample[:32_000], name, live=True), LIMITS)
        assert recording.waveform.duration_seconds == pytest.approx(2, abs=0.15)
        assert recording.warnings == ()

    @pytest.mark.parametrize(
        "codec", ["pcm_u8", "pcm_s24le", "pcm_f32le", "pcm_f64le", "pcm_alaw", "pcm_mulaw", "adpcm_ima_wav", "adpcm_ms"]
    )
    def test_wav_encodings(self, codec: str) -> None:
        recording = decode(encode(tone(440, 8_000), rate=8_000, codec=codec), LIMITS)
        assert level_db(recording.waveform.samples) == pytest.approx(0, abs=0.2)

    @pytest.mark.parametrize("name", ["mp3", "aac", "flac"])
    def test_tags_before_the_audio_are_passed_over(self, name: str, clips: dict[str, bytes]) -> None:
        tags = b"ID3\x04\x00\x00\x00\x00\x02\x00" + bytes(256)
        recording = decode(tags + tags + clips[name], LIMITS)
        assert recording.original_format == name
        assert recording.waveform.duration_seconds == pytest.approx(2, abs=0.15)

    @pytest.mark.parametrize("name", ["mp3", "aac", "flac"])
    def test_too_many_tags_are_not(self, name: str, clips: dict[str, bytes]) -> None:
        """A chain of millions of empty tags would take minutes to walk."""
        tag = b"ID3\x04\x00\x00\x00\x00\x7f\x7f" + bytes(2**14 - 1)
        assert decode(16 * tag + clips[name], LIMITS).original_format == name
        with pytest.raises(UnsupportedFormat):
            decode(17 * tag + clips[name], LIMITS)

    @pytest.mark.parametrize(
        ("name", "muxer", "codec", "rate"),
        [
            *(
                ("aiff", "aiff", codec, 16_000)
                for codec in ("pcm_s8", "pcm_s24be", "pcm_s16le", "pcm_f32be", "pcm_f64be")
            ),
            *(("aiff", "aiff", codec, 8_000) for codec in ("pcm_mulaw", "pcm_alaw", "adpcm_ima_qt")),
            *(
                ("caf", "caf", codec, 16_000)
                for codec in ("pcm_s24le", "pcm_f32le", "pcm_mulaw", "alac", "adpcm_ima_qt")
            ),
            ("amr", "amr", "libopencore_amrnb", 8_000),
            *(("m4a", "3gp", codec, rate) for codec, rate in (("libopencore_amrnb", 8_000), ("aac", 16_000))),
            *(("wma", "asf", codec, rate) for codec in ("wmav1", "wmav2") for rate in (16_000, 44_100)),
            *(("au", "au", codec, 8_000) for codec in ("pcm_mulaw", "pcm_alaw", "pcm_s24be", "pcm_f32be")),
            *(("mp2", "mp2", "mp2", rate) for rate in (16_000, 22_050, 24_000, 32_000, 44_100, 48_000)),
            *(("w64", "w64", codec, 16_000) for codec in ("pcm_u8", "pcm_s24le", "pcm_f32le", "adpcm_ms")),
            *(("m4a", "mov", codec, 16_000) for codec in ("pcm_s16be", "pcm_s16le", "pcm_s24be", "pcm_f32le")),
            *(("m4a", "mov", codec, 16_000) for codec in ("pcm_mulaw", "alac", "adpcm_ima_qt")),
            *(("m4a", muxer, codec, 48_000) for muxer in ("mp4", "mov") for codec in ("ac3", "eac3")),
            ("m4a", "mp4", "flac", 16_000),
            *(("webm", "matroska", codec, 48_000) for codec in ("ac3", "eac3", "mp2", "flac", "pcm_s24le", "alac")),
        ],
    )
    def test_what_else_people_send(self, name: str, muxer: str, codec: str, rate: int) -> None:
        recording = decode(encode(tone(440, rate, 2), rate=rate, muxer=muxer, codec=codec), LIMITS)
        assert (recording.original_format, recording.warnings) == (name, ())
        assert recording.waveform.duration_seconds == pytest.approx(2, abs=0.15)
        assert level_db(recording.waveform.samples) == pytest.approx(0, abs=1.5)

    def test_speex_in_ogg(self, sample: Samples) -> None:
        recording = decode(with_ffmpeg(sample, "ogg", "-c:a", "libspeex"), LIMITS)
        assert (recording.original_format, recording.warnings) == ("ogg", ())
        assert aligned(recording.waveform.samples, sample)[1] > 7

    @pytest.mark.parametrize("name", ["amr", "m4a"])
    def test_wideband_amr(self, name: str) -> None:
        data = amr_wb(2.0) if name == "amr" else remux("3gp", amr_wb(2.0))
        recording = decode(data, LIMITS)
        assert (recording.original_format, recording.warnings) == (name, ())
        assert recording.waveform.duration_seconds == pytest.approx(2, abs=0.05)
        assert np.std(recording.waveform.samples) > 0.001

    def test_a_mov_file_that_names_no_type(self) -> None:
        """An old file without the box `ftyp`. The test renames the box instead of removing it, so that the offsets in
        the file stay right."""
        data = bytearray(encode(tone(440, 16_000, 2), muxer="mov", codec="pcm_s16be"))
        assert data[4:8] == b"ftyp"
        data[4:8] = b"free"
        recording = decode(bytes(data), LIMITS)
        assert (recording.original_format, recording.warnings) == ("m4a", ())
        assert recording.waveform.duration_seconds == 2

    @pytest.mark.parametrize(
        ("name", "muxer", "codec"),
        [
            ("m4a", "mp4", "aac"),
            ("m4a", "mov", "pcm_s16le"),
            ("m4a", "3gp", "aac"),
            ("webm", "matroska", "libopus"),
            ("wma", "asf", "wmav2"),
        ],
    )
    def test_of_a_video_its_audio(self, name: str, muxer: str, codec: str, sample: Samples) -> None:
        recording = decode(encode(sample[:32_000], name, muxer=muxer, codec=codec, picture=True), LIMITS)
        assert (recording.original_format, recording.warnings) == (name, ())
        assert recording.waveform.duration_seconds == pytest.approx(2, abs=0.15)


@pytest.fixture(
    scope="module",
    params=[("m4a", "mp4", "aac"), ("webm", "matroska", "libopus"), ("opus", "ogg", "libopus")],
    ids=["m4a", "webm", "opus"],
)
def two_tracks(request: pytest.FixtureRequest) -> tuple[str, bytes]:
    """The name of a format, and a file in it. The file has two tracks with different tones. The language of the first
    is German; the second names none."""
    name, muxer, codec = request.param
    files = [encode(tone(hertz, 48_000, 2), muxer=muxer, codec=codec, rate=48_000) for hertz in (440, 1_000)]
    return name, remux(muxer, *files, languages=["ger"])


class TestTracks:
    @pytest.mark.parametrize(("track", "hertz"), [(0, 440), (1, 1_000)])
    def test_one_is_chosen_by_its_number(self, track: int, hertz: int, two_tracks: tuple[str, bytes]) -> None:
        name, data = two_tracks
        recording = decode(data, LIMITS, track)
        assert recording.original_format == name
        assert recording.waveform.duration_seconds == pytest.approx(2, abs=0.15)
        spectrum = np.abs(np.fft.rfft(recording.waveform.samples))
        assert np.argmax(spectrum) / recording.waveform.duration_seconds == pytest.approx(hertz, abs=2)

    def test_none_is_chosen_for_the_user(self, two_tracks: tuple[str, bytes]) -> None:
        name, data = two_tracks
        with pytest.raises(UnreadableAudio) as refused:
            decode(data, LIMITS)
        codec = "aac" if name == "m4a" else "opus"
        assert refused.value.status == 422
        assert f"2 audio tracks: 0, {codec}, ger, 1 channel; 1, {codec}, 1 channel." in refused.value.detail

    @pytest.mark.parametrize("track", [-1, 2])
    def test_one_that_is_not_there(self, track: int, two_tracks: tuple[str, bytes]) -> None:
        with pytest.raises(UnreadableAudio, match=f"no track {track}: the file holds 2 audio tracks: 0,"):
            decode(two_tracks[1], LIMITS, track)

    def test_the_only_one_may_be_named(self, clips: dict[str, bytes]) -> None:
        assert len(decode(clips["wav"], LIMITS, 0).waveform.samples) == 32_000
        with pytest.raises(UnreadableAudio, match="no track 1: the file holds 1 audio track: 0, pcm_s16le, 1 channel"):
            decode(clips["wav"], LIMITS, 1)

    def test_what_a_file_calls_its_languages_is_not_repeated(self) -> None:
        clip = encode(tone(440, 48_000, 2), "webm", rate=48_000)
        data = remux("matroska", clip, clip, languages=["ger"])
        assert b"ger" in data
        with pytest.raises(UnreadableAudio, match="2 audio tracks: 0, opus, 1 channel; 1, opus, 1 channel"):
            decode(data.replace(b"ger", b"<b>"), LIMITS)


class TestResampling:
    @pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 384_000])
    def test_a_tone_keeps_its_level_and_purity(self, rate: int) -> None:
        samples = decode(encode(tone(1_000, rate), rate=rate, codec="pcm_f32le"), LIMITS).waveform.samples
        assert len(samples) == pytest.approx(SAMPLE_RATE, abs=2)
        middle = samples[4_000:12_000]
        spectrum = np.abs(np.fft.rfft(middle * np.blackman(len(middle)))) ** 2
        spectrum[:5] = 0
        others = np.r_[spectrum[:490], spectrum[511:]]
        assert level_db(samples) == pytest.approx(0, abs=0.02)
        assert 10 * np.log10(others.sum() / spectrum.sum()) < -80

    @pytest.mark.parametrize("rate", [44_100, 48_000, 192_000, 384_000])
    def test_the_band_up_to_seven_and_a_half_kilohertz_is_flat(self, rate: int) -> None:
        for hertz in (100, 3_000, 6_000, 7_400):
            samples = decode(encode(tone(hertz, rate), rate=rate, codec="pcm_f32le"), LIMITS).waveform.samples
            assert level_db(samples) == pytest.approx(0, abs=0.2)

    @pytest.mark.parametrize("rate", [44_100, 48_000, 96_000, 176_400, 384_000])
    def test_what_lies_above_eight_kilohertz_does_not_fold_back(self, rate: int) -> None:
        for hertz in (8_200, 9_000, 12_000, 15_000, 20_000, 30_000, 41_000, 47_000, 87_000, 150_000):
            if hertz < rate / 2:
                samples = decode(encode(tone(hertz, rate), rate=rate, codec="pcm_f32le"), LIMITS).waveform.samples
                assert level_db(samples) < -75, hertz

    @pytest.mark.parametrize("rate", [176_400, 192_000, 384_000])
    def test_two_steps_give_the_samples_of_one(self, rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
        noise = np.random.default_rng(0).normal(scale=0.1, size=2 * rate).astype(np.float32)
        data = encode(noise, rate=rate, codec="pcm_f32le")
        two_steps = decode(data, LIMITS).waveform.samples
        monkeypatch.setattr("pipeline.audio.decode._HIGH_RATE", rate)
        one_step = decode(data, LIMITS).waveform.samples
        edge = SAMPLE_RATE // 100  # where the filter reaches beyond the recording
        np.testing.assert_allclose(two_steps[edge:-edge], one_step[edge:-edge], atol=1e-5, rtol=0)

    def test_two_steps_take_less_time_than_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = flac_of_silence(1 / 360, 384_000, 8)

        def processor_seconds() -> float:
            before = time.process_time()
            decode(data, LIMITS)
            return time.process_time() - before

        two_steps = processor_seconds()
        monkeypatch.setattr("pipeline.audio.decode._HIGH_RATE", 384_000)
        assert two_steps < 0.7 * processor_seconds()


class TestChannels:
    @pytest.mark.parametrize("channels", range(1, 9))
    @pytest.mark.parametrize(("name", "codec"), [("wav", "pcm_s16le"), ("flac", "flac"), ("opus", "libopus")])
    def test_equal_channels_are_one(self, channels: int, name: str, codec: str) -> None:
        samples = np.tile(tone(440, 16_000), (channels, 1))
        recording = decode(encode(samples, name, codec=codec), LIMITS)
        assert recording.warnings == ()
        assert level_db(recording.waveform.samples) == pytest.approx(0, abs=0.3)

    @pytest.mark.parametrize("channels", [6, 8])
    def test_planar_surround_is_read(self, channels: int) -> None:
        samples = np.tile(tone(440, 48_000), (channels, 1))
        recording = decode(encode(samples, "m4a", rate=48_000), LIMITS)
        assert level_db(recording.waveform.samples) == pytest.approx(0, abs=2)

    def test_the_mean_is_taken(self) -> None:
        left, right = tone(440, 16_000), tone(1_500, 16_000)
        recording = decode(encode(np.stack([left, right]), codec="pcm_f32le"), LIMITS)
        np.testing.assert_allclose(recording.waveform.samples, (left + right) / 2, atol=1e-6)
        assert recording.warnings == ()

    def test_one_silent_channel_is_no_anti_phase(self) -> None:
        recording = decode(encode(np.stack([tone(440, 16_000), np.zeros(16_000)])), LIMITS)
        assert recording.warnings == ()
        assert level_db(recording.waveform.samples) == pytest.approx(-6, abs=0.1)

    @pytest.mark.parametrize("name", ["wav", "opus", "flac"])
    def test_anti_phase_gives_the_loudest_channel(self, name: str, sample: Samples) -> None:
        loud = sample[:80_000]
        recording = decode(encode(np.stack([-0.9 * loud, loud]), name), LIMITS)
        assert recording.warnings == ("anti_phase_loudest_channel_scored",)
        assert np.std(recording.waveform.samples) == pytest.approx(np.std(loud), rel=0.1)

    def test_anti_phase_is_seen_behind_a_common_offset(self, sample: Samples) -> None:
        loud = sample[:80_000]
        recording = decode(encode(np.stack([0.05 - loud / 2, 0.05 + 0.6 * loud]), codec="pcm_f32le"), LIMITS)
        assert recording.warnings == ("anti_phase_loudest_channel_scored",)
        assert np.std(recording.waveform.samples) == pytest.approx(0.6 * np.std(loud), rel=0.01)

    def test_a_part_in_anti_phase_is_enough(self, sample: Samples) -> None:
        clip = sample[:160_000]
        other = np.where(np.arange(len(clip)) < 128_000, clip, -clip)
        recording = decode(encode(np.stack([clip, other])), LIMITS)
        assert recording.warnings == ("anti_phase_loudest_channel_scored",)
        np.testing.assert_allclose(recording.waveform.samples, clip, atol=1e-3)

    def test_too_many_are_refused(self) -> None:
        with pytest.raises(UnreadableAudio, match="200 channels"):
            decode(wav_header(16_000, 200, 80_000) + bytes(80_000), LIMITS)

    def test_a_number_that_changes_is_refused(self) -> None:
        mono, stereo = tone(440, 48_000), np.tile(tone(440, 48_000), (2, 1))
        joined = encode(mono, "aac", rate=48_000) + encode(stereo, "aac", rate=48_000)
        with pytest.raises(UnreadableAudio, match="number of channels"):
            decode(joined, LIMITS)


class TestCaps:
    @pytest.mark.parametrize("rate", [1, 3_999, 384_001, 10_000_000])
    def test_sample_rate(self, rate: int) -> None:
        with pytest.raises(UnreadableAudio, match=f"{rate} samples a second"):
            decode(wav_header(rate, 1, 192_000) + bytes(192_000), LIMITS)

    @pytest.mark.parametrize("name", FORMATS)
    def test_duration_is_counted_while_decoding(self, name: str, sample_versions: dict[str, bytes]) -> None:
        with pytest.raises(RecordingTooLong, match="longer than 10 seconds"):
            decode(sample_versions[name], Limits(max_duration_seconds=10))

    @pytest.mark.parametrize("name", FORMATS)
    def test_a_recording_of_just_the_limit_passes(self, name: str, clips: dict[str, bytes]) -> None:
        decode(clips[name], Limits(max_duration_seconds=2))

    def test_a_small_file_that_expands_is_stopped_early(self) -> None:
        bomb = encode(np.zeros(1_200 * 8_000), "flac", rate=8_000)
        started = time.process_time()
        with pytest.raises(RecordingTooLong):
            decode(bomb, Limits(max_duration_seconds=60))
        assert len(bomb) < 250_000
        assert time.process_time() - started < 1

    def test_time(self, sample_versions: dict[str, bytes]) -> None:
        with pytest.raises(UnreadableAudio, match="takes longer than"):
            decode(sample_versions["wav"], Limits(max_decode_seconds=0.001))


class TestLies:
    """Everything that can be decoded is scored, even if a header says something else."""

    @pytest.mark.parametrize("size", [0, 3_200, 2**31, 2**32 - 1])
    def test_wav_data_size(self, size: int, clips: dict[str, bytes]) -> None:
        clip = bytearray(clips["wav"])
        start = clip.index(b"data") + 4
        clip[start : start + 4] = struct.pack("<I", size)
        recording = decode(bytes(clip), LIMITS)
        assert len(recording.waveform.samples) == 32_000
        assert recording.warnings == (("truncated",) if size == 2**31 else ())

    @pytest.mark.parametrize(
        ("name", "mark", "order", "sizes"),
        [
            ("aiff", b"SSND", ">I", (8, 1_000, 32_008)),
            ("caf", b"data", ">q", (4, 1_000, 32_004)),
            ("w64", b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0O\x8e\xdb\x8a", "<Q", (32, 1_024, 32_024)),
        ],
    )
    def test_less_audio_than_there_is(
        self, name: str, mark: bytes, order: str, sizes: tuple[int, ...], clips: dict[str, bytes]
    ) -> None:
        for size in sizes:
            clip = bytearray(clips[name])
            start = clip.index(mark) + len(mark)
            clip[start : start + struct.calcsize(order)] = struct.pack(order, size)
            with pytest.raises(UnreadableAudio, match="more audio than its header declares"):
                decode(bytes(clip), LIMITS)

    @pytest.mark.parametrize("size", [0, 1_000, 2**32 - 1])
    def test_au_size(self, size: int, clips: dict[str, bytes]) -> None:
        clip = bytearray(clips["au"])
        clip[8:12] = struct.pack(">I", size)
        recording = decode(bytes(clip), LIMITS)
        assert (len(recording.waveform.samples), recording.warnings) == (32_000, ())

    def test_wma_size(self, clips: dict[str, bytes]) -> None:
        clip = bytearray(clips["wma"])
        start = clip.index(bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")) + 16
        clip[start : start + 8] = struct.pack("<Q", 5_000)
        with pytest.raises(UnreadableAudio, match="more audio than its header declares"):
            decode(bytes(clip), LIMITS)

    @pytest.mark.parametrize("total", [0, 1_600, 2**36 - 1])
    def test_flac_total_samples(self, total: int, clips: dict[str, bytes]) -> None:
        clip = bytearray(clips["flac"])
        fields = int.from_bytes(clip[18:26], "big") >> 36 << 36 | total
        clip[18:26] = fields.to_bytes(8, "big")
        recording = decode(bytes(clip), LIMITS)
        assert len(recording.waveform.samples) == 32_000
        assert recording.warnings == (("truncated",) if total == 2**36 - 1 else ())

    @pytest.mark.parametrize("box", [b"mdhd", b"mvhd", b"tkhd", b"elst"])
    @pytest.mark.parametrize("units", [1, 2**31 - 1])
    def test_m4a_durations_and_edits(self, box: bytes, units: int, clips: dict[str, bytes]) -> None:
        clip = bytearray(clips["m4a"])
        start = clip.index(box) + {b"mdhd": 16, b"mvhd": 16, b"tkhd": 24, b"elst": 12}[box]
        clip[start : start + 4] = struct.pack(">I", units)
        recording = decode(bytes(clip), LIMITS)
        assert recording.waveform.duration_seconds == pytest.approx(2, abs=0.15)

    def test_opus_pre_skip(self, clips: dict[str, bytes]) -> None:
        clip = bytearray(clips["opus"])
        clip[38:40] = struct.pack("<H", 65_535)
        clip[22:26] = bytes(4)
        clip[22:26] = struct.pack("<I", ogg_checksum(bytes(clip[:47])))
        recording = decode(bytes(clip), LIMITS)
        assert recording.waveform.duration_seconds == pytest.approx(2, abs=0.15)

    @pytest.mark.parametrize("frames", [1, 1_000_000])
    def test_xing_frames(self, frames: int, clips: dict[str, bytes]) -> None:
        clip = bytearray(clips["mp3"])
        start = max(clip.find(b"Xing"), clip.find(b"Info")) + 8
        clip[start : start + 4] = struct.pack(">I", frames)
        recording = decode(bytes(clip), LIMITS)
        assert recording.waveform.duration_seconds == pytest.approx(2, abs=0.15)
        assert recording.warnings == (("truncated",) if frames == 1_000_000 else ())

    @pytest.mark.parametrize("name", ["ogg", "opus", "mp3", "aac"])
    def test_chained_streams_are_scored_whole(self, name: str, clips: dict[str, bytes]) -> None:
        recording = decode(clips[name] * 3, LIMITS)
        assert recording.waveform.duration_seconds == pytest.approx(6, abs=0.5)

    def test_chained_streams_of_two_kinds_are_scored_whole_or_refused(self, clips: dict[str, bytes]) -> None:
        for first, second in (("ogg", "opus"), ("opus", "ogg")):
            with pytest.raises(UnreadableAudio):
                decode(clips[first] + clips[second], LIMITS)

    @pytest.mark.parametrize(("name", "rates"), [("aac", (16_000, 44_100)), ("mp3", (16_000, 24_000))])
    def test_a_sample_rate_that_changes_is_followed(self, name: str, rates: tuple[int, int]) -> None:
        joined = b"".join(encode(tone(440, rate), name, rate=rate) for rate in rates)
        samples = decode(joined, LIMITS).waveform.samples
        middle = len(samples) // 2
        assert len(samples) == pytest.approx(2 * SAMPLE_RATE, abs=6_000)
        for part in (samples[:middle], samples[middle:]):
            spectrum = np.abs(np.fft.rfft(part))
            assert np.argmax(spectrum) * SAMPLE_RATE / len(part) == pytest.approx(440, abs=2)


class TestBroken:
    def test_empty(self) -> None:
        with pytest.raises(EmptyAudio):
            decode(b"", LIMITS)

    @pytest.mark.parametrize("name", sorted(set(CODECS) - {"ogg", "opus", "aac", "amr"}))
    def test_no_samples(self, name: str) -> None:
        with pytest.raises(InputError):
            decode(encode(np.zeros(0), name), LIMITS)

    @pytest.mark.parametrize("magic", [b"#!AMR\n", b"#!AMR-WB\n"])
    def test_no_frames(self, magic: bytes) -> None:
        with pytest.raises(EmptyAudio):
            decode(magic, LIMITS)

    @pytest.mark.parametrize("name", ["webm", "m4a"])
    def test_no_audio_track(self, name: str) -> None:
        with pytest.raises(EmptyAudio):
            decode(
                encode(np.zeros(0), name, muxer={"webm": "matroska", "m4a": "mp4"}[name], tracks=0, picture=True),
                LIMITS,
            )

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
    @pytest.mark.parametrize("rate", [16_000, 44_100])
    def test_samples_that_are_no_numbers(self, value: float, rate: int) -> None:
        samples = tone(440, rate)
        samples[rate // 2] = value
        with pytest.raises(UnreadableAudio, match="not numbers"):
            decode(encode(samples, rate=rate, codec="pcm_f32le"), LIMITS)

    @pytest.mark.parametrize("name", FORMATS)
    @pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
    def test_a_cut_file_is_refused_or_says_so(self, name: str, share: float, sample_versions: dict[str, bytes]) -> None:
        whole = sample_versions[name]
        try:
            recording = decode(whole[: int(share * len(whole))], LIMITS)
        except UnreadableAudio:
            assert name in ("m4a", "aiff", "caf")
        else:
            assert "truncated" in recording.warnings

    def test_a_cut_live_recording_says_so(self, sample: Samples) -> None:
        live = encode(sample[:80_000], "webm", live=True)
        assert "truncated" in decode(live[: len(live) // 2], LIMITS).warnings

    @pytest.mark.parametrize("name", ["mp3", "ogg", "m4a", "flac", "opus", "aac"])
    def test_damage_in_the_middle_says_so(self, name: str, sample_versions: dict[str, bytes]) -> None:
        broken = bytearray(sample_versions[name])
        middle = len(broken) // 2
        broken[middle : middle + 300] = bytes(300)
        recording = decode(bytes(broken), LIMITS)
        assert recording.warnings
        assert recording.waveform.duration_seconds > 25

    def test_more_damage_than_audio_is_refused(self, clips: dict[str, bytes]) -> None:
        aac = bytearray(clips["aac"])
        for start in range(400, len(aac), 200):
            aac[start : start + 100] = bytes(len(aac[start : start + 100]))
        with pytest.raises(UnreadableAudio):
            decode(bytes(aac), LIMITS)


class TestOurOwnMistakes:
    """An error in our own code does not mean that the file is damaged. So it must not become UnreadableAudio."""

    @pytest.mark.parametrize("place", ["sniff", "channels.mix", "_Decoding._seconds", "_Decoding._check", "np.abs"])
    @pytest.mark.parametrize("mistake", [ValueError, LookupError, MemoryError, ZeroDivisionError, RuntimeError])
    def test_is_told_apart_from_damage(
        self, place: str, mistake: type[Exception], clips: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise mistake("ours")

        monkeypatch.setattr(f"pipeline.audio.decode.{place}", fail)
        with pytest.raises(mistake, match="ours"):
            decode(clips["mp3"], LIMITS)


class TestUnsupported:
    @pytest.mark.parametrize(
        "data",
        [
            b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:8000/a.ts\n",
            b"ffconcat version 1.0\nfile http://127.0.0.1:8000/a.wav\n",
            b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\n",
            b"<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'/>",
            b"[playlist]\nFile1=/etc/passwd\n",
            b"-SE\n01 ts+\n",
            b"FORM\x00\x00\x10\x008SVXVHDR",
            b"#!AMR_MC1.0\n" + bytes(100),
            b"#!SILK_V3" + bytes(100),
            b".ra\xfd\x00\x04" + bytes(100),
            b"FLV\x01\x05\x00\x00\x00\x09",
            b"MThd\x00\x00\x00\x06\x00\x01",
            b"\x47\x40\x00\x10" * 200,
            b"\x7fELF" + bytes(100),
            b"\xff\xfb" + bytes(500),
            b"\xff\xfeh\x00e\x00l\x00l\x00o\x00",
            b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f",
            b"RIFF\x00\x00\x00\x00AVI ",
            bytes(5_000),
            b"\x00",
        ],
    )
    def test_is_refused(self, data: bytes) -> None:
        with pytest.raises(UnsupportedFormat, match=re.escape(f"Send {ACCEPTED}.")):
            decode(data, LIMITS)

    def test_an_encoding_outside_the_list_is_refused(self) -> None:
        with pytest.raises(UnsupportedFormat, match="WEBM file"):
            decode(encode(tone(440, 48_000), "webm", rate=48_000, codec="wavpack", muxer="matroska"), LIMITS)


@pytest.mark.parametrize("kbits", [12, 16, 32, 48])
@pytest.mark.parametrize("live", [True, False])
def test_the_bit_rate_of_opus_is_known_and_pauses_do_not_lower_it(sample: Samples, kbits: int, live: bool) -> None:
    with_pause = np.concatenate([resample(Waveform(sample), 48_000).samples, np.zeros(20 * 48_000, np.float32)])
    for split in (False, True):
        data = encode(with_pause, "webm" if live else "opus", rate=48_000, live=live, kbits=kbits)
        recording = decode_channels(data, LIMITS)[0].recording if split else decode(data, LIMITS)
        assert recording and recording.opus_kbits == pytest.approx(kbits, rel=0.15)


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"opus", "webm"}))
def test_other_codecs_have_no_bit_rate_of_opus(name: str, clips: dict[str, bytes]) -> None:
    assert decode(clips[name], LIMITS).opus_kbits is None


class TestStreamsThatBeginLate:
    """Recordings of broadcasts begin within a frame. Some programs write zeros before the first one."""

    @pytest.mark.parametrize("name", ["mp3", "aac", "mp2"])
    def test_the_whole_frames_are_read(self, name: str, sample_versions: dict[str, bytes]) -> None:
        whole = sample_versions[name]
        for data in (whole[100:], whole[3_001:], bytes(20_000) + whole, b"ID3\x04\0\0\0\0\0\x04tags" + whole[2_000:]):
            recording = decode(data, LIMITS)
            assert recording.original_format == name
            assert recording.waveform.duration_seconds == pytest.approx(30, abs=1.2)
            assert recording.warnings == ()

    def test_a_cut_at_the_end_is_still_seen(self, sample_versions: dict[str, bytes]) -> None:
        assert "truncated" in decode(sample_versions["mp3"][100:-20], LIMITS).warnings

    @pytest.mark.parametrize(("muxer", "name"), [("mpegts", "mp2"), ("mpeg", "mp2"), ("avi", "mp3"), ("nut", "mp3")])
    def test_audio_in_other_containers_is_not_found(
        self, muxer: str, name: str, sample_versions: dict[str, bytes]
    ) -> None:
        with pytest.raises(UnsupportedFormat):
            decode(remux(muxer, sample_versions[name]), LIMITS)

    def test_a_few_frames_by_chance_are_no_recording(self, clips: dict[str, bytes]) -> None:
        for length in (150, 300, 700):
            with pytest.raises(UnsupportedFormat):
                decode(bytes(range(1, 200)) + clips["mp3"][:length], LIMITS)


def test_a_playlist_connects_to_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:{server.getsockname()[1]}/a.ts\n"
        with pytest.raises(UnsupportedFormat):
            decode(playlist.encode(), LIMITS)
        with pytest.raises(TimeoutError):
            server.accept()


class TestRobustness:
    """Whatever bytes are decoded, only errors of the product are raised, and decoding never takes long."""

    @settings(max_examples=60)
    @given(data=st.data())
    @pytest.mark.parametrize("name", FORMATS)
    def test_damaged_files(self, name: str, clips: dict[str, bytes], data: st.DataObject) -> None:
        clip = bytearray(clips[name])
        # Half of the damage goes to the headers, where it matters most.
        places = st.one_of(st.integers(0, 300), st.integers(0, len(clip) - 1))
        for place in data.draw(st.lists(places, max_size=8)):
            clip[min(place, len(clip) - 1)] = data.draw(st.integers(0, 255))
        end = data.draw(st.one_of(st.just(len(clip)), st.integers(0, len(clip))))
        check(bytes(clip[:end]))

    @settings(max_examples=100)
    @given(
        magic=st.sampled_from(MAGIC),
        rest=st.binary(max_size=2_000),
    )
    def test_any_bytes(self, magic: bytes, rest: bytes) -> None:
        check(magic + rest)


def check(data: bytes) -> None:
    started = time.process_time()  # on a busy machine the time by the clock says little
    try:
        recording = decode(data, Limits(max_decode_seconds=3))
    except InputError as error:
        assert error.detail.endswith(".")
        assert "Errno" not in error.detail
    else:
        assert np.isfinite(recording.waveform.samples).all()
    assert time.process_time() - started < 5
