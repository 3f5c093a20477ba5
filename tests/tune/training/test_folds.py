from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tune.synthetic import make_clips
from tune.corpora.manifest import Clip, Label
from tune.errors import CorpusError, LeakError
from tune.training.folds import FoldsConfig, generators_met, make_fold, make_folds, refuse_overlap, tied_groups, ties


@pytest.mark.parametrize("by", ["speaker", "site", "generator", "source"])
def test_each_clip_is_tested_once_and_no_speaker_is_on_both_sides(clips: list[Clip], by: str) -> None:
    folds = make_folds(clips, FoldsConfig(by=by, k=4))
    tested = np.concatenate([fold.test for fold in folds])
    assert sorted(tested) == list(range(len(clips)))
    for fold in folds:
        assert not {clips[i].speaker for i in fold.train} & {clips[i].speaker for i in fold.test}


@pytest.mark.parametrize("by", ["speaker", "site"])
def test_background_trains_and_is_never_tested(clips: list[Clip], by: str) -> None:
    """A background clip trains in every fold, except if its speaker is tested. It needs no site."""
    mine = [Clip(Path(f"/other/{n}.wav"), "bonafide", speaker=f"other{n % 2}", background=True) for n in range(4)]
    shared = Clip(Path("/other/shared.wav"), "bonafide", speaker=clips[0].speaker, background=True)
    whole = [*mine, *clips, shared]
    folds = make_folds(whole, FoldsConfig(by=by, k=4))
    assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(4, 4 + len(clips)))
    for fold in folds:
        assert {0, 1, 2, 3} <= set(fold.train.tolist())
        tested = {whole[i].speaker for i in fold.test}
        assert (len(whole) - 1 in fold.train) == (shared.speaker not in tested)


def test_a_speaker_on_both_sides_is_refused(clips: list[Clip]) -> None:
    with pytest.raises(LeakError, match="speaker speaker0"):
        make_fold("planted", clips, np.array([0, 1, 2, 7]), np.array([3]))
    with pytest.raises(LeakError, match="clips are in both"):
        refuse_overlap(clips[:3], clips[2:4])


def test_a_pair_and_a_copied_file_on_both_sides_are_refused() -> None:
    ann, bob = Clip(Path("a"), "bonafide", "ann"), Clip(Path("b"), "spoof", "bob")
    refuse_overlap([ann], [bob])
    with pytest.raises(LeakError, match="pair 7"):
        refuse_overlap([replace(ann, pair_id="7")], [replace(bob, pair_id="7")])
    with pytest.raises(LeakError, match="content abc"):
        refuse_overlap([replace(ann, sha256="abc")], [replace(bob, sha256="abc")])


def test_speakers_tied_by_a_pair_are_one_group() -> None:
    clips = [
        Clip(Path("a"), "bonafide", "ann"),
        Clip(Path("b"), "bonafide", "ann", pair_id="1"),
        Clip(Path("c"), "spoof", "bob", pair_id="1"),
        Clip(Path("d"), "spoof", "carl"),
    ]
    groups = tied_groups(clips)
    assert groups[0] == groups[1] == groups[2] != groups[3]


def test_what_shares_a_speaker_with_a_site_left_out_does_not_train() -> None:
    clips = make_clips()
    # speaker0 of site0 is also on site1.
    clips.append(replace(clips[0], path=Path("/corpus/again.wav"), site="site1"))
    fold = next(fold for fold in make_folds(clips, FoldsConfig(by="site")) if fold.name == "site site0")
    assert len(clips) - 1 not in fold.train and len(clips) - 1 not in fold.test


def test_recordings_are_tested_with_the_generator_that_imitates_their_speaker(clips: list[Clip]) -> None:
    for fold in make_folds(clips, FoldsConfig(by="generator")):
        assert {clips[i].label for i in fold.test} == {"bonafide", "spoof"}
        assert len({clips[i].site for i in fold.test}) == 1


def test_clips_without_a_speaker_count_as_one_of_their_origin() -> None:
    clips = [replace(clip, speaker="") for clip in make_clips()]
    with pytest.raises(CorpusError, match="name the speakers"):
        make_folds(clips, FoldsConfig(k=10))


ON_ONE_SIDE: tuple[tuple[str, Label, int], ...] = (
    ("ann", "spoof", 3),
    ("bob", "bonafide", 4),
    ("bob", "spoof", 2),
    ("carl", "bonafide", 2),
)
"""Name, label and number of clips. One of the two folds gets only Ann, so it has no bonafide clip."""


@pytest.mark.parametrize(
    ("clips", "config", "named"),
    [
        (make_clips(speakers=3), FoldsConfig(k=5), "too small for 5 folds"),
        (
            [
                Clip(Path(f"{name}{label}{number}"), label, name)
                for name, label, count in ON_ONE_SIDE
                for number in range(count)
            ],
            FoldsConfig(k=2),
            "fold 1 of 2 has no bonafide clip to test",
        ),
        (make_clips(sites=1), FoldsConfig(by="site"), "all clips are of one site, site0"),
        ([replace(clip, site="") for clip in make_clips()], FoldsConfig(by="site"), "name no site"),
        (
            [replace(clip, site="a" if clip.is_spoof else "b", speaker=str(i)) for i, clip in enumerate(make_clips())],
            FoldsConfig(by="site"),
            "fold site a leaves no spoof clip",
        ),
    ],
)
def test_a_corpus_too_small_is_refused_by_name(clips: list[Clip], config: FoldsConfig, named: str) -> None:
    with pytest.raises(CorpusError, match=named):
        make_folds(clips, config)


def test_folds_do_not_change_from_run_to_run(clips: list[Clip]) -> None:
    first, second = (make_folds(clips, FoldsConfig(k=4)) for _ in range(2))
    assert all((a.test == b.test).all() for a, b in zip(first, second, strict=True))


def test_several_sites_are_left_out_at_once() -> None:
    clips = make_clips(sites=5)
    folds = make_folds(clips, FoldsConfig(by="site", at_once=2))
    assert len(folds) == 3
    assert sorted(i for fold in folds for i in fold.test) == list(range(len(clips)))
    for fold in folds:
        assert not {clips[i].site for i in fold.train} & {clips[i].site for i in fold.test}


def test_generators_of_the_names_tested_do_not_train_where_they_are_to_be_new() -> None:
    # Every generator is on two sites, and its name is spelt differently there.
    clips = [
        replace(clip, generator=clip.generator and f"Gen-{'aA'[site % 2]}{'bc'[site // 2]}")
        for clip in make_clips()
        for site in [int(clip.site.removeprefix("site"))]
    ]
    lent = Clip(Path("/other/lent.wav"), "spoof", "lent", "gen ab", background=True)
    for new, config in ((False, FoldsConfig(by="site")), (True, FoldsConfig(by="site", new_generators=True))):
        folds = make_folds([*clips, lent], config)
        assert sorted(np.concatenate([fold.test for fold in folds])) == list(range(len(clips)))
        first = next(fold for fold in folds if fold.name == "site site0")
        trained = {clips[i].generator for i in first.train if i < len(clips) and clips[i].is_spoof}
        assert trained == ({"Gen-ac", "Gen-Ac"} if new else {"Gen-Ab", "Gen-ac", "Gen-Ac"})
        assert (len(clips) in first.train) is not new
        # The recordings of the other sites train in both cases.
        assert len({clips[i].site for i in first.train if i < len(clips) and not clips[i].is_spoof}) == 3
        met = generators_met([*clips, lent], folds)
        assert met.sum() == (0 if new else sum(clip.is_spoof for clip in clips))


def test_spoofs_without_a_name_are_no_generator_that_was_met() -> None:
    clips = [replace(clip, generator="" if clip.site < "site2" else clip.generator) for clip in make_clips()]
    met = generators_met(clips, make_folds(clips, FoldsConfig(k=4)))
    assert [bool(one) for one in met] == [bool(clip.generator) for clip in clips]


def test_a_famous_voice_does_not_train_for_another_site_unless_speakers_are_of_their_site() -> None:
    clips = [replace(clip, speaker="LJ") if clip.speaker in ("speaker0", "speaker1") else clip for clip in make_clips()]
    of_site = [replace(clip, speaker=f"{clip.site}: {clip.voice}") for clip in clips]
    for named, trains in ((clips, False), (of_site, True)):
        fold = next(fold for fold in make_folds(named, FoldsConfig(by="site")) if fold.name == "site site0")
        assert any(named[i].speaker.endswith("LJ") for i in fold.train) is trains
        assert not any(named[i].site == "site0" for i in fold.train)


def test_groups_are_those_of_a_search_through_what_is_shared() -> None:
    rng = np.random.default_rng(0)
    clips = [
        Clip(Path(str(n)), "spoof", f"s{rng.integers(60)}", pair_id=str(rng.integers(90)) if rng.random() < 0.4 else "")
        for n in range(120)
    ]
    groups = tied_groups(clips)
    # The expected groups: merge clips that are tied to each other, until nothing changes.
    expected = list(range(len(clips)))
    changed = True
    while changed:
        changed = False
        for i, first in enumerate(clips):
            for j, second in enumerate(clips):
                if expected[i] < expected[j] and set(ties(first)) & set(ties(second)):
                    expected[j], changed = expected[i], True
    assert 1 < len(set(expected)) < 60
    assert len({*zip(groups.tolist(), expected, strict=True)}) == len(set(expected)) == len(set(groups.tolist()))
