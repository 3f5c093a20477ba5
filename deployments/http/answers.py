"""The answers of the service as models for the OpenAPI document. Tests compare real answers with them."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field

from deployments.access import CANNOT_COUNT, NO_KEY, NOT_ALLOWED, USED_UP
from deployments.http.admission import BUSY, AdmissionConfig
from deployments.http.problems import FAILED
from deployments.results import Answer, FailedFile, FileName, JudgedFile, Problem, problem
from pipeline.audio.formats import ACCEPTED, ENDINGS, SUPPORTED_FORMATS
from pipeline.config import Decision, Limits
from pipeline.errors import (
    BundleError,
    EmptyAudio,
    InputError,
    KeyMissing,
    MissingInput,
    NotAllowed,
    Overloaded,
    RateExceeded,
    RecordingTooLong,
    RequestTimeout,
    SoundSentryError,
    StageFailed,
    StageTimeout,
    StageUnavailable,
    TooManyFiles,
    UnreadableAudio,
    UnsupportedFormat,
    UploadTooLarge,
    UploadTooSlow,
)
from pipeline.stream import LiveSettings
from pipeline.types import Label
from pipeline.verdict.answer import EXAMPLES, MEANINGS, Verdict
from pipeline.verdict.reasons import AnswerWarning, Reason, sentences

Timestamp = Annotated[str, Field(description="When this was answered: UTC, ISO 8601.")]


class PredictAnswer(Verdict):
    filename: FileName
    timestamp: Timestamp


class BatchAnswer(Answer):
    timestamp: Timestamp
    total_files: int = Field(description="Number of files that were sent.")
    successful: int = Field(description="Number of files with an answer, including those without speech.")
    failed: int = Field(description="Number of files with an error.")
    results: list[JudgedFile | FailedFile] = Field(description="One entry per file, in the order sent.")


class HomeAnswer(Answer):
    service: str = Field(description="The name of the service.")
    version: str = Field(description="The version of the service.")
    status: Literal["online"] = Field(description="Always `online`. See /health for the stages.")
    timestamp: Timestamp


class StageAnswer(Answer):
    status: Literal["healthy", "down", "unknown"] = Field(
        description="`down` if no replica works; `unknown` if Ray did not answer in time."
    )
    replicas: int = Field(description="How many replicas work.")


class HealthAnswer(Answer):
    status: Literal["healthy", "unhealthy"] = Field(description="`unhealthy` if a stage is not healthy.")
    classifier_loaded: bool = Field(description="Whether the Classifier is healthy.")
    timestamp: Timestamp
    stages: dict[str, StageAnswer] = Field(description="Each stage by its name.")


class InfoAnswer(Answer):
    model: dict[str, str | None] = Field(
        description="Name and SHA-256 of the model, and why another one was refused; null if none was."
    )
    operating_points: dict[str, dict[str, float]] = Field(
        description="The threshold of each operating point, as a log-likelihood ratio."
    )
    uncertainty: dict[str, float] = Field(description="How much each fault of a recording widens the interval.")
    features: dict[str, Any] = Field(description="The network, its layers, and what is computed from them.")
    duration_categories: dict[str, str] = Field(description="Each category of `duration_config`, with its lengths.")
    voice_activity: dict[str, Any] = Field(description="The settings for finding speech.")
    diarization: dict[str, Any] = Field(description="The settings for telling speakers apart.")
    windows: dict[str, float] = Field(description="Length and distance of the windows that get a score, in seconds.")
    decision: dict[str, float] = Field(description="The evidence that a verdict needs; the expected share of fakes.")
    possible_results: list[str] = Field(description="Every value that `overall` may have.")
    meanings: dict[str, str] = Field(description="Each result in a sentence.")
    reasons: dict[str, str] = Field(description="The possible `reasons` of an answer, each with its sentence.")
    warnings: dict[str, str] = Field(description="The possible `warnings` of an answer, each with its sentence.")
    limits: dict[str, float] = Field(description="The limits for a recording of /predict and /batch-predict.")
    live: dict[str, float | None] = Field(description="The limits for a stream of WS /stream.")
    jobs: dict[str, Any] | None = Field(description="The limits for a job of /jobs; null if the service has no jobs.")
    timeouts_seconds: dict[str, float] = Field(
        description="The limit for the whole request, and for each stage from its input to its answer, with its queue."
    )
    admission: dict[str, float] = Field(description="The limits for the work of a replica of the service.")
    supported_formats: list[str] = Field(description="The formats of recordings, by the usual ending of a name.")
    endings: list[str] = Field(description="Every ending of a name by which a recording is found in a folder.")
    timestamp: Timestamp


class UsageAnswer(Answer):
    keys: dict[str, dict[str, float]] = Field(description="What each key, by its name, has left of each limit.")
    timestamp: Timestamp


SHA256 = "9f2c4e0d6a1b8c3f7e5d2a9b4c6f8e1d3a5b7c9e0f2d4a6b8c1e3f5a7b9d0c2e"
TIMESTAMP = "2026-01-01T00:00:00Z"

FILE_NAME = "call.webm"


def predict_examples() -> dict[str, dict[str, Any]]:
    """An answer of each kind, as /predict returns it."""
    return {
        name: PredictAnswer(**dict(verdict), filename=FILE_NAME, timestamp=TIMESTAMP).model_dump(mode="json")
        for name, verdict in EXAMPLES.items()
    }


STAGE_ERRORS = (
    StageFailed("The TkanExtractor failed on this recording. There is no verdict on it."),
    StageUnavailable("The TkanExtractor is down or has too many requests waiting. Try again in a while."),
    StageTimeout.after(900, "Diarizer"),
    RequestTimeout(
        "The request was not answered within 1200 seconds: it was waiting for the Diarizer. Send a shorter recording, "
        "or try again later."
    ),
)

ACCESS_ERRORS = (
    KeyMissing(NO_KEY),
    NotAllowed(NOT_ALLOWED),
    RateExceeded(USED_UP, wait_seconds=12),
    StageUnavailable(CANNOT_COUNT),
)

OTHER_BUNDLE = BundleError(
    "the folder mine has another model bundle than when it was deployed: put the new bundle into a new folder, and "
    "deploy that"
)

UNFORESEEN = SoundSentryError(FAILED)
"""What every path answers to a bug of ours."""

COMMON_ERRORS = (*ACCESS_ERRORS, UNFORESEEN)

FORM_ERRORS = (
    Overloaded(BUSY),
    UploadTooSlow("The upload is too slow: send at least 4096 bytes a second, and all of it within 600 seconds."),
    MissingInput("Send the recording as a file in the field audio."),
    InputError("use_diarization: Input should be a valid boolean, unable to interpret input"),
    UploadTooLarge("Send at most 25 MiB a file."),
    TooManyFiles("Send at most 10 files in one request."),
)

AUDIO_ERRORS = (
    EmptyAudio("The file is empty. Send a recording."),
    UnreadableAudio(
        "The audio cannot be decoded: the file is damaged or incomplete. Export it again and send the new file."
    ),
    RecordingTooLong("The recording is longer than 600 seconds. Send it in parts."),
    UnsupportedFormat(f"The file is in none of the accepted formats. Send {ACCEPTED}."),
)


def ok(model: type[BaseModel], **examples: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """The successful response of an endpoint in OpenAPI, with its examples by name."""
    named = {name: {"summary": name.replace("_", " "), "value": value} for name, value in examples.items()}
    return {200: {"model": model, "content": {"application/json": {"examples": named}}}}


def problems(*errors: SoundSentryError) -> dict[int | str, dict[str, Any]]:
    """The error responses of an endpoint in OpenAPI: one per status, with one example per error."""
    responses: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        content = {"schema": Problem.model_json_schema(), "examples": {}}
        response = responses.setdefault(error.status, {"content": {"application/problem+json": content}})
        examples = response["content"]["application/problem+json"]["examples"]
        examples[error.kind()] = {"summary": error.title, "value": problem(error)}
        response["description"] = ", ".join(example["summary"] for example in examples.values())
    return responses


HOME = ok(
    HomeAnswer,
    online={"service": "Sound Sentry", "version": "1.2.3", "status": "online", "timestamp": TIMESTAMP},
)
HOME[200]["content"]["text/html"] = {}
HOME |= problems(*COMMON_ERRORS)

USAGE = ok(
    UsageAnswer,
    two_keys={
        "keys": {"moderation": {"requests": 588.5, "audio_seconds": -12.3}, "research": {}},
        "timestamp": TIMESTAMP,
    },
) | problems(*COMMON_ERRORS)

_STAGES = {
    stage: {"status": "healthy", "replicas": 1}
    for stage in ("Decoder", "VoiceActivityDetector", "Diarizer", "TkanExtractor", "Classifier")
}
_HEALTHY = {"status": "healthy", "classifier_loaded": True, "timestamp": TIMESTAMP, "stages": _STAGES}
_DOWN = {"status": "unhealthy", "stages": _STAGES | {"Diarizer": {"status": "down", "replicas": 0}}}
HEALTH = ok(HealthAnswer, healthy=_HEALTHY)
HEALTH[503] = {**ok(HealthAnswer, stage_down=_HEALTHY | _DOWN)[200], "description": "A stage is down"}
HEALTH |= problems(UNFORESEEN)

INFO = {
    **ok(
        InfoAnswer,
        defaults={
            "model": {"name": "default", "sha256": SHA256, "refused_update": None},
            "operating_points": {
                "balanced": {"threshold": 0.0},
                "recall": {"threshold": -1.1},
                "precision": {"threshold": 1.4},
            },
            "uncertainty": {
                "score_variance": 18.0,
                "window_variance": 0.9,
                "snr_db": 20.0,
                "snr_variance": 8.0,
                "novelty": 1.2,
                "novelty_variance": 300.0,
                "line_variance": 0.0,
            },
            "features": {
                "preset": "neuron-statistics",
                "backbone": "campplus",
                "backbone_sha256": SHA256,
                "layers": ["head.layer1", "xvector.tdnn"],
                "statistics": {"head.layer1": ["mean", "sd"], "xvector.tdnn": ["mean", "sd"]},
                "reduction": "none",
                "k": None,
                "dimension": 1536,
            },
            "duration_categories": {"very_short": "< 3 s", "short": "3-6 s", "normal": ">= 6 s"},
            "voice_activity": {"model": "segmentation-3.0", "onset": 0.5, "offset": 0.5},
            "diarization": {"pipeline": "embedded", "clustering_threshold": 0.7},
            "windows": {"seconds": 4.0, "hop_seconds": 2.0, "step_seconds": 0.5},
            "decision": Decision().model_dump(),
            "possible_results": list(get_args(Label)),
            "meanings": MEANINGS,
            "reasons": sentences(Reason),
            "warnings": sentences(AnswerWarning),
            "limits": Limits().model_dump(),
            "live": LiveSettings().model_dump(),
            "jobs": {
                "limits": Limits(max_upload_mib=200, max_duration_seconds=7200, max_files=20).model_dump(),
                "keep_results_hours": 24.0,
                "webhooks": True,
            },
            "timeouts_seconds": {
                "request": 1200.0,
                "Decoder": 90.0,
                "VoiceActivityDetector": 120.0,
                "Diarizer": 900.0,
                "TkanExtractor": 300.0,
                "Classifier": 30.0,
            },
            "admission": AdmissionConfig().model_dump(),
            "supported_formats": list(SUPPORTED_FORMATS),
            "endings": sorted(ENDINGS),
            "timestamp": TIMESTAMP,
        },
    ),
    **problems(*COMMON_ERRORS, *STAGE_ERRORS),
}

PREDICT = {
    **ok(
        PredictAnswer,
        **predict_examples(),
    ),
    **problems(*COMMON_ERRORS, *FORM_ERRORS, *AUDIO_ERRORS, *STAGE_ERRORS, OTHER_BUNDLE),
}

BATCH = {
    **ok(
        BatchAnswer,
        one_broken_file={
            "timestamp": TIMESTAMP,
            "total_files": 2,
            "successful": 1,
            "failed": 1,
            "results": [
                JudgedFile(**dict(EXAMPLES["fake"]), filename=FILE_NAME, status="success").model_dump(mode="json"),
                {"filename": "notes.txt", "status": "failed", "error": problem(AUDIO_ERRORS[-1])},
            ],
        },
    ),
    **problems(*COMMON_ERRORS, *FORM_ERRORS),
}

REPORT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The report"},
    **problems(
        *COMMON_ERRORS,
        Overloaded(BUSY),
        UploadTooSlow("The upload is too slow: send at least 4096 bytes a second, and all of it within 600 seconds."),
        UploadTooLarge("Send at most 4 MiB."),
        InputError("This is not an answer of this service: the file: Invalid JSON. Send one as it was received."),
    ),
}
