"""WS /stream, on the real graph with a real client."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, cast

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from deployments.http.stream import UPDATES_AT_ONCE, Streams
from deployments.results import Problem
from pipeline.config import DetectorConfig
from pipeline.detector import Detector
from pipeline.stream import LiveSettings, LiveStream, StreamUpdate, StreamVerdict, parse_options
from pipeline.types import Speech
from pipeline.verdict.answer import EXAMPLES, Verdict
from tests import bench_streams
from tests.audio import encode
from tests.graph import wait_until

pytestmark = pytest.mark.timeout(900)

RATE = 16_000
PCM = {"format": "pcm_s16le", "sample_rate": RATE}
PATIENCE_SECONDS = 120


class Counting:
    """A graph that finds no speech, and counts how many extractions run at a time."""

    def __init__(self) -> None:
        self.running = self.most = 0

    async def extract(self, file: bytes) -> Speech:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.01)
        self.running -= 1
        return Speech((), 0.5, "wav")

    async def classify(self, content: Speech, operating_point: str, among: int) -> Verdict:
        return EXAMPLES["no_speech"]


def test_the_channels_of_streams_take_turns() -> None:
    """Recordings need not wait behind eight channels of eight streams."""
    graph: Any = Counting()
    config, settings = DetectorConfig(), LiveSettings()
    options = parse_options(json.dumps(PCM | {"channels": 8, "per_channel": True}))

    async def update(streams: Streams) -> None:
        live = LiveStream(options, config.windows, config.limits, settings)
        noise = np.random.default_rng(0).normal(scale=0.1, size=(RATE, 8)).astype(np.float32)
        live.add(pcm(noise), 1.0)
        stretch = live.next_stretch()
        assert stretch
        await streams._update(live, stretch, options)

    async def test() -> None:
        streams = Streams(graph, cast(Any, None), cast(Any, None), config, settings)
        await asyncio.gather(*(update(streams) for _ in range(2)))

    asyncio.run(test())
    assert graph.most == UPDATES_AT_ONCE


@contextmanager
def stream(service: httpx.Client, first: dict[str, Any] | str | bytes) -> Iterator[ClientConnection]:
    """An open stream that has sent its first message."""
    url = str(service.base_url).replace("http", "ws", 1).rstrip("/") + "/stream"
    with connect(url, max_size=None) as connection:
        with suppress(ConnectionClosed):  # a stream may be refused before it sends anything
            connection.send(json.dumps(first) if isinstance(first, dict) else first)
        yield connection


def messages_of(connection: ClientConnection) -> list[dict[str, Any]]:
    """All messages until the service closes the stream."""
    messages = []
    try:
        while True:
            messages.append(json.loads(connection.recv(PATIENCE_SECONDS)))
    except ConnectionClosed:
        return messages


def end(connection: ClientConnection) -> list[dict[str, Any]]:
    connection.send('{"end": true}')
    return messages_of(connection)


def pcm(samples: NDArray[np.float32]) -> bytes:
    return (samples * 2**15).astype("<i2").tobytes()


def refusal(connection: ClientConnection, code: int) -> dict[str, Any]:
    """The problem document with which the service closes the stream, with the given close code."""
    *_, last = messages_of(connection)
    assert connection.close_code == code
    document = Problem.model_validate(last)
    assert document.title == connection.close_reason
    return document.model_dump()


def test_updates_and_a_verdict_on_the_whole_of_pcm(
    service: httpx.Client, detector: Detector, ten_seconds: NDArray[np.float32]
) -> None:
    spoken = ten_seconds[: 6 * RATE]
    with stream(service, PCM) as connection:
        for offset in range(0, len(spoken), RATE // 10):
            connection.send(pcm(spoken[offset : offset + RATE // 10]))
            time.sleep(0.05)
        *updates, verdict = end(connection)
    assert [update["end"] for update in updates] == [0.5 * i for i in range(1, 13)]
    for update in updates:
        StreamUpdate.model_validate_json(json.dumps(update))
    StreamVerdict.model_validate_json(json.dumps(verdict))
    expected = detector.predict(encode(spoken)).model_dump(mode="json") | {"file_sha256": None}
    assert {key: verdict[key] for key in expected} == expected
    assert (verdict["start"], verdict["end"], verdict["final"]) == (0.0, 6.0, True)
    assert connection.close_code == 1000
    assert "verdict on the whole" in (connection.close_reason or "")


def test_webm_as_a_browser_sends_it(
    service: httpx.Client, detector: Detector, ten_seconds: NDArray[np.float32]
) -> None:
    webm = encode(ten_seconds[: 5 * RATE], "webm", live=True)
    with stream(service, {"format": "webm", "operating_point": "recall"}) as connection:
        for offset in range(0, len(webm), 4_000):
            connection.send(webm[offset : offset + 4_000])
        *updates, verdict = end(connection)
    assert len(updates) in (9, 10)
    expected = detector.predict(webm, operating_point="recall").model_dump(mode="json")
    assert {key: verdict[key] for key in expected} == expected


def test_webm_whose_clock_stands_still_gets_no_verdict(service: httpx.Client, ten_seconds: NDArray[np.float32]) -> None:
    """By its times it lasts no time, so no limit of seconds would count it."""
    webm = encode(ten_seconds[: 5 * RATE], "webm", live=True)
    stopped = webm.replace(bytes.fromhex("2ad7b1 83 0f4240"), bytes.fromhex("2ad7b1 83 000001"))
    assert stopped != webm
    with stream(service, {"format": "webm"}) as connection:
        connection.send(stopped)
        connection.send('{"end": true}')
        assert "times in the stream" in refusal(connection, 1007)["detail"]


def test_channels_one_by_one(service: httpx.Client, detector: Detector, ten_seconds: NDArray[np.float32]) -> None:
    spoken = ten_seconds[3 * RATE : 5 * RATE]
    both = np.stack([spoken, np.zeros_like(spoken)], axis=1)
    with stream(service, PCM | {"channels": 2, "per_channel": True}) as connection:
        connection.send(pcm(both))
        *updates, verdict = end(connection)
    assert len(updates) == 4
    first, second = updates[-1]["channels"]
    assert (first["channel"], second["channel"]) == ("CHANNEL_1", "CHANNEL_2")
    assert second["overall"] == "No Speech"
    assert updates[-1]["overall"] == first["overall"] != "No Speech"
    expected = detector.predict(encode(both.T), channels="split").model_dump(mode="json") | {"file_sha256": None}
    assert {key: verdict[key] for key in expected} == expected


def test_a_copied_channel_is_judged_like_one_channel(service: httpx.Client, ten_seconds: NDArray[np.float32]) -> None:
    """With two voices each answer would be less certain than with one."""
    spoken = ten_seconds[: 6 * RATE]
    found = []
    for channels in (1, 2):
        with stream(service, PCM | {"channels": channels, "per_channel": True}) as connection:
            connection.send(pcm(np.stack([spoken] * channels, axis=1)))
            *updates, _ = end(connection)
        found.append(updates)
    for alone, copied in zip(*found, strict=True):
        assert {**copied, "channels": []} == {**alone, "channels": []}
        (only,) = alone["channels"]
        assert copied["channels"] == [only, only | {"channel": "CHANNEL_2"}]


@pytest.mark.parametrize(
    "first",
    ["nonsense", {"format": "flac"}, {"format": "pcm_s16le"}, PCM | {"sample_rate": 1}, b"RIFF"],
    ids=["no JSON", "no such format", "no sample rate", "too low a rate", "sound"],
)
def test_a_wrong_first_message(service: httpx.Client, first: dict[str, Any] | str | bytes) -> None:
    with stream(service, first) as connection:
        assert refusal(connection, 1008)["status"] == 422


def test_garbage_in_place_of_webm(service: httpx.Client) -> None:
    with stream(service, {"format": "webm"}) as connection:
        connection.send(b"not webm" * 100)
        assert "Begin a new stream" in refusal(connection, 1007)["detail"]


def test_no_sound_at_all(service: httpx.Client) -> None:
    for first in (PCM, {"format": "webm"}):
        with stream(service, first) as connection:
            connection.send('{"end": true}')
            assert refusal(connection, 1008)["type"].endswith("#empty-audio")


def test_a_message_that_is_neither_sound_nor_an_end(service: httpx.Client) -> None:
    with stream(service, PCM) as connection:
        connection.send('{"stop": 1}')
        assert '{"end": true}' in refusal(connection, 1008)["detail"]


def test_a_flood_is_refused(service: httpx.Client) -> None:
    with stream(service, PCM) as connection:
        connection.send(bytes(2 * RATE * 12))
        assert "faster than 2 times real time" in refusal(connection, 1008)["detail"]


def test_a_stream_that_sends_nothing_any_more_is_closed(service: httpx.Client, config: dict[str, Any]) -> None:
    assert config["applications"][0]["args"]["live"]["idle_seconds"] < 30
    with stream(service, PCM) as connection:
        connection.send(bytes(2 * RATE))
        assert refusal(connection, 1008)["status"] == 408


def test_messages_without_sound_keep_no_stream_open(service: httpx.Client) -> None:
    with stream(service, PCM) as connection, ThreadPoolExecutor() as pool:

        def was_closed_while_sending() -> bool:
            try:
                for _ in range(120):
                    connection.send(b"")
                    time.sleep(0.5)
            except ConnectionClosed:
                return True
            return False

        connection.send(bytes(2 * RATE))
        sending = pool.submit(was_closed_while_sending)
        assert refusal(connection, 1008)["type"].endswith("#stream-stopped")
        assert sending.result()


def test_only_the_own_page_and_the_sites_on_the_list_may_open_a_stream(
    service: httpx.Client, config: dict[str, Any]
) -> None:
    url = str(service.base_url).replace("http", "ws", 1).rstrip("/") + "/stream"
    page = str(service.base_url).rstrip("/")
    for origin in (page, *config["applications"][0]["args"]["cors_origins"]):
        with connect(url, origin=Origin(origin)):
            pass
    for origin in ("https://elsewhere.example", "null", page + "0"):
        with pytest.raises(InvalidStatus) as refused, connect(url, origin=Origin(origin)):
            pass
        assert refused.value.response.status_code == 403
        assert "cors_origins" in Problem.model_validate_json(refused.value.response.body or b"").detail


def test_a_stream_in_which_nobody_speaks_ends_with_a_verdict(service: httpx.Client, config: dict[str, Any]) -> None:
    seconds = config["applications"][0]["args"]["live"]["close_after_silence_seconds"]
    with stream(service, PCM) as connection:
        connection.send(bytes(int(2 * RATE * (seconds + 1))))
        *updates, verdict = messages_of(connection)
    assert [update["end"] for update in updates] == [0.5 * i for i in range(1, int(2 * seconds) + 1)]
    assert {message["overall"] for message in (*updates, verdict)} == {"No Speech"} and verdict["final"]
    assert connection.close_code == 1000 and (connection.close_reason or "").startswith("Nobody has spoken")


def test_streams_that_are_left_make_room_for_others(service: httpx.Client, config: dict[str, Any]) -> None:
    live = config["applications"][0]["args"]["live"]
    ingress = next(d for d in config["applications"][0]["deployments"] if d["name"] == "Ingress")
    replicas = ingress["autoscaling_config"]["max_replicas"]

    def fits() -> bool:
        """Open streams until one is refused, and leave them. Returns whether a replica was full only then."""
        with ExitStack() as opened:
            last: dict[str, Any] = {}
            streams = []
            while last.get("status") != 503:
                connection = opened.enter_context(stream(service, PCM))
                with suppress(ConnectionClosed):
                    connection.send(bytes(2 * RATE // 2))
                last = json.loads(connection.recv(PATIENCE_SECONDS))
                streams.append(connection)
            assert len(streams) <= replicas * live["max_streams"] + 1
            assert messages_of(streams[-1]) == [] and streams[-1].close_code == 1013
            for connection in streams:
                connection.socket.close()  # without a closing message
        return len(streams) > int(live["max_streams"])

    assert fits()
    wait_until(fits, live["idle_seconds"] * 0.6, every=1.0)  # sooner than streams are closed that bring no sound


def test_a_stream_beside_it_and_predict_do_not_disturb_each_other(
    service: httpx.Client, detector: Detector, ten_seconds: NDArray[np.float32]
) -> None:
    clip = encode(ten_seconds[: 3 * RATE])
    expected = detector.predict(clip).model_dump(mode="json")
    with stream(service, PCM) as one, stream(service, PCM) as other:
        for connection, part in ((one, ten_seconds[:RATE]), (other, ten_seconds[RATE : 3 * RATE])):
            connection.send(pcm(part))
        answer = service.post("/predict", files={"audio": clip}).json()
        assert {key: answer[key] for key in expected} == expected
        assert [len(end(connection)) for connection in (one, other)] == [3, 5]
    assert service.get("/health").status_code == 200


@pytest.mark.slow
def test_two_streams_keep_up_with_their_sound(service: httpx.Client) -> None:
    for log in bench_streams.stream(str(service.base_url).rstrip("/"), 2, 30.0):
        assert log.ends == [0.5 * i for i in range(1, 61)], "no update is skipped"
        assert log.lags[-1] < max(log.lags[:20]) + 2.0, "no lag builds up"
        assert log.overall
