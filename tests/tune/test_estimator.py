from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from imblearn.over_sampling import SMOTE
from imblearn.pipeline import make_pipeline
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from pipeline.head import CLIP
from tests.tune.synthetic import make_clips, make_table
from tune.errors import CorpusError
from tune.estimator import EstimatorConfig, LogisticHead, MlpHead, RidgeHead, fit, score_windows
from tune.folds import FoldsConfig, make_folds
from tune.metrics import auc
from tune.table import Table
from tune.validate import head_scores

SMALL_MLP = MlpHead(kind="mlp", hidden=(16,), batch_size=32, max_epochs=20, stop_share=0.25, learning_rate=5e-3)
BALANCED = ("weights", "smote", "oversample")
Head = LogisticHead | RidgeHead | MlpHead


@pytest.mark.parametrize(("imbalance", "count"), [("none", 90), ("weights", 90), ("smote", 90), ("weights", 18)])
def test_what_serving_computes_equals_scikit_learns_decision(table: Table, imbalance: str, count: int) -> None:
    """With more windows than features, and with fewer."""
    clips = np.arange(90)[:: 90 // count]
    dimension = table.vectors.shape[1]
    arrays = fit(EstimatorConfig(imbalance=imbalance, head=LogisticHead(c=0.1 * dimension)), table, clips)
    rows = table.rows(clips)
    weights = "balanced" if imbalance == "weights" else None
    clip = FunctionTransformer(np.clip, kw_args={"min": -CLIP, "max": CLIP})
    steps = [StandardScaler(), clip, LogisticRegression(C=0.1, class_weight=weights, tol=1e-8)]
    if imbalance == "smote":
        steps.insert(2, SMOTE(random_state=0))
    pipeline = make_pipeline(*steps).fit(table.vectors[rows], table.labels[table.owner[rows]])
    expected = pipeline.decision_function(table.vectors)
    assert score_windows(arrays, table.vectors, table.kind) == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("copies", [0, 2])
def test_a_ridge_head_counts_clips_and_not_windows(copies: int) -> None:
    """As scikit-learn's would on one row a clip, and one a copy that weighs its share."""
    table = make_table(make_clips(), copies=copies)
    clips = np.arange(90)
    dimension = table.vectors.shape[1]
    head = RidgeHead(kind="ridge", penalty=3 / dimension, copies_weight=0.5)
    arrays = fit(EstimatorConfig(imbalance="none", head=head), table, clips)
    scaler = StandardScaler().fit(table.vectors[table.rows(clips)])
    x, y, weights = [], [], []
    for clip in clips:
        for copy in range(1 + copies):
            own = table.vectors[(table.owner == clip) & (table.copy == copy)]
            x.append(np.clip(scaler.transform(own), -CLIP, CLIP).mean(axis=0))
            y.append(1 if table.labels[clip] else -1)
            weights.append(0.5 / copies if copy else 1)
    expected = Ridge(alpha=3).fit(np.array(x, np.float64), y, sample_weight=weights)
    scored = np.clip(scaler.transform(table.vectors), -CLIP, CLIP)
    assert score_windows(arrays, table.vectors, table.kind) == pytest.approx(expected.predict(scored), abs=1e-3)


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
    """Not the scaler, not the sampler, not the reduction, not early stopping."""
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
        fit(EstimatorConfig(imbalance="smote"), table, np.array([0, 1, 2]))
    with pytest.raises(CorpusError, match="early stopping needs 4 independent groups"):
        fit(EstimatorConfig(head=SMALL_MLP), table, np.arange(8))
