"""The model bundle: what training hands to serving, as a folder without a pickle in it.

`classifier.safetensors` holds the arrays of the head, `front.safetensors` the tuned parameters of the backbone where it
has any, `bundle.json` everything else that decides a verdict, `model_card.md` what a person should know. The SHA-256 of
`bundle.json`, which itself names those of the arrays and of the backbone's weights, stands for the whole.
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
from pipeline.networks.tkan import TkanSpec

Arrays = dict[str, NDArray[np.float32]]


class Calibration(Strict):
    """Raw score -> log-likelihood ratio: scale * score + offset."""

    scale: float = Field(gt=0)
    offset: float


class Thresholds(Strict):
    """Operating points as log-likelihood ratios, recall <= balanced <= precision.

    Scores closer than `margin` to the threshold are too close to call.
    """

    balanced: float
    recall: float
    precision: float
    margin: float = Field(ge=0)


class BundleInfo(Strict):
    """All of `bundle.json`.

    `layers` gives the number of features each layer yields, in their order. `window_sd` is the standard deviation
    of a window's log-likelihood ratio around its recording's, for the interval of a verdict. `novelty_limit` is the
    mean squared standardised feature above which a recording is unlike the training data. `metrics`, `corpus`,
    `versions` and `seed` are the record of the training run.
    """

    format: Literal[3] = 3
    name: str
    features: TkanSpec
    layers: dict[str, int]
    backbone_sha256: str
    head: Literal["linear", "quadratic", "tuned", "mlp"]
    classifier_sha256: str
    calibration: Calibration
    thresholds: Thresholds
    window_sd: float = Field(ge=0)
    novelty_limit: float = Field(gt=0)
    metrics: dict[str, Any]
    corpus: dict[str, Any]
    versions: dict[str, str]
    seed: int


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle. `arrays` are those of `pipeline.verdict.head`, `front` the tuned parameters of the backbone
    `campplus-front`; None where a backbone is used as it was published."""

    info: BundleInfo
    arrays: Arrays
    sha256: str
    front: Arrays | None = None

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Read and verify a bundle. Raises BundleError for one that is missing, damaged or of another format."""
        try:
            text = (folder / "bundle.json").read_bytes()
            weights = (folder / "classifier.safetensors").read_bytes()
            info = BundleInfo.model_validate_json(text)
            if hashlib.sha256(weights).hexdigest() != info.classifier_sha256:
                raise BundleError(
                    f"the arrays of model bundle {folder.name} are not those of its bundle.json: copy the bundle anew"
                )
            front = None
            if info.features.backbone == "campplus-front":
                tuned = (folder / "front.safetensors").read_bytes()
                if hashlib.sha256(tuned).hexdigest() != info.backbone_sha256:
                    raise BundleError(
                        f"the front of model bundle {folder.name} is not that of its bundle.json: copy the bundle anew"
                    )
                front = load(tuned)
            return cls(info, load(weights), hashlib.sha256(text).hexdigest(), front)
        except FileNotFoundError as error:
            raise BundleError(
                f"there is no complete model bundle in the folder {folder.name}: set `bundle` in the "
                "configuration to a folder that python -m tune.train wrote"
            ) from error
        except ValidationError as error:
            raise BundleError(
                f"model bundle {folder.name} has a bad bundle.json, or one of another version: "
                f"{describe_misfits(error)}: copy the bundle anew, or train it anew with python -m tune.train"
            ) from error
        except SafetensorError as error:
            raise BundleError(f"model bundle {folder.name} has unreadable arrays: copy the bundle anew") from error


def save_bundle(folder: Path, info: BundleInfo, arrays: Arrays, model_card: str, front: Arrays | None = None) -> Bundle:
    """Write a bundle; `info.classifier_sha256` is filled in here. Returns it as loading it would."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = save(arrays)
    info = info.model_copy(update={"classifier_sha256": hashlib.sha256(weights).hexdigest()})
    (folder / "classifier.safetensors").write_bytes(weights)
    if front is not None:
        (folder / "front.safetensors").write_bytes(save(front))
    (folder / "bundle.json").write_text(json.dumps(info.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")
    (folder / "model_card.md").write_text(model_card, encoding="utf-8")
    return Bundle.load(folder)
