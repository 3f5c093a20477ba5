"""The application builder that serve_config.yaml names."""

# No `from __future__ import annotations` here, because Serve reads the annotation of the builder.

import logging

import ray
from ray.serve import Application, Deployment
from ray.serve.exceptions import RayServeException
from sqlalchemy.engine import make_url

from deployments.args import AcceleratedStage, BuildArgs, JobSettings
from deployments.check import check_serve_config
from deployments.classifier import Classifier
from deployments.decoder import Decoder
from deployments.diarizer import Diarizer
from deployments.http.ingress import Ingress
from deployments.jobs.idle import Idle
from deployments.jobs.runner import JobRunner
from deployments.jobs.webhooks import read_secret
from deployments.tkan_extractor import TkanExtractor
from deployments.voice_activity import VoiceActivityDetector
from pipeline.config import ROOT, DetectorConfig
from pipeline.errors import ConfigurationError

logger = logging.getLogger("ray.serve")


def usable_jobs(jobs: JobSettings | None) -> JobSettings | None:
    """`jobs`, or None if the nodes of the cluster could not share them.

    Raises ConfigurationError if webhooks could not be signed, or if a SQLite database is named for several nodes.
    """
    if jobs is None:
        return None
    if jobs.webhook_secret_file:
        read_secret(jobs.webhook_secret_file)
    nodes = sum(node["Alive"] for node in ray.nodes())
    if nodes == 1 or make_url(jobs.database_url).get_backend_name() != "sqlite":
        return jobs
    needed = (
        f"The cluster has {nodes} nodes, which cannot share SQLite. Name a PostgreSQL database as jobs.database, and "
        "as jobs.folder a folder that all nodes see."
    )
    if jobs.database:
        raise ConfigurationError(f"jobs.database: {needed}")
    logger.warning("There are no jobs. %s", needed)
    return None


def build(args: BuildArgs) -> Application:
    """The graph, for the cluster this runs on. Raises RayServeException that names the key to correct."""
    try:
        if args.serve_config is not None:
            check_serve_config(ROOT / args.serve_config)
        config = DetectorConfig.load(ROOT / args.config)
        jobs = usable_jobs(args.jobs)
    except ConfigurationError as error:
        # Serve shows its message without a stack trace, and does not try again.
        raise RayServeException(error.detail) from error

    gpus = args.accelerator == "gpu" or (args.accelerator == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    on_cpu = config.model_copy(update={"device": "cpu"})

    def place(deployment: Deployment, stage: AcceleratedStage) -> Application:
        gpu_fraction = stage.gpu_fraction if gpus else 0
        options = {"num_cpus": stage.cpu_share, "num_gpus": gpu_fraction}
        return deployment.options(ray_actor_options=options).bind(config if gpu_fraction else on_cpu)

    settings = args.stages
    classifier = _deployment(Classifier).options(user_config={"bundle": str(config.bundle)})
    ingress, runner = _deployment(Ingress), _deployment(JobRunner)
    # Jobs have a decoder of their own, because their files may be larger and take longer than those of /predict.
    larger = config
    if jobs:
        larger = config.model_copy(update={"limits": jobs.limits, "decoders": jobs.parallel_files})
    stages = stages_of_jobs = None
    if args.embedded:
        accelerated = [stage for _, stage in settings if isinstance(stage, AcceleratedStage)]
        options = {
            "num_cpus": sum(stage.cpu_share for stage in accelerated),
            "num_gpus": sum(stage.gpu_fraction for stage in accelerated) if gpus else 0,
        }
        ingress, runner = (one.options(ray_actor_options=options) for one in (ingress, runner))
        config, larger = (one.model_copy(update={"device": one.device if gpus else "cpu"}) for one in (config, larger))
    else:
        stages = {
            "Decoder": _deployment(Decoder).bind(config),
            "VoiceActivityDetector": place(_deployment(VoiceActivityDetector), settings.VoiceActivityDetector),
            "Diarizer": place(_deployment(Diarizer), settings.Diarizer),
            "TkanExtractor": place(_deployment(TkanExtractor), settings.TkanExtractor),
            "Classifier": place(classifier, settings.Classifier),
        }
        stages_of_jobs = stages | {"Decoder": _deployment(Decoder).options(name="JobDecoder").bind(larger)}
    if jobs:
        jobs_runner = runner.bind(larger, jobs, args.access, args.admission.max_body_seconds, stages_of_jobs)
    elif args.jobs:
        idle = _deployment(Idle)
        decoder = [] if args.embedded else [idle.options(name="JobDecoder").bind()]
        jobs_runner = idle.options(name="JobRunner").bind(*decoder)
    else:
        jobs_runner = None
    return ingress.bind(
        config,
        args.cors_origins,
        args.access,
        args.admission,
        stage_seconds={name: stage.timeout_seconds for name, stage in settings},
        request_seconds=args.request_timeout_seconds,
        live=args.live,
        jobs=jobs,
        runner=jobs_runner,
        stages=stages,
    )


def _deployment(stage: object) -> Deployment:
    """The Deployment that `serve.deployment` made of a class. Type checkers ignore what class decorators return."""
    assert isinstance(stage, Deployment)
    return stage
