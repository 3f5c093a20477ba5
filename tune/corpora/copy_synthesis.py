"""Copy-synthesis: sends a real recording through a vocoder, so that recording and copy differ by the vocoder only.

Each vocoder works at a certain sample rate. `copy_pair` resamples both clips of the pair to that rate and back, because
a detector would otherwise learn the resampling. Source of the method: Wang and Yamagishi, "Spoofed training data for
speech spoofing countermeasure can be efficiently created using neural vocoders", ICASSP 2023.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.signal import butter, lfilter

from pipeline.types import Waveform
from tune.corpora.augment import Samples, resample

COPIES_VERSION = 1
"""The version of the vocoders. Raise it when a vocoder gives a different copy of the same recording. Old caches are
then ignored. A test fails if you forget, except for the vocoders that need a package."""

MEL_RATE, MEL_SIZE, MEL_HOP = 22_050, 1_024, 256
"""The sample rate in Hz, and the samples of a frame and of a step, of the log-mel spectrogram that HiFi-GAN takes."""

Run = Callable[[Waveform, np.random.Generator], Samples]


@dataclass(frozen=True)
class Vocoder:
    """A vocoder. `run` analyses speech at one of `rates` and synthesises it again, with random settings. Its result may
    be a few samples longer or shorter."""

    run: Run
    rates: tuple[int, ...]


def copy_pair(waveform: Waveform, vocoder: Vocoder, rng: np.random.Generator) -> tuple[Waveform, Waveform]:
    """The real recording and its copy, both with the length and rate of `waveform` and through the same resampling."""
    inside = resample(waveform, int(rng.choice(vocoder.rates)))
    samples = np.nan_to_num(vocoder.run(inside, rng)).astype(np.float32)
    copied = resample(Waveform(samples, inside.sample_rate), waveform.sample_rate)
    length = len(waveform.samples)
    pair = (resample(inside, waveform.sample_rate).samples, copied.samples)
    return tuple(Waveform(_fit(member, length), waveform.sample_rate) for member in pair)  # type: ignore[return-value]


def load_vocoders(hifigan: Path) -> dict[str, Vocoder]:
    """The vocoders by name. `hifigan` is the ONNX file of a HiFi-GAN V1 at 22.05 kHz. The package pyworld is imported
    when WORLD runs, and may be anywhere on the path."""
    either = (16_000, MEL_RATE)
    return {
        "hifigan": Vocoder(lambda waveform, rng: through_hifigan(waveform, rng, hifigan), (MEL_RATE,)),
        "world": Vocoder(through_world, either),
        "griffin-lim": Vocoder(through_griffin_lim, either),
        "griffin-lim-mel": Vocoder(through_griffin_lim_mel, (MEL_RATE,)),
        "lpc": Vocoder(through_lpc, either),
        "phase": Vocoder(through_phase, either),
    }


def through_hifigan(waveform: Waveform, rng: np.random.Generator, path: Path) -> Samples:
    """HiFi-GAN (Kong et al., NeurIPS 2020). In half of the copies the mel spectrogram has errors like those of acoustic
    models."""
    mel = np.log(np.maximum(_mel_magnitudes(waveform.samples), 1e-5))
    if rng.random() < 0.5:
        mel = spoil_mel(mel, rng)
    samples: Samples = _onnx_session(path).run(None, {"mel": mel.T[None].astype(np.float32)})[0]
    return samples.reshape(-1)


@cache
def _onnx_session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def through_world(waveform: Waveform, rng: np.random.Generator) -> Samples:
    """WORLD (Morise et al., 2016). In half of the copies the envelope and the aperiodicity are coded as for text to
    speech. In 30 % of the copies the pitch is shifted."""
    world, rate = importlib.import_module("pyworld"), waveform.sample_rate
    samples = waveform.samples.astype(np.float64)
    pitch, times = world.dio(samples, rate, frame_period=5.0)
    pitch = world.stonemask(samples, pitch, times, rate)
    envelope = world.cheaptrick(samples, pitch, times, rate)
    aperiodicity = world.d4c(samples, pitch, times, rate)
    if rng.random() < 0.5:
        size = world.get_cheaptrick_fft_size(rate)
        coded = world.code_spectral_envelope(envelope, rate, int(rng.choice([24, 40, 60])))
        envelope = world.decode_spectral_envelope(coded, rate, size)
        aperiodicity = world.decode_aperiodicity(world.code_aperiodicity(aperiodicity, rate), rate, size)
    if rng.random() < 0.3:
        pitch = pitch * 2 ** rng.uniform(-0.35, 0.35)
    return np.asarray(world.synthesize(pitch, envelope, aperiodicity, rate, 5.0), np.float32)


def through_griffin_lim(waveform: Waveform, rng: np.random.Generator) -> Samples:
    """Keeps the magnitudes, and estimates the phase by Griffin-Lim."""
    size, hop = _frame_size(rng)
    magnitudes = np.abs(analyse(waveform.samples, size, hop))
    return griffin_lim(magnitudes, size, hop, len(waveform.samples), int(rng.choice([4, 12, 30])), rng)


def through_griffin_lim_mel(waveform: Waveform, rng: np.random.Generator) -> Samples:
    """Keeps 80 to 128 mel bands, estimates the magnitudes from them by least squares, and the phase by Griffin-Lim."""
    bands = int(rng.choice([80, 80, 100, 128]))
    magnitudes = np.abs(analyse(waveform.samples, MEL_SIZE, MEL_HOP))
    mel = magnitudes @ _mel_bands(bands)
    if rng.random() < 0.3:
        mel = np.exp(spoil_mel(np.log(np.maximum(mel, 1e-5)), rng))
    guessed = np.maximum(mel @ _mel_inverse(bands), 1e-5).astype(np.float32)
    return griffin_lim(guessed, MEL_SIZE, MEL_HOP, len(waveform.samples), int(rng.choice([8, 16, 32])), rng)


def through_phase(waveform: Waveform, rng: np.random.Generator) -> Samples:
    """Keeps the magnitudes, and replaces the phase by a random one, the minimum phase, or the true one with noise."""
    size, hop = _frame_size(rng)
    spectra = analyse(waveform.samples, size, hop)
    magnitudes, kind = np.abs(spectra), rng.integers(3)
    if kind == 0:
        phase = rng.uniform(0, 2 * np.pi, spectra.shape)
    elif kind == 1:
        # The phase of the causal part of the cepstrum, centred on the frame, as in pulse vocoders.
        cepstrum = np.fft.irfft(np.log(np.maximum(magnitudes, 1e-6)), size, axis=1)
        cepstrum[:, 1 : size // 2] *= 2
        cepstrum[:, size // 2 + 1 :] = 0
        phase = np.fft.rfft(cepstrum, size, axis=1).imag + np.pi * np.arange(spectra.shape[1])
        phase += rng.uniform(0, 0.5) * rng.standard_normal(spectra.shape)
    else:
        phase = np.angle(spectra) + rng.uniform(0.4, 1.2) * rng.standard_normal(spectra.shape)
    return synthesise(magnitudes * np.exp(1j * phase), size, hop, len(waveform.samples))


def through_lpc(waveform: Waveform, rng: np.random.Generator) -> Samples:
    """Linear prediction: an all-pole filter every 5 ms, driven by pulses at the pitch mixed with noise. In a third of
    the copies it is driven only by noise, as in whispering."""
    world, rate = importlib.import_module("pyworld"), waveform.sample_rate
    hop, size = rate // 200, rate // 40
    order = int(rng.choice([12, 16, 20, 28]))
    samples = waveform.samples.astype(np.float64)
    frames = len(samples) // hop
    tracked, _ = world.dio(samples, rate, frame_period=5.0)
    pitch = np.interp(np.arange(frames * hop) / hop, np.arange(len(tracked)), tracked)

    noise = rng.standard_normal(frames * hop)
    if rng.random() < 2 / 3:
        voiced = pitch > 60
        turns = np.floor(np.cumsum(np.where(voiced, pitch, 100) / rate))
        pulses = np.diff(turns, prepend=0) * np.sqrt(rate / np.maximum(pitch, 60))
        share = rng.uniform(0.05, 0.4)
        pulses = lfilter(*butter(2, rng.uniform(0.3, 0.6)), pulses)
        excitation = np.where(voiced, (1 - share) * pulses + share * noise, noise)
    else:
        excitation = noise

    windows = sliding_window_view(np.pad(samples, (size // 2, size)), size)[::hop][:frames] * np.hanning(size)
    filters, power = linear_prediction(windows, order)
    gains = np.sqrt(np.maximum(power, 1e-9) / np.square(np.hanning(size)).sum())
    copied, state = np.empty(frames * hop), np.zeros(order)
    for frame in range(frames):
        part = slice(frame * hop, (frame + 1) * hop)
        copied[part], state = lfilter([gains[frame]], filters[frame], excitation[part], zi=state)
    return copied.astype(np.float32)


def linear_prediction(frames: NDArray[np.float64], order: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Prediction filters (frames, order + 1) and residual power (frames,) of frames (frames, time), by the
    autocorrelation method with Levinson's recursion."""
    length = 2 ** int(np.ceil(np.log2(frames.shape[1] + order)))
    correlation = np.fft.irfft(np.abs(np.fft.rfft(frames, length, axis=1)) ** 2, axis=1)[:, : order + 1]
    correlation[:, 0] = correlation[:, 0] * 1.0001 + 1e-7
    filters = np.zeros((len(frames), order + 1))
    filters[:, 0] = 1
    power = correlation[:, 0].copy()
    for step in range(1, order + 1):
        reflection = -(filters[:, :step] * correlation[:, step:0:-1]).sum(axis=1) / power
        filters[:, 1 : step + 1] += reflection[:, None] * filters[:, step - 1 :: -1]
        power *= 1 - reflection**2
    return filters, power


def spoil_mel(mel: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Adds errors of acoustic models to a log-mel spectrogram (frames, bands): smooths it, keeps only its main
    components, makes its values coarser or reduces its changes over time."""
    kind = rng.integers(4)
    if kind == 0:
        spoilt = gaussian_filter(mel, (rng.uniform(0.5, 1.5), rng.uniform(0.3, 1.2)))
    elif kind == 1:
        mean, rank = mel.mean(axis=0), int(rng.integers(8, 30))
        left, values, right = np.linalg.svd(mel - mean, full_matrices=False)
        spoilt = mean + (left[:, :rank] * values[:rank]) @ right[:rank]
    elif kind == 2:
        step = rng.uniform(0.2, 0.6)
        spoilt = np.round(mel / step) * step
    else:
        smooth = gaussian_filter(mel, (0.0, 2.0))
        spoilt = smooth + rng.uniform(0.5, 0.85) * (mel - smooth)
    return np.asarray(spoilt)


def analyse(samples: Samples, size: int, hop: int) -> NDArray[np.complex64]:
    """Short-time spectra (frames, size / 2 + 1), the first frame centred on the first sample."""
    padded = np.pad(samples, (size // 2, size // 2 + hop), mode="reflect")
    frames = sliding_window_view(padded, size)[::hop]
    return np.fft.rfft(frames * _window(size), axis=1).astype(np.complex64)


def synthesise(spectra: NDArray[Any], size: int, hop: int, length: int) -> Samples:
    """The `length` samples whose short-time spectra are closest to `spectra`. `hop` must divide `size`."""
    frames = np.fft.irfft(spectra, size, axis=1) * _window(size)
    summed = _overlap_add(frames, hop)
    weight = _overlap_add(np.broadcast_to(np.square(_window(size)), frames.shape), hop)
    samples = summed / np.maximum(weight, 1e-3)
    nearest: Samples = samples[size // 2 : size // 2 + length].astype(np.float32)
    return nearest


def griffin_lim(
    magnitudes: NDArray[Any], size: int, hop: int, length: int, rounds: int, rng: np.random.Generator
) -> Samples:
    """Fast Griffin-Lim (Perraudin, Balazs and Søndergaard, WASPAA 2013) from random phases, momentum 0.99."""
    spectra = magnitudes * np.exp(2j * np.pi * rng.random(magnitudes.shape))
    previous = np.zeros_like(spectra)
    for _ in range(rounds):
        consistent = analyse(synthesise(spectra, size, hop, length), size, hop)[: len(magnitudes)]
        ahead = consistent + 0.99 * (consistent - previous)
        previous = consistent
        spectra = magnitudes * ahead / np.maximum(np.abs(ahead), 1e-8)
    return synthesise(spectra, size, hop, length)


def _mel_magnitudes(samples: Samples) -> NDArray[Any]:
    """Magnitudes in 80 mel bands, (frames, bands), framed as HiFi-GAN was trained."""
    margin = (MEL_SIZE - MEL_HOP) // 2
    frames = sliding_window_view(np.pad(samples, margin, mode="reflect"), MEL_SIZE)[::MEL_HOP]
    power = np.abs(np.fft.rfft(frames * _window(MEL_SIZE), axis=1)) ** 2
    return np.asarray(np.sqrt(power + 1e-9) @ _mel_bands(80))


@cache
def _mel_bands(bands: int) -> NDArray[np.float32]:
    """Slaney's mel filters from 0 to 8 kHz, each with area one: (bins, bands)."""
    # Linear to 1 kHz, logarithmic above (Slaney, Auditory Toolbox, 1998). torchaudio has them, but would import torch.
    logstep = np.log(6.4) / 27
    mels = np.linspace(0, 15 + np.log(8_000 / 1_000) / logstep, bands + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1_000 * np.exp(np.maximum(mels - 15, 0) * logstep))
    frequencies = np.linspace(0, MEL_RATE / 2, MEL_SIZE // 2 + 1)[:, None]
    rise = (frequencies - edges[:-2]) / np.diff(edges)[:-1]
    fall = (edges[2:] - frequencies) / np.diff(edges)[1:]
    filters: NDArray[np.float64] = np.maximum(np.minimum(rise, fall), 0) * 2 / (edges[2:] - edges[:-2])
    return filters.astype(np.float32)


@cache
def _mel_inverse(bands: int) -> NDArray[np.float32]:
    return np.linalg.pinv(_mel_bands(bands)).astype(np.float32)


def _frame_size(rng: np.random.Generator) -> tuple[int, int]:
    sizes = ((512, 128), (800, 200), (1_024, 256))
    return sizes[rng.integers(len(sizes))]


def _overlap_add(frames: NDArray[Any], hop: int) -> NDArray[Any]:
    """Sum of frames (frames, size), each `hop` samples after the one before."""
    count, parts = len(frames), frames.shape[1] // hop
    summed = np.zeros((count + parts - 1, hop))
    for part in range(parts):
        summed[part : part + count] += frames[:, part * hop : (part + 1) * hop]
    return summed.reshape(-1)


def _window(size: int) -> NDArray[np.float32]:
    """Hann's window, periodic."""
    return np.hanning(size + 1)[:-1].astype(np.float32)


def _fit(samples: Samples, length: int) -> Samples:
    return np.pad(samples[:length], (0, max(length - len(samples), 0)))
