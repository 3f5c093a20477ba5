"""The Classifier: feature vectors in, a Verdict out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DetectorConfig
from pipeline.errors import BundleError
from pipeline.types import Features, OperatingPoint, Speech
from pipeline.verdict.aggregate import build_verdict, no_speech_verdict
from pipeline.verdict.answer import Verdict
from pipeline.verdict.bundle import Bundle, Scorer
from pipeline.verdict.head import raw_scores, standardize
from pipeline.verdict.parts import whole


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
        among: int = 1,
    ) -> Verdict:
        """The verdict on a recording, or on one of `among` channels, each of which may decide for all.

        Raises BundleError for features of another recipe or another backbone.
        """
        info = self.bundle.info
        if (features.spec_id, features.backbone_sha256) != (info.features.spec_id, info.backbone_sha256):
            raise BundleError(
                "the classifier's bundle was trained on other features than the extractor computes: "
                "deploy both with the same bundle"
            )
        narrow = features.quality.bandwidth_hz < self.config.decision.min_bandwidth_hz
        scorer = self.bundle.scorer(narrow=narrow)
        standardized = standardize(scorer.arrays, features.vectors, list(info.layers.values()))
        return build_verdict(
            features,
            scorer.calibration.scale * raw_scores(scorer.arrays, standardized) + scorer.calibration.offset,
            novelty=float(np.mean(np.square(standardized, dtype=np.float64))),
            scorer=scorer,
            bundle=self.bundle,
            config=self.config,
            operating_point=operating_point,
            among=among,
            layers=self._layers(features, scorer, standardized) if explain else None,
        )

    def no_speech(self, speech: Speech, *, use_diarization: bool) -> Verdict:
        """The verdict on a recording in which nobody speaks."""
        return no_speech_verdict(
            speech,
            use_diarization=use_diarization,
            bundle=self.bundle,
            config=self.config,
        )

    def _layers(self, features: Features, scorer: Scorer, standardized: NDArray[np.float32]) -> dict[str, float]:
        """What each layer adds to the mean of the calibrated scores: how much they fall where its features are set to
        the training data's mean (ablation). Of a linear head that is the layer's exact share."""
        info = self.bundle.info
        counted = info.features.reduction == "acn"
        sizes = [1] * len(info.layers) if counted else list(info.layers.values())
        edges = np.cumsum([0, *sizes])
        with_all = raw_scores(scorer.arrays, standardized)
        recording = whole(features)
        added = {}
        for layer, start, end in zip(info.layers, edges[:-1], edges[1:], strict=True):
            without = standardized.copy()
            without[:, start:end] = 0
            fall = recording.means(with_all - raw_scores(scorer.arrays, without))
            added[layer] = scorer.calibration.scale * float(fall[0])
        return added
