"""Training and validation. There is a test for every kind of leak that is known from other projects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from imblearn.over_sampling import RandomOverSampler
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from tests.tune.synthetic import make_clips, make_table
from tune.corpora.manifest import Clip
from tune.errors import CorpusError, LeakError
from tune.kfold import evaluate_folds, random_split_eer
from tune.reports.metrics import cllr, false_alarm_rate, min_cllr, miss_rate
from tune.training.calibrate import OperatingPoints, choose_thresholds, fit_calibration
from tune.training.estimator import EstimatorConfig, LogisticHead, RidgeHead, fit
from tune.training.folds import Fold, FoldsConfig, make_folds
from tune.training.table import Table, digest_of
from tune.training.validate import Trained, TrainingConfig, cross_validate, folds_within, spread_of_windows, train

CONFIG = TrainingConfig(folds=FoldsConfig(k=4), calibration=FoldsConfig(k=3))


def train_each(config: TrainingConfig, table: Table, folds: Sequence[Fold]) -> list[Trained]:
    """Train a detector for each fold, as the commands do on a cluster."""
    return [train(config, table, fold.train) for fold in folds]


def test_a_scaler_fitted_outside_the_fold_is_refused(table: Table) -> None:
    scaled = replace(table, vectors=StandardScaler().fit_transform(table.vectors))
    folds = make_folds(table.clips, CONFIG.folds)
    with pytest.raises(LeakError, match="not those that were extracted"):
        train_each(CONFIG, scaled, folds)
    with pytest.raises(LeakError, match="not those that were extracted"):
        cross_validate(scaled, folds, train_each(CONFIG, table, folds))


def test_an_oversampler_outside_the_fold_is_refused(table: Table) -> None:
    sampler = RandomOverSampler(random_state=0, sampling_strategy={False: 150, True: 150})
    vectors, _ = sampler.fit_resample(table.vectors, table.labels[table.owner])
    oversampled = replace(table, vectors=vectors, owner=table.owner[sampler.sample_indices_])
    with pytest.raises(LeakError, match="not those that were extracted"):
        train(CONFIG, oversampled, np.arange(len(table.clips)))


def test_a_fold_with_a_speaker_on_both_sides_is_refused_even_when_made_by_hand(table: Table) -> None:
    is_train = np.arange(len(table.clips)) % 3 == 0
    planted = Fold("planted", np.flatnonzero(is_train), np.flatnonzero(~is_train))
    with pytest.raises(LeakError, match="speakers or pairs"):
        cross_validate(table, [planted], train_each(CONFIG, table, [planted]))


def test_calibration_or_a_threshold_from_the_test_part_is_refused(table: Table) -> None:
    everything = train(CONFIG, table, np.arange(len(table.clips)))
    fold = make_folds(table.clips, CONFIG.folds)[0]
    part = train(CONFIG, table, fold.train)
    # The head does not use the test part, but the calibration does.
    planted = replace(part, calibration=everything.calibration, clips=everything.clips)
    with pytest.raises(LeakError, match="calibration or thresholds"):
        planted.score(table, fold.test)
    assert len(part.score(table, fold.test)) == len(fold.test)


def test_the_scores_of_a_fold_do_not_depend_on_its_labels() -> None:
    """If all labels of the test part are flipped, nothing changes. This proves that the test part is not used."""
    table = make_table(make_clips())
    fold = make_folds(table.clips, CONFIG.folds)[0]
    flipped = [
        replace(clip, label="bonafide" if clip.is_spoof else "spoof") if i in set(fold.test) else clip
        for i, clip in enumerate(table.clips)
    ]
    expected = train(CONFIG, table, fold.train)
    found = train(CONFIG, replace(table, clips=tuple(flipped)), fold.train)
    assert found.thresholds == expected.thresholds and found.calibration == expected.calibration
    assert (found.score(table, fold.test) == expected.score(table, fold.test)).all()


def test_no_copy_of_a_clip_or_of_its_speaker_helps_to_judge_it() -> None:
    """Copies of test clips are not used, neither in a fold nor in the inner folds for calibration. If these copies are
    changed, the head stays the same. If copies of other clips are changed, the head changes."""
    table = make_table(make_clips(), copies=1, vocoded=True)
    outer = make_folds(table.clips, CONFIG.folds)[0]
    for fold in (outer, *folds_within(table.clips, outer.train, CONFIG.calibration)):
        voices = {table.clips[i].voice for i in fold.test}
        tested = np.array([clip.voice in voices for clip in table.clips])[table.owner]
        assert (table.vocoded & tested).any()
        expected, found = (
            fit(CONFIG.estimator, of, fold.train) for of in (table, ruined(table, tested & (table.copy > 0)))
        )
        assert all((found[name] == expected[name]).all() for name in expected)
        rest = fit(CONFIG.estimator, ruined(table, table.vocoded & np.isin(table.owner, fold.train)), fold.train)
        assert not np.allclose(rest["weight"], expected["weight"], rtol=0.1)

    whole = train(CONFIG, table, outer.train)
    without = train(CONFIG, ruined(table, np.isin(table.owner, outer.test) & (table.copy > 0)), outer.train)
    assert without.thresholds == whole.thresholds and without.calibration == whole.calibration


def ruined(table: Table, rows: NDArray[np.bool_]) -> Table:
    """The table with random features in `rows`. Its digest is right, as if these features had been extracted."""
    vectors = table.vectors.copy()
    vectors[rows] = np.random.default_rng(1).normal(scale=9, size=(rows.sum(), vectors.shape[1]))
    return replace(table, vectors=vectors, digest=digest_of(vectors, table.owner, table.copy, table.vocoded))


def test_the_spread_of_windows_is_not_made_small_by_clips_of_few() -> None:
    table = make_table(make_clips(speakers=60))  # two windows a clip
    rng = np.random.default_rng(0)
    scores = 5 * rng.normal(size=len(table.clips))[table.owner] + rng.normal(scale=0.7, size=len(table.vectors))
    clips = np.arange(len(table.clips))
    assert spread_of_windows(table, clips, scores) == pytest.approx(0.7, rel=0.1)
    alone = replace(table, vectors=table.vectors[::2], owner=table.owner[::2], copy=table.copy[::2])
    assert spread_of_windows(alone, clips, scores[::2]) is None


@pytest.mark.parametrize(("several", "assumed"), [(0, True), (19, True), (20, False)])
def test_the_variance_of_windows_is_never_nothing(several: int, assumed: bool) -> None:
    table = make_table(make_clips())  # two windows a clip
    kept = np.flatnonzero((np.arange(len(table.vectors)) % 2 == 0) | (table.owner < several))
    vectors, owner = table.vectors[kept], table.owner[kept]
    copy, vocoded = table.copy[kept], table.vocoded[kept]
    digest = digest_of(vectors, owner, copy, vocoded)
    short = replace(table, vectors=vectors, owner=owner, copy=copy, vocoded=vocoded, digest=digest)
    trained = train(CONFIG, short, np.arange(len(table.clips)))
    share = trained.uncertainty.window_variance / trained.uncertainty.score_variance
    assert trained.assumes_windows == assumed
    assert share == pytest.approx(0.125) if assumed else share > 0


def test_what_a_vocoder_made_cannot_be_passed_off_as_bona_fide() -> None:
    table = make_table(make_clips(), vocoded=True)
    with pytest.raises(LeakError, match="not those that were extracted"):
        train(CONFIG, replace(table, vocoded=np.zeros_like(table.vocoded)), np.arange(len(table.clips)))


def test_cross_validated_scores_are_calibrated_and_thresholds_keep_their_promise() -> None:
    table = make_table(make_clips(speakers=60), separation=1.5)
    folds = make_folds(table.clips, CONFIG.folds)
    scores = cross_validate(table, folds, train_each(CONFIG, table, folds))
    labels = table.labels
    assert cllr(labels, scores) - min_cllr(labels, scores) < 0.15
    thresholds = choose_thresholds(labels, scores, OperatingPoints(recall_miss=0.1, precision_false_alarm=0.1))
    assert thresholds.recall <= thresholds.balanced <= thresholds.precision
    assert miss_rate(labels, scores >= thresholds.recall) <= 0.1
    assert false_alarm_rate(labels, scores >= thresholds.precision) <= 0.1


def test_scores_no_better_than_chance_cannot_be_calibrated() -> None:
    labels = np.arange(40) % 2 == 0
    with pytest.raises(CorpusError, match="no better than chance"):
        fit_calibration(labels, np.where(labels, -1.0, 1.0))


def test_a_random_split_claims_more_than_folds_of_speakers() -> None:
    """If clips of a speaker are both in training and in the test, the voice gives the label away."""
    clips = [
        replace(clip, label="spoof" if int(clip.speaker.removeprefix("speaker")) % 2 else "bonafide")
        for clip in make_clips(speakers=60)
    ]
    table = make_table(clips, separation=1.0)
    folds = make_folds(table.clips, CONFIG.folds)
    scores = cross_validate(table, folds, train_each(CONFIG, table, folds))
    found = evaluate_folds(CONFIG, table, folds, scores)["metrics"]["eer"]
    assert found["low"] <= found["value"] <= found["high"]
    assert random_split_eer(CONFIG.estimator, table) < 0.6 * found["value"]


@pytest.mark.parametrize("head", [RidgeHead(background_weight=1e-9), LogisticHead()])
def test_nothing_is_tested_or_calibrated_by_background(head: RidgeHead | LogisticHead) -> None:
    clips = make_clips()
    background = [
        Clip(Path(f"/other/{n}.wav"), "bonafide", speaker=f"other{n}", site="elsewhere", background=True)
        for n in range(12)
    ]
    config = CONFIG.model_copy(update={"estimator": EstimatorConfig(head=head)})
    alone, both = make_table(clips), make_table([*clips, *background])
    # The judged clips have the same features in both tables. The background clips have very different ones.
    vectors = both.vectors.copy()
    vectors[: len(alone.vectors)] = alone.vectors
    vectors[len(alone.vectors) :] += 3
    both = replace(both, vectors=vectors, digest=digest_of(vectors, both.owner, both.copy, both.vocoded))
    folds = make_folds(both.clips, config.folds)
    detectors = train_each(config, both, folds)
    scores = cross_validate(both, folds, detectors)
    assert np.isnan(scores[len(clips) :]).all() and not np.isnan(scores[: len(clips)]).any()
    found = evaluate_folds(config, both, folds, scores)
    folds = make_folds(alone.clips, config.folds)
    expected = evaluate_folds(config, alone, folds, cross_validate(alone, folds, train_each(config, alone, folds)))
    trained, other = (train(config, table, np.arange(len(table.clips))) for table in (both, alone))
    np.testing.assert_array_equal(trained.arrays["scale"], other.arrays["scale"])
    if head.kind == "ridge":  # its `background_weight` is almost 0 here
        assert found["metrics"]["cllr"]["value"] == pytest.approx(expected["metrics"]["cllr"]["value"], rel=1e-3)
        assert trained.calibration.scale == pytest.approx(other.calibration.scale, rel=1e-3)
        assert trained.calibration.offset == pytest.approx(other.calibration.offset, rel=1e-3)
        assert trained.uncertainty.model_dump() == pytest.approx(other.uncertainty.model_dump(), rel=1e-3)
    assert 0 < random_split_eer(config.estimator, both, k=4) < 0.5
