"""Decides which clips train and which test. A speaker or an utterance is never on both sides."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from pipeline.config import Strict
from tune.corpora.generators import plain_name
from tune.corpora.manifest import Clip
from tune.errors import CorpusError, LeakError

Indices = NDArray[np.intp]


class FoldsConfig(Strict):
    """How a corpus is divided.

    `by: speaker` gives `k` folds of speakers, stratified by class. Any other value leaves out `at_once` generators,
    sites, sources or languages at a time; clips that share a speaker or utterance with them are left out of training,
    too. With `new_generators`, a generator that is in the test part of a fold is left out of its training part.
    """

    by: Literal["speaker", "generator", "site", "source", "language"] = "speaker"
    k: int = Field(10, ge=2)
    at_once: int = Field(1, ge=1)
    new_generators: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Fold:
    """The indices of the clips to train on and of those to test. `make_fold` makes folds and refuses leaks."""

    name: str
    train: Indices
    test: Indices


def ties(clip: Clip) -> tuple[str, ...]:
    """What must not be on both sides: the clip's speaker, its utterance if it belongs to a pair, and its content."""
    pair = (f"pair {clip.pair_id}",) if clip.pair_id else ()
    content = (f"content {clip.sha256}",) if clip.sha256 else ()
    return (f"speaker {clip.voice}", *pair, *content)


def refuse_overlap(train: Iterable[Clip], test: Iterable[Clip], what: str = "training") -> None:
    """Raise LeakError if a clip, speaker or utterance of `test` took part in `what`."""
    train, test = list(train), list(test)
    if shared := {clip.path for clip in train} & {clip.path for clip in test}:
        raise LeakError(f"{len(shared)} clips are in both {what} and test, for example {min(shared).name}")
    if tied := {tie for clip in train for tie in ties(clip)} & {tie for clip in test for tie in ties(clip)}:
        raise LeakError(f"{len(tied)} speakers or pairs are in both {what} and test, for example {min(tied)}")


def make_fold(name: str, clips: Sequence[Clip], train: Indices, test: Indices) -> Fold:
    """A fold without leaks. Raises LeakError for a leak, and CorpusError if there is nothing to train on or to test."""
    refuse_overlap([clips[i] for i in train], [clips[i] for i in test])
    if len(test) == 0:
        raise CorpusError(f"fold {name} has nothing to test on")
    for label in ("bonafide", "spoof"):
        if not any(clips[i].label == label for i in train):
            raise CorpusError(
                f"fold {name} leaves no {label} clip to train on: each one is in the test part, or shares a speaker, "
                "an utterance or a generator with it"
            )
    return Fold(name, train, test)


def make_folds(clips: Sequence[Clip], config: FoldsConfig) -> list[Fold]:
    """The folds of a corpus, in a fixed order. Each clip is tested once. A background clip trains in every fold, except
    if it shares a speaker or utterance with the test part. Raises CorpusError if the corpus is too small."""
    judged = np.array([i for i, clip in enumerate(clips) if not clip.background], dtype=np.intp)
    folds = []
    for fold in _divide([clips[i] for i in judged], config):
        train, test = judged[fold.train], judged[fold.test]
        tied = {tie for i in test for tie in ties(clips[i])}
        background = [i for i, clip in enumerate(clips) if clip.background and not tied & set(ties(clip))]
        train = np.concatenate([train, background]).astype(np.intp)
        if config.new_generators:
            tested = {plain_name(clips[i].generator) for i in test if clips[i].is_spoof}
            train = train[[not clips[i].is_spoof or plain_name(clips[i].generator) not in tested for i in train]]
        folds.append(make_fold(fold.name, clips, train, test))
    return folds


def generators_met(clips: Sequence[Clip], folds: Iterable[Fold]) -> NDArray[np.bool_]:
    """(clips,) whether the generator of a spoof is in the training part of the fold that tests the spoof; false if the
    spoof names no generator."""
    met = np.zeros(len(clips), dtype=bool)
    for fold in folds:
        trained = {plain_name(clips[i].generator) for i in fold.train if clips[i].is_spoof} - {""}
        met[fold.test] = [clips[i].is_spoof and plain_name(clips[i].generator) in trained for i in fold.test]
    return met


def _divide(clips: Sequence[Clip], config: FoldsConfig) -> list[Fold]:
    if config.by == "speaker":
        return _speaker_folds(clips, config)
    names = _generators(clips) if config.by == "generator" else [getattr(clip, config.by) for clip in clips]
    if blank := [clip.path.name for clip, name in zip(clips, names, strict=True) if not name]:
        raise CorpusError(
            f"{len(blank)} clips name no {config.by}, for example {blank[0]}: name the {config.by} of each clip"
        )
    if len(set(names)) < 2:
        raise CorpusError(f"all clips are of one {config.by}, {names[0]}: there is no other to leave out")
    by_size = [name for name, _ in sorted(Counter(names).items(), key=lambda item: (-item[1], item[0]))]
    # The large ones go to different folds.
    count = max(2, math.ceil(len(by_size) / config.at_once))
    folds = []
    for left_out in sorted(sorted(by_size[start::count]) for start in range(count)):
        test = np.array([i for i, name in enumerate(names) if name in left_out])
        tied = {tie for i in test for tie in ties(clips[i])}
        train = [i for i, name in enumerate(names) if name not in left_out and not tied & set(ties(clips[i]))]
        folds.append(make_fold(f"{config.by} {', '.join(left_out)}", clips, np.array(train, dtype=np.intp), test))
    return folds


def _speaker_folds(clips: Sequence[Clip], config: FoldsConfig) -> list[Fold]:
    groups = tied_groups(clips)
    labels = np.array([clip.is_spoof for clip in clips])
    for label, name in ((False, "bonafide"), (True, "spoof")):
        count = len(set(groups[labels == label]))
        if count < config.k:
            raise CorpusError(
                f"the corpus is too small for {config.k} folds: its {name} clips are of {count} independent groups "
                "of speakers. Take fewer folds, or name the speakers in the manifest"
            )
    splitter = StratifiedGroupKFold(config.k, shuffle=True, random_state=config.seed)
    folds = []
    for number, (train, test) in enumerate(splitter.split(labels, labels, groups), start=1):
        if len(set(labels[test])) < 2:
            absent = "bonafide" if labels[test].all() else "spoof"
            raise CorpusError(f"fold {number} of {config.k} has no {absent} clip to test: take fewer folds")
        folds.append(make_fold(f"{number} of {config.k}", clips, train, test))
    return folds


def tied_groups(clips: Sequence[Clip]) -> Indices:
    """(clips,) the number of each clip's group. Clips that share a speaker or utterance, directly or through other
    clips, are in one group."""
    number_of: dict[str, int] = {}
    rows, columns = [], []
    for index, clip in enumerate(clips):
        for tie in ties(clip):
            rows.append(index)
            columns.append(len(clips) + number_of.setdefault(tie, len(number_of)))
    size = len(clips) + len(number_of)
    # A graph whose nodes are the clips and their ties.
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(size, size))
    groups: Indices = connected_components(graph, directed=False)[1][: len(clips)]
    return groups


def _generators(clips: Sequence[Clip]) -> list[str]:
    """The name of each clip's fold when generators are left out.

    The fold of a spoof is its generator. The recordings of a group of speakers go to the generator that imitates them
    most. If none imitates them, they go to the fold with the fewest recordings.
    """
    groups = tied_groups(clips)
    imitators: dict[int, Counter[str]] = defaultdict(Counter)
    recordings: Counter[int] = Counter()
    for clip, group in zip(clips, groups, strict=True):
        if clip.is_spoof:
            imitators[group][clip.generator] += 1
        else:
            recordings[group] += 1
    load = Counter({clip.generator: 0 for clip in clips if clip.is_spoof})
    home = {}
    for group, count in recordings.most_common():
        options = imitators.get(group) or load
        name = max(options, key=lambda option: (imitators[group][option], -load[option], option))
        home[group] = name
        load[name] += count
    return [clip.generator if clip.is_spoof else home[group] for clip, group in zip(clips, groups, strict=True)]
