"""Client of Sound Sentry: is this speech a human's or a machine's?

The client only talks to the service. It judges nothing itself, and imports neither torch nor Ray nor the code of the
service.
"""

from sound_sentry.audio import Audio
from sound_sentry.calls import Options
from sound_sentry.client import AsyncSoundSentry, SoundSentry
from sound_sentry.errors import (
    AccessRefused,
    JobNotFinished,
    NoAnswer,
    NotFound,
    RequestRefused,
    ServiceError,
    ServiceFailed,
    ServiceUnavailable,
    SoundSentryError,
    TooManyRequests,
    UnexpectedAnswer,
)
from sound_sentry.models import (
    Batch,
    Health,
    Info,
    Job,
    JobList,
    JobSummary,
    Prediction,
    StreamUpdate,
    StreamVerdict,
    Verdict,
)
from sound_sentry.stream import StreamOptions

__all__ = [
    "AccessRefused",
    "AsyncSoundSentry",
    "Audio",
    "Batch",
    "Health",
    "Info",
    "Job",
    "JobList",
    "JobNotFinished",
    "JobSummary",
    "NoAnswer",
    "NotFound",
    "Options",
    "Prediction",
    "RequestRefused",
    "ServiceError",
    "ServiceFailed",
    "ServiceUnavailable",
    "SoundSentry",
    "SoundSentryError",
    "StreamOptions",
    "StreamUpdate",
    "StreamVerdict",
    "TooManyRequests",
    "UnexpectedAnswer",
    "Verdict",
]
