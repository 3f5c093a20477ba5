"""The channels of a recording: how they become one, and which of them need not be judged by themselves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EmptyAudio

Samples = NDArray[np.float32]

NO_AUDIO = "The file holds no audio. Send a recording."

SILENT_PEAK = 1e-4
"""A channel that never goes beyond this, 80 dB below full scale, is silent."""

SAME_POWER = 1e-3
"""Two channels are the same where their difference has less than this share of the power: AAC alters copies by up to
2e-4, Opus and WMA by less."""


def mix(blocks: Iterable[Samples]) -> tuple[Samples, int | None]:
    """The mean of the channels (time,), and the loudest channel where the mean loses what the channels hold.

    `blocks` are (time, channels), up to a second each. The mean of n equal channels has their power, of n unrelated
    ones an n-th of it, of opposite ones nothing. It loses the signal where, in a twentieth of the seconds that have
    any, it has under a tenth of what unrelated channels would leave. Raises EmptyAudio where there are no blocks.
    """
    mono, powers, left = [], [], []
    for block in blocks:
        mono.append(block.mean(axis=1))
        powers.append(np.mean(np.square(block), axis=0))
        left.append(np.mean(np.square(mono[-1])))
    if not mono:
        raise EmptyAudio(NO_AUDIO)
    power = np.array(powers)  # (blocks, channels)
    unrelated = power.mean(axis=1) / power.shape[1]
    signal = unrelated > 1e-4 * unrelated.max()
    lost = signal & (np.array(left) < 0.1 * unrelated)
    loudest = int(power.sum(axis=0).argmax()) if lost.sum() > 0.05 * signal.sum() else None
    return np.concatenate(mono), loudest


def split(blocks: Iterable[Samples]) -> list[Samples]:
    """Each channel, (time,), of blocks (time, channels). Raises EmptyAudio where there are no blocks."""
    channels = [np.concatenate(parts) for parts in zip(*(block.T for block in blocks), strict=True)]
    if not channels:
        raise EmptyAudio(NO_AUDIO)
    return channels


def notes(channels: Sequence[Samples]) -> list[str | None]:
    """Why each channel need not be judged: `silent`, or `same_as_` and the name of an earlier one; else None."""
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
    """What a channel is called, by its index from 0."""
    return f"CHANNEL_{index + 1}"


def same_as(index: int) -> str:
    """The note of a channel that holds the same as an earlier one."""
    return f"same_as_{channel_name(index)}"


def _are_same(first: Samples, second: Samples) -> bool:
    return bool(np.sum(np.square(first - second)) < SAME_POWER * np.sum(np.square(first)))
