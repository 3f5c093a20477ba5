"""One answer for a recording whose channels were judged one by one. Call recorders write each party to a channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from pipeline.types import Label, Speech
from pipeline.verdict.answer import ChannelVerdict, DecidedBy, Detail, Explanation, SpeakerVerdict, Timeline, Verdict
from pipeline.verdict.reasons import AnswerWarning
from pipeline.verdict.windows import merge, total_seconds

Names = dict[tuple[str, str | None], str]
"""The name in the whole answer of each channel's speakers."""

_SERIOUSNESS: dict[Label, int] = {"No Speech": 0, "Real": 1, "Inconclusive": 2, "Fake": 3}


@dataclass(frozen=True)
class JudgedChannel:
    """The result for one channel."""

    name: str
    speech: Speech
    verdict: Verdict

    @property
    def seriousness(self) -> tuple[int, float]:
        """A key that sorts channels by the seriousness of their result, then by probability."""
        return _SERIOUSNESS[self.verdict.overall], self.verdict.headline[0] if self.verdict.headline else 0.0


def merge_channels(notes: Mapping[str, str | None], judged: Sequence[JudgedChannel]) -> Verdict:
    """The answer for the whole: that of the channel with the most serious result.

    If several channels have that result, it is the one with the highest probability. So the result, the probability,
    the score and the interval of the whole all come from one channel, and agree. If that channel is Fake and not alone,
    `decided_by` names it. The reasons and the explanation are its own, too. `notes` has the note of every channel by
    its name, in order. `judged` has at least one channel; a channel that is not in it is silent or the same as another.
    """
    deciding = max(judged, key=lambda channel: channel.seriousness)
    speaking = [channel.verdict for channel in judged if channel.speech.segments]
    highest = [verdict.max_probability for verdict in speaking if verdict.max_probability is not None]
    lowest = [verdict.min_probability for verdict in speaking if verdict.min_probability is not None]
    names = _names(judged)
    by_name = {channel.name: channel.verdict for channel in judged}
    return deciding.verdict.model_copy(
        update={
            "max_probability": max(highest, default=None),
            "min_probability": min(lowest, default=None),
            "details": tuple(sorted(_details(judged, names), key=lambda detail: detail.start)),
            "speakers": tuple(_speakers(judged, names)),
            "timeline": _timeline([channel.verdict.timeline for channel in judged]),
            "speech_seconds": total_seconds(merge(s for channel in judged for s in channel.speech.segments)),
            "channels": tuple(_channel(name, note, by_name) for name, note in notes.items()),
            "explanation": _explanation(deciding, names),
            "decided_by": _decided_by(deciding, names, is_alone=len(speaking) < 2),
            "warnings": _warnings(deciding, judged),
        }
    )


def _names(judged: Sequence[JudgedChannel]) -> Names:
    """Numbers the speakers over all channels. If speakers were not told apart, each channel is one speaker."""
    told_apart = [(channel.name, speaker.speaker) for channel in judged for speaker in channel.verdict.speakers]
    names: Names = {speaker: f"SPEAKER_{number:02d}" for number, speaker in enumerate(told_apart)}
    return names | {(channel.name, None): channel.name for channel in judged}


def _details(judged: Sequence[JudgedChannel], names: Names) -> Iterator[Detail]:
    for channel in judged:
        for detail in channel.verdict.details:
            speaker = names[channel.name, detail.speaker]
            yield detail.model_copy(update={"channel": channel.name, "speaker": speaker})


def _speakers(judged: Sequence[JudgedChannel], names: Names) -> Iterator[SpeakerVerdict]:
    for channel in judged:
        verdict = channel.verdict
        for speaker in verdict.speakers:
            name = names[channel.name, speaker.speaker]
            yield speaker.model_copy(update={"channel": channel.name, "speaker": name})
        if verdict.headline and not verdict.speakers:
            probability, interval = verdict.headline
            yield SpeakerVerdict(
                speaker=channel.name,
                channel=channel.name,
                result=verdict.overall,
                probability=probability,
                interval=interval,
                speech_seconds=verdict.speech_seconds,
            )


def _explanation(deciding: JudgedChannel, names: Names) -> Explanation | None:
    """The explanation of the channel whose answer is the answer for the whole."""
    explanation = deciding.verdict.explanation
    if explanation is None:
        return None
    moments = tuple(
        moment.model_copy(update={"speaker": names[deciding.name, moment.speaker]}) for moment in explanation.moments
    )
    return explanation.model_copy(update={"moments": moments})


def _timeline(timelines: Sequence[Timeline]) -> Timeline:
    """At each step the highest probability among the channels with speech."""
    steps = zip_longest(*(timeline.probability for timeline in timelines))
    probability = tuple(max((p for p in step if p is not None), default=None) for step in steps)
    return timelines[0].model_copy(update={"probability": probability})


def _warnings(deciding: JudgedChannel, judged: Sequence[JudgedChannel]) -> tuple[AnswerWarning, ...]:
    """What to know about the sound of any channel, and about how the deciding channel was judged."""
    of_sound = (warning for channel in judged for warning in channel.speech.warnings)
    return tuple(dict.fromkeys((*of_sound, *deciding.verdict.warnings)))


def _channel(name: str, note: str | None, judged: Mapping[str, Verdict]) -> ChannelVerdict:
    """The answer for one channel. A copy of another channel has that channel's answer; a silent channel has none."""
    verdict = judged.get((note or "").removeprefix("same_as_") or name, judged.get(name))
    return ChannelVerdict(
        channel=name,
        result=verdict.overall if verdict else "No Speech",
        probability=verdict.headline[0] if verdict and verdict.headline else None,
        speech_seconds=verdict.speech_seconds if verdict else 0.0,
        note=note,
    )


def _decided_by(deciding: JudgedChannel, names: Names, *, is_alone: bool) -> DecidedBy | None:
    """The part that makes the whole Fake: a part of the deciding channel, or all of it if it is not alone."""
    verdict = deciding.verdict
    if part := verdict.decided_by:
        speaker = names[deciding.name, part.speaker] if part.speaker else None
        return part.model_copy(update={"channel": deciding.name, "speaker": speaker})
    if is_alone or verdict.overall != "Fake" or not verdict.headline:
        return None
    probability, interval = verdict.headline
    segments = deciding.speech.segments
    return DecidedBy(
        channel=deciding.name, start=segments[0].start, end=segments[-1].end, probability=probability, interval=interval
    )
