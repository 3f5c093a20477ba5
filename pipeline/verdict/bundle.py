"""The model bundle: what training hands to serving, as a folder without a pickle in it.

- `classifier.safetensors`: the arrays of the head.
- `front.safetensors`: the parameters of the fronts, if the backbone has tuned ones.
- `bundle.json`: everything else that decides a verdict.
- `model_card.md`: what a person should know.

The SHA-256 of `bundle.json` identifies the whole bundle, because `bundle.json` holds the SHA-256 of the arrays and of
the backbone's weights.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.config import Strict, describe_misfits
from pipeline.errors import BundleError
from pipeline.networks.spec import TkanSpec

Arrays = dict[str, NDArray[np.float32]]

NARROW = "narrow."
"""The prefix of the names of the arrays of the head for narrow bands."""


class Calibration(Strict):
    """Raw score -> log-likelihood ratio: scale * score + offset."""

    scale: float = Field(gt=0)
    offset: float


class Thresholds(Strict):
    """Operating points as log-likelihood ratios, recall <= balanced <= precision."""

    balanced: float
    recall: float
    precision: float


class Uncertainty(Strict):
    """How far a calibrated score may be from the score that endless clean speech would get.

    `pipeline.verdict.evidence` has the formula. All variances are of log-likelihood ratios.

    `score_variance`: the variance of the scores of endless clean speech, over recordings. `window_variance`: the
    variance of the scores of windows around the score of their recording. `snr_variance`: what noise adds if the
    signal-to-noise ratio is 10 dB below `snr_db`; it grows with the square of this distance. `novelty_variance`: what a
    sound unlike the training data adds if its novelty is e times `novelty`; it grows with the square of the logarithm
    of this ratio, and is 0 below `novelty`. The novelty of a recording is its mean squared standardised feature.
    `line_variance`: added by the telephone line of a recording with a narrow band.
    """

    score_variance: float = Field(gt=0)
    window_variance: float = Field(ge=0)
    snr_db: float
    snr_variance: float = Field(ge=0)
    novelty: float = Field(gt=0)
    novelty_variance: float = Field(ge=0)
    line_variance: float = Field(0.0, ge=0)


HeadKind = Literal["linear", "quadratic", "tuned", "mlp"]


class NarrowBand(Strict):
    """How recordings of a narrow band, such as a telephone's, are scored.

    They have their own calibration, and their own head if the bundle has arrays named `narrow.…`. Without such arrays
    they are scored by the other head. The thresholds are the same as for other recordings. `trusted`: whether the
    scores are good enough for answers; if not, the narrow band counts as a fault of the sound.
    """

    head: HeadKind
    trusted: bool
    calibration: Calibration
    uncertainty: Uncertainty


Range = tuple[float, float]
"""Lower and upper end."""


class HumanRanges(Strict):
    """The middle 90 % of the shares in explanations of humans' recordings, as log-likelihood ratios: of all moments, of
    each layer, and of each band. The recordings are those that the detector was measured by."""

    moments: Range
    layers: dict[str, Range]
    bands: tuple[Range, ...]


class BundleInfo(Strict):
    """All of `bundle.json`.

    `layers` gives the number of features each layer yields, in their order. `metrics`, `corpus`, `versions` and `seed`
    are the record of the training run.
    """

    format: Literal[7] = 7
    name: str
    features: TkanSpec
    layers: dict[str, int]
    backbone_sha256: str
    head: HeadKind
    classifier_sha256: str
    calibration: Calibration
    thresholds: Thresholds
    uncertainty: Uncertainty
    narrow: NarrowBand | None = None
    humans: HumanRanges | None = None
    metrics: dict[str, Any]
    corpus: dict[str, Any]
    versions: dict[str, str]
    seed: int


@dataclass(frozen=True)
class Scorer:
    """A head, and what turns its raw scores into evidence. `is_narrow`: whether it was made for a narrow band and is
    trusted with it. `humans`: the ranges that its explanations are compared with."""

    arrays: Arrays
    calibration: Calibration
    uncertainty: Uncertainty
    is_narrow: bool = False
    humans: HumanRanges | None = None


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    `arrays`: those that `pipeline.verdict.head` describes. `front`: the parameters of the fronts of the backbone
    `campplus-front`; None for a backbone that is used as it was published.
    """

    info: BundleInfo
    arrays: Arrays
    sha256: str
    front: Arrays | None = None

    def scorer(self, *, narrow: bool = False) -> Scorer:
        """The head to score a recording with: for a narrow band the one made for it, if there is one."""
        info = self.info
        if narrow and info.narrow:
            arrays = head_arrays(self.arrays, narrow=True)
            return Scorer(arrays, info.narrow.calibration, info.narrow.uncertainty, info.narrow.trusted)
        return Scorer(head_arrays(self.arrays, narrow=False), info.calibration, info.uncertainty, humans=info.humans)

    def certainty(self, score: float) -> float | None:
        """The share of the tested clips whose scores are nearer to zero than `score`.

        A bundle knows it only for the half of the clips that are nearest to zero; for other scores it is 1. None if the
        bundle does not know it at all.
        """
        rows = self.info.metrics.get("coverage")
        if not rows:
            return None
        distances, answered = zip(*((row["distance"], row["answered"]) for row in rows), strict=True)
        return float(np.interp(abs(score), distances, 1 - np.array(answered), right=1))

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Read and verify a bundle. Raises BundleError for one that is missing, damaged or of another format."""
        try:
            text = (folder / "bundle.json").read_bytes()
            weights = (folder / "classifier.safetensors").read_bytes()
            info = BundleInfo.model_validate_json(text)
            if hashlib.sha256(weights).hexdigest() != info.classifier_sha256:
                raise BundleError(
                    f"the arrays of model bundle {folder.name} are not those of its bundle.json: copy the bundle again"
                )
            front = None
            if info.features.backbone == "campplus-front":
                tuned = (folder / "front.safetensors").read_bytes()
                if hashlib.sha256(tuned).hexdigest() != info.backbone_sha256:
                    raise BundleError(
                        f"the fronts of model bundle {folder.name} are not those of its bundle.json: copy it again"
                    )
                front = load(tuned)
            return cls(info, load(weights), hashlib.sha256(text).hexdigest(), front)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BundleError(
                f"there is no complete model bundle in the folder {folder.name}: set `bundle` in the "
                "configuration to a folder that python -m tune.train wrote"
            ) from error
        except ValidationError as error:
            raise BundleError(
                f"model bundle {folder.name} has a bad bundle.json, or one of another version: "
                f"{describe_misfits(error)}: copy the bundle again, or train it again with python -m tune.train"
            ) from error
        except SafetensorError as error:
            raise BundleError(f"model bundle {folder.name} has unreadable arrays: copy the bundle again") from error


def head_arrays(arrays: Arrays, *, narrow: bool) -> Arrays:
    """The arrays of one head of a bundle: with `narrow` the head for narrow bands, if there is one, else the other."""
    of_narrow_head = {name.removeprefix(NARROW): array for name, array in arrays.items() if name.startswith(NARROW)}
    if narrow and of_narrow_head:
        return of_narrow_head
    return {name: array for name, array in arrays.items() if not name.startswith(NARROW)}


def save_bundle(folder: Path, info: BundleInfo, arrays: Arrays, model_card: str, front: Arrays | None = None) -> Bundle:
    """Write a bundle and load it again. `info.classifier_sha256` is filled in here."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = save(arrays)
    info = info.model_copy(update={"classifier_sha256": hashlib.sha256(weights).hexdigest()})
    (folder / "classifier.safetensors").write_bytes(weights)
    if front is not None:
        (folder / "front.safetensors").write_bytes(save(front))
    (folder / "bundle.json").write_text(json.dumps(info.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    (folder / "model_card.md").write_text(model_card, encoding="utf-8", errors="backslashreplace")
    return Bundle.load(folder)
