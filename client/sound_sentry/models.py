"""What the service answers.

The fields are those of the service's own OpenAPI document; a test holds one against the other. A field that this
client does not know is kept, so that it can read a newer service. Probabilities are of the speech being machine-made.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

Label = Literal["Real", "Fake", "Inconclusive", "No Speech"]
Interval = tuple[float, float]
JobStatus = Literal["queued", "running", "done", "cancelled"]


class Answer(BaseModel):
    """Base of every answer: no change once made, no NaN."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Detail(Answer):
    """The verdict on one stretch of speech: a turn where speakers were told apart, else a speech segment."""

    speaker: str | None
    """Who speaks; None if speakers were not told apart."""
    channel: str | None = None
    """The channel of the recording, where channels were judged one by one."""
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
    """The channel of the recording, where channels were judged one by one."""
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


class DecidedBy(Answer):
    """The part of the recording that decided for the whole."""

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


class Timeline(Answer):
    """The probability from moment to moment."""

    start: float
    """Where the first step begins, in seconds from the start of the recording."""
    step_seconds: float
    """Length of a step, in seconds."""
    probability: tuple[float | None, ...]
    """Probability that the speech is machine-made, 0 to 1, one value a step; None if nobody speaks."""


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
    """What the layer adds to the score of the answer, as a natural logarithm: above 0 speaks for a machine."""
    humans: tuple[float, float] | None = None
    """Where the same lies in 90 % of recordings of humans; None if the model does not tell."""
    sentence: str = ""
    """The same for a person."""


class MomentShare(Answer):
    """What one moment says by itself."""

    speaker: str | None
    """Who speaks; None if speakers were not told apart."""
    start: float
    """Where the moment begins, in seconds."""
    end: float
    """Where the moment ends, in seconds."""
    score: float
    """The score of this moment, as a natural logarithm: above 0 speaks for a machine."""
    humans: tuple[float, float] | None = None
    """Where the same lies in 90 % of recordings of humans; None if the model does not tell."""
    sentence: str
    """The same for a person."""


class BandShare(Answer):
    """What one band of frequency adds to the score of the moments."""

    low_hz: float
    """Where the band begins, in hertz."""
    high_hz: float
    """Where the band ends, in hertz."""
    score: float
    """How much the score falls where nothing happens in the band, as a natural logarithm."""
    humans: tuple[float, float] | None = None
    """Where the same lies in 90 % of recordings of humans; None if the model does not tell."""
    sentence: str
    """The same for a person."""


class Explanation(Answer):
    """What carried the answer; where a part decided for the whole, what carried that part."""

    moments: tuple[MomentShare, ...] = ()
    """The moments that weigh most, the weightiest first."""
    bands: tuple[BandShare, ...] = ()
    """One entry a band of frequency, the lowest first."""
    layers: tuple[LayerShare, ...]
    """One entry a layer, in the order of the network."""


class Verdict(Answer):
    """The answer for one recording."""

    overall: Label
    """The answer: `Real`, `Fake`, `Inconclusive`, or `No Speech` where nobody speaks."""
    mean_probability: float | None
    """Probability that the speech of the whole recording is machine-made, 0 to 1; None if there is none."""
    max_probability: float | None
    """The highest value of the timeline, 0 to 1."""
    min_probability: float | None
    """The lowest value of the timeline, 0 to 1."""
    confidence: float | None
    """How far `mean_probability` is from even odds, |2p - 1|: 0 is a coin toss, 1 is certainty."""
    score: float | None
    """Calibrated log-likelihood ratio of the whole recording, as a natural logarithm; higher is more machine-like."""
    interval: Interval | None
    """80 % interval of `mean_probability`, lower end first."""
    reasons: tuple[str, ...]
    """Why the answer is Inconclusive; empty where it is not. `Info.reasons` has a sentence for each."""
    details: tuple[Detail, ...]
    """One entry a turn where speakers were told apart, else one a speech segment."""
    speakers: tuple[SpeakerVerdict, ...]
    """One entry a speaker; empty where speakers were not told apart."""
    timeline: Timeline
    """The probability from moment to moment."""
    duration_config: DurationConfig
    """How the recording was judged."""
    duration_seconds: float
    """Length of the recording, in seconds."""
    speech_seconds: float
    """How long somebody speaks in it, in seconds."""
    original_format: str
    """Format of the file, told by its content."""
    channels: tuple[ChannelVerdict, ...] = ()
    """One entry a channel; empty unless channels were to be judged one by one."""
    decided_by: DecidedBy | None = None
    """The part that decided for the whole; None if the whole recording did."""
    file_sha256: str | None = None
    """SHA-256 of the file's bytes, in hexadecimal digits."""
    model: ModelName
    """The model that judged."""
    warnings: tuple[str, ...]
    """What else to know about the recording or its judgement. `Info.warnings` has a sentence for each."""
    explanation: Explanation | None = None
    """Where the score comes from; only where asked for."""

    @property
    def probability(self) -> float | None:
        """The probability that `overall` follows from: that of the part that decided, else of the whole recording."""
        return self.decided_by.probability if self.decided_by else self.mean_probability

    @property
    def probability_interval(self) -> Interval | None:
        """80 % interval of `probability`, lower end first."""
        return self.decided_by.interval if self.decided_by else self.interval


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
    """The HTTP status it has, or would have as an answer of its own; None if the service gave no answer."""
    detail: str
    """A sentence that says what to do."""
    request_id: str | None = None
    """What the service's log knows the request by."""


class JudgedFile(Verdict):
    """A file of several that was answered."""

    filename: str | None
    """Name of the file as it was sent."""
    status: Literal["success", "no_speech"]
    """`no_speech` where `overall` is `No Speech`."""


class FailedFile(Answer):
    """A file of several that could not be answered."""

    filename: str | None
    """Name of the file as it was sent."""
    status: Literal["failed"]
    """Always `failed`."""
    error: Problem
    """Why."""


FileResult = JudgedFile | FailedFile
"""What became of one file of several."""


class Batch(Answer):
    """The answer to `batch`."""

    timestamp: AwareDatetime
    """When this was answered."""
    total_files: int
    """Files that were sent."""
    successful: int
    """Files that were answered, those without speech included."""
    failed: int
    """Files that were not."""
    results: tuple[FileResult, ...]
    """One entry a file, in the order sent."""


class JobFile(Answer):
    """How far one file of a job is."""

    filename: str | None
    """Name of the file as it was sent."""
    status: JobStatus
    """What becomes of it."""
    stage: str | None
    """The stage that is at work on it; None if none is."""
    progress: float
    """How much is done, 0 to 1: an estimate."""
    attempts: int
    """How often it was begun: again where what judged it was lost."""


class Webhook(Answer):
    """How telling a webhook went."""

    status: Literal["waiting", "pending", "delivered", "failed"]
    """`waiting` until the job is done."""
    attempts: int
    """How often it was tried."""


class JobSummary(Answer):
    """Recordings that are judged while nobody waits: how far they are, without their results."""

    job_id: str
    """What the job is asked for by."""
    status: JobStatus
    """`done` once every file has its result, be it a verdict or an error."""
    stage: str | None
    """The stage that is at work; None if none is."""
    progress: float
    """How much is done, 0 to 1: an estimate."""
    seconds_left: float | None
    """About how long it will take; None while nobody can tell."""
    created_at: AwareDatetime
    """When it was submitted."""
    started_at: AwareDatetime | None
    """When its first file was begun."""
    finished_at: AwareDatetime | None
    """When it was done or cancelled."""
    kept_until: AwareDatetime | None
    """When job and results will be gone; None until it is finished."""
    total_files: int
    """Files that were sent."""
    files: tuple[JobFile, ...]
    """One entry a file, in the order sent."""
    webhook: Webhook | None
    """None where none was asked for."""

    @property
    def finished(self) -> bool:
        """Whether nothing more is going to happen."""
        return self.status in ("done", "cancelled")


class Job(JobSummary):
    """Recordings that are judged while nobody waits, with the results so far."""

    successful: int
    """Files that were answered, those without speech included."""
    failed: int
    """Files that were not."""
    results: tuple[FileResult, ...]
    """One entry a file that is done, in the order sent."""


class JobList(Answer):
    """The answer to `jobs`."""

    jobs: tuple[JobSummary, ...]
    """Newest first."""
    next: str | None
    """What `before` has to be for the next page; None if there is none."""


class Stage(Answer):
    """The state of one stage of the service."""

    status: Literal["healthy", "down", "unknown"]
    """Whether it works."""
    replicas: int
    """Copies of it that work."""


class Health(Answer):
    """The answer to `health`."""

    status: Literal["healthy", "unhealthy"]
    """`unhealthy` while any stage is down."""
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
    """Which lengths each category has."""
    voice_activity: dict[str, Any]
    """How speech is found."""
    diarization: dict[str, Any]
    """How speakers are told apart."""
    windows: dict[str, float]
    """How the recording is cut, in seconds."""
    decision: dict[str, float] = {}
    """What evidence a verdict needs, and the share of fakes expected."""
    possible_results: tuple[str, ...]
    """What `overall` may be."""
    meanings: dict[str, str] = {}
    """What may stand in `overall` of an answer, each with its sentence."""
    reasons: dict[str, str] = {}
    """What may stand in `reasons` of an answer, each with its sentence."""
    warnings: dict[str, str] = {}
    """What may stand in `warnings` of an answer, each with its sentence."""
    limits: dict[str, float]
    """What a recording may have at most."""
    live: dict[str, float | None] = {}
    """What a stream may do."""
    jobs: dict[str, Any] | None = None
    """What a job may be; None for a service without."""
    timeouts_seconds: dict[str, float]
    """How long the whole request and each stage may take."""
    admission: dict[str, float] = {}
    """How much the service takes in hand at once."""
    supported_formats: tuple[str, ...]
    """The formats that are read."""
    timestamp: AwareDatetime
    """When this was answered."""


class StreamMoment(Answer):
    """What is said of the last seconds of sound."""

    overall: Label
    """The answer for these seconds."""
    mean_probability: float | None
    """Probability that the speech of these seconds is machine-made, 0 to 1; None if there is none."""
    interval: Interval | None
    """80 % interval of `mean_probability`, lower end first."""
    reasons: tuple[str, ...]
    """Why the answer is Inconclusive; empty where it is not."""


class StreamChannel(StreamMoment):
    """What is said of one channel of a stream."""

    channel: str
    """Name of the channel within this stream: CHANNEL_1 is the first."""


class StreamUpdate(StreamMoment):
    """What is said of a stream every half second."""

    final: Literal[False]
    """Always false: more follows."""
    start: float
    """Where these seconds begin, in seconds from the start of the stream."""
    end: float
    """Where they end."""
    channels: tuple[StreamChannel, ...] = ()
    """One entry a channel; empty unless channels were to be judged one by one."""


class StreamVerdict(Verdict):
    """The verdict on a whole stream: its last message."""

    final: Literal[True]
    """Always true: nothing follows."""
    start: float
    """Where the stream begins: 0."""
    end: float
    """Where it ends, in seconds."""
