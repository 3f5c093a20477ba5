from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from imblearn.over_sampling import SMOTE
from imblearn.pipeline import make_pipeline
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tests.tune.synthetic import make_clips, make_table
from tune.errors import CorpusError
from tune.estimator import EstimatorConfig, LogisticHead, MlpHead, fit, score_windows
from tune.folds import FoldsConfig, make_folds
from tune.metrics import auc
from tune.table import Table
from tune.validate import head_scores

SMALL_MLP = MlpHead(kind="mlp", hidden=(16,), batch_size=32, max_epochs=20, stop_share=0.25, learning_rate=5e-3)


@pytest.mark.parametrize(("imbalance", "count"), [("none", 90), ("weights", 90), ("smote", 90), ("weights", 18)])
def test_what_serving_computes_equals_scikit_learns_decision(table: Table, imbalance: str, count: int) -> None:
    """With more windows than features, and with fewer."""
    clips = np.arange(90)[:: 90 // count]
    dimension = table.vectors.shape[1]
    arrays = fit(EstimatorConfig(imbalance=imbalance, head=LogisticHead(c=0.1 * dimension)), table, clips)
    rows = table.rows(clips)
    weights = "balanced" if imbalance == "weights" else None
    steps = [StandardScaler(), LogisticRegression(C=0.1, class_weight=weights, tol=1e-8)]
    if imbalance == "smote":
        steps.insert(1, SMOTE(random_state=0))
    pipeline = make_pipeline(*steps).fit(table.vectors[rows], table.labels[table.owner[rows]])
    expected = pipeline.decision_function(table.vectors)
    assert score_windows(arrays, table.vectors, table.kind) == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("acn", [False, True])
@pytest.mark.parametrize("head", [LogisticHead(c=0.1), SMALL_MLP])
@pytest.mark.parametrize("imbalance", ["weights", "smote", "oversample"])
def test_every_estimator_learns(acn: bool, head: LogisticHead | MlpHead, imbalance: str) -> None:
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


@pytest.mark.parametrize("head", [LogisticHead(), SMALL_MLP])
def test_nothing_outside_the_training_part_is_fitted_to(head: LogisticHead | MlpHead) -> None:
    """Not the scaler, not the sampler, not the reduction, not early stopping."""
    for acn in (False, True):
        table = make_table(make_clips(), acn=acn)
        fold = make_folds(table.clips, FoldsConfig(k=4))[0]
        changed = table.vectors.copy()
        changed[table.training_rows(fold.test)] = 1e6
        config = EstimatorConfig(head=head, imbalance="smote")
        expected = fit(config, table, fold.train)
        found = fit(config, replace(table, vectors=changed), fold.train)
        assert all((found[name] == expected[name]).all() for name in expected)


def test_too_few_rows_to_resample_or_to_stop_early_by_is_an_error() -> None:
    table = make_table(make_clips(speakers=2, per_speaker=4))
    with pytest.raises(CorpusError, match=r"smote.*too small"):
        fit(EstimatorConfig(imbalance="smote"), table, np.array([0, 1, 2]))
    with pytest.raises(CorpusError, match="early stopping needs 4 independent groups"):
        fit(EstimatorConfig(head=SMALL_MLP), table, np.arange(8))
