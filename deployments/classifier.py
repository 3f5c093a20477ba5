"""The Classifier: features in, verdict out."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
from ray import serve

from deployments import metrics, refusals
from deployments.args import ClassifierSettings
from deployments.probe import PROBE_SPEECH
from pipeline.config import DetectorConfig
from pipeline.errors import SoundSentryError
from pipeline.stages import classify as stage
from pipeline.types import Features, Occluded, OperatingPoint, Quality, Speech, Window
from pipeline.verdict.answer import Verdict

logger = logging.getLogger("ray.serve")


@serve.deployment
class Classifier:
    """Serves the bundle that its `user_config` names, or else the bundle of the configuration.

    Another bundle can replace it while requests are served. If that was trained on other features, `classify` raises
    OtherFeatures, and the graph has them extracted.
    """

    def __init__(self, config: DetectorConfig) -> None:
        refusals.log_in_one_line()
        self._config = config
        self._configured = stage.Classifier(config).source
        self._classifier: stage.Classifier | None = None
        self._refusal: str | None = None

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load and test the bundle. A bad one is an error at the start. Later it is refused, and the old one stays."""
        try:
            self._classifier = self._load(ClassifierSettings.model_validate(user_config))
            self._refusal = None
        except Exception as error:
            if self._classifier is None:
                raise
            # After an error here Serve would stop this replica and start one that cannot start.
            self._refusal = error.detail if isinstance(error, SoundSentryError) else type(error).__name__
            logger.exception("The new bundle is refused; the old one goes on serving.")

    def _load(self, settings: ClassifierSettings) -> stage.Classifier:
        config = self._config.model_copy(update={"bundle": settings.bundle})
        loaded = stage.Classifier(config)
        if not self._configured.gives(loaded.source.spec_id, loaded.source.backbone_sha256):
            # Here, because this module is also imported where torch is not needed.
            from pipeline.stages.extract import TkanExtractor

            TkanExtractor(config)  # raises an error if no TkanExtractor can compute its features
        _try(loaded)
        return loaded

    def classify(
        self, features: Features, operating_point: OperatingPoint, explain: bool, among: int, is_update: bool = False
    ) -> Verdict:
        """As `pipeline.stages.classify` defines it. `is_update`: whether it is only for an update of a stream."""
        serving = self._serving  # another bundle may replace it during this call

        def watch(score: float) -> None:
            certainty = serving.bundle.certainty(score)
            if certainty is not None:
                metrics.observe_certainty(certainty, serving.bundle.sha256)

        # Updates come twice a second, so they would outweigh recordings.
        return serving.classify(features, operating_point, explain, among, None if is_update else watch)

    def explain_bands(self, verdict: Verdict, features: Features, occluded: Occluded) -> Verdict:
        """`verdict` with the bands of its explanation. A verdict of an earlier bundle is returned unchanged."""
        serving = self._serving
        if verdict.model.sha256 != serving.bundle.sha256:
            return verdict
        return serving.explain_bands(verdict, features, occluded)

    def no_speech(self, speech: Speech, use_diarization: bool) -> Verdict:
        return self._serving.no_speech(speech, use_diarization=use_diarization)

    def describe(self) -> dict[str, Any]:
        """The part of /info about the bundle in use, and why the last new bundle was refused, if it was."""
        bundle = self._serving.bundle
        info = bundle.info
        return {
            "model": {"name": info.name, "sha256": bundle.sha256, "refused_update": self._refusal},
            "operating_points": {
                point: {"threshold": getattr(info.thresholds, point)} for point in ("balanced", "recall", "precision")
            },
            "uncertainty": info.uncertainty.model_dump(),
            "features": {
                "preset": info.features.name,
                "backbone": info.features.backbone,
                "backbone_sha256": info.backbone_sha256,
                "layers": list(info.layers),
                "statistics": {layer: list(info.features.statistics_of(layer)) for layer in info.layers},
                "reduction": info.features.reduction,
                "k": info.features.k if info.features.reduction == "top_k" else None,
                "dimension": len(bundle.arrays["mean"]),
            },
        }

    async def check_health(self) -> None:
        await asyncio.to_thread(_try, self._serving)

    @property
    def _serving(self) -> stage.Classifier:
        assert self._classifier is not None, "Serve calls reconfigure before it sends requests"
        return self._classifier


def _try(candidate: stage.Classifier) -> None:
    """Classify one window of the bundle's own average features, for a wide band and for a narrow one.

    Raises an error if the arrays do not fit each other.
    """
    info = candidate.bundle.info
    for narrow in (False, True):
        candidate.classify(
            Features(
                windows=(Window(PROBE_SPEECH.segments),),
                vectors=np.zeros((1, sum(info.layers.values())), np.float32),
                spec_id=info.features.spec_id,
                backbone_sha256=info.backbone_sha256,
                quality=Quality(snr_db=30.0, bandwidth_hz=8_000.0, drop_db=20.0),
                narrow=narrow,
                speech=PROBE_SPEECH,
                turns=None,
            )
        )
