"""The VoiceActivityDetector: where in a recording somebody speaks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from pipeline.config import DetectorConfig, VoiceActivity
from pipeline.models import weights
from pipeline.networks.silero import CHUNK, SileroVad
from pipeline.stages.extract import choose_device
from pipeline.types import SAMPLE_RATE, Checkpoint, Recording, Segment, Speech, go_on

MIN_SAMPLES = 2_000
"""A shorter waveform is padded with silence up to this length; segmentation-3.0 needs 1,261 samples."""
FRAME_STEP = 270
FRAME_SAMPLES = 991
"""Samples from one frame of segmentation-3.0 to the next, and samples that one frame covers."""
WINDOW_FRAMES = 593
"""Frames of a window of 10 s, the length that segmentation-3.0 was trained on."""

Samples = NDArray[np.float32]
Frames = tuple[NDArray[np.float32], NDArray[np.float64]]
"""Speech probability of each frame, (frames,), and the edges of the frames in seconds, (frames + 1,)."""


class VoiceActivityDetector:
    """Finds speech with segmentation-3.0 or Silero, as configured. Threads may share one: calls keep no state."""

    def __init__(self, config: DetectorConfig) -> None:
        self.config = config.voice_activity
        load = load_silero if self.config.model == "silero" else load_sliding_segmentation
        self.frames = load(choose_device(config.device))

    @torch.inference_mode()
    def detect(self, recording: Recording, checkpoint: Checkpoint = go_on) -> Speech:
        """The speech in `recording`, without segments if nobody speaks."""
        samples = recording.waveform.samples
        if len(samples) < MIN_SAMPLES:
            samples = np.pad(samples, (0, MIN_SAMPLES - len(samples)))
        probabilities, edges = self.frames(samples, checkpoint)
        duration_seconds = recording.waveform.duration_seconds
        segments = binarize(probabilities, np.minimum(edges, duration_seconds), self.config)
        return Speech(segments, duration_seconds, recording.original_format, recording.warnings, recording.file_sha256)


def load_sliding_segmentation(device: str) -> Callable[[Samples, Checkpoint], Frames]:
    """segmentation-3.0 over windows of 10 s: (samples,) -> its Frames.

    A frame's probability is that of its most likely speaker. As few windows as possible are spread evenly over the
    recording, because each costs the same. Where two windows overlap, their mean counts.
    """
    from pipeline.networks.pyannote import load_speaker_probabilities

    speaker_probabilities = load_speaker_probabilities(device)

    def frames(samples: Samples, checkpoint: Checkpoint) -> Frames:
        total = (len(samples) - FRAME_SAMPLES) // FRAME_STEP + 1
        sums, counts = np.zeros(total, np.float32), np.zeros(total, np.float32)
        for start in window_starts(total):
            checkpoint()
            end = min(start + WINDOW_FRAMES, total)
            # A copy, because samples from another process are read-only. Only of one window, because an hour is large.
            window = torch.tensor(samples[start * FRAME_STEP : (end - 1) * FRAME_STEP + FRAME_SAMPLES], device=device)
            sums[start:end] += speaker_probabilities(window).amax(dim=-1).cpu().numpy()
            counts[start:end] += 1
        halfway = (FRAME_SAMPLES + FRAME_STEP) // 2 + FRAME_STEP * np.arange(total - 1)
        return sums / counts, np.concatenate([[0], halfway, [len(samples)]]) / SAMPLE_RATE

    return frames


def window_starts(frames: int) -> list[int]:
    """The first frame of each window over a recording of this many `frames`."""
    count = -(-frames // WINDOW_FRAMES)
    return [round(start) for start in np.linspace(0, max(0, frames - WINDOW_FRAMES), count)]


def load_silero(device: str) -> Callable[[Samples, Checkpoint], Frames]:
    """Silero over the whole recording: (samples,) -> its Frames of 32 ms."""
    network = SileroVad()
    network.load(load_file(weights("silero")))
    network.eval().to(device)

    def frames(samples: Samples, checkpoint: Checkpoint) -> Frames:
        speech = network(torch.tensor(samples, device=device), checkpoint).cpu().numpy()
        return speech, np.arange(len(speech) + 1) * CHUNK / SAMPLE_RATE

    return frames


def binarize(
    probabilities: NDArray[np.float32], edges: NDArray[np.float64], config: VoiceActivity
) -> tuple[Segment, ...]:
    """Speech begins where the probability reaches `onset` and ends where it falls below `offset`.

    Silences shorter than `min_silence_seconds` are filled first, then speech shorter than `min_speech_seconds` is
    dropped. Shape: probabilities (frames,), edges (frames + 1,) in seconds.
    """
    decided = np.where(probabilities >= config.onset, 1, np.where(probabilities < config.offset, -1, 0))
    # A frame between the thresholds keeps the state of the frame before; at the start the state is no speech.
    last = np.maximum.accumulate(np.where(decided != 0, np.arange(len(decided)), 0))
    changes = np.flatnonzero(np.diff(decided[last] > 0, prepend=False, append=False))
    merged: list[Segment] = []
    for start, end in edges[changes].reshape(-1, 2).tolist():
        if merged and start - merged[-1].end < config.min_silence_seconds:
            merged[-1] = Segment(merged[-1].start, end)
        elif start < end:
            merged.append(Segment(start, end))
    return tuple(segment for segment in merged if segment.duration_seconds >= config.min_speech_seconds)
