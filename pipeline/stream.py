"""A live stream: its limits, the stretch that is judged next, and the features of its last seconds.

Every half second the last four seconds become one window. It is decoded, searched for speech and turned into features
like a recording of its own. The update then holds the classifier's verdict on the windows of the last ten seconds, 2 s
apart (`hop_seconds`). So an update costs one window, regardless of the stream's length, and speech of a minute ago does
not change it. The last message holds the verdict on everything that has arrived, judged as one recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from pipeline.audio.tape import PcmTape, Tape, WebmTape
from pipeline.config import Limits, Strict, Windows, describe_misfits
from pipeline.errors import InputError, StreamTooFast, UnreadableAudio
from pipeline.types import Features, Label, OperatingPoint, Quality, Seconds, Segment, Speech, Window
from pipeline.verdict.answer import Interval, Number, Part, Probability, Verdict
from pipeline.verdict.reasons import Reason
from pipeline.verdict.windows import merge

STEP_SECONDS = 0.5
"""Seconds of sound from one update to the next."""

_WORST_FIRST = ("Fake", "Inconclusive", "Real", "No Speech")

_SLACK_SECONDS = 0.5
"""A file may decode to this much more than its stretch: a block at each end, and the silence that a codec adds."""


class LiveSettings(Strict):
    """The limits of live streams.

    `span_seconds`: how far back an update looks. `burst_seconds`: how much sound may arrive at once. `max_speed`: how
    many seconds of sound may arrive per second after that. `idle_seconds`: how long a stream may bring less than
    half a second of sound. `close_after_silence_seconds`: how long a stream may go on without speech; null for no
    limit. `max_streams`: how many streams a replica of the ingress serves at a time.
    """

    span_seconds: float = Field(10.0, gt=0)
    max_speed: float = Field(2.0, ge=1)
    burst_seconds: float = Field(10.0, ge=1)
    idle_seconds: float = Field(30.0, gt=0)
    close_after_silence_seconds: float | None = Field(None, gt=0)
    max_streams: int = Field(8, ge=0)


class _Options(Strict):
    operating_point: OperatingPoint = "balanced"
    use_diarization: bool = False
    """Tell speakers apart in the verdict on the whole."""


class PcmOptions(_Options):
    """`channels` is their number. With `per_channel` each channel is judged by itself."""

    format: Literal["pcm_s16le"]
    sample_rate: int
    channels: int = 1
    per_channel: bool = False

    def tape(self, limits: Limits, _: Seconds) -> PcmTape:
        if not limits.min_sample_rate <= self.sample_rate <= limits.max_sample_rate:
            raise InputError(
                f"sample_rate: {limits.min_sample_rate} to {limits.max_sample_rate} samples a second are accepted."
            )
        if not 1 <= self.channels <= limits.max_channels:
            raise InputError(f"channels: 1 to {limits.max_channels} are accepted.")
        return PcmTape(self.sample_rate, self.channels, limits.max_duration_seconds)


class WebmOptions(_Options):
    format: Literal["webm"]

    def tape(self, limits: Limits, kept_seconds: Seconds) -> WebmTape:
        return WebmTape(kept_seconds, limits.max_duration_seconds)


StreamOptions = PcmOptions | WebmOptions
_OPTIONS: TypeAdapter[StreamOptions] = TypeAdapter(Annotated[StreamOptions, Field(discriminator="format")])
_VALID = 'Begin with {"format": "pcm_s16le", "sample_rate": 16000, "channels": 1} or {"format": "webm"}.'

MAX_OPTIONS_LENGTH = 4_096
"""The longest first message that is parsed, in characters."""


def parse_options(message: str) -> StreamOptions:
    """The options in the first message of a stream. Raises InputError that shows valid messages."""
    if len(message) > MAX_OPTIONS_LENGTH:
        raise InputError(f"The first message is too long. {_VALID}")
    try:
        return _OPTIONS.validate_json(message)
    except ValidationError as error:
        raise InputError(f"{describe_misfits(error, whole='the first message')}. {_VALID}") from error


class StreamMoment(Part):
    """The verdict on the last seconds of a stream."""

    overall: Label
    """The answer for these seconds."""
    mean_probability: Probability | None
    """Probability that the speech of these seconds, or of the part that decided, is machine-made, 0 to 1; null if
    nobody speaks."""
    interval: Interval | None
    """80 % interval of `mean_probability`, lower end first; `overall` follows from it."""
    reasons: tuple[Reason, ...]
    """Why the answer is Inconclusive; empty if it is not."""


class StreamChannel(StreamMoment):
    """The verdict on the last seconds of one channel of a stream."""

    channel: str
    """Name of the channel within this stream: CHANNEL_1 is the first."""


class StreamUpdate(StreamMoment):
    """The message of every half second. Of several channels, it holds the verdict on the most machine-like one."""

    final: Literal[False] = False
    """Always false: more follows."""
    start: Number
    """Where these seconds begin, in seconds from the start of the stream."""
    end: Number
    """Where they end."""
    channels: tuple[StreamChannel, ...] = ()
    """One entry per channel; empty unless channels are judged one by one."""


class StreamVerdict(Verdict):
    """The last message: the verdict on all of the stream."""

    final: Literal[True] = True
    """Always true: nothing follows."""
    start: Number = 0.0
    """Where the stream begins."""
    end: Number
    """Where it ends, in seconds."""


Content = Features | Speech
"""The result of the stages for a stretch: its features, or a Speech without segments if nobody speaks."""


@dataclass(frozen=True)
class _Stretch:
    """A judged stretch, from `start` to `end` in seconds of the stream, and its content."""

    start: Seconds
    end: Seconds
    content: Content


class LiveStream:
    """What has arrived of one stream, and the content of its last seconds. It takes no more memory than an upload."""

    def __init__(self, options: StreamOptions, windows: Windows, limits: Limits, settings: LiveSettings) -> None:
        self._windows = windows
        self._limits = limits
        self._settings = settings
        kept_seconds = windows.seconds + settings.burst_seconds + 2 * STEP_SECONDS
        self.tape: Tape = options.tape(limits, kept_seconds)
        self._channels = options.channels if isinstance(options, PcmOptions) and options.per_channel else None
        self._recent: list[list[_Stretch]] = [[] for _ in range(self._channels or 1)]
        self._start: Seconds = 0.0
        self._end: Seconds = 0.0
        self._last_speech: Seconds = 0.0

    def add(self, data: bytes, elapsed_seconds: Seconds) -> None:
        """Append `data`, which arrived `elapsed_seconds` after the stream began.

        Raises UnreadableAudio if it is not such a stream, StreamTooFast if sound arrives faster than allowed.
        """
        self.tape.add(data)
        settings = self._settings
        if self.tape.seconds > settings.burst_seconds + settings.max_speed * elapsed_seconds:
            raise StreamTooFast(
                f"The stream comes faster than {settings.max_speed:g} times real time. Send sound as it is recorded, "
                "or send a recording to /predict or /jobs."
            )

    @property
    def judges_channels(self) -> bool:
        """Whether each channel is judged by itself."""
        return self._channels is not None

    @property
    def is_full(self) -> bool:
        """Whether the stream has reached the limits of one recording."""
        limits = self._limits
        return self.tape.seconds >= limits.max_duration_seconds or self.tape.size >= limits.max_upload_bytes

    @property
    def is_silent(self) -> bool:
        """Whether nobody has spoken for so long that the stream must be closed."""
        patience = self._settings.close_after_silence_seconds
        return patience is not None and self._end - self._last_speech >= patience

    def next_stretch(self) -> Segment | None:
        """The stretch to judge next; None until enough has arrived.

        It ends half a second after the last stretch. If judging is more than a burst behind, it ends where the stream
        is now.
        """
        end, arrived = self._end + STEP_SECONDS, self.tape.seconds
        if arrived < end:
            return None
        if arrived - end > self._settings.burst_seconds:
            end = arrived // STEP_SECONDS * STEP_SECONDS
        return Segment(max(0.0, end - self._windows.seconds), end)

    def files(self, stretch: Segment) -> list[bytes]:
        """The stretch as one file, or as one file per channel if each is judged."""
        if self._channels is None:
            return [self.tape.stretch(stretch.start, stretch.end)]
        assert isinstance(self.tape, PcmTape)
        return [self.tape.channel_stretch(channel, stretch.start, stretch.end) for channel in range(self._channels)]

    def remember(self, stretch: Segment, contents: Sequence[Content]) -> list[Content]:
        """Store the content of each file of the stretch. Returns what the classifier must judge for each.

        After an exchange of the bundle, features that were extracted for the old one are dropped.
        Raises UnreadableAudio if a file held more sound than the stretch is long.
        """
        self._end = stretch.end
        for recent, one in zip(self._recent, contents, strict=True):
            speech = one if isinstance(one, Speech) else one.speech
            require_times_that_fit(speech.duration_seconds, stretch.duration_seconds)
            if speech.segments:
                self._last_speech = max(self._last_speech, stretch.start + speech.segments[-1].end)
            if isinstance(one, Features):
                recent[:] = [old for old in recent if not _has_other_features(old.content, one)]
            recent.append(_Stretch(stretch.start, stretch.end, one))
            del recent[: -round(self._settings.span_seconds / STEP_SECONDS)]
        return [self._gather(recent) for recent in self._recent]

    def forget(self) -> None:
        """Forget the content of all stretches. Later updates only look at what follows."""
        for recent in self._recent:
            recent.clear()

    def update(self, verdicts: Sequence[Verdict]) -> StreamUpdate:
        """The update after the last `remember`, made of the verdict on each file."""
        moments = [_moment(verdict) for verdict in verdicts]
        worst = min(
            moments, key=lambda moment: (_WORST_FIRST.index(moment["overall"]), -(moment["mean_probability"] or 0))
        )
        channels = [StreamChannel(channel=f"CHANNEL_{i}", **moment) for i, moment in enumerate(moments, start=1)]
        return StreamUpdate(**worst, start=self._start, end=self._end, channels=channels if self._channels else ())

    def _gather(self, recent: Sequence[_Stretch]) -> Content:
        """The windows of the span as those of one recording, which begins with the oldest of them."""
        chosen = [recent[-1]]
        for stretch in reversed(recent):
            # Compares starts and ends, because the first stretches of a stream all begin at 0 and overlap.
            further = min(chosen[-1].start - stretch.start, chosen[-1].end - stretch.end)
            if further >= self._windows.hop_seconds and self._end - stretch.start <= self._settings.span_seconds:
                chosen.append(stretch)
        self._start = chosen[-1].start
        spoken = [(stretch, stretch.content) for stretch in reversed(chosen) if isinstance(stretch.content, Features)]
        # If any window has a wide band, the windows that were taken for a telephone's are left out, because they say
        # nothing here.
        narrow = all(features.narrow for _, features in spoken)
        spoken = [(stretch, features) for stretch, features in spoken if features.narrow == narrow]
        newest = recent[-1].content
        speech = newest if isinstance(newest, Speech) else newest.speech
        duration_seconds = self._end - self._start
        if not spoken:
            return replace(speech, segments=(), duration_seconds=duration_seconds)
        # A file may decode to a little more than a window. It then has two windows that are nearly the same.
        windows = tuple(_shift(features.windows[-1], stretch.start - self._start) for stretch, features in spoken)
        segments = merge(part for window in windows for part in window.parts)
        weights = [window.speech_seconds for window in windows]
        return replace(
            spoken[-1][1],
            windows=windows,
            vectors=np.concatenate([features.vectors[-1:] for _, features in spoken]),
            quality=Quality(
                snr_db=float(np.average([features.quality.snr_db for _, features in spoken], weights=weights)),
                bandwidth_hz=max(features.quality.bandwidth_hz for _, features in spoken),
                drop_db=min(features.quality.drop_db for _, features in spoken),
                opus_kbits=spoken[-1][1].quality.opus_kbits,
            ),
            speech=replace(speech, segments=segments, duration_seconds=max(duration_seconds, segments[-1].end)),
        )


def require_times_that_fit(decoded_seconds: Seconds, claimed_seconds: Seconds) -> None:
    """Raises UnreadableAudio if there is more sound than the stream's times claim. Limits are applied to the times."""
    if decoded_seconds > claimed_seconds + _SLACK_SECONDS:
        raise UnreadableAudio("The times in the stream do not fit its sound. Send it as it is recorded.")


def _has_other_features(old: Content, new: Features) -> bool:
    """Whether `old` has features that were extracted for another bundle than those of `new`."""
    return isinstance(old, Features) and (old.spec_id, old.backbone_sha256) != (new.spec_id, new.backbone_sha256)


def _shift(window: Window, seconds: Seconds) -> Window:
    return replace(window, parts=tuple(Segment(part.start + seconds, part.end + seconds) for part in window.parts))


def _moment(verdict: Verdict) -> dict[str, Any]:
    probability, interval = verdict.headline or (None, None)
    return {
        "overall": verdict.overall,
        "mean_probability": probability,
        "interval": interval,
        "reasons": verdict.reasons,
    }
