"""What the service answers, as models for the OpenAPI document; the tests hold real answers against them."""

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from pipeline.audio.formats import SUPPORTED_FORMATS
from pipeline.config import Limits
from pipeline.errors import (
    EmptyAudio,
    InputError,
    MissingInput,
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
)
from pipeline.types import Label

Probability = float | None


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")


class DetailAnswer(Answer):
    speaker: str | None = Field(description="Null where the recording was not diarized.")
    start: float
    end: float
    time: str
    result: Label
    probability: float


class SpeakerAnswer(Answer):
    speaker: str
    result: Label
    probability: float
    speech_seconds: float


class TimelineAnswer(Answer):
    start: float
    step_seconds: float
    probability: list[Probability] = Field(description="One value a step; null where nobody speaks.")


class DurationAnswer(Answer):
    use_diarization: bool
    category: Literal["very_short", "short", "normal"]


class ModelAnswer(Answer):
    name: str
    sha256: str


class LayerAnswer(Answer):
    layer: str
    score: float


class ExplanationAnswer(Answer):
    layers: list[LayerAnswer]


class VerdictAnswer(Answer):
    """Probabilities are of the speech being fake, calibrated; null where there is no speech."""

    overall: Label
    mean_probability: Probability
    max_probability: Probability
    min_probability: Probability
    confidence: Probability = Field(description="|2p - 1| of mean_probability.")
    score: float | None = Field(description="Calibrated log-likelihood ratio, natural logarithm; higher is fake.")
    interval: tuple[float, float] | None = Field(description="90 % interval of mean_probability.")
    reasons: list[str] = Field(description="Why the answer is Inconclusive; empty where it is not.")
    details: list[DetailAnswer] = Field(description="One entry a turn where diarized, else a speech segment.")
    speakers: list[SpeakerAnswer] = Field(description="Empty where the recording was not diarized.")
    timeline: TimelineAnswer
    duration_config: DurationAnswer
    duration_seconds: float
    speech_seconds: float
    original_format: str
    model: ModelAnswer
    warnings: list[str]
    explanation: ExplanationAnswer | None = Field(None, description="Only where asked for with `explain`.")
    filename: str | None


class PredictAnswer(VerdictAnswer):
    timestamp: str


class Problem(Answer):
    """An RFC 9457 problem document."""

    type: str
    title: str
    status: int
    detail: str


class FailedFile(Answer):
    filename: str | None
    status: Literal["failed"]
    error: Problem


class JudgedFile(VerdictAnswer):
    status: Literal["success", "no_speech"]


class BatchAnswer(Answer):
    timestamp: str
    total_files: int
    successful: int = Field(description="Files that were answered, those without speech included.")
    failed: int
    results: list[JudgedFile | FailedFile] = Field(description="One entry a file, in the order sent.")


class HomeAnswer(Answer):
    service: str
    version: str
    status: Literal["online"]
    timestamp: str


class StageAnswer(Answer):
    status: Literal["healthy", "down", "unknown"]
    replicas: int


class HealthAnswer(Answer):
    status: Literal["healthy", "unhealthy"]
    classifier_loaded: bool
    timestamp: str
    stages: dict[str, StageAnswer]


class InfoAnswer(Answer):
    model: dict[str, str | None]
    operating_points: dict[str, dict[str, float]]
    inconclusive_margin: float
    features: dict[str, Any]
    duration_categories: dict[str, str]
    voice_activity: dict[str, Any]
    diarization: dict[str, Any]
    windows: dict[str, float]
    possible_results: list[str]
    limits: dict[str, float]
    timeouts_seconds: dict[str, float] = Field(
        description="How long the whole request may take, and each stage once its input is there, its queue included."
    )
    supported_formats: list[str]
    timestamp: str


SHA256 = "9f2c4e0d6a1b8c3f7e5d2a9b4c6f8e1d3a5b7c9e0f2d4a6b8c1e3f5a7b9d0c2e"
TIMESTAMP = "2026-01-01T00:00:00Z"

VERDICT = {
    "overall": "Fake",
    "mean_probability": 0.7234,
    "max_probability": 0.91,
    "min_probability": 0.41,
    "confidence": 0.4468,
    "score": 0.9609,
    "interval": [0.61, 0.82],
    "reasons": [],
    "details": [
        {
            "speaker": "SPEAKER_00",
            "start": 0.3,
            "end": 1.4,
            "time": "0.3-1.4s",
            "result": "Fake",
            "probability": 0.6752,
        }
    ],
    "speakers": [{"speaker": "SPEAKER_00", "result": "Fake", "probability": 0.7234, "speech_seconds": 1.1}],
    "timeline": {"start": 0.0, "step_seconds": 0.5, "probability": [0.41, 0.91, 0.7, None]},
    "duration_config": {"use_diarization": True, "category": "very_short"},
    "duration_seconds": 1.9,
    "speech_seconds": 1.1,
    "original_format": "webm",
    "model": {"name": "default", "sha256": SHA256},
    "warnings": [],
    "filename": "call.webm",
}

NO_SPEECH = VERDICT | {
    "overall": "No Speech",
    "mean_probability": None,
    "max_probability": None,
    "min_probability": None,
    "confidence": None,
    "score": None,
    "interval": None,
    "details": [],
    "speakers": [],
    "timeline": {"start": 0.0, "step_seconds": 0.5, "probability": [None, None, None, None]},
    "speech_seconds": 0.0,
}

INCONCLUSIVE = VERDICT | {
    "overall": "Inconclusive",
    "mean_probability": 0.55,
    "confidence": 0.1,
    "score": 0.2007,
    "interval": [0.12, 0.91],
    "reasons": ["near_threshold"],
}


def problem(error: SoundSentryError) -> dict[str, Any]:
    """The problem document of an error. Its type leads to the documentation of the service."""
    return {
        "type": f"/docs#{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
    }


STAGE_ERRORS = (
    StageFailed("The TkanExtractor failed on this recording. Nothing can be said about it."),
    StageUnavailable("The TkanExtractor is down or has too many requests waiting. Try again in a while."),
    StageTimeout("The Diarizer did not answer within 900 seconds. Try again later or send a shorter recording."),
    RequestTimeout(
        "The request was not answered within 1200 seconds: it was waiting for the Diarizer. Send a shorter recording, "
        "or try again later."
    ),
)

FORM_ERRORS = (
    MissingInput("Send the recording as a file in the field audio."),
    InputError("use_diarization: Input should be a valid boolean, unable to interpret input"),
    UploadTooLarge("Send at most 25 MiB a file."),
    TooManyFiles("Send at most 10 files in one request."),
)

AUDIO_ERRORS = (
    EmptyAudio("The file has no bytes. Send one that holds a recording."),
    UnreadableAudio("The audio is damaged. Export it anew and send it again."),
    RecordingTooLong("Send at most 600 seconds of audio."),
    UnsupportedFormat("This is not audio in a supported format. Send WAV, MP3, WEBM, OGG, M4A, FLAC, OPUS or AAC."),
)


def ok(model: type[BaseModel], **examples: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """The successful response of an endpoint in OpenAPI, with its examples by name."""
    named = {name: {"summary": name.replace("_", " "), "value": value} for name, value in examples.items()}
    return {200: {"model": model, "content": {"application/json": {"examples": named}}}}


def problems(*errors: SoundSentryError) -> dict[int | str, dict[str, Any]]:
    """The responses of an endpoint in OpenAPI that are errors: one a status, with an example an error."""
    responses: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        content = {"schema": Problem.model_json_schema(), "examples": {}}
        response = responses.setdefault(error.status, {"content": {"application/problem+json": content}})
        examples = response["content"]["application/problem+json"]["examples"]
        examples[error.code] = {"summary": error.title, "value": problem(error)}
        response["description"] = ", ".join(example["summary"] for example in examples.values())
    return responses


HOME = ok(
    HomeAnswer,
    online={"service": "Sound Sentry", "version": "0.1.0", "status": "online", "timestamp": TIMESTAMP},
)
HOME[200]["content"]["text/html"] = {}

_STAGES = {
    stage: {"status": "healthy", "replicas": 1}
    for stage in ("Decoder", "VoiceActivityDetector", "Diarizer", "TkanExtractor", "Classifier")
}
_HEALTHY = {"status": "healthy", "classifier_loaded": True, "timestamp": TIMESTAMP, "stages": _STAGES}
_DOWN = {"status": "unhealthy", "stages": _STAGES | {"Diarizer": {"status": "down", "replicas": 0}}}
HEALTH = ok(HealthAnswer, healthy=_HEALTHY)
HEALTH[503] = {**ok(HealthAnswer, stage_down=_HEALTHY | _DOWN)[200], "description": "A stage is down"}

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
            "inconclusive_margin": 0.2,
            "features": {
                "preset": "neuron-statistics",
                "backbone": "campplus",
                "backbone_sha256": SHA256,
                "layers": ["head.layer1", "xvector.tdnn"],
                "statistics": ["mean", "sd"],
                "reduction": "none",
                "k": None,
                "dimension": 1536,
            },
            "duration_categories": {"very_short": "< 3 s", "short": "3-6 s", "normal": ">= 6 s"},
            "voice_activity": {"model": "segmentation-3.0", "onset": 0.5, "offset": 0.5},
            "diarization": {"pipeline": "embedded", "clustering_threshold": 0.7},
            "windows": {"seconds": 4.0, "hop_seconds": 2.0, "step_seconds": 0.5},
            "possible_results": list(get_args(Label)),
            "limits": Limits().model_dump(),
            "timeouts_seconds": {
                "request": 1200.0,
                "Decoder": 90.0,
                "VoiceActivityDetector": 120.0,
                "Diarizer": 900.0,
                "TkanExtractor": 300.0,
                "Classifier": 30.0,
            },
            "supported_formats": list(SUPPORTED_FORMATS),
            "timestamp": TIMESTAMP,
        },
    ),
    **problems(*STAGE_ERRORS),
}

PREDICT = {
    **ok(
        PredictAnswer,
        fake=VERDICT | {"timestamp": TIMESTAMP},
        inconclusive=INCONCLUSIVE | {"timestamp": TIMESTAMP},
        no_speech=NO_SPEECH | {"timestamp": TIMESTAMP},
    ),
    **problems(*FORM_ERRORS, *AUDIO_ERRORS, *STAGE_ERRORS),
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
                VERDICT | {"status": "success"},
                {"filename": "notes.txt", "status": "failed", "error": problem(AUDIO_ERRORS[-1])},
            ],
        },
    ),
    **problems(*FORM_ERRORS),
}
