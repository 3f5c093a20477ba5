"""All keys that the `args` and the `user_config`s of serve_config.yaml may hold."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, field_validator, model_validator
from ray.serve.exceptions import RayServeException
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from deployments.access import AccessConfig
from deployments.http.admission import AdmissionConfig
from pipeline.config import ROOT, Limits, Strict, describe_misfits
from pipeline.stream import LiveSettings


class Stage(Strict):
    """A stage of the graph. `timeout_seconds` limits its time from its input to its answer, including the queue."""

    timeout_seconds: float = Field(gt=0)


class AcceleratedStage(Stage):
    """A stage that uses a GPU if the cluster has one: the CPUs, and the share of a GPU, that each replica reserves."""

    cpu_share: float = Field(ge=0)
    gpu_fraction: float = Field(ge=0)


class Stages(Strict):
    """All stages, by the names of their deployments."""

    Decoder: Stage = Stage(timeout_seconds=90)
    VoiceActivityDetector: AcceleratedStage = AcceleratedStage(timeout_seconds=120, cpu_share=0.2, gpu_fraction=0.1)
    Diarizer: AcceleratedStage = AcceleratedStage(timeout_seconds=900, cpu_share=0.3, gpu_fraction=0.3)
    TkanExtractor: AcceleratedStage = AcceleratedStage(timeout_seconds=300, cpu_share=0.4, gpu_fraction=0.3)
    Classifier: AcceleratedStage = AcceleratedStage(timeout_seconds=30, cpu_share=0.1, gpu_fraction=0)


class JobLimits(Limits):
    """The limits for a file of a job. They are like those of /predict, but higher. Eight channels of two hours would
    not fit into memory, so all channels together may last twice as long as one."""

    max_upload_mib: float = Field(200, gt=0)
    max_duration_seconds: float = Field(7_200, gt=0)
    max_split_durations: float = Field(2, ge=1)
    max_files: int = Field(20, ge=1)
    max_decode_seconds: float = Field(600, gt=0)


class JobSettings(Strict):
    """All of `jobs`.

    `folder` holds the sound of jobs until they are done. It also holds the database, unless `database` is the URL of
    another: `sqlite:///PATH` or `postgresql://USER@HOST/NAME`. If the graph has several nodes, all of them must see the
    folder, and the database must be PostgreSQL.

    Each replica of the JobRunner judges `parallel_files` at a time. `max_waiting_files` may wait, half of them of one
    key. A file may take `file_seconds`. A file whose stage or runner is lost is tried `max_attempts` times. A runner
    that does not renew its lease for `lease_seconds` counts as lost. Finished jobs and their results are kept for
    `keep_results_hours`, and while their webhook is pending. Each replica of the ingress serves /jobs/{job_id}/events
    to `max_followers` clients at a time.

    Webhooks are signed with the secret in `webhook_secret_file`, at least 16 bytes. Its path should be absolute,
    because it is not relative to the repository root. Without such a file there are no webhooks. They may reach public
    addresses and `webhook_networks`. Each is tried `webhook_attempts` times; the first pause takes
    `webhook_first_pause_seconds`, and each further pause four times as long. A webhook that is still pending an hour
    after the sum of all pauses has failed.
    """

    folder: Path = Path("var/jobs")
    database: str | None = None
    limits: JobLimits = JobLimits()
    parallel_files: int = Field(1, ge=1)
    max_waiting_files: int = Field(200, ge=1)
    file_seconds: float = Field(7_200, gt=0)
    max_attempts: int = Field(3, ge=1)
    lease_seconds: float = Field(30, ge=5)
    keep_results_hours: float = Field(24, gt=0, le=876_000)  # a century, so that the day of its end is a date
    max_followers: int = Field(16, ge=0)
    webhook_secret_file: Path | None = None
    webhook_networks: tuple[IPv4Network | IPv6Network, ...] = ()
    webhook_attempts: int = Field(6, ge=1, le=100)  # the pause after the last fits a float
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
    """All of `args`. Relative paths are relative to the repository root, except `jobs.webhook_secret_file`.

    `serve_config` names the file that holds these arguments, so that keys that Serve itself ignores are checked at the
    start; leave it out if there is no such file. `accelerator: auto` uses GPUs if the cluster has any when the
    application is built. With `embedded` every replica of the Ingress and of the JobRunner runs all stages itself,
    instead of calling deployments. `request_timeout_seconds` limits the time of all stages together. `live` limits the
    streams of /stream. `jobs` configures /jobs; null turns it off.
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
        """Raises RayServeException: Serve shows its message without a stack trace, and does not try again."""
        try:
            return validate(values)
        except ValidationError as error:
            raise RayServeException(describe_misfits(error, "args.", cls)) from error


class FrontSettings(Strict):
    """The `request_router_kwargs` of the Ingress: how long the headers of a request may take, and how large the body of
    a POST may be."""

    header_timeout_seconds: float = Field(gt=0)
    max_body_mib: float = Field(gt=0)


class ClassifierSettings(Strict):
    """The Classifier's `user_config`: the folder of the model bundle, relative to the repository root."""

    bundle: Path


class ExtractorSettings(Strict):
    """The TkanExtractor's `user_config`: how many recordings are in a batch, how long the first of them waits, and how
    many of the backbone's three fronts are computed at the same time on a CPU."""

    max_batch_size: int = Field(1, ge=1)
    batch_wait_timeout_seconds: float = Field(0.0, ge=0)
    fronts_at_once: int = Field(1, ge=1, le=3)
