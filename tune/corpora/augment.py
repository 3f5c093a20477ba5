"""Simulates random channels between a microphone or synthesizer and the detector, in the same way for both classes.

A detector learns any difference between the classes. In most corpora the channel is the largest difference. So training
clips of both classes go through random channels, which `draw_channel` draws without looking at the class. CONDITIONS
are fixed channels for evaluation.

Codecs run inside PyAV, in memory: a round trip takes a sixth of the CPU time of pydub's two FFmpeg processes. GSM and
Vorbis by libvorbis go through pydub, because PyAV's libav cannot encode them.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, fftconvolve, lfilter, resample_poly, sosfilt

from pipeline.types import Seconds, Waveform
from tune.errors import CorpusError

Samples = NDArray[np.float32]

AUGMENT_VERSION = 2
"""The version of all augmentations. Raise it when the same recording gives different samples. Old caches are then
ignored. A test fails if you forget."""

RANDOM_CHANNEL = "channel"
"""Name of the augmentation by a random channel. The other augmentations are TELEPHONE and those in CONDITIONS."""

TELEPHONE = "telephone_line"
"""Name of the augmentation by a random telephone line. Clips over such lines train and calibrate the head for a narrow
band."""

_LIBAV = {
    "mp3": ("libmp3lame", "mp3float"),
    "aac": ("aac", "aac"),
    "opus": ("libopus", "opus"),
    "g722": ("g722", "g722"),
    "mulaw": ("pcm_mulaw", "pcm_mulaw"),
    "alaw": ("pcm_alaw", "pcm_alaw"),
    "amr": ("libopencore_amrnb", "amrnb"),
    "vorbis_native": ("vorbis", "vorbis"),
}
"""Encoder and decoder of PyAV's libav."""

_FFMPEG = {"vorbis": ("ogg", "libvorbis"), "gsm": ("gsm", "libgsm")}
"""Format and encoder of the ffmpeg program, which pydub calls."""

_CODEC_CHOICES: tuple[tuple[str, float, tuple[int, ...], tuple[int, ...]], ...] = (
    ("mp3", 0.34, (16_000, 22_050, 24_000, 44_100, 48_000), (24, 32, 40, 48, 64, 96, 128)),
    ("opus", 0.3, (16_000, 24_000, 48_000), (12, 16, 20, 24, 32, 48, 64)),
    ("aac", 0.14, (16_000, 22_050, 44_100), (24, 32, 48, 64, 96, 128)),
    ("vorbis", 0.12, (16_000, 22_050, 44_100), (32, 48, 64)),
    ("mulaw", 0.04, (8_000,), (0,)),
    ("g722", 0.04, (16_000,), (0,)),
    ("gsm", 0.02, (8_000,), (0,)),
)
"""Each codec: its relative frequency, and the sample rates and kbit/s to draw from."""


_LINES: tuple[tuple[str, float, tuple[float, ...]], ...] = (
    ("mulaw", 0.2, (0,)),
    ("alaw", 0.2, (0,)),
    ("amr", 0.3, (4.75, 5.9, 7.4, 10.2, 12.2)),
    ("opus", 0.2, (8, 12, 16)),
    ("gsm", 0.1, (0,)),
)
"""Each codec of a telephone line at 8 kHz: its relative frequency, and the kbit/s to draw from."""


@dataclass(frozen=True)
class Codec:
    """A codec with its settings. `kbits` is the bit rate in kbit/s, 0 if the codec has only one rate."""

    name: str
    rate: int
    kbits: float = 0


@dataclass(frozen=True)
class Channel:
    """The settings of one channel, in the order in which they are applied. None or 0 leaves a step out."""

    trimmed: bool = False
    crop_seconds: Seconds | None = None
    room_seconds: Seconds | None = None
    tilt_db: float = 0.0
    snr_db: float | None = None
    noise_slope: float = 0.0
    """0 is white noise, 1 pink, 2 brown."""
    denoised: bool = False
    gain_db: float | None = None
    """Peak of the speech before the steps below, relative to full scale."""
    through_rate: int | None = None
    cutoff_hz: float | None = None
    codec: Codec | None = None


def draw_channel(rng: np.random.Generator) -> Channel:
    """A random channel. It depends neither on the speech nor on its class."""

    def chance(probability: float) -> bool:
        return bool(rng.random() < probability)

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    codec = None
    if chance(0.75):
        often = [share for _, share, _, _ in _CODEC_CHOICES]
        name, _, at, kbits = _CODEC_CHOICES[rng.choice(len(often), p=np.divide(often, sum(often)))]
        codec = Codec(name, int(rng.choice(at)), int(rng.choice(kbits)))
    # Most recordings only go through a codec. Noise, rooms and filters hide its traces, so some channels have none.
    if chance(0.3):
        return Channel(crop_seconds=between(1, 8) if chance(0.5) else None, gain_db=between(-12, 0), codec=codec)
    rates, shares = (22_050, 24_000, 44_100, 11_025, 8_000), (0.35, 0.25, 0.2, 0.1, 0.1)
    cutoffs = (3_400, 4_000, 5_000, 5_500, 7_000, 7_400)
    noisy = chance(0.5)
    return Channel(
        trimmed=chance(0.5),
        crop_seconds=between(1, 8),
        room_seconds=between(0.08, 0.45) if chance(0.2) else None,
        tilt_db=between(-8, 8) if chance(0.4) else 0.0,
        snr_db=between(8, 45) if noisy else None,
        noise_slope=between(0, 2) if noisy else 0.0,
        denoised=chance(0.2),
        gain_db=between(-12, 0),
        through_rate=int(rng.choice(rates, p=shares)) if chance(0.35) else None,
        cutoff_hz=float(rng.choice(cutoffs)) * between(0.95, 1.05) if chance(0.25) else None,
        codec=codec,
    )


def apply_channel(waveform: Waveform, channel: Channel, rng: np.random.Generator) -> Waveform:
    """Send speech through a channel. `rng` draws the noise, the room and the position of the crop."""
    if channel.trimmed:
        waveform = trim_silence(waveform)
    if channel.crop_seconds is not None:
        waveform = crop(waveform, channel.crop_seconds, rng)
    if channel.room_seconds is not None:
        waveform = add_room(waveform, channel.room_seconds, float(rng.uniform(0, 12)), rng)
    if channel.tilt_db:
        waveform = tilt(waveform, channel.tilt_db)
    if channel.snr_db is not None:
        waveform = add_noise(waveform, channel.snr_db, channel.noise_slope, rng)
    if channel.denoised:
        waveform = denoise(waveform)
    if channel.gain_db is not None:
        waveform = set_peak(waveform, channel.gain_db)
    if channel.through_rate is not None:
        waveform = resample(resample(waveform, channel.through_rate), waveform.sample_rate)
    if channel.cutoff_hz is not None:
        waveform = low_pass(waveform, channel.cutoff_hz, int(rng.choice([4, 8, 12])))
    if channel.codec is not None:
        waveform = through_codec(waveform, channel.codec)
    return Waveform(np.clip(waveform.samples, -1, 1), waveform.sample_rate)


def through_telephone(waveform: Waveform, rng: np.random.Generator, *, whole: bool = False) -> Waveform:
    """Send speech over a random telephone line: its band, some noise, one codec at 8 kHz, and on some lines lost
    packets. The line depends neither on the speech nor on its class. Without `whole` only a stretch of 2 to 8 s is
    sent."""
    if not whole:
        waveform = crop(waveform, float(rng.uniform(2, 8)), rng)
    if rng.random() < 0.4:
        waveform = tilt(waveform, float(rng.uniform(-8, 8)))
    if rng.random() < 0.3:
        waveform = add_noise(waveform, float(rng.uniform(12, 40)), float(rng.uniform(0, 2)), rng)
    waveform = set_peak(waveform, float(rng.uniform(-15, 0)))
    if rng.random() < 0.7:
        waveform = high_pass(waveform, float(rng.uniform(150, 320)))
    waveform = low_pass(waveform, float(rng.uniform(3_200, 3_800)), int(rng.choice([4, 8, 12])))
    often = [share for _, share, _ in _LINES]
    name, _, kbits = _LINES[rng.choice(len(often), p=np.divide(often, sum(often)))]
    waveform = through_codec(waveform, Codec(name, 8_000, float(rng.choice(kbits))))
    if rng.random() < 0.25:
        waveform = lose_packets(waveform, float(rng.uniform(0.005, 0.05)), rng)
    return Waveform(np.clip(waveform.samples, -1, 1), waveform.sample_rate)


CONDITIONS: dict[str, Callable[[Waveform], Waveform]] = {
    "mp3_32k": lambda waveform: through_codec(waveform, Codec("mp3", 16_000, 32)),
    "opus_12k": lambda waveform: through_codec(waveform, Codec("opus", 48_000, 12)),
    "telephone": lambda waveform: through_codec(waveform, Codec("mulaw", 8_000)),
    "noise_10db": lambda waveform: add_noise(waveform, 10, 1, np.random.default_rng(0)),
    "reverb": lambda waveform: add_room(waveform, 0.4, 3, np.random.default_rng(0)),
    "noisereduce": lambda waveform: denoise(waveform),
    "silence_trimmed": lambda waveform: trim_silence(waveform),
    "silence_added": lambda waveform: add_silence(waveform, 1.0),
}
"""Fixed channels. A detector should also work on speech that went through them."""


def augment(waveform: Waveform, augmentation: str, seed: int = 0) -> Waveform:
    """A new waveform: `waveform` after the augmentation with the name `augmentation`.

    RANDOM_CHANNEL is a random channel and TELEPHONE a random telephone line. The names in CONDITIONS are fixed
    channels, which do not use the seed. `seed` decides what is drawn. The same samples, name and seed always give the
    same result. Raises CorpusError for an unknown name.
    """
    if augmentation in CONDITIONS:
        return CONDITIONS[augmentation](waveform)
    if augmentation not in (RANDOM_CHANNEL, TELEPHONE):
        names = ", ".join((RANDOM_CHANNEL, TELEPHONE, *CONDITIONS))
        raise CorpusError(f"there is no augmentation {augmentation!r}: choose {names}")
    content = hashlib.sha256(waveform.samples.tobytes()).digest()
    rng = np.random.default_rng([seed, int.from_bytes(content[:8], "big")])
    if augmentation == TELEPHONE:
        return through_telephone(waveform, rng)
    return apply_channel(waveform, draw_channel(rng), rng)


def resample(waveform: Waveform, rate: int) -> Waveform:
    """Polyphase resampling to `rate` Hz."""
    if rate == waveform.sample_rate:
        return waveform
    divisor = gcd(rate, waveform.sample_rate)
    samples = resample_poly(waveform.samples, rate // divisor, waveform.sample_rate // divisor)
    return Waveform(samples.astype(np.float32), rate)


def set_peak(waveform: Waveform, peak_db: float) -> Waveform:
    """Scale so that the loudest sample is at `peak_db` dB of full scale."""
    peak = max(float(np.abs(waveform.samples).max(initial=0)), 1e-6)
    return Waveform(waveform.samples * np.float32(10 ** (peak_db / 20) / peak), waveform.sample_rate)


def low_pass(waveform: Waveform, cutoff_hz: float, order: int) -> Waveform:
    """Butterworth low-pass."""
    sections = butter(order, min(cutoff_hz / (waveform.sample_rate / 2), 0.99), output="sos")
    return Waveform(sosfilt(sections, waveform.samples).astype(np.float32), waveform.sample_rate)


def high_pass(waveform: Waveform, cutoff_hz: float) -> Waveform:
    """Butterworth high-pass of the second order, like that of a telephone."""
    sections = butter(2, cutoff_hz / (waveform.sample_rate / 2), "highpass", output="sos")
    return Waveform(sosfilt(sections, waveform.samples).astype(np.float32), waveform.sample_rate)


def lose_packets(waveform: Waveform, share: float, rng: np.random.Generator) -> Waveform:
    """Lose this share of the packets of 20 ms, mostly several in a row. As in a receiver, the last packet is played
    again at half its level instead."""
    samples, packet = waveform.samples.copy(), waveform.sample_rate // 50
    lost = False
    for start in range(packet, len(samples) - packet, packet):
        lost = bool(rng.random() < (0.5 if lost else share))
        if lost:
            samples[start : start + packet] = 0.5 * samples[start - packet : start]
    return Waveform(samples, waveform.sample_rate)


def tilt(waveform: Waveform, tilt_db: float) -> Waveform:
    """Tilt the spectrum, as microphones do: the gain at the highest frequency is `tilt_db` above that at the lowest."""
    spectrum = np.fft.rfft(waveform.samples)
    gain = 10 ** (np.linspace(-tilt_db / 2, tilt_db / 2, len(spectrum)) / 20)
    samples = np.fft.irfft(spectrum * gain, len(waveform.samples))
    return Waveform(samples.astype(np.float32), waveform.sample_rate)


def add_noise(waveform: Waveform, snr_db: float, slope: float, rng: np.random.Generator) -> Waveform:
    """Add noise, `snr_db` below the mean power of the waveform. Its power at frequency f goes as 1 / f ** `slope`."""
    length = len(waveform.samples)
    frequencies = np.fft.rfftfreq(length, 1 / waveform.sample_rate)
    spectrum = np.fft.rfft(rng.standard_normal(length)) / np.maximum(frequencies, 30) ** (slope / 2)
    noise = np.fft.irfft(spectrum, length)
    power = np.mean(np.square(waveform.samples)) * 10 ** (-snr_db / 10)
    noise *= np.sqrt(power / max(float(np.mean(np.square(noise))), 1e-20))
    return Waveform((waveform.samples + noise).astype(np.float32), waveform.sample_rate)


def add_room(waveform: Waveform, decay_seconds: Seconds, direct_db: float, rng: np.random.Generator) -> Waveform:
    """Put the speaker into a room whose sound decays by 60 dB in `decay_seconds`. The direct sound is `direct_db` above
    the reverberation. Polack's model of late reverberation: low-passed noise that decays exponentially."""
    rate = waveform.sample_rate
    length = max(round(decay_seconds * rate), 2)
    response = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    response[: round(0.002 * rate)] = 0
    numerator, denominator = butter(1, rng.uniform(2_000, 6_000) / (rate / 2))
    response = lfilter(numerator, denominator, response)
    response *= 10 ** (-direct_db / 20) / np.sqrt(max(float(np.square(response).sum()), 1e-20))
    response[0] = 1
    samples = fftconvolve(waveform.samples, response)[: len(waveform.samples)]
    return Waveform(samples.astype(np.float32), rate)


def denoise(waveform: Waveform) -> Waveform:
    """Spectral gating by noisereduce. Many recordings have been denoised in this way."""
    # Imported only here, because it imports torch, which takes longer than everything else in this module.
    import noisereduce

    # For digital silence, noisereduce divides zero by zero.
    with np.errstate(invalid="ignore"):
        samples = noisereduce.reduce_noise(waveform.samples, waveform.sample_rate)
    return Waveform(np.nan_to_num(samples.astype(np.float32)), waveform.sample_rate)


def add_silence(waveform: Waveform, seconds: Seconds) -> Waveform:
    """Put digital silence before the speech."""
    samples = np.pad(waveform.samples, (round(seconds * waveform.sample_rate), 0))
    return Waveform(samples, waveform.sample_rate)


def trim_silence(waveform: Waveform, below_db: float = 40, margin_seconds: Seconds = 0.05) -> Waveform:
    """Cut the edges that are more than `below_db` below the loudest 20 ms, but keep a margin."""
    frame = waveform.sample_rate // 50
    count = len(waveform.samples) // frame
    if not count:
        return waveform
    power = np.square(waveform.samples[: count * frame]).reshape(count, frame).mean(axis=1)
    loud = np.flatnonzero(power >= power.max() * 10 ** (-below_db / 10))
    margin = round(margin_seconds * waveform.sample_rate)
    start, end = loud[0] * frame - margin, (loud[-1] + 1) * frame + margin
    return Waveform(waveform.samples[max(start, 0) : end], waveform.sample_rate)


def crop(waveform: Waveform, seconds: Seconds, rng: np.random.Generator) -> Waveform:
    """The loudest of three random stretches of `seconds`, so that it is rarely a pause. A shorter waveform is kept
    whole."""
    length = round(seconds * waveform.sample_rate)
    if len(waveform.samples) <= length:
        return waveform
    starts = rng.integers(len(waveform.samples) - length + 1, size=3)
    parts = [waveform.samples[start : start + length] for start in starts]
    return Waveform(max(parts, key=lambda part: float(np.square(part).sum())), waveform.sample_rate)


def through_codec(waveform: Waveform, codec: Codec) -> Waveform:
    """Encode and decode. Silence that the codec adds at the start is kept, as in an upload.

    Raises CorpusError if the codec needs the ffmpeg program and there is none.
    """
    sent = resample(waveform, codec.rate)
    samples = np.clip(sent.samples, -1, 1)
    if codec.name in _LIBAV:
        received = _through_libav(Waveform(samples, codec.rate), codec)
    else:
        received = _through_ffmpeg(Waveform(samples, codec.rate), codec)
    return resample(received, waveform.sample_rate)


def _through_libav(waveform: Waveform, codec: Codec) -> Waveform:
    names = _LIBAV[codec.name]
    encoder: Any = av.CodecContext.create(names[0], "w")
    layout = "mono"
    if codec.name == "vorbis_native":
        # FFmpeg's own encoder, which it uses if libvorbis is missing. It encodes stereo only.
        layout, encoder.options = "stereo", {"strict": "experimental"}
    encoder.sample_rate, encoder.layout, encoder.time_base = codec.rate, layout, Fraction(1, codec.rate)
    encoder.format = encoder.codec.audio_formats[0]
    if codec.kbits:
        encoder.bit_rate = round(codec.kbits * 1_000)
    encoder.open()
    channels = encoder.layout.nb_channels
    frame = av.AudioFrame.from_ndarray(np.repeat(waveform.samples, channels)[None], format="flt", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = codec.rate, 0, Fraction(1, codec.rate)
    packets = [*encoder.encode(frame), *encoder.encode(None)]

    decoder: Any = av.CodecContext.create(names[1], "r")
    decoder.sample_rate, decoder.layout, decoder.extradata = codec.rate, layout, encoder.extradata
    return join_frames([frame for packet in [*packets, None] for frame in decoder.decode(packet)])


def join_frames(frames: Sequence[av.AudioFrame]) -> Waveform:
    """The samples of libav's frames, at their rate, with the channels mixed to mono."""
    # libav's own mixing would make two equal channels 3 dB louder.
    to_float = av.AudioResampler("fltp", rate=frames[0].sample_rate)
    parts = [part.to_ndarray().mean(axis=0) for frame in [*frames, None] for part in to_float.resample(frame)]
    return Waveform(np.concatenate(parts), frames[0].sample_rate)


def _through_ffmpeg(waveform: Waveform, codec: Codec) -> Waveform:
    if shutil.which("ffmpeg") is None:
        raise CorpusError(f"the codec {codec.name} needs the program ffmpeg: on Debian, apt-get install ffmpeg")
    with warnings.catch_warnings():
        # pydub imports audioop, which Python 3.13 no longer has.
        warnings.simplefilter("ignore", DeprecationWarning)
        from pydub import AudioSegment
    container, encoder = _FFMPEG[codec.name]
    pcm = np.round(waveform.samples * 32_767).astype("<i2").tobytes()
    sent = AudioSegment(pcm, sample_width=2, frame_rate=codec.rate, channels=1)
    file = io.BytesIO()
    sent.export(file, format=container, codec=encoder, bitrate=f"{codec.kbits}k" if codec.kbits else None)
    received = AudioSegment.from_file(file, format=container)
    # pydub decodes Vorbis to 32-bit samples and GSM to 16-bit samples.
    full_scale = np.float32(2 ** (8 * received.sample_width - 1))
    return Waveform(np.array(received.get_array_of_samples(), np.float32) / full_scale, received.frame_rate)
