"""One answer from the answers for several channels: its result, probability and interval come from the same channel."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from pipeline.types import Label, Segment, Speech
from pipeline.verdict.answer import EXAMPLES, DecidedBy, Interval, Verdict
from pipeline.verdict.channels import JudgedChannel, merge_channels
from pipeline.verdict.reasons import AnswerWarning, Reason

LABELS: tuple[Label, ...] = ("Fake", "Inconclusive", "Real", "No Speech")
NUMBERS: dict[Label, tuple[float, Interval]] = {
    "Fake": (0.9, (0.7, 0.97)),
    "Inconclusive": (0.5, (0.2, 0.8)),
    "Real": (0.1, (0.03, 0.3)),
}


def channel(name: str, label: Label, start: float = 0.0, **changed: object) -> JudgedChannel:
    """A channel of 10 s with 2 s of speech, judged as one whole."""
    if label == "No Speech":
        return JudgedChannel(name, Speech((), 10.0, "wav"), EXAMPLES["no_speech"])
    probability, interval = NUMBERS[label]
    verdict = EXAMPLES["fake"].model_copy(
        update={
            "overall": label,
            "mean_probability": probability,
            "max_probability": probability,
            "min_probability": probability,
            "interval": interval,
            "reasons": (Reason.NEAR_THRESHOLD,) if label == "Inconclusive" else (),
            "details": (
                EXAMPLES["fake"].details[0].model_copy(update={"speaker": None, "start": start, "end": start + 2}),
            ),
            "speakers": (),
            "timeline": EXAMPLES["fake"].timeline.model_copy(update={"probability": (None, probability)}),
            "speech_seconds": 2.0,
        }
        | changed
    )
    return JudgedChannel(name, Speech((Segment(start, start + 2),), 10.0, "wav"), verdict)


def merged(*channels: JudgedChannel, **notes: str) -> Verdict:
    return merge_channels({**{c.name: None for c in channels}, **notes}, channels)


@pytest.mark.parametrize("labels", list(itertools.product(LABELS, repeat=2)))
def test_the_gravest_word_is_the_answer_and_its_numbers_go_with_it(labels: tuple[Label, Label]) -> None:
    answer = merged(channel("CHANNEL_1", labels[0]), channel("CHANNEL_2", labels[1], 5.0))
    gravest = min(labels, key=LABELS.index)
    assert answer.overall == gravest
    assert [c.result for c in answer.channels] == list(labels)
    if gravest == "No Speech":
        assert answer.headline is None
    else:
        assert answer.headline == NUMBERS[gravest]
        assert (answer.mean_probability, answer.interval) == NUMBERS[gravest]
    speaking = [label for label in labels if label != "No Speech"]
    assert [speaker.result for speaker in answer.speakers] == speaking
    assert answer.speech_seconds == 2.0 * len(speaking)
    assert (answer.decided_by is not None) == (gravest == "Fake" and len(speaking) == 2)


def test_of_two_fakes_the_more_probable_one_decides() -> None:
    less = channel("CHANNEL_1", "Fake", mean_probability=0.8, interval=(0.6, 0.9))
    answer = merged(less, channel("CHANNEL_2", "Fake", 5.0))
    assert answer.decided_by == DecidedBy(channel="CHANNEL_2", start=5, end=7, probability=0.9, interval=(0.7, 0.97))
    assert answer.headline == NUMBERS["Fake"]


def test_channels_are_the_speakers_where_speakers_are_not_told_apart() -> None:
    answer = merged(channel("CHANNEL_1", "Real", 5.0), channel("CHANNEL_2", "Fake"))
    assert [(s.speaker, s.channel, s.result) for s in answer.speakers] == [
        ("CHANNEL_1", "CHANNEL_1", "Real"),
        ("CHANNEL_2", "CHANNEL_2", "Fake"),
    ]
    assert [(d.speaker, d.channel, d.start) for d in answer.details] == [
        ("CHANNEL_2", "CHANNEL_2", 0.0),
        ("CHANNEL_1", "CHANNEL_1", 5.0),
    ]


def test_speakers_are_counted_over_all_channels() -> None:
    among = EXAMPLES["fake_speaker_among_others"]
    first = JudgedChannel("CHANNEL_1", Speech((Segment(0.3, 8.2),), 9.8, "webm"), EXAMPLES["fake"])
    second = JudgedChannel("CHANNEL_2", Speech((Segment(0.3, 8.2),), 9.8, "webm"), among)
    answer = merged(first, second)
    assert [(s.speaker, s.channel) for s in answer.speakers] == [
        ("SPEAKER_00", "CHANNEL_1"),
        ("SPEAKER_01", "CHANNEL_2"),
        ("SPEAKER_02", "CHANNEL_2"),
    ]
    assert {(d.speaker, d.channel) for d in answer.details} == {(s.speaker, s.channel) for s in answer.speakers}
    decided = answer.decided_by
    assert decided and (decided.channel, decided.speaker, decided.probability) == ("CHANNEL_2", "SPEAKER_02", 0.93)
    assert answer.channels[1].probability == 0.93
    assert answer.speech_seconds == pytest.approx(7.9), "the channels overlap, so this is less than the sum"
    assert answer.warnings == (AnswerWarning.SYNTHETIC_SPEAKER,)


def test_warnings_are_those_of_the_sound_and_of_the_deciding_channel() -> None:
    """How another channel was judged says nothing about this answer."""
    fake, human = channel("CHANNEL_1", "Fake"), channel("CHANNEL_2", "Real")
    human = JudgedChannel(
        "CHANNEL_2",
        replace(human.speech, warnings=(AnswerWarning.DAMAGED,)),
        human.verdict.model_copy(update={"warnings": (AnswerWarning.DAMAGED, AnswerWarning.NARROW_BAND_HEAD)}),
    )
    assert merged(fake, human).warnings == (AnswerWarning.DAMAGED,)


def test_channels_that_were_not_judged_say_why() -> None:
    answer = merged(channel("CHANNEL_1", "Fake"), CHANNEL_2="silent", CHANNEL_3="same_as_CHANNEL_1")
    assert [(c.channel, c.result, c.probability, c.speech_seconds, c.note) for c in answer.channels] == [
        ("CHANNEL_1", "Fake", 0.9, 2.0, None),
        ("CHANNEL_2", "No Speech", None, 0.0, "silent"),
        ("CHANNEL_3", "Fake", 0.9, 2.0, "same_as_CHANNEL_1"),
    ]
    assert [s.speaker for s in answer.speakers] == ["CHANNEL_1"]
    assert answer.decided_by is None, "only one channel has speech, so it is the whole"


def test_each_moment_has_the_highest_probability() -> None:
    first = channel("CHANNEL_1", "Real")
    second = channel("CHANNEL_2", "Inconclusive")
    timeline = second.verdict.timeline.model_copy(update={"probability": (0.4, 0.05, None)})
    second = JudgedChannel("CHANNEL_2", second.speech, second.verdict.model_copy(update={"timeline": timeline}))
    assert merged(first, second).timeline.probability == (0.4, 0.1, None)
    assert merged(first, second).max_probability == 0.5
    assert merged(first, second).min_probability == 0.1


def test_the_answer_is_valid() -> None:
    answer = merged(channel("CHANNEL_1", "Fake"), channel("CHANNEL_2", "Real"), CHANNEL_3="silent")
    assert Verdict.model_validate_json(answer.model_dump_json(exclude={"confidence"})).overall == "Fake"
