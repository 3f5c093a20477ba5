"""Small corpora whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.tkan import TkanSpec
from tune.manifest import Clip
from tune.table import FeatureKind, Table


def make_clips(speakers: int = 24, per_speaker: int = 6, sites: int = 4) -> list[Clip]:
    """Each speaker on one site, half of the clips spoofed by that site's generator."""
    return [
        Clip(
            Path(f"/corpus/{speaker}-{number}.wav"),
            "spoof" if number % 2 else "bonafide",
            speaker=f"speaker{speaker}",
            generator=f"generator{speaker % sites}" if number % 2 else "",
            source=f"source{speaker % 2}",
            language="en",
            site=f"site{speaker % sites}",
        )
        for speaker in range(speakers)
        for number in range(per_speaker)
    ]


def make_table(
    clips: Sequence[Clip], *, separation: float = 1.0, seed: int = 0, acn: bool = False, copies: int = 0
) -> Table:
    """Two windows a clip and one a copy, 40 features in two layers; the classes differ in some, the speakers in
    others."""
    generator = np.random.default_rng(seed)
    voices = {clip.voice: generator.normal(size=40) for clip in clips}
    parts = []
    for clip in clips:
        windows = generator.normal(size=(2, 40)) + voices[clip.voice]
        windows[:, :8] += separation * clip.is_spoof
        changed = [windows[:1] + generator.normal(size=(1, 40)) for _ in range(copies)]
        parts.append([part.astype(np.float32) for part in (windows, *changed)])
    spec = TkanSpec(name="test", layers=("a", "b"), reduction="acn" if acn else "none")
    return Table.of(clips, parts, FeatureKind(spec, {"a": 30, "b": 10}, "0" * 64))
