from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from imblearn.over_sampling import SMOTE
from imblearn.pipeline import make_pipeline
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from tests.tune.synthetic import make_clips, make_table
from tune.errors import CorpusError
from tune.reports.metrics import auc
from tune.training.estimator import LIMIT, EstimatorConfig, LogisticHead, MlpHead, RidgeHead, fit, score_windows
from tune.training.folds import FoldsConfig, make_folds
from tune.training.table import Table
from tune.training.validate import head_scores

SMALL_MLP = MlpHead(kind="mlp", hidden=(16,), batch_size=32, max_epochs=20, stop_share=0.25, learning_rate=5e-3)
BALANCED = ("weights", "smote", "oversample")
Head = LogisticHead | RidgeHead | MlpHead


@pytest.mark.parametrize(("imbalance", "count"), [("none", 90), ("weights", 90), ("smote", 90), ("weights", 18)])
def test_what_serving_computes_equals_scikit_learns_decision(table: Table, imbalance: str, count: int) -> None:
    """The parameters give cases with more windows than features, and with fewer."""
    clips = np.arange(90)[:: 90 // count]
    dimension = table.vectors.shape[1]
    arrays = fit(EstimatorConfig(imbalance=imbalance, head=LogisticHead(c=0.1 * dimension)), table, clips)
    rows = table.rows(clips)
    weights = "balanced" if imbalance == "weights" else None
    clip = FunctionTransformer(np.clip, kw_args={"min": -LIMIT, "max": LIMIT})
    steps = [StandardScaler(), clip, LogisticRegression(C=0.1, class_weight=weights, tol=1e-8)]
    if imbalance == "smote":
        steps.insert(2, SMOTE(random_state=0))
    pipeline = make_pipeline(*steps).fit(table.vectors[rows], table.labels[table.owner[rows]])
    expected = pipeline.decision_function(table.vectors)
    assert score_windows(arrays, table.vectors, table.kind) == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize(("copies", "vocoded"), [(0, False), (2, False), (1, True)])
def test_a_ridge_head_is_scikit_learns(copies: int, vocoded: bool) -> None:
    """There is one row per clip, and one per copy with half the weight. Background clips have half the weight, too, and
    are not used for the scale."""
    made = make_clips()
    made[::16] = [replace(clip, background=True) for clip in made[::16]]
    table = make_table(made, copies=copies, vocoded=vocoded)
    clips = np.arange(90)
    dimension = table.vectors.shape[1]
    head = RidgeHead(penalty=3 / dimension, copies_weight=0.5, background_weight=0.5)
    arrays = fit(EstimatorConfig(head=head), table, clips)
    scaler = StandardScaler().fit(table.vectors[table.rows(clips[table.judged[clips]])])
    rows = [(clip, copy) for clip in clips for copy in np.unique(table.copy[table.owner == clip])]
    masks = [(table.owner == clip) & (table.copy == copy) for clip, copy in rows]
    x = np.stack([np.clip(scaler.transform(table.vectors[part]), -LIMIT, LIMIT).mean(axis=0) for part in masks])
    spoof = np.array([table.spoof[part].all() for part in masks])
    weight = np.array([(0.5 if copy else 1) * (0.5 if made[clip].background else 1) for clip, copy in rows])
    weight[spoof] *= weight[~spoof].sum() / weight[spoof].sum()
    ones = math.sqrt(dimension)  # the bias as a feature: our features are divided by this square root, the bias is not
    ridge = Ridge(alpha=3, fit_intercept=False)
    ridge.fit(np.pad(x.astype(np.float64), ((0, 0), (0, 1)), constant_values=ones), np.where(spoof, 1, -1), weight)
    scored = np.clip(scaler.transform(table.vectors), -LIMIT, LIMIT)
    expected = ridge.predict(np.pad(scored, ((0, 0), (0, 1)), constant_values=ones))
    assert score_windows(arrays, table.vectors, table.kind) == pytest.approx(expected, abs=1e-3)


def test_a_ridge_head_takes_weights_in_place_of_invented_rows() -> None:
    with pytest.raises(ValidationError, match="imbalance smote is not for the ridge head"):
        EstimatorConfig(imbalance="smote", head=RidgeHead(kind="ridge"))


@pytest.mark.parametrize("acn", [False, True])
@pytest.mark.parametrize(
    ("head", "imbalance"),
    [
        *((head, imbalance) for head in (LogisticHead(c=0.1), SMALL_MLP) for imbalance in BALANCED),
        (RidgeHead(kind="ridge"), "weights"),
    ],
)
def test_every_estimator_learns(acn: bool, head: Head, imbalance: str) -> None:
    table = make_table(make_clips(), separation=3, acn=acn)
    config = EstimatorConfig(imbalance=imbalance, head=head)
    fold = make_folds(table.clips, FoldsConfig(k=4))[0]
    scores = head_scores(fit(config, table, fold.train), table, fold.test)
    assert auc(table.labels[fold.test], scores) > 0.8


def test_the_same_seed_gives_the_same_head(table: Table) -> None:
    config = EstimatorConfig(head=SMALL_MLP, imbalance="smote")
    first, second = (fit(config, table, np.arange(90)) for _ in range(2))
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)


@pytest.mark.parametrize("head", [LogisticHead(), RidgeHead(kind="ridge"), SMALL_MLP])
def test_nothing_outside_the_training_part_is_fitted_to(head: Head) -> None:
    """Test clips are not used by the scaler, the sampler, the reduction or early stopping."""
    for acn in (False, True):
        table = make_table(make_clips(), acn=acn)
        fold = make_folds(table.clips, FoldsConfig(k=4))[0]
        changed = table.vectors.copy()
        changed[table.training_rows(fold.test)] = 1e6
        config = EstimatorConfig(head=head, imbalance="weights" if head.kind == "ridge" else "smote")
        expected = fit(config, table, fold.train)
        found = fit(config, replace(table, vectors=changed), fold.train)
        assert all((found[name] == expected[name]).all() for name in expected)


def test_too_few_rows_to_resample_or_to_stop_early_by_is_an_error() -> None:
    table = make_table(make_clips(speakers=2, per_speaker=4))
    with pytest.raises(CorpusError, match=r"smote.*too small"):
        fit(EstimatorConfig(imbalance="smote", head=LogisticHead()), table, np.array([0, 1, 2]))
    with pytest.raises(CorpusError, match="early stopping needs 4 independent groups"):
        fit(EstimatorConfig(head=SMALL_MLP), table, np.arange(8))
