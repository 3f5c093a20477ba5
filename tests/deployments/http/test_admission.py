"""A replica of the ingress accepts a limited amount of work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import yaml

from deployments.http.admission import Admission, AdmissionConfig
from deployments.http.answers import BatchAnswer
from pipeline.config import ROOT
from pipeline.errors import Overloaded
from tests.ingress import CLIP, CONFIG, post, problem, run, served


def test_a_body_beyond_what_may_be_in_hand_is_refused_unread() -> None:
    async def test() -> None:
        size_mib = len(CLIP) * 2.5 / 2**20
        async with served(max_mib_in_flight=size_mib) as (client, ingress):
            read = 0

            async def body() -> AsyncIterator[bytes]:
                nonlocal read
                read += 1
                yield b"--b\r\n"

            with ingress._admission.request(len(CLIP)) as arrived:
                arrived(len(CLIP))
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
                admission.request(2**20) as arrived,
                admission.recordings([2**20], is_slow=True),
            ):
                arrived(2**20)
                async with admission.recording(2**20, is_slow=True):
                    with pytest.raises(Overloaded), admission.request(1):
                        pass
                    1 / 0  # noqa: B018

    run(test)


def test_a_body_larger_than_all_that_may_be_in_hand_is_taken_alone() -> None:
    admission = Admission(AdmissionConfig(max_mib_in_flight=1))
    with admission.request(3 * 2**20) as arrived:
        for _ in range(3):
            arrived(2**20)
            with pytest.raises(Overloaded), admission.request(1):
                pass
    with admission.request(1) as arrived:
        arrived(1)
        with pytest.raises(Overloaded), admission.request(3 * 2**20):
            pass


def test_a_body_that_does_not_come_takes_no_room() -> None:
    async def test() -> None:
        async with served() as (client, _):
            begun = asyncio.Event()

            async def silence() -> AsyncIterator[bytes]:
                begun.set()
                await asyncio.Event().wait()
                yield b""

            headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": "262000000"}
            silent = asyncio.create_task(client.post("/batch-predict", content=silence(), headers=headers))
            await begun.wait()
            assert (await post(client)).status_code == 200
            silent.cancel()

    run(test)


def test_bodies_that_do_not_come_leave_requests_for_others() -> None:
    """Serve lets a replica have a number of requests. One more waits, also if it is a GET /health."""

    async def test() -> None:
        async with served() as (client, ingress):
            (application,) = yaml.safe_load((ROOT / "serve_config.yaml").read_text())["applications"]
            settings = {one["name"]: one for one in application["deployments"]}["Ingress"]
            assert 2 * application["args"]["admission"]["max_arriving"] <= settings["max_ongoing_requests"]
            go, begun = asyncio.Event(), 0
            request = client.build_request("POST", "/predict", files={"audio": CLIP})
            whole, headers = await request.aread(), {"Content-Type": request.headers["content-type"]}

            async def slow() -> AsyncIterator[bytes]:
                nonlocal begun
                begun += 1
                await go.wait()
                yield whole

            bodies = [asyncio.create_task(client.post("/predict", content=slow(), headers=headers)) for _ in range(64)]
            while sum(body.done() for body in bodies) < 32:
                await asyncio.sleep(0.02)
            for body in bodies[32:]:
                refused = await body
                assert problem(refused, 503).title == "Overloaded" and int(refused.headers["retry-after"]) > 0
            assert begun == 32
            graph = ingress._graph  # what the controller said last: here is none
            graph._states = {stage: {"status": "healthy", "replicas": 1} for stage in graph._stages}
            graph._states_age = time.monotonic()
            assert (await client.get("/health")).status_code == 200
            for path in ("/batch-predict", "/report"):
                problem(await client.post(path, content=slow(), headers=headers), 503)
            go.set()
            assert {(await body).status_code for body in bodies[:32]} == {200}
            assert (await post(client)).status_code == 200

    run(test)


def test_of_two_large_bodies_that_arrive_together_one_is_received() -> None:
    admission = Admission(AdmissionConfig(max_mib_in_flight=4))
    for _ in range(2):
        with admission.request(3 * 2**20) as first:
            with pytest.raises(Overloaded), admission.request(3 * 2**20) as second:
                for _ in range(2):
                    first(2**20)
                    second(2**20)
                first(2**20)
                second(2**20)
            first(2**20)
        with admission.request(1) as arrived:
            arrived(1)
            with admission.request(4 * 2**20 - 1):
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


@pytest.mark.parametrize("fields", [{"use_diarization": "true"}, {"channels": "split"}, {"explain": "true"}])
def test_what_takes_long_on_a_short_recording_is_slow(fields: dict[str, str]) -> None:
    async def test() -> None:
        async with (
            served(max_slow=1, max_waiting=0) as (client, ingress),
            ingress._admission.recording(1, is_slow=True),
        ):
            problem(await post(client, **fields), 503)
            assert (await post(client)).status_code == 200

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
