"""The answer for one recording, as one model.

The JSON of the HTTP interface and of the command line, the OpenAPI schema and its examples all come from `Verdict`.
Numbers keep their full precision in memory and are rounded to four decimals in JSON: smaller differences are rounding
errors and mean nothing. No number is NaN or infinite.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, PlainSerializer

from pipeline.types import Label
from pipeline.verdict.reasons import AnswerWarning, Reason, Word, sentences


def _round(value: float) -> float:
    return round(value, 4)


_Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, PlainSerializer(_round, return_type=float, when_used="json")]
NonNegative = Annotated[Number, Field(ge=0)]
Probability = Annotated[_Share, PlainSerializer(_round, return_type=_Share, when_used="json")]
Interval = tuple[Probability, Probability]

T = TypeVar("T")
Several = Annotated[tuple[T, ...], FailFast()]
"""A sequence whose check ends at the first value that does not fit. A forged answer may hold a million of them."""


MEANINGS: dict[Label, str] = {
    "Real": "This sounds like a human speaking.",
    "Fake": "This sounds like machine-made speech.",
    "Inconclusive": "The evidence does not settle it.",
    "No Speech": "Nobody speaks in this recording, so there is nothing to judge.",
}
"""Each result in a sentence."""


def _listed(words: type[Word]) -> str:
    return " ".join(f"`{word}`: {sentence}" for word, sentence in sentences(words).items())


def _absent(value: object) -> bool:
    return value is None


class Part(BaseModel):
    """Base of every part of an answer: no unknown fields, not changeable, no NaN."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        json_schema_serialization_defaults_required=True,
    )


class Detail(Part):
    """The verdict on one stretch of speech: a turn if speakers were told apart, else a speech segment."""

    speaker: str | None
    """Who speaks; null if speakers were not told apart."""
    channel: str | None = Field(None, exclude_if=_absent)
    """The channel of the recording; only if channels were judged one by one."""
    start: NonNegative
    """Where the stretch begins, in seconds from the start of the recording."""
    end: NonNegative
    """Where the stretch ends, in seconds from the start of the recording."""
    time: str = Field(default_factory=lambda known: f"{known['start']:.1f}-{known['end']:.1f}s")
    """Start and end for people, in seconds."""
    result: Label
    """The verdict on this stretch alone."""
    probability: Probability
    """Probability that the speech of this stretch is machine-made, 0 to 1."""
    interval: Interval
    """80 % interval of `probability`, lower end first; `result` follows from it."""


class SpeakerVerdict(Part):
    """The verdict on all that one speaker says."""

    speaker: str
    """Name of the speaker within this recording."""
    channel: str | None = Field(None, exclude_if=_absent)
    """The channel of the recording; only if channels were judged one by one."""
    result: Label
    """The verdict on this speaker alone."""
    probability: Probability
    """Probability that this speaker is a machine, 0 to 1."""
    interval: Interval
    """80 % interval of `probability`, lower end first; `result` follows from it."""
    speech_seconds: NonNegative
    """How long the speaker talks, in seconds."""


class ChannelVerdict(Part):
    """The verdict on one channel of the recording."""

    channel: str
    """Name of the channel within this recording: CHANNEL_1 is the first."""
    result: Label
    """The verdict on this channel alone."""
    probability: Probability | None
    """Probability that the speech of this channel is machine-made, 0 to 1; null if there is none."""
    speech_seconds: NonNegative
    """How long somebody speaks on this channel, in seconds."""
    note: str | None
    """`silent`, or `same_as_` and the name of the channel that holds the same sound; else null."""

    @property
    def note_sentence(self) -> str:
        """The note for people; empty if there is none."""
        if self.note is None:
            return ""
        return "Silent." if self.note == "silent" else f"The same as {self.note.removeprefix('same_as_')}."


class DecidedBy(Part):
    """The part of the recording that decided the answer for the whole."""

    speaker: str | None = Field(None, exclude_if=_absent)
    """Who decided; absent if speakers were not told apart."""
    channel: str | None = Field(None, exclude_if=_absent)
    """The channel that decided; absent if channels were not judged one by one."""
    start: NonNegative
    """Where that part begins, in seconds from the start of the recording."""
    end: NonNegative
    """Where that part ends, in seconds from the start of the recording."""
    probability: Probability
    """Probability that the speech of that part is machine-made, 0 to 1."""
    interval: Interval
    """80 % interval of `probability`, lower end first; all of it is beyond the threshold."""

    @property
    def name(self) -> str:
        """What decided, for people."""
        return self.speaker or self.channel or "passage"


class Timeline(Part):
    """The probability from moment to moment."""

    start: NonNegative
    """Where the first step begins, in seconds from the start of the recording."""
    step_seconds: Annotated[Number, Field(gt=0)]
    """Length of a step, in seconds."""
    probability: Several[Probability | None]
    """Probability that the speech is machine-made, 0 to 1, one value per step; null where no speech has a
    score: nobody speaks, or several speakers at once."""


class DurationConfig(Part):
    """How the recording was judged."""

    use_diarization: bool
    """Whether speakers were told apart."""
    category: Literal["very_short", "short", "normal"]
    """Length of the recording: very_short below 3 seconds, short below 6, else normal."""


class ModelName(Part):
    """The model bundle that judged."""

    name: str
    """Name of the bundle."""
    sha256: str
    """SHA-256 of the bundle, in hexadecimal digits."""


class MomentShare(Part):
    """What one moment says by itself."""

    speaker: str | None
    """Who speaks; null if speakers were not told apart."""
    start: NonNegative
    """Where the moment begins, in seconds from the start of the recording."""
    end: NonNegative
    """Where the moment ends, in seconds from the start of the recording."""
    score: Number
    """The score of this moment, a log-likelihood ratio (natural logarithm): above 0 speaks for a machine. The score of
    the answer is the mean over all its moments."""
    humans: tuple[Number, Number] | None = None
    """The middle 90 % of the scores of moments of human speech, lower end first; null if that was not measured."""
    sentence: str
    """What this entry says, for people."""


class BandShare(Part):
    """What one band of frequency adds to the score of the moments."""

    low_hz: NonNegative
    """Where the band begins, in hertz."""
    high_hz: NonNegative
    """Where the band ends, in hertz."""
    score: Number
    """How much the score falls if the energy of the band is set to its mean over time, averaged over the moments. A
    log-likelihood ratio (natural logarithm): above 0 speaks for a machine."""
    humans: tuple[Number, Number] | None = None
    """The middle 90 % of this score in recordings of humans, lower end first; null if that was not measured."""
    sentence: str
    """What this entry says, for people."""


class LayerShare(Part):
    """What one layer of the network adds to the score."""

    layer: str
    """Name of the layer."""
    score: Number
    """What the layer adds to the score of the answer, a log-likelihood ratio (natural logarithm): above 0 speaks for a
    machine."""
    humans: tuple[Number, Number] | None = None
    """The middle 90 % of this score in recordings of humans, lower end first; null if that was not measured."""
    sentence: str
    """What this entry says, for people."""


class Explanation(Part):
    """What the answer is based on. If a part decided for the whole, this explains that part."""

    moments: Several[MomentShare]
    """At most six moments with the most weight, the heaviest first. They do not overlap."""
    bands: Several[BandShare]
    """One entry per band of frequency, the lowest first; empty for a model without bands."""
    layers: Several[LayerShare]
    """One entry per layer, in the order of the network."""


class Verdict(Part):
    """The answer for one recording. Probabilities say how likely the speech is machine-made; null without speech."""

    overall: Label
    """The answer: `Real`, `Fake`, `Inconclusive`, or `No Speech` if nobody speaks."""
    mean_probability: Probability | None
    """Probability that the speech of the whole recording is machine-made, 0 to 1. If channels were judged one by one,
    it is that of the channel with the most serious answer; so are `score`, `interval` and `reasons`."""
    max_probability: Probability | None
    """The highest of `mean_probability`, the values of the timeline, and the probability of `decided_by`, 0 to 1. If
    channels were judged one by one, it is the highest of all channels."""
    min_probability: Probability | None
    """The lowest of `mean_probability`, the values of the timeline, and the probability of `decided_by`, 0 to 1. If
    channels were judged one by one, it is the lowest of all channels."""
    confidence: Probability | None = Field(default_factory=lambda known: _confidence(known["mean_probability"]))
    """How far `mean_probability` is from even odds, |2p - 1|: 0 is a coin toss, 1 is certainty."""
    score: Number | None
    """Calibrated log-likelihood ratio (natural logarithm) of the whole recording; higher is more machine-like."""
    interval: Interval | None
    """80 % interval of `mean_probability`, lower end first; `overall` follows from it, unless `decided_by` is given."""
    reasons: Several[Reason] = Field(
        description=f"Why the answer is Inconclusive; empty if it is not. {_listed(Reason)}"
    )
    details: Several[Detail]
    """One entry per turn if speakers were told apart, else one per speech segment."""
    speakers: Several[SpeakerVerdict]
    """One entry per speaker; empty if speakers were not told apart."""
    timeline: Timeline
    """The probability from moment to moment."""
    duration_config: DurationConfig
    """How the recording was judged."""
    duration_seconds: NonNegative
    """Length of the recording, in seconds."""
    speech_seconds: NonNegative
    """How long somebody speaks in it, in seconds."""
    original_format: str
    """Format of the file, recognised by its content."""
    channels: Several[ChannelVerdict] = ()
    """One entry per channel; empty unless channels were judged one by one."""
    decided_by: DecidedBy | None = None
    """The part that makes the whole `Fake`; null if the whole recording does, or if it is not `Fake`. Its probability
    is the one to show."""
    file_sha256: str | None
    """SHA-256 of the file's bytes, in hexadecimal digits; null if the sound did not come from a file."""
    model: ModelName
    """The model that judged."""
    warnings: Several[AnswerWarning] = Field(
        description=f"What else to know about the recording or its judgement. {_listed(AnswerWarning)}"
    )
    explanation: Explanation | None = Field(None, exclude_if=_absent)
    """What the answer is based on; only if the caller asked for it."""

    @property
    def headline(self) -> tuple[float, Interval] | None:
        """The probability to show for the answer, with its interval: that of the part that decided, if one did."""
        if self.decided_by:
            return self.decided_by.probability, self.decided_by.interval
        if self.mean_probability is None or self.interval is None:
            return None
        return self.mean_probability, self.interval

    @property
    def without_speakers(self) -> tuple[ChannelVerdict, ...]:
        """The channels without speakers of their own: silent channels, and copies of others."""
        with_speakers = {speaker.channel for speaker in self.speakers}
        return tuple(channel for channel in self.channels if channel.channel not in with_speakers)

    @property
    def outcome(self) -> Literal["success", "no_speech"]:
        """The status of this answer among the answers for several files."""
        return "no_speech" if self.overall == "No Speech" else "success"


def _confidence(probability: float | None) -> float | None:
    return None if probability is None else abs(2 * probability - 1)


_SHARED: dict[str, Any] = {
    "duration_config": DurationConfig(use_diarization=True, category="normal"),
    "duration_seconds": 9.8,
    "original_format": "webm",
    "file_sha256": "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
    "model": ModelName(name="default", sha256="9f2c4e0d6a1b8c3f7e5d2a9b4c6f8e1d3a5b7c9e0f2d4a6b8c1e3f5a7b9d0c2e"),
}

EXAMPLES = {
    "fake": Verdict(
        overall="Fake",
        mean_probability=0.7234,
        max_probability=0.91,
        min_probability=0.41,
        score=0.9609,
        interval=(0.61, 0.82),
        reasons=(),
        details=(
            Detail(speaker="SPEAKER_00", start=0.3, end=8.2, result="Fake", probability=0.7234, interval=(0.61, 0.82)),
        ),
        speakers=(
            SpeakerVerdict(
                speaker="SPEAKER_00", result="Fake", probability=0.7234, interval=(0.61, 0.82), speech_seconds=7.9
            ),
        ),
        timeline=Timeline(start=0.0, step_seconds=0.5, probability=(0.41, 0.91, 0.7, None)),
        speech_seconds=7.9,
        warnings=(),
        **_SHARED,
    ),
    "fake_speaker_among_others": Verdict(
        overall="Fake",
        mean_probability=0.44,
        max_probability=0.94,
        min_probability=0.05,
        score=-0.2412,
        interval=(0.12, 0.81),
        reasons=(),
        details=(
            Detail(speaker="SPEAKER_00", start=0.3, end=4.2, result="Real", probability=0.06, interval=(0.02, 0.16)),
            Detail(speaker="SPEAKER_01", start=4.2, end=8.2, result="Fake", probability=0.93, interval=(0.82, 0.98)),
        ),
        speakers=(
            SpeakerVerdict(
                speaker="SPEAKER_00", result="Real", probability=0.06, interval=(0.02, 0.16), speech_seconds=3.9
            ),
            SpeakerVerdict(
                speaker="SPEAKER_01", result="Fake", probability=0.93, interval=(0.82, 0.98), speech_seconds=4.0
            ),
        ),
        timeline=Timeline(start=0.0, step_seconds=0.5, probability=(0.05, 0.06, 0.94, None)),
        speech_seconds=7.9,
        decided_by=DecidedBy(speaker="SPEAKER_01", start=4.2, end=8.2, probability=0.93, interval=(0.82, 0.98)),
        warnings=(AnswerWarning.SYNTHETIC_SPEAKER,),
        **_SHARED,
    ),
    "inconclusive": Verdict(
        overall="Inconclusive",
        mean_probability=0.55,
        max_probability=0.62,
        min_probability=0.41,
        score=0.2007,
        interval=(0.12, 0.91),
        reasons=(Reason.TOO_SHORT,),
        details=(
            Detail(
                speaker="SPEAKER_00",
                start=0.3,
                end=1.5,
                result="Inconclusive",
                probability=0.55,
                interval=(0.12, 0.91),
            ),
        ),
        speakers=(
            SpeakerVerdict(
                speaker="SPEAKER_00",
                result="Inconclusive",
                probability=0.55,
                interval=(0.12, 0.91),
                speech_seconds=1.2,
            ),
        ),
        timeline=Timeline(start=0.0, step_seconds=0.5, probability=(0.41, 0.62, 0.52, None)),
        speech_seconds=1.2,
        warnings=(),
        **_SHARED,
    ),
    "no_speech": Verdict(
        overall="No Speech",
        mean_probability=None,
        max_probability=None,
        min_probability=None,
        score=None,
        interval=None,
        reasons=(),
        details=(),
        speakers=(),
        timeline=Timeline(start=0.0, step_seconds=0.5, probability=(None, None, None, None)),
        speech_seconds=0.0,
        warnings=(),
        **_SHARED,
    ),
}
"""An answer of each kind, by its name, for the documentation."""

EXAMPLES["fake_explained"] = EXAMPLES["fake"].model_copy(
    update={
        "explanation": Explanation(
            moments=(
                MomentShare(
                    speaker="SPEAKER_00",
                    start=0.3,
                    end=4.3,
                    score=1.3,
                    humans=(-6.1, 0.9),
                    sentence="0:00.3 to 0:04.3: speaks for a machine, more than in 95 of 100 moments of human speech.",
                ),
            ),
            bands=(
                BandShare(
                    low_hz=5_000,
                    high_hz=8_000,
                    score=0.8,
                    humans=(-1.9, 1.2),
                    sentence="5 to 8 kHz, the highest tones, where s and f hiss: speaks for a machine, as in some "
                    "recordings of humans.",
                ),
            ),
            layers=(
                LayerShare(
                    layer="published.out",
                    score=-0.05,
                    humans=(-1.1, 0.4),
                    sentence="Broad patterns of the sound, learnt by telling people apart (published.out): says little "
                    "either way.",
                ),
            ),
        )
    }
)
