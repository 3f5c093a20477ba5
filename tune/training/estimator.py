"""The only estimator: reduction, scaler, imbalance handling and head, fitted together on a training part.

The result is the arrays that serving uses (`pipeline.verdict.head`), so a fold is tested with the arithmetic of a
deployment.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from imblearn.over_sampling import SMOTE, RandomOverSampler
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.linalg import cholesky, solve_triangular
from sklearn.decomposition import PCA
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from pipeline.config import Strict
from pipeline.verdict.bundle import Arrays
from pipeline.verdict.head import count_activated, raw_scores, standardize
from tune.errors import CorpusError
from tune.training.folds import Indices, tied_groups
from tune.training.table import FeatureKind, Table

Matrix = NDArray[np.float32]

LIMIT = 2.0
"""Standardised features are clipped at this many standard deviations, so that no single neuron decides."""


class LogisticHead(Strict):
    """Logistic regression with an L2 penalty. `c` is the inverse of its strength. The features are divided by the
    square root of their number, so that one `c` suits recipes of any dimension."""

    kind: Literal["logistic"] = "logistic"
    c: float = Field(10.0, gt=0)


class RidgeHead(Strict):
    """Least squares to 1 for spoof and -1 for bona fide, with an L2 penalty. The features are divided by the square
    root of their number. A clip counts once, by the mean of its windows. Each of its copies is weighted by
    `copies_weight`, and a clip of the background by `background_weight`."""

    kind: Literal["ridge"] = "ridge"
    penalty: float = Field(0.5, gt=0)
    copies_weight: float = Field(0.5, gt=0)
    background_weight: float = Field(0.3, gt=0)


class QuadraticHead(Strict):
    """Like RidgeHead, on the first `components` principal components and on the products of each pair of them.

    This is kernel ridge regression with the kernel (1 + x'y / s) ** 2, where s is the mean squared length.
    """

    kind: Literal["quadratic"]
    components: int = Field(256, ge=1)
    penalty: float = Field(0.5, gt=0)
    copies_weight: float = Field(0.5, gt=0)
    background_weight: float = Field(0.3, gt=0)


class MlpHead(Strict):
    """A perceptron with ReLU. `stop_share` of the speakers are kept out of the training. Training stops when the loss
    on them has not fallen for `patience` epochs, and the best weights are restored. `feature_noise` is the standard
    deviation of noise on the standardised features."""

    kind: Literal["mlp"]
    hidden: tuple[int, ...] = Field((512, 512, 512, 512), min_length=1)
    dropout: float = Field(0.5, ge=0, lt=1)
    feature_noise: float = Field(0.01, ge=0)
    learning_rate: float = Field(5e-4, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    batch_size: int = Field(256, ge=2)
    max_epochs: int = Field(60, ge=1)
    patience: int = Field(8, ge=1)
    stop_share: float = Field(0.15, gt=0, le=0.5)


class EstimatorConfig(Strict):
    """`imbalance`: `weights` gives both classes the same weight, `oversample` repeats rows of the rarer class, `smote`
    adds synthetic rows to it."""

    imbalance: Literal["none", "weights", "oversample", "smote"] = "weights"
    head: Annotated[LogisticHead | RidgeHead | QuadraticHead | MlpHead, Field(discriminator="kind")] = RidgeHead()
    seed: int = 0

    @model_validator(mode="after")
    def _ridge_weighs(self) -> Self:
        if self.head.kind in ("ridge", "quadratic") and self.imbalance not in ("none", "weights"):
            raise ValueError(f"imbalance {self.imbalance} is not for the {self.head.kind} head: choose none or weights")
        return self


def fit(config: EstimatorConfig, table: Table, clips: Indices) -> Arrays:
    """Fit everything on `clips` of `table` only. Returns the arrays of `pipeline.verdict.head`."""
    if isinstance(config.head, LogisticHead):
        inputs, labels, arrays = _prepare(config, table, clips)
        weights = _fit_logistic(config, inputs, labels)
    elif isinstance(config.head, RidgeHead):
        inputs, labels, arrays = _prepare(config, table, clips)
        weights = _fit_ridge(config.head, *_clip_rows(config, config.head, table, clips, inputs, labels))
    elif isinstance(config.head, QuadraticHead):
        inputs, labels, arrays = _prepare(config, table, clips)
        weights = _fit_quadratic(
            config.head, *_clip_rows(config, config.head, table, clips, inputs, labels), config.seed
        )
    else:
        train, stop = _stopping_split(table, clips, config.head.stop_share, config.seed)
        inputs, labels, arrays = _prepare(config, table, train)
        rows = table.rows(stop)
        held_out = standardize(arrays, table.vectors[rows], list(table.kind.layers.values()))
        weights = _fit_mlp(config, inputs, labels, held_out, table.labels[table.owner[rows]])
    return arrays | {name: np.asarray(value, dtype=np.float32) for name, value in weights.items()}


def score_windows(arrays: Arrays, vectors: Matrix, kind: FeatureKind) -> NDArray[np.float64]:
    """(windows, dimension) features -> (windows,) raw scores, higher = spoof."""
    return raw_scores(arrays, standardize(arrays, vectors, list(kind.layers.values())))


def _class_weight(config: EstimatorConfig) -> Literal["balanced"] | None:
    return "balanced" if config.imbalance == "weights" else None


def _prepare(config: EstimatorConfig, table: Table, clips: Indices) -> tuple[Matrix, NDArray[np.bool_], Arrays]:
    """Standardised, balanced rows to train the head on, their labels, and the fitted arrays."""
    rows = table.training_rows(clips)
    vectors, labels = table.vectors[rows], table.spoof[rows]
    arrays: Arrays = {}
    if table.kind.spec.reduction == "acn":
        sizes = list(table.kind.layers.values())
        edges = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        arrays["thresholds"] = (np.add.reduceat(vectors.mean(axis=0), edges) / sizes).astype(np.float32)
        vectors = count_activated(vectors, arrays["thresholds"], sizes)
    # Fitted on clips like those that will be judged: noisy and coded copies and other corpora would widen the scale.
    scaler = StandardScaler().fit(vectors[(table.copy[rows] == 0) & table.judged[table.owner[rows]]])
    arrays["mean"], arrays["scale"] = scaler.mean_.astype(np.float32), scaler.scale_.astype(np.float32)
    arrays["limit"] = np.array([LIMIT], np.float32)
    inputs = np.clip((vectors - arrays["mean"]) / arrays["scale"], -LIMIT, LIMIT)
    if config.imbalance in ("oversample", "smote"):
        sampler: Any = SMOTE if config.imbalance == "smote" else RandomOverSampler
        try:
            inputs, labels = sampler(random_state=config.seed).fit_resample(inputs, labels)
        except ValueError as error:
            raise CorpusError(f"imbalance {config.imbalance}: the training part is too small: {error}") from error
    return inputs, labels, arrays


def _fit_logistic(config: EstimatorConfig, inputs: Matrix, labels: NDArray[np.bool_]) -> dict[str, Any]:
    """Weight and bias of a logistic regression on inputs / sqrt(dimension), converted to apply to the inputs.

    If there are fewer rows than features, it is fitted in the space of the rows, on the Cholesky factor of their inner
    products. The solution is the same (representer theorem), and it is many times faster.
    """
    assert isinstance(config.head, LogisticHead)
    head = LogisticRegression(
        C=config.head.c, class_weight=_class_weight(config), tol=1e-6, max_iter=10_000, random_state=config.seed
    )
    rows, dimension = inputs.shape
    scale = 1 / math.sqrt(dimension)
    if rows >= dimension:
        head.fit(inputs * np.float32(scale), labels)
        return {"weight": head.coef_[0] * scale, "bias": head.intercept_}
    products = (inputs @ inputs.T).astype(np.float64) / dimension
    factor = cholesky(products + 1e-6 * np.eye(rows), lower=True)
    head.fit(factor, labels)
    weight_of_rows = solve_triangular(factor, head.coef_[0], lower=True, trans="T").astype(np.float32)
    return {"weight": inputs.T @ weight_of_rows * scale**2, "bias": head.intercept_}


def _clip_rows(
    config: EstimatorConfig,
    head: RidgeHead | QuadraticHead,
    table: Table,
    clips: Indices,
    inputs: Matrix,
    labels: NDArray[np.bool_],
) -> tuple[Matrix, NDArray[np.bool_], NDArray[np.float64]]:
    """One row for each clip and each copy: the mean over its windows, (rows, dimension); its label; and its weight."""
    rows = table.training_rows(clips)
    # The windows of a clip are adjacent, and so are those of a copy.
    owner, copy = table.owner[rows], table.copy[rows]
    starts = np.flatnonzero(np.diff(owner, prepend=-1) | np.diff(copy, prepend=-1))
    windows = np.diff(starts, append=len(rows)).astype(np.float32)
    sums: Matrix = np.add.reduceat(inputs, starts)
    means = sums / windows[:, None]
    labels = labels[starts]
    weights = np.where(copy[starts] == 0, 1.0, head.copies_weight)
    weights[~table.judged[owner[starts]]] *= head.background_weight
    if config.imbalance == "weights":
        weights[labels] *= weights[~labels].sum() / weights[labels].sum()
    return means, labels, weights


def _fit_ridge(
    head: RidgeHead, means: Matrix, labels: NDArray[np.bool_], weights: NDArray[np.float64]
) -> dict[str, Any]:
    """Weight and bias of a ridge regression on means / sqrt(dimension), converted to apply to the features."""
    scale = 1 / math.sqrt(means.shape[1])
    # Uses inner products of rows, because there are fewer rows than features (representer theorem). The 1 is the bias.
    products = (means @ means.T).astype(np.float64) * scale**2 + 1
    dual = kernel_ridge(products, labels, weights, head.penalty)
    return {"weight": means.T @ dual.astype(np.float32) * scale**2, "bias": [dual.sum()]}


def _fit_quadratic(
    head: QuadraticHead, means: Matrix, labels: NDArray[np.bool_], weights: NDArray[np.float64], seed: int
) -> dict[str, Any]:
    """The arrays of a quadratic head. Its kernel has a finite number of products, so the sum over the training rows
    becomes one matrix."""
    components = min(head.components, *means.shape)
    reduction = PCA(components, svd_solver="randomized", random_state=seed).fit(means)
    projection = reduction.components_.T.astype(np.float32)
    origin = (reduction.mean_ @ projection).astype(np.float32)
    reduced = (means @ projection - origin).astype(np.float64)
    scale = 1 / np.square(reduced).sum(axis=1).mean()
    dual = kernel_ridge((1 + scale * reduced @ reduced.T) ** 2, labels, weights, head.penalty)
    return {
        "projection": projection,
        "origin": origin,
        "quadratic": scale**2 * (reduced.T * dual) @ reduced,
        "weight": 2 * scale * reduced.T @ dual,
        "bias": [dual.sum()],
    }


def kernel_ridge(
    products: NDArray[np.float64], labels: NDArray[np.bool_], weights: NDArray[np.float64], penalty: float
) -> NDArray[np.float64]:
    """The dual coefficients, (rows,), of a kernel ridge regression to 1 for spoof and -1 for bona fide."""
    ridge = KernelRidge(alpha=penalty, kernel="precomputed")
    dual: NDArray[np.float64] = ridge.fit(products, np.where(labels, 1.0, -1.0), sample_weight=weights).dual_coef_
    return dual


def _stopping_split(table: Table, clips: Indices, share: float, seed: int) -> tuple[Indices, Indices]:
    """Clips to train on, and clips of other speakers that decide when to stop."""
    labels = table.labels[clips]
    groups = tied_groups([table.clips[i] for i in clips])
    parts = max(2, round(1 / share))
    if min(len(set(groups[labels])), len(set(groups[~labels]))) < parts:
        raise CorpusError(
            f"early stopping needs {parts} independent groups of speakers of each class in the training part: "
            "use more data, a larger stop_share, or the logistic head"
        )
    splitter = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
    train, stop = next(splitter.split(labels, labels, groups))
    return clips[train], clips[stop]


def _fit_mlp(
    config: EstimatorConfig,
    inputs: Matrix,
    labels: NDArray[np.bool_],
    held_out: Matrix,
    held_out_labels: NDArray[np.bool_],
) -> dict[str, NDArray[np.float32]]:
    head = config.head
    assert isinstance(head, MlpHead)
    generator = torch.Generator().manual_seed(config.seed)
    x, y = torch.from_numpy(inputs), torch.from_numpy(labels.astype(np.float32))
    held_x, held_y = torch.from_numpy(held_out), torch.from_numpy(held_out_labels.astype(np.float32))
    spoof_weight = (1 - y.mean()) / y.mean() if config.imbalance == "weights" else torch.tensor(1.0)
    loss_of = nn.BCEWithLogitsLoss(pos_weight=spoof_weight)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        linears = [
            nn.Linear(size, out) for size, out in zip((x.shape[1], *head.hidden), (*head.hidden, 1), strict=True)
        ]
        network = nn.Sequential()
        for linear in linears[:-1]:
            network.extend([linear, nn.ReLU(), nn.Dropout(head.dropout)])
        network.append(linears[-1])
        optimizer = torch.optim.AdamW(network.parameters(), lr=head.learning_rate, weight_decay=head.weight_decay)
        best_loss, best, waited = math.inf, _copy(linears), 0
        for _ in range(head.max_epochs):
            network.train()
            order = torch.randperm(len(x), generator=generator)
            for batch in torch.split(order, head.batch_size):
                noise = torch.randn(len(batch), x.shape[1], generator=generator) * head.feature_noise
                optimizer.zero_grad()
                loss_of(network(x[batch] + noise)[:, 0], y[batch]).backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
            network.eval()
            with torch.no_grad():
                loss = float(loss_of(network(held_x)[:, 0], held_y))
            waited += 1
            if loss < best_loss:
                best_loss, best, waited = loss, _copy(linears), 0
            elif waited >= head.patience:
                break
    arrays = {}
    for number, (weight, bias) in enumerate(best):
        arrays[f"weight_{number}"], arrays[f"bias_{number}"] = weight.T.numpy(), bias.numpy()
    return arrays


def _copy(linears: list[nn.Linear]) -> list[tuple[Tensor, Tensor]]:
    return [(linear.weight.detach().clone(), linear.bias.detach().clone()) for linear in linears]
