"""The Classifier: feature vectors in, a Verdict out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DetectorConfig
from pipeline.errors import OtherFeatures
from pipeline.types import Features, FeatureSource, Occluded, OperatingPoint, Speech
from pipeline.verdict import explanation as explanations
from pipeline.verdict.aggregate import build_verdict, no_speech_verdict
from pipeline.verdict.answer import Verdict
from pipeline.verdict.bundle import Bundle, Scorer
from pipeline.verdict.head import raw_scores, standardize


class Classifier:
    """Scores windows with the bundle's head and calibration, and gathers them into a verdict."""

    def __init__(self, config: DetectorConfig, bundle: Bundle | None = None) -> None:
        self.config = config
        self.bundle = bundle or Bundle.load(config.bundle_path)
        info = self.bundle.info
        self.source = FeatureSource(config.bundle, info.features.spec_id, info.backbone_sha256)

    def classify(
        self,
        features: Features,
        operating_point: OperatingPoint = "balanced",
        explain: bool = False,
        among: int = 1,
        watch: Callable[[float], None] | None = None,
    ) -> Verdict:
        """The verdict on a recording, or on one of `among` channels, each of which may decide for all.

        If the recording has a wide band, `watch` is called with its score before uncertainty draws it to 0.
        Raises OtherFeatures for features of another recipe or another backbone.
        """
        info = self.bundle.info
        if not self.source.gives(features.spec_id, features.backbone_sha256):
            raise OtherFeatures(
                "the classifier's bundle was trained on other features than the extractor computes: "
                "deploy both with the same bundle",
                self.source,
            )
        scorer = self._scorer(features)
        standardized = standardize(scorer.arrays, features.vectors, list(info.layers.values()))
        scores = _calibrated(scorer, standardized)
        if watch and not features.narrow:
            watch(float(scores.mean()))
        verdict = build_verdict(
            features,
            scores,
            novelty=float(np.mean(np.square(standardized, dtype=np.float64))),
            scorer=scorer,
            bundle=self.bundle,
            config=self.config,
            operating_point=operating_point,
            among=among,
        )
        if not explain:
            return verdict
        explanation = explanations.explain(
            verdict, features, scores, standardized, scorer, info, self.config.decision.prior
        )
        return verdict.model_copy(update={"explanation": explanation})

    def explain_bands(self, verdict: Verdict, features: Features, occluded: Occluded) -> Verdict:
        """`verdict` with the bands of its explanation.

        This Classifier must have given the verdict for `features`, with an explanation. `occluded` has the features of
        the moments as they are, and with each band hidden.
        """
        if not occluded:
            return verdict
        scorer = self._scorer(features)
        sizes = list(self.bundle.info.layers.values())
        scores, with_all, *without = (
            _calibrated(scorer, standardize(scorer.arrays, vectors, sizes)) for vectors in (features.vectors, *occluded)
        )
        explanation = explanations.with_bands(
            verdict, features, scores, with_all, without, scorer.humans, self.config.decision.prior
        )
        return verdict.model_copy(update={"explanation": explanation})

    def no_speech(self, speech: Speech, *, use_diarization: bool) -> Verdict:
        """The verdict on a recording in which nobody speaks."""
        return no_speech_verdict(
            speech,
            use_diarization=use_diarization,
            bundle=self.bundle,
            config=self.config,
        )

    def _scorer(self, features: Features) -> Scorer:
        return self.bundle.scorer(narrow=features.narrow)


def _calibrated(scorer: Scorer, standardized: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-likelihood ratios (windows,)."""
    return scorer.calibration.scale * raw_scores(scorer.arrays, standardized) + scorer.calibration.offset
