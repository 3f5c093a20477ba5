"""The updates of a stream at each moment, and the limits of a stream."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.audio.decode import decode
from pipeline.config import Limits, Windows
from pipeline.detector import Detector
from pipeline.errors import InputError, StreamTooFast, UnreadableAudio
from pipeline.stream import STEP_SECONDS, Content, LiveSettings, LiveStream, StreamUpdate, parse_options
from pipeline.types import Features, Speech
from pipeline.verdict.answer import Verdict
from tests.audio import encode

RATE = 16_000
LIMITS = Limits()
PCM = {"format": "pcm_s16le", "sample_rate": RATE}


@pytest.fixture(scope="module")
def samples(sample_wav: bytes) -> NDArray[np.int16]:
    """The sample of 30 s: nobody speaks for 6.7 s, then two people speak until the end."""
    with wave.open(io.BytesIO(sample_wav)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")


def stream(first: dict[str, Any], **settings: Any) -> LiveStream:
    return LiveStream(parse_options(json.dumps(first)), Windows(), LIMITS, LiveSettings(**settings))


def extract(detector: Detector, file: bytes) -> Content:
    recording = decode(file, LIMITS)
    speech = detector.voice_activity.detect(recording)
    return detector.extractor.extract(recording, speech, None) if speech.segments else speech


def judge(detector: Detector, content: Content) -> Verdict:
    if isinstance(content, Speech):
        return detector.classifier.no_speech(content, use_diarization=False)
    return detector.classifier.classify(content)


def updates(detector: Detector, live: LiveStream, data: bytes, seconds_a_byte: float) -> Iterator[StreamUpdate]:
    """The updates while `data` arrives. Each part of it has a tenth of a second."""
    size = 2 * round(0.05 / seconds_a_byte)
    for offset in range(0, len(data), size):
        live.add(data[offset : offset + size], offset * seconds_a_byte)
        while stretch := live.next_stretch():
            gathered = live.remember(stretch, [extract(detector, file) for file in live.files(stretch)])
            yield live.update([judge(detector, one) for one in gathered])


def test_an_update_every_half_second_on_what_was_said_lately(detector: Detector, samples: NDArray[np.int16]) -> None:
    sound = samples[7 * RATE : 23 * RATE]
    live = stream(PCM)
    received = list(updates(detector, live, sound.tobytes(), 0.5 / RATE))
    assert [update.end for update in received] == [0.5 * i for i in range(1, 33)]
    assert [update.start for update in received[:8]] == [0.0] * 8
    assert all(4 <= update.end - update.start <= 10 for update in received[8:])
    assert all(update.end - update.start == 10 for update in received[20:])
    for update in received:
        assert update.interval and update.mean_probability is not None
        assert update.interval[0] <= update.mean_probability <= update.interval[1]
    # The last update has almost the same probability as an upload of these seconds.
    last = encode(sound[-10 * RATE :] / np.float32(2**15))
    assert received[-1].mean_probability == pytest.approx(detector.predict(last).mean_probability, abs=0.1)
    # What was said before these seconds makes no difference.
    alone = list(updates(detector, stream(PCM), sound[-10 * RATE :].tobytes(), 0.5 / RATE))
    assert alone[-1] == received[-1].model_copy(update={"start": 0.0, "end": 10.0})


def test_windows_that_were_heard_as_a_telephones_are_no_evidence_among_others(
    detector: Detector, samples: NDArray[np.int16]
) -> None:
    """The sample is a telephone call. Noise is added to its first seconds, so that their band is wide."""
    sound = samples[7 * RATE : 15 * RATE].copy()
    sound[: 4 * RATE] += np.random.default_rng(0).normal(0, 300, 4 * RATE).astype(np.int16)
    live = stream(PCM)
    live.add(sound.tobytes(), 0)
    kept = []
    while stretch := live.next_stretch():
        (content,) = live.remember(stretch, [extract(detector, file) for file in live.files(stretch)])
        assert not isinstance(content, Speech)
        kept.append((content.narrow, len(content.windows), content.windows[-1].parts[-1].end))
    assert kept[7][:2] == (False, 1)
    # The newest window has the narrow band of the telephone. The answer still uses only the windows before it.
    assert kept[-1][0] is False and kept[-1][2] < 8


def test_after_an_exchange_of_the_bundle_old_features_are_no_evidence(
    detector: Detector, samples: NDArray[np.int16]
) -> None:
    live = stream(PCM)
    live.add(samples[7 * RATE : 17 * RATE].tobytes(), 10.0)
    windows = {}
    while stretch := live.next_stretch():
        (content,) = (extract(detector, file) for file in live.files(stretch))
        assert isinstance(content, Features)
        if stretch.end >= 9:  # from here on, the features are for another bundle
            content = replace(content, backbone_sha256="new", vectors=content.vectors[:, :100])
        if stretch.end == 9.5:
            live.forget()
        (gathered,) = live.remember(stretch, [content])
        assert isinstance(gathered, Features)
        assert gathered.backbone_sha256 == content.backbone_sha256
        windows[stretch.end] = len(gathered.windows)
    assert windows[8.5] == 3
    assert windows[9.0] == windows[9.5] == windows[10.0] == 1


def test_the_verdict_on_the_whole_is_that_on_one_recording(detector: Detector, samples: NDArray[np.int16]) -> None:
    live = stream(PCM)
    live.add(samples[: 10 * RATE].tobytes(), 0)
    upload = encode(samples[: 10 * RATE] / np.float32(2**15))
    same_bytes_or_not = {"file_sha256": None}
    whole = detector.predict(live.tape.whole()).model_copy(update=same_bytes_or_not)
    assert whole == detector.predict(upload).model_copy(update=same_bytes_or_not)


def test_webm_is_told_about_what_pcm_is(detector: Detector, samples: NDArray[np.int16]) -> None:
    sound = samples[7 * RATE : 17 * RATE]
    webm = encode(sound / np.float32(2**15), "webm", live=True)
    from_pcm = list(updates(detector, stream(PCM), sound.tobytes(), 0.5 / RATE))
    from_webm = list(updates(detector, stream({"format": "webm"}), webm, 10 / len(webm)))
    assert len(from_webm) in (19, 20)
    assert from_webm[-1].overall == from_pcm[len(from_webm) - 1].overall
    assert from_webm[-1].mean_probability == pytest.approx(from_pcm[len(from_webm) - 1].mean_probability, abs=0.2)


def test_nobody_speaks_for_long(detector: Detector, samples: NDArray[np.int16]) -> None:
    silence = np.zeros(5 * RATE, np.int16)
    live = stream(PCM, close_after_silence_seconds=4)
    received = []
    for update in updates(detector, live, silence.tobytes(), 0.5 / RATE):
        received.append(update)
        if live.is_silent:
            break
    assert [update.overall for update in received] == ["No Speech"] * 8
    assert received[-1].mean_probability is None and received[-1].interval is None
    talking = stream(PCM, close_after_silence_seconds=4)
    list(updates(detector, talking, samples[8 * RATE : 13 * RATE].tobytes(), 0.5 / RATE))
    assert not talking.is_silent


def test_each_channel_is_judged_by_itself_and_the_worst_stands_for_all(
    detector: Detector, samples: NDArray[np.int16]
) -> None:
    sound = samples[8 * RATE : 12 * RATE]
    both = np.stack([np.zeros_like(sound), sound], axis=1)
    live = stream(PCM | {"channels": 2, "per_channel": True})
    last = list(updates(detector, live, both.tobytes(), 0.25 / RATE))[-1]
    alone = list(updates(detector, stream(PCM), sound.tobytes(), 0.5 / RATE))[-1]
    silent, spoken = last.channels
    assert (silent.channel, silent.overall) == ("CHANNEL_1", "No Speech")
    assert spoken.channel == "CHANNEL_2"
    for field in ("overall", "mean_probability", "interval", "reasons"):
        assert getattr(spoken, field) == getattr(last, field) == getattr(alone, field)


def test_what_comes_faster_than_it_can_have_been_made_is_refused() -> None:
    live = stream(PCM, max_speed=2, burst_seconds=3)
    second = bytes(2 * RATE)
    live.add(3 * second, 0.0)
    live.add(2 * second, 1.0)
    with pytest.raises(StreamTooFast, match=r"faster than 2 times real time\. Send sound as it is recorded"):
        live.add(second, 1.2)


def test_a_stream_that_has_fallen_behind_goes_on_where_it_is() -> None:
    live = stream(PCM, burst_seconds=5)
    live.add(bytes(2 * 4 * RATE), 10)
    first = live.next_stretch()
    assert first is not None and (first.start, first.end) == (0.0, STEP_SECONDS)
    live.add(bytes(2 * 4 * RATE), 10)
    now = live.next_stretch()
    assert now is not None and (now.start, now.end) == (4.0, 8.0)


def test_a_stream_is_as_long_as_one_recording_may_be() -> None:
    limits = Limits(max_duration_seconds=5)
    live = LiveStream(parse_options(json.dumps(PCM)), Windows(), limits, LiveSettings())
    live.add(bytes(2 * RATE * 4), 0)
    assert not live.is_full
    live.add(bytes(2 * RATE), 0)
    assert live.is_full
    small = LiveStream(parse_options(json.dumps(PCM)), Windows(), Limits(max_upload_mib=0.1), LiveSettings())
    small.add(bytes(110_000), 0)
    assert small.is_full


def test_a_file_that_holds_more_than_its_stretch_is_refused() -> None:
    """The sender can write any times into a stream. So the decoded length counts."""
    live = stream({"format": "webm"})
    with pytest.raises(UnreadableAudio, match="do not fit its sound"):
        live.remember(live_stretch(), [Speech((), 30.0, "webm")])


def live_stretch() -> Any:
    live = stream(PCM)
    live.add(bytes(2 * RATE), 1)
    return live.next_stretch()


@pytest.mark.parametrize(
    ("first", "named"),
    [
        ("nonsense", "the first message: Invalid JSON"),
        ("[]", "the first message: "),
        ('{"format": "mp3"}', "format"),
        ('{"format": "pcm_s16le"}', "sample_rate"),
        ('{"format": "pcm_s16le", "sample_rate": 16000, "chanels": 1}', "chanels"),
        ('{"format": "webm", "operating_point": "best"}', "operating_point"),
    ],
)
def test_a_wrong_first_message_is_told_what_a_right_one_is(first: str, named: str) -> None:
    with pytest.raises(InputError, match=r'Begin with \{"format": "pcm_s16le"') as refused:
        parse_options(first)
    assert named in refused.value.detail


def test_a_long_first_message_is_not_parsed() -> None:
    with pytest.raises(InputError, match="too long"):
        parse_options(json.dumps(PCM) + " " * 5_000)


@pytest.mark.parametrize(
    "wrong", [{"sample_rate": 3_999}, {"sample_rate": 400_000}, {"channels": 0}, {"channels": 9}], ids=str
)
def test_a_stream_has_the_limits_of_an_upload(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="are accepted"):
        stream(PCM | wrong)
