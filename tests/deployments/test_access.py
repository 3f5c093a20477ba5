"""Keys, and the limits of a key."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from deployments import access
from deployments.access import Access, AccessConfig, Buckets, Key, Limits, presented_key
from deployments.http.answers import UsageAnswer
from pipeline.config import ROOT
from pipeline.errors import RateExceeded, StageUnavailable
from tests.graph import Cluster
from tests.ingress import CLIP, Clock, LocalLimits, key, post, problem, run, served
from tests.test_structure import run_python


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


def test_two_keys_of_one_name_or_hash_are_refused() -> None:
    for pair in ((key("a"), key("b")), (key("a", "a"), key("a", "b"))):
        with pytest.raises(ValueError, match="two keys have the same"):
            AccessConfig(keys=pair)


def test_the_command_makes_a_key_that_its_configuration_lets_in() -> None:
    command = [sys.executable, "-m", "deployments.access", "moderation", "--may", "predict", "admin"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (secret,) = (line.strip() for line in done.stdout.splitlines() if line.strip().startswith("ss_"))
    (entry,) = (line.strip() for line in done.stdout.splitlines() if line.strip().startswith("- "))
    config = AccessConfig(keys=tuple(Key.model_validate(item) for item in yaml.safe_load(entry)))
    admitted = asyncio.run(Access(config).admit("/predict", {"x-api-key": secret}))
    assert admitted and admitted.name == "moderation"
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert secret not in again.stdout
    bad = subprocess.run([*command[:3], "a b"], cwd=ROOT, capture_output=True, text=True)
    assert bad.returncode == 1 and "Traceback" not in bad.stderr


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


def test_recordings_sent_at_once_get_no_more_audio_than_those_sent_one_by_one() -> None:
    """All are admitted before the length of any is known."""

    async def test() -> None:
        clock = Clock()
        async with served((key("a", "a", audio_seconds_per_minute=1.5),), clock) as (client, ingress):
            answers = await asyncio.gather(*(post(client, "a") for _ in range(5)))
            assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
            refused = next(answer for answer in answers if answer.status_code == 429)
            assert problem(refused, 429).title == "Rate exceeded" and refused.headers["retry-after"] == "20"
            assert (await ingress._access.usage())["a"]["audio_seconds"] == -0.5
            clock.seconds += 60
            files = [("files", CLIP) for _ in range(3)]
            batch = (await client.post("/batch-predict", files=files, headers={"X-API-Key": "a"})).json()
            assert (batch["successful"], batch["failed"]) == (2, 1)

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
        2,
        {
            "take": "(self, name: 'str', requests_per_minute: 'float | None', audio_seconds_per_minute: 'float | None')"
            " -> 'float'",
            "spend": "(self, name: 'str', audio_seconds_per_minute: 'float', audio_seconds: 'float') -> 'float'",
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
        for count in (Access(AccessConfig(), limits).charge, Access(AccessConfig(), limits).spend):
            await count(key("a", audio_seconds_per_minute=1), 1.0)  # logs it

    run(test)


def test_a_verdict_whose_audio_cannot_be_counted_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any) -> None:
        raise StageUnavailable("The service cannot count.")

    monkeypatch.setattr(LocalLimits, "spend", fail)

    async def test() -> None:
        async with served((key("a", audio_seconds_per_minute=60),)) as (client, _):
            assert (await post(client, "a")).status_code == 200

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
