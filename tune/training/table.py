"""The features of a corpus, as they were extracted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.networks.spec import TkanSpec
from tune.corpora.manifest import Clip
from tune.errors import LeakError
from tune.training.folds import Indices


@dataclass(frozen=True)
class FeatureKind:
    """The meaning of the columns: the recipe, the number of features of each layer, and the network's SHA-256."""

    spec: TkanSpec
    layers: dict[str, int]
    backbone_sha256: str


@dataclass(frozen=True)
class Table:
    """Features of clips.

    `vectors`: (windows, dimension) float32. `owner`: (windows,) the index in `clips` of each window. `copy`: (windows,)
    0 for the clip itself and 1, 2, ... for its copies. `vocoded`: (windows,) True for copies by a vocoder, which are
    spoofs even if the clip is bona fide.

    `digest` is the hash of the vectors as extracted. Everything that is fitted to data belongs in the estimator, inside
    the fold. So vectors that were scaled, resampled or reduced before do not match the digest and are refused.
    """

    clips: tuple[Clip, ...]
    vectors: NDArray[np.float32]
    owner: Indices
    copy: Indices
    vocoded: NDArray[np.bool_]
    kind: FeatureKind
    digest: str

    @classmethod
    def of(
        cls,
        clips: Sequence[Clip],
        copies: Sequence[Sequence[NDArray[np.float32]]],
        kind: FeatureKind,
        by_vocoder: Sequence[Sequence[bool]] | None = None,
    ) -> Table:
        """A table from the vectors of each clip and of its copies, (windows, dimension) each.

        `by_vocoder` says for each of them whether a vocoder made it; None means that none did.
        """
        vectors = np.concatenate([part for parts in copies for part in parts])
        owner = np.repeat(np.arange(len(clips)), [sum(map(len, parts)) for parts in copies])
        copy = np.concatenate([np.full(len(part), number) for parts in copies for number, part in enumerate(parts)])
        made = by_vocoder or [[False] * len(parts) for parts in copies]
        vocoded = np.repeat(
            [flag for flags in made for flag in flags], [len(part) for parts in copies for part in parts]
        )
        return cls(tuple(clips), vectors, owner, copy, vocoded, kind, digest_of(vectors, owner, copy, vocoded))

    @property
    def labels(self) -> NDArray[np.bool_]:
        """(clips,), True = spoof."""
        return np.array([clip.is_spoof for clip in self.clips])

    @property
    def judged(self) -> NDArray[np.bool_]:
        """(clips,), False = background, which is only for training and never tested."""
        return np.array([not clip.background for clip in self.clips])

    @property
    def spoof(self) -> NDArray[np.bool_]:
        """(windows,), True = spoof, the class to train each window on. Windows of vocoded copies are always spoof."""
        return self.labels[self.owner] | self.vocoded

    def verify(self) -> None:
        """Raise LeakError unless the vectors are exactly those that were extracted."""
        if digest_of(self.vectors, self.owner, self.copy, self.vocoded) != self.digest:
            raise LeakError(
                "these features are not those that were extracted: scaling, resampling and every other fitted step "
                "belong inside the fold, in the estimator"
            )

    def training_rows(self, clips: Indices) -> Indices:
        """Indices of the windows of `clips` and of their copies."""
        return np.flatnonzero(np.isin(self.owner, clips))

    def rows(self, clips: Indices) -> Indices:
        """Indices of the windows of `clips` themselves."""
        return np.flatnonzero(np.isin(self.owner, clips) & (self.copy == 0))

    def clip_means(self, values: NDArray[np.float64], clips: Indices) -> NDArray[np.float64]:
        """Mean over each clip's windows: values (len(rows(clips)),) -> (len(clips),), in the order of `clips`."""
        owner = self.owner[self.rows(clips)]
        total = np.bincount(owner, weights=values, minlength=len(self.clips))
        return (total / np.maximum(np.bincount(owner, minlength=len(self.clips)), 1))[clips]


def digest_of(vectors: NDArray[np.float32], *columns: Indices | NDArray[np.bool_]) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(vectors).data)
    for column in columns:
        digest.update(np.ascontiguousarray(column, dtype=np.int64).data)
    return digest.hexdigest()
