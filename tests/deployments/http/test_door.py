"""Keys and limits: the real HTTP application in this process, with stages that find no speech."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import io
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import pytest

from deployments import access
from deployments.access import Access, AccessConfig, Buckets, Key, Limits, presented_key
from deployments.http import uploads
from deployments.http.admission import Admission, AdmissionConfig
from deployments.http.answers import BatchAnswer, UsageAnswer
from deployments.http.ingress import Ingress
from deployments.results import Problem
from pipeline.audio.decode import decode
from pipeline.config import ROOT, DetectorConfig
from pipeline.errors import Overloaded, RateExceeded, StageUnavailable
from pipeline.stages.classify import Classifier
from pipeline.stream import LiveSettings
from pipeline.types import Speech
from tests.audio import encode
from tests.deployments.test_graph import Handle
from tests.graph import Cluster
from tests.test_structure import run_python

CONFIG = DetectorConfig()
CLIP = encode(np.zeros(16_000, np.float32))
EXTENSION = "chrome-extension://abcdefghijklmnopabcdefghijklmnop"


def key(secret: str, name: str = "k", **rest: Any) -> Key:
    return Key(name=name, sha256=hashlib.sha256(secret.encode()).hexdigest(), **rest)


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class LocalLimits(Limits):
    """The buckets in this process, instead of in the actor that all replicas share."""

    def __init__(self, clock: Clock) -> None:
        self._buckets = Buckets(clock)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        return getattr(self._buckets, method)(*arguments)


class Silence:
    """Stages that find no speech."""

    def __init__(self) -> None:
        classifier = Classifier(CONFIG)
        self.handles = {
            "Decoder": Handle(lambda data, track: decode(data, CONFIG.limits, track)),
            "VoiceActivityDetector": Handle(lambda recording: Speech((), 1.0, "wav")),
            "Diarizer": Handle(lambda recording: ()),
            "TkanExtractor": Handle(lambda *_: None),
            "Classifier": Handle(lambda speech, diarized: classifier.no_speech(speech, use_diarization=diarized)),
        }


@asynccontextmanager
async def served(
    keys: tuple[Key, ...] = (), clock: Clock | None = None, **admission: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    plain = cast(Any, Ingress).func_or_class.__mro__[1]
    ingress = plain.__new__(plain)
    stages = Silence()
    settings = AdmissionConfig(**admission)
    plain.__init__(
        ingress,
        CONFIG,
        (EXTENSION,),
        AccessConfig(),
        settings,
        dict.fromkeys(stages.handles, 30.0),
        60.0,
        LiveSettings(),
        None,
        None,
        stages.handles,
    )
    ingress._access = Access(AccessConfig(keys=keys), LocalLimits(clock or Clock()))
    transport = httpx.ASGITransport(plain.__serve_build_asgi_app__(ingress), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        yield client, ingress


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 120))


def problem(response: httpx.Response, status: int) -> Problem:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    return Problem.model_validate_json(response.text)


def post(client: httpx.AsyncClient, secret: str | None = None, **fields: str) -> Coroutine[Any, Any, httpx.Response]:
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    return client.post("/predict", files={"audio": CLIP}, data=fields, headers=headers)


# ---- keys


def test_without_keys_anybody_may_ask() -> None:
    async def test() -> None:
        async with served() as (client, _):
            assert (await post(client)).json()["overall"] == "No Speech"

    run(test)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"X-API-Key": "wrong"}, {"X-API-Key": ""}])
def test_with_keys_everything_else_needs_one(headers: dict[str, str]) -> None:
    async def test() -> None:
        async with served((key("right"),)) as (client, _):
            for path in ("/", "/info", "/docs", "/openapi.json", "/usage", "/predict", "/nothing", "/healthy"):
                refused = await client.get(path, headers=headers)
                assert problem(refused, 401).title == "Key missing or unknown"
                assert refused.headers["www-authenticate"].startswith("Bearer")

    run(test)


def test_the_page_is_there_to_ask_for_the_key() -> None:
    async def test() -> None:
        async with served((key("right"),)) as (client, _):
            assert "<html" in (await client.get("/", headers={"Accept": "text/html"})).text
            assert (await client.get("/page/page.js")).status_code == 200
            assert (await client.get("/page/../info")).status_code == 401
            assert (await client.get("/page/%2e%2e/info")).status_code in (401, 404)

    run(test)


@pytest.mark.parametrize(
    "headers", [{"Authorization": "Bearer right"}, {"authorization": "bearer right"}, {"X-API-Key": "right"}]
)
def test_a_known_key_is_let_in(headers: dict[str, str]) -> None:
    async def test() -> None:
        async with served((key("other", "o"), key("right"))) as (client, _):
            assert (await client.post("/predict", files={"audio": CLIP}, headers=headers)).status_code == 200
            problem(await client.get("/usage", headers=headers), 403)
            problem(await client.get("/nothing", headers=headers), 404)

    run(test)


def test_a_key_may_do_what_it_is_for() -> None:
    async def test() -> None:
        keys = (key("a", "a", may=("admin",)), key("b", "b", may=("predict", "admin"), requests_per_minute=60))
        async with served(keys) as (client, _):
            problem(await post(client, "a"), 403)
            assert (await post(client, "b")).status_code == 200
            usage = await client.get("/usage", headers={"X-API-Key": "a"})
            assert UsageAnswer.model_validate_json(usage.text).keys == {"a": {}, "b": {"requests": 59.0}}

    run(test)


def test_every_answer_about_keys_is_documented() -> None:
    async def test() -> None:
        async with served() as (client, _):
            paths = (await client.get("/openapi.json")).json()["paths"]
            for path in sorted(paths.keys() - {"/health"}):
                for operation in paths[path].values():
                    assert operation["responses"].keys() >= {"401", "403", "429", "503"}, path

    run(test)


def test_a_key_comes_in_one_of_three_ways() -> None:
    assert presented_key({"authorization": "Basic abc", "x-api-key": "k"}) == "k"
    assert presented_key({"authorization": "Bearer token-of-a-gateway", "x-api-key": "k"}) == "k"
    assert presented_key({"sec-websocket-protocol": "other, sound-sentry-key.k"}) == "k"
    assert presented_key({}) == ""


async def stream(ingress: Any, headers: dict[str, str]) -> list[dict[str, Any]]:
    """What the service sends to a client that opens a stream with these headers, and leaves it at once."""
    app = type(ingress).__serve_build_asgi_app__(ingress)
    sent: list[dict[str, Any]] = []
    received: list[dict[str, Any]] = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}]

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return received.pop(0)

    scope = {
        "type": "websocket",
        "path": "/stream",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "query_string": b"",
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}},
    }
    await app(scope, receive, send)
    return sent


def test_a_websocket_without_a_key_is_refused_before_it_opens() -> None:
    async def test() -> None:
        async with served((key("right"),)) as (_, ingress):
            first, *_ = await stream(ingress, {})
            assert (first["type"], first["status"]) == ("websocket.http.response.start", 401)

    run(test)


def test_two_keys_of_one_name_or_hash_are_refused() -> None:
    for pair in ((key("a"), key("b")), (key("a", "a"), key("a", "b"))):
        with pytest.raises(ValueError, match="two keys have the same"):
            AccessConfig(keys=pair)


def test_the_command_makes_a_key_that_its_configuration_lets_in() -> None:
    command = [sys.executable, "-m", "deployments.access", "moderation", "--may", "predict", "admin"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (secret,) = (line.strip() for line in done.stdout.splitlines() if line.strip().startswith("ss_"))
    (entry,) = (line.strip() for line in done.stdout.splitlines() if line.strip().startswith("- "))
    import yaml

    config = AccessConfig(keys=tuple(Key.model_validate(item) for item in yaml.safe_load(entry)))
    admitted = asyncio.run(Access(config).admit("/predict", {"x-api-key": secret}))
    assert admitted and admitted.name == "moderation"
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert secret not in again.stdout
    bad = subprocess.run([*command[:3], "a b"], cwd=ROOT, capture_output=True, text=True)
    assert bad.returncode == 1 and "Traceback" not in bad.stderr


# ---- other web sites

SAME_SITE, OTHER = {"Origin": "http://test"}, {"Origin": "https://other.example"}
NO_ORIGIN = {"Origin": "null"}


@pytest.mark.parametrize(
    ("headers", "is_foreign"),
    [
        ({}, False),
        (SAME_SITE, False),
        (OTHER, True),
        (NO_ORIGIN, True),
        ({"Origin": "http://test:8000"}, True),
        ({"Origin": EXTENSION}, False),
        ({"Origin": EXTENSION, "Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-origin"}, False),
        (NO_ORIGIN | {"Sec-Fetch-Site": "same-origin"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, True),
        (SAME_SITE | {"Sec-Fetch-Site": "same-site"}, True),
    ],
    ids=str,
)
def test_another_web_site_starts_no_work_and_opens_no_stream(headers: dict[str, str], is_foreign: bool) -> None:
    async def test() -> None:
        async with served() as (client, ingress):
            for path in ("/predict", "/batch-predict", "/report"):
                answer = await client.post(path, headers=headers)
                refused = problem(answer, 403 if is_foreign else 422)
                assert ("cors_origins" in refused.detail) == is_foreign
            assert (await client.delete("/jobs/1", headers=headers)).status_code == (403 if is_foreign else 404)
            assert (await client.get("/", headers=headers)).status_code == 200
            assert (await client.head("/docs", headers=headers)).status_code == 200
            (first, *_) = await stream(ingress, {"Host": "test"} | headers)
            assert first["type"] == ("websocket.http.response.start" if is_foreign else "websocket.accept")
            assert first.get("status") == (403 if is_foreign else None)

    run(test)


def test_a_site_on_the_list_can_read_that_the_service_failed() -> None:
    async def test() -> None:
        async with served() as (client, ingress):
            ingress._graph = None
            answer = await client.post("/predict", files={"audio": CLIP}, headers={"Origin": EXTENSION})
            assert "failed on this request" in problem(answer, 500).detail
            assert answer.headers["access-control-allow-origin"] == EXTENSION

    run(test)


# ---- limits


def test_requests_of_a_key_are_limited_and_others_are_not() -> None:
    async def test() -> None:
        clock = Clock()
        keys = (key("a", "a", requests_per_minute=3), key("b", "b"))
        async with served(keys, clock) as (client, _):
            assert [(await post(client, "a")).status_code for _ in range(4)] == [200, 200, 200, 429]
            refused = await post(client, "a")
            assert problem(refused, 429).title == "Rate exceeded"
            assert refused.headers["retry-after"] == "20"
            assert (await post(client, "b")).status_code == 200
            clock.seconds += 20
            assert [(await post(client, "a")).status_code for _ in range(2)] == [200, 429]
            clock.seconds += 3600
            assert [(await post(client, "a")).status_code for _ in range(4)] == [200, 200, 200, 429]

    run(test)


def test_seconds_of_audio_are_counted_once_they_are_known() -> None:
    async def test() -> None:
        clock = Clock()
        async with served((key("a", audio_seconds_per_minute=1.5),), clock) as (client, _):
            assert [(await post(client, "a")).status_code for _ in range(3)] == [200, 200, 429]
            assert (await post(client, "a")).headers["retry-after"] == "20", "0.5 s over, at 1.5 s a minute"
            clock.seconds += 20
            assert (await post(client, "a")).status_code == 200

    run(test)


def test_a_debt_of_audio_holds_up_only_what_brings_more_audio() -> None:
    async def test() -> None:
        async with served((key("a", audio_seconds_per_minute=0.25, requests_per_minute=9),)) as (client, ingress):
            a = {"X-API-Key": "a"}
            assert (await post(client, "a")).status_code == 200
            assert (await post(client, "a")).status_code == 200, "a full bucket has at least one second"
            for path in ("/predict", "/batch-predict", "/jobs"):
                problem(await client.post(path, headers=a), 429)
            with pytest.raises(RateExceeded):
                await ingress._access.admit("/stream", {"x-api-key": "a"})
            assert (await client.get("/docs", headers=a)).status_code == 200
            problem(await client.post("/report", headers=a), 422)
            for path in ("/jobs", "/jobs/1"):
                problem(await client.get(path, headers=a), 404)  # this service has no jobs
                problem(await client.delete(path, headers=a), 404)
            assert (await client.get("/docs", headers=a)).status_code == 200
            problem(await client.get("/docs", headers=a), 429)  # the ninth was the last request

    run(test)


def test_less_than_one_request_per_minute_is_one_every_few_minutes() -> None:
    async def test() -> None:
        clock = Clock()
        async with served((key("a", requests_per_minute=0.5),), clock) as (client, _):
            assert [(await post(client, "a")).status_code for _ in range(2)] == [200, 429]
            assert (await post(client, "a")).headers["retry-after"] == "120"
            clock.seconds += 3600
            assert [(await post(client, "a")).status_code for _ in range(2)] == [200, 429]

    run(test)


def test_another_version_of_the_buckets_is_another_actor() -> None:
    """The actor outlives an update of the code. If this fails, raise Limits.VERSION, and write down the new methods."""
    methods = {name: str(inspect.signature(method)) for name, method in vars(Buckets).items() if name[0] != "_"}
    assert (Limits.VERSION, methods) == (
        1,
        {
            "take": "(self, name: 'str', requests_per_minute: 'float | None', audio_seconds_per_minute: 'float | None')"
            " -> 'float'",
            "charge": "(self, name: 'str', audio_seconds_per_minute: 'float', audio_seconds: 'float') -> 'None'",
            "left": "(self, name: 'str', what: \"Literal['requests', 'audio_seconds']\", per_minute: 'float')"
            " -> 'float'",
        },
    )
    assert str(Limits.VERSION) in Limits.NAME


class Silent:
    """An actor that never answers."""

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *_: asyncio.Event().wait())


def test_an_actor_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "ANSWER_SECONDS", 0.05)
    limits = Limits.__new__(Limits)
    limits._actor = Silent()

    async def test() -> None:
        with pytest.raises(StageUnavailable, match="cannot count"):
            await limits.take(key("a", requests_per_minute=1), brings_audio=True)
        await Access(AccessConfig(), limits).charge(key("a", audio_seconds_per_minute=1), 1.0)  # logs it

    run(test)


def test_a_verdict_whose_audio_cannot_be_counted_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any) -> None:
        raise StageUnavailable("The service cannot count.")

    monkeypatch.setattr(LocalLimits, "charge", fail)

    async def test() -> None:
        async with served((key("a", audio_seconds_per_minute=60),)) as (client, _):
            assert (await post(client, "a")).status_code == 200

    run(test)


# ---- how much at once


def test_a_body_beyond_what_may_be_in_hand_is_refused_unread() -> None:
    async def test() -> None:
        size_mib = len(CLIP) * 2.5 / 2**20
        async with served(max_mib_in_flight=size_mib) as (client, ingress):
            read = 0

            async def body() -> AsyncIterator[bytes]:
                nonlocal read
                read += 1
                yield b"--b\r\n"

            with ingress._admission.request(len(CLIP)):
                assert (await post(client)).status_code == 200
                refused = await client.post(
                    "/predict", content=body(), headers={"Content-Type": "multipart/form-data; boundary=b"}
                )
                assert problem(refused, 503).title == "Overloaded"
                assert int(refused.headers["retry-after"]) > 0
                assert read == 0, "a body of undeclared size counts as the largest that is allowed"
            assert (await post(client)).status_code == 200

    run(test)


def test_room_is_given_back_whatever_happens() -> None:
    async def test() -> None:
        admission = Admission(AdmissionConfig(max_mib_in_flight=1, max_recordings=1, max_slow=1, max_waiting=0))
        for _ in range(3):
            with (
                pytest.raises(ZeroDivisionError),
                admission.request(2**20),
                admission.recordings([2**20], is_slow=True),
            ):
                async with admission.recording(2**20, is_slow=True):
                    with pytest.raises(Overloaded), admission.request(1):
                        pass
                    1 / 0  # noqa: B018

    run(test)


def test_a_body_larger_than_all_that_may_be_in_hand_is_taken_alone() -> None:
    admission = Admission(AdmissionConfig(max_mib_in_flight=1))
    with admission.request(3 * 2**20), pytest.raises(Overloaded), admission.request(1):
        pass


def test_recordings_take_turns_and_those_to_diarize_leave_room_for_the_others() -> None:
    async def test() -> None:
        admission = Admission(AdmissionConfig(max_recordings=2, max_slow=1, max_waiting=1))
        begun: list[str] = []
        end = {name: asyncio.Event() for name in ("d1", "d2", "p1", "p2")}

        async def record(name: str) -> None:
            is_slow = name.startswith("d")
            with admission.recordings([1], is_slow=is_slow):
                async with admission.recording(1, is_slow=is_slow):
                    begun.append(name)
                    await end[name].wait()

        async with asyncio.TaskGroup() as tasks:
            for name in ("d1", "d2"):
                tasks.create_task(record(name))
                await asyncio.sleep(0)
            with pytest.raises(Overloaded), admission.recordings([1], is_slow=True):
                pass
            tasks.create_task(record("p1"))
            await asyncio.sleep(0)
            assert begun == ["d1", "p1"], "the second slow one waits, and does not delay the others"
            tasks.create_task(record("p2"))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded), admission.request(1):
                pass
            for event in end.values():
                event.set()
        assert begun[2:] == ["p2", "d2"] or begun[2:] == ["d2", "p2"]

    run(test)


def test_a_large_recording_is_slow() -> None:
    async def test() -> None:
        admission = Admission(AdmissionConfig(slow_mib=1, max_slow=1, max_waiting=0))
        async with admission.recording(2**20 + 1, is_slow=False), admission.recording(2**20, is_slow=False):
            with pytest.raises(Overloaded), admission.recordings([1, 2**20 + 1], is_slow=False):
                pass
            with admission.recordings([1, 2**20], is_slow=False):
                pass

    run(test)


def test_slow_recordings_of_several_requests_share_half_of_the_bytes() -> None:
    admission = Admission(AdmissionConfig(max_mib_in_flight=4))
    with admission.recordings([2**20], is_slow=True):
        with admission.recordings([2**19, 2**19], is_slow=True):
            pass
        with pytest.raises(Overloaded), admission.recordings([2**20, 1], is_slow=True):
            pass


def test_every_file_of_a_batch_that_was_admitted_is_judged() -> None:
    async def test() -> None:
        size_mib = len(CLIP) / 2**20
        limits: dict[str, Any] = {
            "slow_mib": size_mib / 2,
            "max_mib_in_flight": 12 * size_mib,
            "max_slow": 1,
            "max_waiting": 1,
        }
        async with served(**limits) as (client, _):
            batch = await client.post("/batch-predict", files=[("files", CLIP)] * CONFIG.limits.max_files)
            assert [result["status"] for result in batch.json()["results"]] == ["no_speech"] * CONFIG.limits.max_files

    run(test)


def test_a_bug_on_one_file_of_a_batch_costs_only_that_file() -> None:
    async def test() -> None:
        async with served() as (client, ingress):
            judge = ingress._graph.predict

            async def fail_on_broken(data: bytes, **options: Any) -> Any:
                return 1 / 0 if data == b"broken" else await judge(data, **options)

            ingress._graph.predict = fail_on_broken
            batch = await client.post("/batch-predict", files=[("files", data) for data in (CLIP, b"broken", CLIP)])
            results = BatchAnswer.model_validate_json(batch.text).results
            assert [result.status for result in results] == ["no_speech", "failed", "no_speech"]
            document = batch.json()["results"][1]["error"]
            assert (document["status"], document["type"]) == (500, "/docs#sound-sentry-error")
            assert "failed on this file" in document["detail"]

    run(test)


# ---- forms


def test_two_files_are_said_to_be_two() -> None:
    async def test() -> None:
        async with served() as (client, _):
            for size in (100, int(0.6 * CONFIG.limits.max_upload_bytes)):
                files = [("audio", ("a.wav", io.BytesIO(bytes(size)))) for _ in range(2)]
                refused = problem(await client.post("/predict", files=files), 413)
                assert refused.title == "Too many files"
                assert "one file in the field audio" in refused.detail

    run(test)


@pytest.mark.parametrize(("pause", "size"), [(30.0, 10), (0.02, 1)], ids=["stops", "drops"])
def test_a_body_that_comes_too_slowly_is_refused(pause: float, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "GRACE_SECONDS", 0.2)

    async def test() -> None:
        async def body() -> AsyncIterator[bytes]:
            yield b"--b\r\n"
            while True:
                await asyncio.sleep(pause)
                yield b"x" * size

        async with served(min_bytes_per_second=1_000_000) as (client, _):
            refused = await client.post(
                "/predict", content=body(), headers={"Content-Type": "multipart/form-data; boundary=b"}
            )
            assert problem(refused, 408).title == "Upload too slow"
            assert refused.headers["connection"] == "close"

    run(test)


def test_a_body_that_cannot_be_complete_in_time_is_refused_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would keep its room for minutes, although it is faster than any body must be."""
    monkeypatch.setattr(uploads, "GRACE_SECONDS", 0.2)

    async def test() -> None:
        async def body() -> AsyncIterator[bytes]:
            yield b"--b\r\n"
            while True:
                await asyncio.sleep(0.02)
                yield b"x" * 10

        async with served(min_bytes_per_second=1, max_body_seconds=600) as (client, _):
            headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(25 * 2**20)}
            refused = problem(await client.post("/predict", content=body(), headers=headers), 408)
            assert "at least 43691 bytes a second" in refused.detail

    run(test)


# ---- every request


def test_unknown_paths_wrong_methods_and_refused_preflights_are_problems() -> None:
    async def test() -> None:
        async with served() as (client, _):
            problem(await client.get("/nothing"), 404)
            for path in ("/predict/", "/jobs/", "/page"):
                problem(await client.post(path, headers={"Host": "elsewhere.example"}), 404)
            for path, methods in {"/predict": "POST", "/docs": "GET, HEAD", "/page/predict": "GET, HEAD"}.items():
                refused = await client.delete(path)
                problem(refused, 405)
                assert refused.headers["allow"] == methods
            for path in ("/", "/docs", "/usage", "/openapi.json", "/page/page.js"):
                assert (await client.head(path)).status_code == 200, path
            preflight = {"Access-Control-Request-Method": "POST"}
            problem(await client.options("/predict", headers={"Origin": "https://a.example", **preflight}), 400)
            allowed = await client.options("/predict", headers={"Origin": EXTENSION, **preflight})
            assert allowed.status_code == 200
            assert allowed.headers["access-control-allow-origin"] == EXTENSION

    run(test)


def test_a_problem_names_its_request() -> None:
    async def test() -> None:
        async with served() as (client, _):
            refused = await client.post("/predict", headers={"X-Request-ID": "mine"})
            assert problem(refused, 422).request_id == "mine"

    run(test)


LIMITED = """
import asyncio, sys
import ray
from deployments.access import Key, Limits

ray.init(sys.argv[1], namespace="serve", log_to_driver=False, logging_level="ERROR")
key = Key(name="k", sha256="0" * 64, requests_per_minute=1, audio_seconds_per_minute=60)

async def ask():
    limits = Limits()
    ray.get(limits._actor.__ray_ready__.remote())  # on a busy machine an actor may start slowly
    waits = [await limits.take(key, brings_audio=True) > 0 for _ in range(2)]
    await limits.charge(key, 3_600)  # so much that the time of the test does not matter, even on a slow machine
    return waits, round((await limits.left((key,)))["k"]["audio_seconds"] / 3_600)

print(asyncio.run(ask()))
"""


def test_replicas_share_the_limits_of_a_key(cluster: Cluster) -> None:
    """Two processes on a real Ray: the first uses the only request per minute, and both have a debt of audio."""
    first, second = (run_python(LIMITED, cluster.environment, cluster.address) for _ in range(2))
    assert first == "([False, True], -1)\n"
    assert second == "([True, True], -2)\n"
