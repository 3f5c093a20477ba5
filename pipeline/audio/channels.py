"""The channels of a recording: how they are mixed to one, and which of them need no verdict of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EmptyAudio

Samples = NDArray[np.float32]

NO_AUDIO = "The file holds no audio. Send a recording."

SILENT_PEAK = 1e-4
"""A channel whose samples never exceed this is silent. It is 80 dB below full scale."""

SAME_POWER = 1e-3
"""Two channels are the same if the power of their difference is less than this share of their power. AAC changes
copies by up to 2e-4, Opus and WMA by less."""


def mix(blocks: Iterable[Samples]) -> tuple[Samples, int | None]:
    """The mean of the channels (time,), and the index of the loudest channel if the mean loses the signal, else None.

    `blocks` are (time, channels), up to a second each. The mean of n equal channels has the power of one channel, the
    mean of n unrelated channels has 1/n of it, and the mean of opposite channels has none. A second is lost if its mean
    has less than a tenth of the power that unrelated channels would leave. A constant offset has no power: channels
    that share one could hide behind it that their mean has no signal. The signal is lost if more than a twentieth
    of the seconds with a signal are lost. Raises EmptyAudio if there are no blocks.
    """
    mono, powers, left = [], [], []
    for block in blocks:
        mono.append(block.mean(axis=1))
        powers.append(block.var(axis=0))
        left.append(mono[-1].var())
    if not mono:
        raise EmptyAudio(NO_AUDIO)
    power = np.array(powers)  # (blocks, channels)
    unrelated = power.mean(axis=1) / power.shape[1]
    signal = unrelated > 1e-4 * unrelated.max()
    lost = signal & (np.array(left) < 0.1 * unrelated)
    loudest = int(power.sum(axis=0).argmax()) if lost.sum() > 0.05 * signal.sum() else None
    return np.concatenate(mono), loudest


def split(blocks: Iterable[Samples]) -> list[Samples]:
    """Each channel, (time,), of blocks (time, channels). Raises EmptyAudio if there are no blocks."""
    channels = [np.concatenate(parts) for parts in zip(*(block.T for block in blocks), strict=True)]
    if not channels:
        raise EmptyAudio(NO_AUDIO)
    return channels


def notes(channels: Sequence[Samples]) -> list[str | None]:
    """The note of each channel: `silent`, or `same_as_` and an earlier channel's name; None if it must be judged."""
    found: list[str | None] = []
    for number, samples in enumerate(channels):
        if np.abs(samples).max(initial=0) <= SILENT_PEAK:
            found.append("silent")
            continue
        earlier = (i for i in range(number) if found[i] is None and _are_same(channels[i], samples))
        same = next(earlier, None)
        found.append(None if same is None else same_as(same))
    return found


def channel_name(index: int) -> str:
    """The name of the channel with this index, counted from 0."""
    return f"CHANNEL_{index + 1}"


def same_as(index: int) -> str:
    """The note of a channel that holds the same sound as the earlier channel `index`."""
    return f"same_as_{channel_name(index)}"


def _are_same(first: Samples, second: Samples) -> bool:
    return bool(np.sum(np.square(first - second)) < SAME_POWER * np.sum(np.square(first)))
