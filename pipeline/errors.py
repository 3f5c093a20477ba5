"""Every error the product raises on purpose.

SoundSentryError
├── InputError                     the caller can correct it
│   ├── MissingInput          422  no file
│   ├── EmptyAudio            422  a file of no bytes, or with no audio samples
│   ├── UnsupportedFormat     415  not one of the accepted formats
│   ├── UploadTooLarge        413  more bytes than allowed
│   ├── RecordingTooLong      413  decodes to more seconds than allowed
│   ├── TooManyFiles          413  more files than a request may hold
│   ├── UploadTooSlow         408  a body that arrives too slowly
│   ├── UnreadableAudio       422  broken, out of limits, or ambiguous audio
│   ├── WebhookRefused        422  an address that no webhook is sent to
│   ├── StreamStopped         408  a live stream that stopped sending
│   └── StreamTooFast         429  a live stream that sends sound faster than it can be recorded
├── AccessError                    the caller has no right to this
│   ├── KeyMissing            401  no key, or one that is not known
│   ├── NotAllowed            403  a key or a site that may not do this
│   └── RateExceeded          429  a key that has used up its allowance for now
├── Overloaded                503  the service has more work than it can take
├── JobError
│   ├── JobNotFound           404  a job that does not exist or was deleted
│   ├── IdempotencyConflict   409  an idempotency key that was used for another request
│   ├── SoundLost             500  the files of a job are no longer in its folder
│   ├── StoreUnavailable      503  the database or the folder of the jobs cannot be used
│   └── NamesUnavailable      503  the name of a webhook cannot be looked up at present
├── ConfigurationError        500  a key or value in a configuration file
├── ModelUnavailable          503  weights missing, unverified or not licensed to this token
├── BundleError               500  a model bundle that is damaged or does not fit
│   └── OtherFeatures         500  features that the model bundle in use was not trained on
├── RequestTimeout            504  all stages together took too long
└── StageError                     a stage of the graph failed
    ├── StageFailed           500  it raised an unexpected error
    ├── StageUnavailable      503  it is down or overloaded
    └── StageTimeout          504  it took too long

`detail` is a sentence for the user that says what to do. It never holds a path, a stack trace or a decoder's message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pipeline.types import FeatureSource


class SoundSentryError(Exception):
    """Base of the hierarchy. `status` is the HTTP status, `title` the class of problem in words."""

    status = 500
    title = "Internal error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    @classmethod
    def kind(cls) -> str:
        """The kind of problem as a short name for programs, such as `unsupported-format`."""
        return "".join("-" + c.lower() if c.isupper() else c for c in cls.__name__).lstrip("-")


class InputError(SoundSentryError):
    status = 422
    title = "Input not usable"


class MissingInput(InputError):
    title = "Input missing"


class EmptyAudio(InputError):
    title = "Empty audio"


class UnsupportedFormat(InputError):
    status = 415
    title = "Unsupported format"


class UploadTooLarge(InputError):
    status = 413
    title = "Upload too large"


class RecordingTooLong(InputError):
    status = 413
    title = "Recording too long"


class TooManyFiles(InputError):
    status = 413
    title = "Too many files"


class UploadTooSlow(InputError):
    status = 408
    title = "Upload too slow"


class UnreadableAudio(InputError):
    title = "Unreadable audio"


class WebhookRefused(InputError):
    title = "Webhook refused"


class StreamStopped(InputError):
    status = 408
    title = "Stream stopped"


class StreamTooFast(InputError):
    status = 429
    title = "Stream too fast"


class AccessError(SoundSentryError):
    title = "Access refused"


class KeyMissing(AccessError):
    status = 401
    title = "Key missing or unknown"


class NotAllowed(AccessError):
    status = 403
    title = "Not allowed"


class RateExceeded(AccessError):
    """`wait_seconds`: how long the key must wait before its next request."""

    status = 429
    title = "Rate exceeded"

    def __init__(self, detail: str, wait_seconds: float) -> None:
        super().__init__(detail)
        self.wait_seconds = wait_seconds


class Overloaded(SoundSentryError):
    status = 503
    title = "Overloaded"


class JobError(SoundSentryError):
    title = "Job error"


class JobNotFound(JobError):
    status = 404
    title = "No such job"


class IdempotencyConflict(JobError):
    status = 409
    title = "Idempotency key used before"


class SoundLost(JobError):
    title = "Sound lost"


class StoreUnavailable(JobError):
    status = 503
    title = "Jobs unavailable"


class NamesUnavailable(JobError):
    status = 503
    title = "Names unavailable"


class ConfigurationError(SoundSentryError):
    title = "Configuration error"


class ModelUnavailable(SoundSentryError):
    status = 503
    title = "Model unavailable"


class BundleError(SoundSentryError):
    title = "Model bundle error"


class OtherFeatures(BundleError):
    """`source` says which features are needed instead."""

    def __init__(self, detail: str, source: FeatureSource) -> None:
        super().__init__(detail)
        self.args = (detail, source)  # so that the error can be sent to another process
        self.source = source


class RequestTimeout(SoundSentryError):
    status = 504
    title = "Request timed out"


class StageError(SoundSentryError):
    title = "Stage error"


class StageFailed(StageError):
    title = "Stage failed"


class StageUnavailable(StageError):
    status = 503
    title = "Stage unavailable"


class StageTimeout(StageError):
    status = 504
    title = "Stage timed out"

    @classmethod
    def after(cls, seconds: float, stage: str) -> Self:
        """The error of a stage that did not answer within `seconds`."""
        again = "Try again later or send a shorter recording."
        return cls(f"The {stage} did not answer within {seconds:g} seconds. {again}")
