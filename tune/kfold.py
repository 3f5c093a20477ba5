"""Cross-validates the training procedure, and writes one table for any number of feature recipes.

    python -m tune.kfold --manifest corpus/manifest.csv --by site --features sound-sentry-45 linear-textures

Each figure is of detectors that are tested on speakers, generators or sites that they were not trained on. With
`--random-split` the table also shows the EER of a random split over files. That figure is too good: do not quote it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedKFold

from pipeline.config import parse
from tune.cluster import connect
from tune.command import at_least, finish, run
from tune.corpora.generators import plain_name
from tune.corpora.manifest import write_csv
from tune.errors import CorpusError
from tune.extract import add_corpus_arguments, load_clips, load_table
from tune.places import local_folder, make_writable
from tune.reports import breakdown
from tune.reports.metrics import SUMMARY, Interval, Scores, auc, eer
from tune.train import DEFAULT_CONFIG, train_folds
from tune.training.estimator import EstimatorConfig
from tune.training.folds import Fold, generators_met, make_folds
from tune.training.table import Table
from tune.training.validate import (
    TrainingConfig,
    break_down_folds,
    cross_validate,
    fold_scores,
    measure,
    require_calibration,
    require_no_front,
)


def evaluate_folds(config: TrainingConfig, table: Table, folds: Sequence[Fold], scores: Scores) -> dict[str, Any]:
    """Metrics of the scores (clips,) of `cross_validate`, over all folds and part by part, with intervals over
    speakers; and EER and AUC of each fold that has both classes."""
    found = measure(SUMMARY, table, scores)
    return {
        "features": table.kind.spec.name,
        "dimension": table.vectors.shape[1],
        "folds": config.folds.model_dump(),
        "metrics": {name: interval._asdict() for name, interval in found.items()},
        "breakdown": break_down_folds(table, folds, scores),
        "by_fold": [
            {"fold": fold.name, "clips": len(test), "eer": eer(labels, scores[test]), "auc": auc(labels, scores[test])}
            for fold in folds
            for test in [fold.test]
            for labels in [table.labels[test]]
            if 0 < labels.sum() < len(labels)
        ],
    }


def write_scores(path: Path, table: Table, folds: Sequence[Fold], scores: Scores) -> None:
    """One row for each tested clip, in the order of the folds: its score by the detector of its fold, and whether its
    generator was in the training part; empty if it names no generator."""
    met = generators_met(table.clips, folds)
    rows = [
        (
            table.clips[i].listed,
            table.clips[i].label,
            f"{scores[i]:.4f}",
            fold.name,
            int(met[i]) if plain_name(table.clips[i].generator) else "",
        )
        for fold in folds
        for i in fold.test
    ]
    write_csv(path, ("path", "label", "score", "fold", "generator_met"), rows)


def random_split_eer(config: EstimatorConfig, table: Table, k: int = 10) -> float:
    """EER of random folds over files. Speakers are on both sides, so this is for comparison only."""
    judged, background = np.flatnonzero(table.judged), np.flatnonzero(~table.judged)
    labels = table.labels[judged]
    if min(labels.sum(), (~labels).sum()) < k:
        raise CorpusError(f"the corpus is too small for {k} folds at random: it has fewer clips of a class")
    scores = np.full(len(labels), np.nan)
    splitter = StratifiedKFold(k, shuffle=True, random_state=config.seed)
    for train, test in splitter.split(labels, labels):
        # make_fold is not used, because it would correctly refuse such a fold.
        fold = Fold("at random", np.concatenate([judged[train], background]), judged[test])
        scores[test] = fold_scores(config, table, fold)
    return eer(labels, scores)


def as_markdown(results: Sequence[dict[str, Any]]) -> str:
    """One row per recipe, in percent, with 95 % intervals."""
    lines = [
        "| features | dimension | EER % | AUC | Cllr | min Cllr | EER % of a random split (too good) |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        found = result["metrics"]
        claimed = result.get("random_split_eer")
        cells = [
            f"`{result['features']}`",
            str(result["dimension"]),
            Interval(**found["eer"]).text(100, 1),
            *(Interval(**found[name]).text() for name in ("auc", "cllr", "min_cllr")),
            f"{100 * claimed:.1f}" if claimed is not None else "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tune.kfold", description=__doc__.split("\n")[0])
    add_corpus_arguments(parser)
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="default: configs/train.yaml")
    parser.add_argument("--features", nargs="+", help="presets or YAML files; each has a row in the table")
    parser.add_argument(
        "--by",
        choices=("speaker", "generator", "site", "source", "language"),
        help="what to leave out (default: as in the configuration)",
    )
    parser.add_argument("--k", type=at_least(2), help="number of speaker folds (default: as in the configuration)")
    parser.add_argument("--random-split", action="store_true", help="also show the EER of random folds (too good)")
    parser.add_argument("--out", help="folder or URI for kfold.json, kfold.md and the scores of each recipe")
    arguments = parser.parse_args(argv)
    config = parse(TrainingConfig, arguments.config)
    require_no_front(config)
    changes = {key: value for key, value in (("by", arguments.by), ("k", arguments.k)) if value is not None}
    changed = config.folds.model_validate(config.folds.model_dump() | changes)
    config = config.model_copy(update={"folds": changed})
    clips = load_clips(arguments, config.speakers_of)
    require_calibration(clips, make_folds(clips, config.folds), config.calibration)
    with local_folder(arguments.out) if arguments.out else nullcontext() as out:
        if out:
            make_writable(out)
        connect(arguments.address)
        results = []
        for features in arguments.features or [config.features]:
            table = load_table(arguments, clips, features, config.draws, config.vocoded)
            folds = make_folds(table.clips, config.folds)
            scores = cross_validate(table, folds, train_folds(config, table, folds))
            result = evaluate_folds(config, table, folds, scores)
            if arguments.random_split:
                result["random_split_eer"] = random_split_eer(config.estimator, table)
            results.append(result)
            if out:
                write_scores(out / f"scores-{table.kind.spec.name}.csv", table, folds, scores)
        shown = as_markdown(results) + "".join(
            f"\n`{result['features']}`, part by part:\n\n{breakdown.as_markdown(result['breakdown'])}"
            for result in results
        )
        print(shown, end="")
        if out:
            (out / "kfold.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
            (out / "kfold.md").write_text(shown, encoding="utf-8")
        finish(
            f"kfold.json, kfold.md and the scores of each recipe in {out}" if out else "nothing: no --out",
            "python -m tune.train with the recipe that is best on the worst quarter of pages",
        )


if __name__ == "__main__":
    run(main)
