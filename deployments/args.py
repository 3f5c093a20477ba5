"""What the `args` and the `user_config`s of serve_config.yaml may say, and nothing else."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, field_validator, model_validator
from ray.serve.exceptions import RayServeException
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from deployments.http.access import AccessConfig
from deployments.http.admission import AdmissionConfig
from pipeline.config import ROOT, Limits, Strict, describe_misfits
from pipeline.stream import LiveSettings


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


class JobLimits(Limits):
    """What a file of a job may be: as of an upload to /predict, with more room."""

    max_upload_mib: float = Field(200, gt=0)
    max_duration_seconds: float = Field(7_200, gt=0)
    max_files: int = Field(20, ge=1)
    max_decode_seconds: float = Field(600, gt=0)


class JobSettings(Strict):
    """All of `jobs`.

    `folder` holds the sound of jobs until they are done, and the database, unless `database` names another by its URL:
    `sqlite:///PATH` or `postgresql://USER@HOST/NAME`. Where the graph has several nodes, all of them have to see the
    folder, and the database has to be PostgreSQL.

    `parallel_files` are judged at a time by each replica of the JobRunner, and `max_waiting_files` may wait. A file may
    take `file_seconds`; one whose stage or runner is lost is tried `max_attempts` times. A runner that is not heard of
    for `lease_seconds` counts as lost. Jobs and results are kept for `keep_results_hours` once they are finished.
    `max_followers` may listen to /jobs/{job_id}/events of each replica of the ingress at a time.

    Webhooks are signed with what `webhook_secret_file` holds; with no such file there are none. They reach public
    addresses and `webhook_networks`, and are tried `webhook_attempts` times, with pauses that begin with
    `webhook_first_pause_seconds` and grow fourfold.
    """

    folder: Path = Path("var/jobs")
    database: str | None = None
    limits: JobLimits = JobLimits()
    parallel_files: int = Field(1, ge=1)
    max_waiting_files: int = Field(200, ge=1)
    file_seconds: float = Field(7_200, gt=0)
    max_attempts: int = Field(3, ge=1)
    lease_seconds: float = Field(30, ge=5)
    keep_results_hours: float = Field(24, gt=0)
    max_followers: int = Field(16, ge=0)
    webhook_secret_file: Path | None = None
    webhook_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    webhook_attempts: int = Field(6, ge=1)
    webhook_first_pause_seconds: float = Field(10, gt=0)

    @field_validator("database")
    @classmethod
    def _is_known(cls, database: str | None) -> str | None:
        try:
            is_known = database is None or make_url(database).get_backend_name() in ("sqlite", "postgresql")
        except ArgumentError:
            is_known = False
        if not is_known:
            raise ValueError("a URL that begins with sqlite:/// or postgresql:// is needed")
        return database

    @property
    def sound_path(self) -> Path:
        return ROOT / self.folder / "sound"

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{ROOT / self.folder / 'jobs.sqlite3'}"

    @property
    def keep_seconds(self) -> float:
        return self.keep_results_hours * 3_600


class BuildArgs(Strict):
    """All of `args`. Relative paths are relative to the repository root.

    `serve_config` names the file that holds these very arguments, so that the keys Serve itself would overlook are
    checked at start; leave it out where there is no such file. `accelerator: auto` takes GPUs where the cluster has
    any when the application is built. `embedded` has every replica of the Ingress, and of the JobRunner, hold all
    stages itself, in place of deployments of their own. `request_timeout_seconds` is how long all stages together may
    take. `live` bounds the streams of /stream; `jobs` is about /jobs, and null for a service without.
    """

    serve_config: Path | None = None
    config: Path = Path("configs/detector.yaml")
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    embedded: bool = False
    cors_origins: tuple[str, ...] = ()
    access: AccessConfig = AccessConfig()
    admission: AdmissionConfig = AdmissionConfig()
    request_timeout_seconds: float = Field(1200, gt=0)
    live: LiveSettings = LiveSettings()
    jobs: JobSettings | None = JobSettings()
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
