"""The Classifier: feature vectors in, a Verdict out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DetectorConfig
from pipeline.errors import BundleError
from pipeline.types import Features, OperatingPoint, Quality, Speech
from pipeline.verdict.aggregate import build_verdict, no_speech_verdict, worth_of_scores
from pipeline.verdict.answer import Verdict
from pipeline.verdict.bundle import Bundle
from pipeline.verdict.head import contributions, raw_scores, standardize


class Classifier:
    """Scores windows with the bundle's head and calibration, and gathers them into a verdict."""

    def __init__(self, config: DetectorConfig, bundle: Bundle | None = None) -> None:
        self.config = config
        self.bundle = bundle or Bundle.load(config.bundle_path)

    def classify(
        self,
        features: Features,
        operating_point: OperatingPoint = "balanced",
        explain: bool = False,
    ) -> Verdict:
        """The verdict on a recording. Raises BundleError for features of another recipe or another backbone."""
        info = self.bundle.info
        if (features.spec_id, features.backbone_sha256) != (info.features.spec_id, info.backbone_sha256):
            raise BundleError(
                "the classifier's bundle was trained on other features than the extractor computes: "
                "deploy both with the same bundle"
            )
        standardized = standardize(self.bundle.arrays, features.vectors, list(info.layers.values()))
        scores = info.calibration.scale * raw_scores(self.bundle.arrays, standardized) + info.calibration.offset
        return build_verdict(
            features,
            scores,
            novelty=float(np.mean(np.square(standardized, dtype=np.float64))),
            bundle=self.bundle,
            config=self.config,
            operating_point=operating_point,
            explanation=self._explain(standardized, features.quality) if explain else None,
        )

    def no_speech(self, speech: Speech, *, use_diarization: bool) -> Verdict:
        """The verdict on a recording in which nobody speaks."""
        return no_speech_verdict(
            speech,
            use_diarization=use_diarization,
            bundle=self.bundle,
            config=self.config,
        )

    def _explain(self, standardized: NDArray[np.float32], quality: Quality) -> tuple[tuple[str, float], ...] | None:
        """What each layer adds to the calibrated score, averaged over windows; linear heads only."""
        info = self.bundle.info
        if "weight" not in self.bundle.arrays:
            return None
        added = contributions(self.bundle.arrays, standardized).mean(axis=0)
        added *= info.calibration.scale * worth_of_scores(quality, self.config.decision)
        counted = info.features.reduction == "acn"
        sizes = [1] * len(info.layers) if counted else list(info.layers.values())
        shares = np.add.reduceat(added, np.cumsum([0, *sizes[:-1]]))
        return tuple((layer, float(share)) for layer, share in zip(info.layers, shares, strict=True))
