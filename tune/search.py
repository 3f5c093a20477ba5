"""Searches for a training configuration with Ray Tune, over grouped folds, with the estimator of `tune.train`.

    python -m tune.search --config configs/grid.yaml --manifest corpus/manifest.csv --out runs/grid

A trial works through the folds and reports its error after each fold, so that ASHA can stop it. The best of many points
looks better than it is. With `--nested` the point for each fold is chosen without that fold, so the resulting figure
may be quoted.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import ray
import torch
import yaml
from pydantic import Field, ValidationError, model_validator
from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config import Strict, parse
from pipeline.errors import ConfigurationError, SoundSentryError
from tune.cluster import connect
from tune.command import finish, run
from tune.errors import CorpusError
from tune.extract import add_corpus_arguments, load_clips, load_table
from tune.places import local_folder, make_writable
from tune.reports.metrics import Interval, Scores, auc, eer
from tune.reports.plots import plot_parallel_coordinates
from tune.training.folds import Fold, make_folds
from tune.training.table import Table
from tune.training.validate import TrainingConfig, fold_scores, measure, require_calibration, require_no_front, train

DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "search.yaml"
Point = dict[str, Any]

RECORD = "search.json"
"""The file that says which search a folder holds."""


class Grid(Strict):
    """Every combination of the values given for each key, such as `estimator.head.penalty`."""

    kind: Literal["grid"]
    space: dict[str, Annotated[list[Any], Field(min_length=1)]]


class Range(Strict):
    """Values from `low` to `high`, drawn on a logarithmic scale if `log` is set."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if not (self.low < self.high and (self.low > 0 or not self.log)):
            raise ValueError("low must be below high, and above 0 on a logarithmic scale")
        return self

    def domain(self, *, whole: bool) -> Any:
        """What Ray Tune draws from. `whole` says that the key has whole numbers only; `high` is then one of them."""
        if whole:
            draw = ray_tune.lograndint if self.log else ray_tune.randint
            return draw(round(self.low), round(self.high) + 1)
        return ray_tune.loguniform(self.low, self.high) if self.log else ray_tune.uniform(self.low, self.high)


class Optuna(Strict):
    """`samples` points. Each is proposed from the results of those before. A value is drawn from a list or a range."""

    kind: Literal["optuna"]
    samples: int = Field(32, ge=1)
    seed: int = 0
    space: dict[str, Range | Annotated[list[Any], Field(min_length=1)]]


class SearchConfig(TrainingConfig):
    """A training configuration, and what to vary in it. `asha` stops a trial that is among the worse half after some
    folds."""

    search: Annotated[Grid | Optuna, Field(discriminator="kind")]
    asha: bool = False

    def at(self, point: Point) -> TrainingConfig:
        """The training configuration at `point`. Raises ConfigurationError that names an unknown key or bad value."""
        values = self.model_dump(exclude={"search", "asha"})
        for key, value in point.items():
            section, last = _find(values, key)
            section[last] = value
        try:
            return TrainingConfig.model_validate(values)
        except ValidationError as error:
            raise ConfigurationError(f"search.space: at {point}: {error.errors()[0]['msg']}") from error

    def require_space(self, *, nested: bool = False) -> None:
        """Raises ConfigurationError for a key that does not exist or changes nothing, for a value or an end of a range
        that it cannot have, and for a kind of search that cannot be nested. A trial would find this out only after all
        features are computed, or never."""
        searched = ("features", "estimator", "calibration") if nested else ("features", "estimator")
        for key, values in self.search.space.items():
            for value in (values.low, values.high) if isinstance(values, Range) else values:
                self.at({key: value})
            if key.split(".")[0] not in searched:
                raise ConfigurationError(
                    f"search.space: {key} changes nothing in a search: vary features and keys of estimator, and with "
                    "--nested also keys of calibration"
                )
        if nested and self.asha:
            raise ConfigurationError("asha: a nested search needs every fold of every point: set asha to false")
        if nested and isinstance(self.search, Optuna):
            raise ConfigurationError(
                "search.kind: Optuna proposes points by their errors on all folds, so no figure of it may be quoted: "
                "set kind to grid, or leave out --nested"
            )

    def param_space(self) -> dict[str, Any]:
        """The points of the search, as Ray Tune wants them."""
        if isinstance(self.search, Grid):
            return {key: ray_tune.grid_search(values) for key, values in self.search.space.items()}
        values = self.model_dump(exclude={"search", "asha"})
        found: dict[str, Any] = {}
        for key, wanted in self.search.space.items():
            section, last = _find(values, key)
            found[key] = (
                wanted.domain(whole=isinstance(section[last], int))
                if isinstance(wanted, Range)
                else ray_tune.choice(wanted)
            )
        return found

    def presets(self) -> list[str]:
        """The feature recipes that the search may need."""
        return list(self.search.space.get("features", [self.features]))


def _find(values: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The section of a configuration that holds `key`, such as `estimator.head.penalty`, and the key's last part."""
    *parents, last = key.split(".")
    section: Any = values
    for parent in parents:
        section = section.get(parent, {}) if isinstance(section, dict) else {}
    if not isinstance(section, dict) or last not in section:
        likely = get_close_matches(last, section if isinstance(section, dict) else values, n=1)
        meant = f": did you mean {likely[0]}?" if likely else ""
        raise ConfigurationError(f"search.space: there is no key {key} in the training configuration{meant}")
    return section, last


class ScoreKeeper:
    """An actor on the node of the search. It saves the scores of each point in `folder`, from the trials on all nodes.
    So a search that was killed continues with the missing folds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, point: str) -> tuple[Scores, list[float]] | None:
        """The scores of a point, and the held-out errors of its finished folds in a nested search; None if nothing is
        saved yet."""
        file = self.folder / f"{point}.npz"
        if not file.exists():
            return None
        with np.load(file) as saved:
            return saved["scores"], saved["held_out_eer"].tolist()

    def save(self, point: str, scores: Scores, held_out: list[float]) -> None:
        # Whole or not at all: the process may be killed at any time.
        partial = self.folder / f"{point}.partial"
        with partial.open("wb") as output:
            np.savez(output, scores=scores, held_out_eer=held_out)
        partial.rename(self.folder / f"{point}.npz")


def run_trial(
    point: Point, config: SearchConfig, tables: dict[str, Table], folds: Sequence[Fold], keeper: Any, nested: bool
) -> None:
    """Run a trial: every fold in a fixed order. After each it reports the error over all clips tested so far.

    `keeper`, a ScoreKeeper, saves the scores after each fold. Folds that it has saved are not computed again.
    """
    torch.set_num_threads(1)
    training = config.at(point)
    table = tables[training.features]
    table.verify()
    name = point_id(point)
    known = ray.get(keeper.load.remote(name))
    scores, held_out = known if known else (np.full(len(table.clips), np.nan), [])
    scores = scores.copy()  # arrays from another process are read-only
    for number, fold in enumerate(folds, start=1):
        if np.isnan(scores[fold.test]).any():
            if nested:
                trained = train(training, table, fold.train)
                held_out.append(trained.held_out_eer)
                scores[fold.test] = trained.score(table, fold.test)
            else:
                scores[fold.test] = fold_scores(training.estimator, table, fold)
            ray.get(keeper.save.remote(name, scores, held_out))
        tested = np.concatenate([done.test for done in folds[:number]])
        labels = table.labels[tested]
        both = 0 < labels.sum() < len(labels)
        ray_tune.report(
            {
                "eer": eer(labels, scores[tested]) if both else 0.5,
                "auc": auc(labels, scores[tested]) if both else 0.5,
                "folds": number,
            }
        )


def point_id(point: Point) -> str:
    return hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:16]


def search(
    config: SearchConfig,
    tables: dict[str, Table],
    out: Path,
    *,
    resume: bool = False,
    nested: bool = False,
    mlflow: str | None = None,
) -> list[dict[str, Any]]:
    """Run the search on the cluster this process is connected to, and write its results to `out`.

    Returns one row per point, the best first. Rows of trials that were stopped early come last and are marked.
    """
    table = next(iter(tables.values()))
    folds = make_folds(table.clips, config.folds)
    for name, other in tables.items():
        if other.clips != table.clips:
            raise CorpusError(f"not every clip has features {name}: leave out the clips named above")
    out = out.resolve()
    identity = {
        "config": config.model_dump(mode="json"),
        "features": {name: table.digest for name, table in tables.items()},
        "nested": nested,
    }
    _claim(out, identity, resume)
    folder = out / "scores"
    folder.mkdir(exist_ok=True)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    keeper = ray.remote(ScoreKeeper).options(num_cpus=0, scheduling_strategy=here).remote(folder)
    trainable = ray_tune.with_resources(
        ray_tune.with_parameters(run_trial, config=config, tables=tables, folds=folds, keeper=keeper, nested=nested),
        {"cpu": 1},
    )
    if resume and _restorable(out / "trials"):
        tuner = ray_tune.Tuner.restore(str(out / "trials"), trainable, resume_unfinished=True, restart_errored=True)
    else:
        tuner = _tuner(config, trainable, len(folds), out, mlflow)
    trials = tuner.fit()
    if trials.errors:
        raise CorpusError(
            f"{len(trials.errors)} of {len(trials)} trials failed, the first with: {_sentence(trials.errors[0])}"
        )
    rows: list[dict[str, Any]] = []
    for trial in (trials[index] for index in range(len(trials))):
        assert trial.config is not None and trial.metrics is not None
        rows.append({**trial.config, **{name: trial.metrics[name] for name in ("eer", "auc", "folds")}})
    rows.sort(key=lambda row: (row["folds"] < len(folds), row["eer"], json.dumps(row, sort_keys=True)))
    _write_results(out, config, rows, len(folds))
    if nested:
        points = [{key: row[key] for key in config.search.space} for row in rows]
        quoted = nested_estimate(table, folds, [folder / f"{point_id(point)}.npz" for point in points])
        (out / "nested.json").write_text(json.dumps(quoted, indent=2) + "\n", encoding="utf-8")
    return rows


def _tuner(config: SearchConfig, trainable: Any, folds: int, out: Path, mlflow: str | None) -> ray_tune.Tuner:
    """Ray Tune's part of a search that begins. Its state is in `out`."""
    wanted = config.search
    return ray_tune.Tuner(
        trainable,
        param_space=config.param_space(),
        tune_config=ray_tune.TuneConfig(
            metric="eer",
            mode="min",
            num_samples=wanted.samples if isinstance(wanted, Optuna) else 1,
            search_alg=OptunaSearch(seed=wanted.seed) if isinstance(wanted, Optuna) else None,
            scheduler=_asha(folds) if config.asha else None,
            reuse_actors=True,
        ),
        run_config=ray_tune.RunConfig(
            name="trials", storage_path=str(out), verbose=0, callbacks=_callbacks(out, mlflow)
        ),
    )


def _sentence(error: Exception) -> str:
    """What went wrong in a trial, without Ray's traceback."""
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    return cause.detail if isinstance(cause, SoundSentryError) else str(cause).strip().splitlines()[-1]


def nested_estimate(table: Table, folds: Sequence[Fold], points: Sequence[Path]) -> dict[str, Any]:
    """EER and AUC if each fold is scored at the point that was best on the other folds. This figure may be quoted.

    `points` are the files of the points' scores.
    """
    trials: list[tuple[Scores, list[float]]] = []
    for path in sorted(points):
        with np.load(path) as saved:
            trials.append((saved["scores"], saved["held_out_eer"].tolist()))
    scores = np.full(len(table.clips), np.nan)
    for number, fold in enumerate(folds):
        best, _ = min(trials, key=lambda trial: trial[1][number])
        scores[fold.test] = best[fold.test]
    found = measure({"eer": eer, "auc": auc}, table, scores)
    return {name: interval._asdict() for name, interval in found.items()}


def require_free(out: Path, *, resume: bool) -> None:
    """Raises ConfigurationError if `out` holds a search, or with `resume` if it holds none."""
    if resume and not (out / RECORD).exists():
        raise ConfigurationError(f"--resume: {out.name} holds no search to go on with: leave out --resume")
    if not resume and (out / RECORD).exists():
        raise ConfigurationError(f"{out.name} holds a search already: go on with --resume, or choose another --out")


def _claim(out: Path, identity: dict[str, Any], resume: bool) -> None:
    """Mark `out` as the folder of this search. Raises ConfigurationError if it holds another search, or if there is
    none to resume."""
    require_free(out, resume=resume)
    record = out / RECORD
    if resume and json.loads(record.read_text(encoding="utf-8")) != json.loads(json.dumps(identity)):
        raise ConfigurationError(
            f"--resume: the search in {out.name} is of another configuration or other features; start a new one"
        )
    out.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")


def _restorable(trials: Path) -> bool:
    """Whether Ray's state of the trials is complete. Ray overwrites it in place, so a kill may leave half of it. The
    trials then start again, and use the scores that they saved."""
    states = sorted(trials.glob("experiment_state-*.json"))
    try:
        json.loads(states[-1].read_text(encoding="utf-8"))
    except (IndexError, ValueError):
        return False
    return ray_tune.Tuner.can_restore(str(trials))


class _Progress(ray_tune.Callback):
    """Prints one line for each finished trial."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        done = sum(other.is_finished() for other in trials)
        error = trial.last_result.get("eer", float("nan"))
        print(f"{done} of {len(trials)}: EER {100 * error:.2f} % {trial.config}", file=sys.stderr, flush=True)


def _asha(folds: int) -> ASHAScheduler:
    """Stops trials that are in the worse half, for the first time after a third of the folds."""
    return ASHAScheduler(max_t=folds, grace_period=max(1, folds // 3), reduction_factor=2)


def _callbacks(out: Path, mlflow: str | None) -> list[ray_tune.Callback]:
    callbacks: list[ray_tune.Callback] = [_Progress()]
    if mlflow is not None:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        callbacks.append(MLflowLoggerCallback(tracking_uri=mlflow, experiment_name=out.name))
    return callbacks


def _write_results(out: Path, config: SearchConfig, rows: list[dict[str, Any]], folds: int) -> None:
    """`results.csv`, `best.yaml` for `tune.train --config`, and `parallel.png`."""
    with (out / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    point = {key: value for key, value in rows[0].items() if key in config.search.space}
    best = config.at(point).model_dump(mode="json")
    (out / "best.yaml").write_text(yaml.safe_dump(best, sort_keys=False), encoding="utf-8")
    complete = [row for row in rows if row["folds"] == folds]
    plot_parallel_coordinates(complete, list(config.search.space), "eer", out / "parallel.png")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tune.search", description=__doc__.split("\n")[0])
    add_corpus_arguments(parser)
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, help="such as configs/grid.yaml (default: configs/search.yaml)"
    )
    parser.add_argument("--out", default="runs/search", help="folder, or its URI (default %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on with the search in --out")
    parser.add_argument("--nested", action="store_true", help="also give a figure that may be quoted; slower")
    parser.add_argument("--mlflow", metavar="URI", help="log the trials to this MLflow server or folder, too")
    arguments = parser.parse_args(argv)
    config = parse(SearchConfig, arguments.config)
    # All that can be refused is refused before the work.
    require_no_front(config)
    config.require_space(nested=arguments.nested)
    if arguments.mlflow is not None and find_spec("mlflow") is None:
        raise ConfigurationError("--mlflow needs the package mlflow: pip install mlflow")
    clips = load_clips(arguments, config.speakers_of)
    folds = make_folds(clips, config.folds)
    if arguments.nested:
        require_calibration(clips, folds, config.calibration)
    with local_folder(arguments.out) as out:
        require_free(out, resume=arguments.resume)
        make_writable(out)
        tables = {
            preset: load_table(arguments, clips, preset, config.draws, config.vocoded) for preset in config.presets()
        }
        connect(arguments.address)
        rows = search(
            config,
            tables,
            out,
            resume=arguments.resume,
            nested=arguments.nested,
            mlflow=arguments.mlflow,
        )
        print((out / "results.csv").read_text(encoding="utf-8"), end="")
        if arguments.nested:
            quoted = json.loads((out / "nested.json").read_text(encoding="utf-8"))["eer"]
            print(f"nested: EER {Interval(**quoted).text(digits=4)}")
        finish(
            f"results.csv, parallel.png and, as the best of {len(rows)} points, best.yaml in {out}",
            f"python -m tune.train --config {out / 'best.yaml'}",
        )


if __name__ == "__main__":
    # Imported under the module's name, because Ray's workers cannot find what __main__ defines.
    from tune.search import main as command

    run(command)
