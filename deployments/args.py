"""What the `args` and the `user_config`s of serve_config.yaml may say, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator
from ray.serve.exceptions import RayServeException

from deployments.http.access import AccessConfig
from deployments.http.admission import AdmissionConfig
from pipeline.config import Strict, describe_misfits


class Stage(Strict):
    """A stage of the graph. `timeout_seconds` is how long it may take once its input is there, its queue included."""

    timeout_seconds: float = Field(gt=0)


class AcceleratedStage(Stage):
    """A stage that uses a GPU where the cluster has one: what each replica reserves of a CPU, and of a GPU."""

    cpu_share: float = Field(ge=0)
    gpu_fraction: float = Field(ge=0)


class Stages(Strict):
    """Every stage by the name of its deployment."""

    Decoder: Stage = Stage(timeout_seconds=90)
    VoiceActivityDetector: AcceleratedStage = AcceleratedStage(timeout_seconds=120, cpu_share=0.2, gpu_fraction=0.1)
    Diarizer: AcceleratedStage = AcceleratedStage(timeout_seconds=900, cpu_share=0.3, gpu_fraction=0.3)
    TkanExtractor: AcceleratedStage = AcceleratedStage(timeout_seconds=300, cpu_share=0.4, gpu_fraction=0.3)
    Classifier: AcceleratedStage = AcceleratedStage(timeout_seconds=30, cpu_share=0.1, gpu_fraction=0)


class BuildArgs(Strict):
    """All of `args`. Relative paths are relative to the repository root.

    `serve_config` names the file that holds these very arguments, so that the keys Serve itself would overlook are
    checked at start; leave it out where there is no such file. `accelerator: auto` takes GPUs where the cluster has
    any when the application is built. `request_timeout_seconds` is how long all stages together may take.
    """

    serve_config: Path | None = None
    config: Path = Path("configs/detector.yaml")
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    cors_origins: tuple[str, ...] = ()
    access: AccessConfig = AccessConfig()
    admission: AdmissionConfig = AdmissionConfig()
    request_timeout_seconds: float = Field(1200, gt=0)
    stages: Stages = Stages()

    @model_validator(mode="wrap")
    @classmethod
    def _refuse(cls, values: Any, validate: ModelWrapValidatorHandler[BuildArgs]) -> BuildArgs:
        """Raises RayServeException: Serve shows its message and no stack, and does not try again."""
        try:
            return validate(values)
        except ValidationError as error:
            raise RayServeException(describe_misfits(error, "args.", cls)) from error


class FrontSettings(Strict):
    """The `request_router_kwargs` of the Ingress: how long the headers of a request may take."""

    header_timeout_seconds: float = Field(gt=0)


class ClassifierSettings(Strict):
    """The Classifier's `user_config`: the folder of the model bundle, relative to the repository root."""

    bundle: Path


class BatchSettings(Strict):
    """The TkanExtractor's `user_config`: how many recordings go together, and how long one waits for others."""

    max_batch_size: int = Field(1, ge=1)
    batch_wait_timeout_seconds: float = Field(0.0, ge=0)
