"""What the service answers.

The fields are those of the service's OpenAPI document; a test compares them. A field that this client does not know is
kept, so that it can read the answers of a newer service. Each probability says how likely the speech is machine-made.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

Label = Literal["Real", "Fake", "Inconclusive", "No Speech"]
Interval = tuple[float, float]
JobStatus = Literal["queued", "running", "done", "cancelled"]


class Answer(BaseModel):
    """Base of every answer: not changeable, no NaN."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Detail(Answer):
    """The verdict on one stretch of speech: a turn if speakers were told apart, else a speech segment."""

    speaker: str | None
    """Who speaks; None if speakers were not told apart."""
    channel: str | None = None
    """The channel of the recording; only if channels were judged one by one."""
    start: float
    """Where the stretch begins, in seconds from the start of the recording."""
    end: float
    """Where the stretch ends, in seconds from the start of the recording."""
    time: str
    """Start and end for people."""
    result: Label
    """The verdict on this stretch alone."""
    probability: float
    """Probability that the speech of this stretch is machine-made, 0 to 1."""
    interval: Interval | None = None
    """80 % interval of `probability`, lower end first."""


class SpeakerVerdict(Answer):
    """The verdict on all that one speaker says."""

    speaker: str
    """Name of the speaker within this recording."""
    channel: str | None = None
    """The channel of the recording; only if channels were judged one by one."""
    result: Label
    """The verdict on this speaker alone."""
    probability: float
    """Probability that this speaker is a machine, 0 to 1."""
    interval: Interval | None = None
    """80 % interval of `probability`, lower end first."""
    speech_seconds: float
    """How long the speaker talks, in seconds."""


class ChannelVerdict(Answer):
    """The verdict on one channel of the recording."""

    channel: str
    """Name of the channel within this recording: CHANNEL_1 is the first."""
    result: Label
    """The verdict on this channel alone."""
    probability: float | None
    """Probability that the speech of this channel is machine-made, 0 to 1; None if there is none."""
    speech_seconds: float
    """How long somebody speaks on this channel, in seconds."""
    note: str | None
    """`silent`, or `same_as_` and the name of the channel that holds the same sound; else None."""

    @property
    def note_sentence(self) -> str:
        """The note for people; empty if there is none."""
        if self.note is None:
            return ""
        return "Silent." if self.note == "silent" else f"The same as {self.note.removeprefix('same_as_')}."


class DecidedBy(Answer):
    """The part of the recording that decided the answer for the whole."""

    speaker: str | None = None
    """Who decided; None if speakers were not told apart."""
    channel: str | None = None
    """The channel that decided; None if channels were not judged one by one."""
    start: float
    """Where that part begins, in seconds from the start of the recording."""
    end: float
    """Where that part ends, in seconds from the start of the recording."""
    probability: float
    """Probability that the speech of that part is machine-made, 0 to 1."""
    interval: Interval | None = None
    """80 % interval of `probability`, lower end first."""

    @property
    def name(self) -> str:
        """What decided, for people."""
        return self.speaker or self.channel or "passage"


class Timeline(Answer):
    """The probability from moment to moment."""

    start: float
    """Where the first step begins, in seconds from the start of the recording."""
    step_seconds: float
    """Length of a step, in seconds."""
    probability: tuple[float | None, ...]
    """Probability that the speech is machine-made, 0 to 1, one value per step; None where nobody speaks."""


class DurationConfig(Answer):
    """How the recording was judged."""

    use_diarization: bool
    """Whether speakers were told apart."""
    category: Literal["very_short", "short", "normal"]
    """Length of the recording: very_short below 3 seconds, short below 6, else normal."""


class ModelName(Answer):
    """The model bundle that judged."""

    name: str
    """Name of the bundle."""
    sha256: str
    """SHA-256 of the bundle, in hexadecimal digits."""


class LayerShare(Answer):
    """What one layer of the network adds to the score."""

    layer: str
    """Name of the layer."""
    score: float
    """What the layer adds to the score of the answer, a log-likelihood ratio (natural logarithm): above 0 speaks for a
    machine."""
    humans: tuple[float, float] | None = None
    """The middle 90 % of this score in recordings of humans, lower end first; None if that was not measured."""
    sentence: str = ""
    """What this entry says, for people."""


class MomentShare(Answer):
    """What one moment says by itself."""

    speaker: str | None
    """Who speaks; None if speakers were not told apart."""
    start: float
    """Where the moment begins, in seconds."""
    end: float
    """Where the moment ends, in seconds."""
    score: float
    """The score of this moment, a log-likelihood ratio (natural logarithm): above 0 speaks for a machine."""
    humans: tuple[float, float] | None = None
    """The middle 90 % of the scores of moments of human speech, lower end first; None if that was not measured."""
    sentence: str
    """What this entry says, for people."""


class BandShare(Answer):
    """What one band of frequency adds to the score of the moments."""

    low_hz: float
    """Where the band begins, in hertz."""
    high_hz: float
    """Where the band ends, in hertz."""
    score: float
    """How much the score falls if the energy of the band is set to its mean over time, averaged over the moments. A
    log-likelihood ratio (natural logarithm): above 0 speaks for a machine."""
    humans: tuple[float, float] | None = None
    """The middle 90 % of this score in recordings of humans, lower end first; None if that was not measured."""
    sentence: str
    """What this entry says, for people."""


class Explanation(Answer):
    """What the answer is based on. If a part decided for the whole, this explains that part."""

    moments: tuple[MomentShare, ...] = ()
    """At most six moments with the most weight, the heaviest first. They do not overlap."""
    bands: tuple[BandShare, ...] = ()
    """One entry per band of frequency, the lowest first; empty for a model without bands."""
    layers: tuple[LayerShare, ...]
    """One entry per layer, in the order of the network."""


class Verdict(Answer):
    """The answer for one recording."""

    overall: Label
    """The answer: `Real`, `Fake`, `Inconclusive`, or `No Speech` if nobody speaks."""
    mean_probability: float | None
    """Probability that the speech of the whole recording is machine-made, 0 to 1; None if there is none."""
    max_probability: float | None
    """The highest of `mean_probability`, the values of the timeline and the probability of `decided_by`, 0 to 1."""
    min_probability: float | None
    """The lowest of `mean_probability`, the values of the timeline and the probability of `decided_by`, 0 to 1."""
    confidence: float | None
    """How far `mean_probability` is from even odds, |2p - 1|: 0 is a coin toss, 1 is certainty."""
    score: float | None
    """Calibrated log-likelihood ratio (natural logarithm) of the whole recording; higher is more machine-like."""
    interval: Interval | None
    """80 % interval of `mean_probability`, lower end first."""
    reasons: tuple[str, ...]
    """Why the answer is Inconclusive; empty if it is not. `Info.reasons` has a sentence for each."""
    details: tuple[Detail, ...]
    """One entry per turn if speakers were told apart, else one per speech segment."""
    speakers: tuple[SpeakerVerdict, ...]
    """One entry per speaker; empty if speakers were not told apart."""
    timeline: Timeline
    """The probability from moment to moment."""
    duration_config: DurationConfig
    """How the recording was judged."""
    duration_seconds: float
    """Length of the recording, in seconds."""
    speech_seconds: float
    """How long somebody speaks in it, in seconds."""
    original_format: str
    """Format of the file, recognised by its content."""
    channels: tuple[ChannelVerdict, ...] = ()
    """One entry per channel; empty unless channels were judged one by one."""
    decided_by: DecidedBy | None = None
    """The part that makes the whole Fake; None if the whole recording does, or if it is not Fake."""
    file_sha256: str | None = None
    """SHA-256 of the file's bytes, in hexadecimal digits."""
    model: ModelName
    """The model that judged."""
    warnings: tuple[str, ...]
    """What else to know about the recording or its judgement. `Info.warnings` has a sentence for each."""
    explanation: Explanation | None = None
    """What the answer is based on; only if the caller asked for it."""

    @property
    def probability(self) -> float | None:
        """The probability that `overall` follows from: that of the part that decided, else of the whole recording."""
        return self.decided_by.probability if self.decided_by else self.mean_probability

    @property
    def probability_interval(self) -> Interval | None:
        """80 % interval of `probability`, lower end first."""
        return self.decided_by.interval if self.decided_by else self.interval

    @property
    def channels_without_speakers(self) -> tuple[ChannelVerdict, ...]:
        """The channels without speakers of their own: silent channels, and copies of others."""
        with_speakers = {speaker.channel for speaker in self.speakers}
        return tuple(channel for channel in self.channels if channel.channel not in with_speakers)


class Prediction(Verdict):
    """The answer to `predict`."""

    filename: str | None
    """Name of the file as it was sent."""
    timestamp: AwareDatetime
    """When this was answered."""


class Problem(Answer):
    """An RFC 9457 problem document."""

    type: str
    """What kind of problem; ends in its name."""
    title: str
    """The kind of problem in words."""
    status: int | None = None
    """The HTTP status of this problem, also if it is one of several results; None if the service gave no answer."""
    detail: str
    """A sentence that says what to do."""
    request_id: str | None = None
    """Id of the request in the service's log; None if it has none."""


class JudgedFile(Verdict):
    """The result of one of several files, if it was answered."""

    filename: str | None
    """Name of the file as it was sent."""
    status: Literal["success", "no_speech"]
    """`no_speech` if `overall` is `No Speech`."""


class FailedFile(Answer):
    """The result of one of several files, if it could not be answered."""

    filename: str | None
    """Name of the file as it was sent."""
    status: Literal["failed"]
    """Always `failed`."""
    error: Problem
    """Why."""


FileResult = JudgedFile | FailedFile
"""The result of one of several files."""


class Batch(Answer):
    """The answer to `batch`."""

    timestamp: AwareDatetime
    """When this was answered."""
    total_files: int
    """Number of files that were sent."""
    successful: int
    """Number of files with an answer, including those without speech."""
    failed: int
    """Number of files without an answer."""
    results: tuple[FileResult, ...]
    """One entry per file, in the order sent."""


class JobFile(Answer):
    """The progress of one file of a job."""

    filename: str | None
    """Name of the file as it was sent."""
    status: JobStatus
    """The state of the file."""
    stage: str | None
    """The stage that works on it now; None if none does."""
    progress: float
    """How much is done, 0 to 1: an estimate."""
    attempts: int
    """How often it was started. It is started again if its process was lost."""


class Webhook(Answer):
    """The state of the webhook."""

    status: Literal["waiting", "cancelled", "pending", "delivered", "failed"]
    """`waiting` until the job is done; `cancelled` if the job was cancelled, so that none is sent."""
    attempts: int
    """How often it was tried."""


class JobSummary(Answer):
    """A job without its results: recordings that are judged in the background."""

    job_id: str
    """Name of the job, to ask for it."""
    status: JobStatus
    """`done` if every file has its result, either a verdict or an error."""
    stage: str | None
    """The stage that works on it now; None if none does."""
    progress: float
    """How much is done, 0 to 1: an estimate."""
    seconds_left: float | None
    """About how long it will still take; None if unknown."""
    created_at: AwareDatetime
    """When it was submitted."""
    started_at: AwareDatetime | None
    """When its first file was started; None if none was."""
    finished_at: AwareDatetime | None
    """When it was done or cancelled; None until then."""
    kept_until: AwareDatetime | None
    """When job and results are deleted, unless its webhook is still pending; None until it is finished."""
    total_files: int
    """Number of files that were sent."""
    files: tuple[JobFile, ...]
    """One entry per file, in the order sent."""
    webhook: Webhook | None
    """None if the job has none."""

    @property
    def finished(self) -> bool:
        """Whether the job is done or cancelled."""
        return self.status in ("done", "cancelled")


class Job(JobSummary):
    """A job with its results so far."""

    successful: int
    """Number of files with an answer, including those without speech."""
    failed: int
    """Number of files that failed."""
    results: tuple[FileResult, ...]
    """One entry per finished file, in the order sent."""


class JobList(Answer):
    """The answer to `jobs`."""

    jobs: tuple[JobSummary, ...]
    """Newest first."""
    next: str | None
    """The value of `before` for the next page; None if there is none."""


class Stage(Answer):
    """The state of one stage of the service."""

    status: Literal["healthy", "down", "unknown"]
    """Whether it works."""
    replicas: int
    """Number of its replicas that work."""


class Health(Answer):
    """The answer to `health`."""

    status: Literal["healthy", "unhealthy"]
    """`unhealthy` if any stage is down."""
    classifier_loaded: bool
    """Whether the classifier works."""
    timestamp: AwareDatetime
    """When this was answered."""
    stages: dict[str, Stage]
    """The stages by name."""


class Info(Answer):
    """The answer to `info`: the model in use, what it computes from a recording, and what may be sent."""

    model: dict[str, str | None]
    """Name and SHA-256 of the model bundle."""
    operating_points: dict[str, dict[str, float]]
    """The threshold of each operating point, as a score."""
    uncertainty: dict[str, float] = {}
    """What makes an answer uncertain, and how much."""
    features: dict[str, Any]
    """What is computed from a recording."""
    duration_categories: dict[str, str]
    """The lengths of recordings in each category."""
    voice_activity: dict[str, Any]
    """How speech is found."""
    diarization: dict[str, Any]
    """How speakers are told apart."""
    windows: dict[str, float]
    """How speech is cut into windows, in seconds."""
    decision: dict[str, float] = {}
    """The evidence that a verdict needs, and the expected share of fakes."""
    possible_results: tuple[str, ...]
    """The possible values of `overall` of an answer."""
    meanings: dict[str, str] = {}
    """Each result in a sentence."""
    reasons: dict[str, str] = {}
    """The possible `reasons` of an answer, each with its sentence."""
    warnings: dict[str, str] = {}
    """The possible `warnings` of an answer, each with its sentence."""
    limits: dict[str, float]
    """The limits for a recording."""
    live: dict[str, float | None] = {}
    """The limits for a stream."""
    jobs: dict[str, Any] | None = None
    """The limits for a job; None if the service has no jobs."""
    timeouts_seconds: dict[str, float]
    """The limit for the whole request, and for each stage from its input to its answer, with its queue."""
    admission: dict[str, float] = {}
    """The limits for the work of a replica of the service."""
    supported_formats: tuple[str, ...]
    """The accepted formats."""
    endings: tuple[str, ...] = ()
    """The endings of the names of recordings; empty if the service is older than this list."""
    timestamp: AwareDatetime
    """When this was answered."""


class StreamMoment(Answer):
    """The verdict on the last seconds of a stream."""

    overall: Label
    """The answer for these seconds."""
    mean_probability: float | None
    """Probability that the speech of these seconds, or of the part that decided, is machine-made, 0 to 1; None if
    nobody speaks."""
    interval: Interval | None
    """80 % interval of `mean_probability`, lower end first; `overall` follows from it."""
    reasons: tuple[str, ...]
    """Why the answer is Inconclusive; empty if it is not."""


class StreamChannel(StreamMoment):
    """The verdict on the last seconds of one channel of a stream."""

    channel: str
    """Name of the channel within this stream: CHANNEL_1 is the first."""


class StreamUpdate(StreamMoment):
    """The message of every half second. Of several channels, it holds the verdict on the most machine-like one."""

    final: Literal[False]
    """Always false: more follows."""
    start: float
    """Where these seconds begin, in seconds from the start of the stream."""
    end: float
    """Where they end."""
    channels: tuple[StreamChannel, ...] = ()
    """One entry per channel; empty unless channels are judged one by one."""


class StreamVerdict(Verdict):
    """The verdict on a whole stream: its last message."""

    final: Literal[True]
    """Always true: nothing follows."""
    start: float
    """Where the stream begins: 0."""
    end: float
    """Where it ends, in seconds."""
