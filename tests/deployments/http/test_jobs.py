"""The endpoints of /jobs and the runner behind them, in this process, with stages that find no speech."""

from __future__ import annotations

import asyncio
import errno
import hmac
import ipaddress
import json
import os
import sqlite3
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import pytest
from pydantic import ValidationError

from deployments import metrics
from deployments.access import Access, AccessConfig, Key
from deployments.args import JobLimits, JobSettings
from deployments.http import jobs as endpoints
from deployments.http.admission import AdmissionConfig
from deployments.http.ingress import Ingress
from deployments.jobs import runner as running
from deployments.jobs import webhooks
from deployments.jobs.answer import JobAnswer, JobsAnswer
from deployments.jobs.runner import JobRunner
from deployments.jobs.sound import SoundFolder
from deployments.jobs.store import Claim, Job, JobStore, NewFile
from deployments.results import Problem
from pipeline.audio.decode import decode
from pipeline.config import DetectorConfig
from pipeline.errors import StageUnavailable, StoreUnavailable
from pipeline.stages.classify import Classifier
from pipeline.stream import LiveSettings
from pipeline.types import Recording, Speech
from tests.audio import encode
from tests.deployments.jobs.test_webhooks import Receiver, listening, receiver
from tests.deployments.test_graph import Handle
from tests.ingress import Clock, LocalLimits, key

__all__ = ["receiver"]

CONFIG = DetectorConfig()
CLIP = encode(np.zeros(16_000, np.float32))
LONGER = encode(np.zeros(32_000, np.float32))
BODY_SECONDS = 7_200.0
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
SECRET = b"0123456789abcdef0123456789abcdef"


class Stages:
    """Stages that find no speech. Voice activity detection first fails once with each of `errors`. After that it waits
    until `go` is set."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.errors: list[Exception] = []
        self.at_work = 0
        self.detections = 0
        classifier = Classifier(CONFIG)
        self.handles: dict[str, Any] = {
            "Decoder": Handle(lambda data, track: decode(data, CONFIG.limits, track)),
            "VoiceActivityDetector": Handle(self.detect),
            "Diarizer": Handle(lambda recording: ()),
            "TkanExtractor": Handle(lambda *_: None),
            "Classifier": Handle(lambda speech, diarized: classifier.no_speech(speech, use_diarization=diarized)),
        }

    async def detect(self, recording: Recording) -> Speech:
        self.detections += 1
        if self.errors:
            raise self.errors.pop(0)
        self.at_work += 1
        try:
            await self.go.wait()
        finally:
            self.at_work -= 1
        return Speech((), recording.waveform.duration_seconds, recording.original_format)


@dataclass
class Service:
    """The ingress and its runners on one folder. `runners` is empty until one is started."""

    client: httpx.AsyncClient
    stages: Stages
    settings: JobSettings
    access: AccessConfig
    limits: LocalLimits
    runners: list[Any] = field(default_factory=list)

    def start_runner(self) -> Any:
        runner = cast(Any, JobRunner).func_or_class(
            DetectorConfig(), self.settings, AccessConfig(), BODY_SECONDS, self.stages.handles
        )
        runner._access = Access(self.access, self.limits)  # with limits in this process, not in a Ray actor
        runner._keys = {key.name: key for key in self.access.keys}
        self.runners.append(runner)
        return runner

    async def kill_runner(self) -> None:
        """End a runner without any cleanup, like SIGKILL."""
        runner = self.runners.pop()
        for loop in runner._loops:
            loop.cancel()
        await asyncio.gather(*runner._loops, return_exceptions=True)

    def sounds(self) -> set[str]:
        return {path.name for path in self.settings.sound_path.iterdir()}

    async def until_silent(self) -> None:
        """Wait until no sound is on the disk any more."""
        while self.sounds():
            await asyncio.sleep(0.05)

    async def post(self, *files: Any, headers: dict[str, str] | None = None, **fields: str) -> httpx.Response:
        form = [("files", file if isinstance(file, tuple) else ("a.wav", file)) for file in files]
        return await self.client.post("/jobs", files=form, data=fields, headers=headers)

    async def create(self, *files: Any, headers: dict[str, str] | None = None, **fields: str) -> dict[str, Any]:
        return job(await self.post(*files, headers=headers, **fields), 202)

    async def get(self, job_id: str, **options: Any) -> dict[str, Any]:
        return job(await self.client.get(f"/jobs/{job_id}", **options))

    async def until(self, job_id: str, status: str) -> dict[str, Any]:
        while (state := await self.get(job_id))["status"] != status:
            await asyncio.sleep(0.05)
        return state


def job(response: httpx.Response, status: int = 200) -> dict[str, Any]:
    assert response.status_code == status, response.text
    JobAnswer.model_validate_json(response.text)
    body: dict[str, Any] = response.json()
    return body


def problem(response: httpx.Response, status: int) -> Problem:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    return Problem.model_validate_json(response.text)


@asynccontextmanager
async def served(
    folder: Path, *, keys: tuple[Key, ...] = (), runs: bool = True, max_arriving: int = 32, **settings: Any
) -> AsyncIterator[Service]:
    stages = Stages()
    job_settings = JobSettings(folder=folder, **settings)
    access, limits = AccessConfig(keys=keys), LocalLimits(Clock())
    plain = cast(Any, Ingress).func_or_class.__mro__[1]
    ingress = plain.__new__(plain)
    seconds = dict.fromkeys(stages.handles, 30.0)
    plain.__init__(
        ingress,
        CONFIG,
        (),
        AccessConfig(),
        AdmissionConfig(max_arriving=max_arriving),
        seconds,
        60.0,
        LiveSettings(),
        job_settings,
        None,
        stages.handles,
    )
    ingress._access = Access(access, limits)
    transport = httpx.ASGITransport(plain.__serve_build_asgi_app__(ingress), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        service = Service(client, stages, job_settings, access, limits)
        if runs:
            service.start_runner()
        try:
            yield service
        finally:
            while service.runners:
                await service.kill_runner()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 240))


OPERATIONS = {
    "home",
    "health",
    "info",
    "usage",
    "predict",
    "batch_predict",
    "report",
    "create_job",
    "list_jobs",
    "get_job",
    "cancel_job",
    "follow_job",
}
"""The names by which generated clients call the endpoints. Renaming one breaks these clients."""


def test_the_document_describes_every_field_and_keeps_the_names_of_its_operations(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, runs=False) as service:
            document = (await service.client.get("/openapi.json")).json()
        schemas = document["components"]["schemas"]
        assert not {name for name in schemas if "Validation" in name}, "errors are problem documents"
        described = [(name, schema.get("properties", {})) for name, schema in schemas.items()]
        operations = [one for of_path in document["paths"].values() for one in of_path.values()]
        assert {one["operationId"] for one in operations} == OPERATIONS and len(operations) == len(OPERATIONS)
        for operation in operations:
            assert operation["description"]
            described.append((operation["operationId"], {p["name"]: p for p in operation.get("parameters", ())}))
            form = operation.get("requestBody", {"content": {}})["content"].get("multipart/form-data")
            described.append((operation["operationId"], form["schema"]["properties"] if form else {}))
        for where, fields in described:
            for name, schema in fields.items():
                model = schemas.get(schema.get("$ref", "").rpartition("/")[2], {})
                assert schema.get("description") or model.get("description"), f"{where}: {name} is not described"

    run(test)


def test_the_document_has_an_example_of_each_error_that_is_answered(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, runs=False) as service:
            paths = (await service.client.get("/openapi.json")).json()["paths"]

        def kinds(operation: Any, status: int) -> set[str]:
            return set(operation["responses"][str(status)]["content"]["application/problem+json"]["examples"])

        for path, operations in paths.items():
            for operation in operations.values():
                assert "sound-sentry-error" in kinds(operation, 500), path
        assert "bundle-error" in kinds(paths["/predict"]["post"], 500)
        following = kinds(paths["/jobs/{job_id}/events"]["get"], 503)
        assert following == {"overloaded", "store-unavailable", "stage-unavailable"}

    run(test)


def test_files_are_judged_one_by_one_and_a_broken_one_is_no_reason_to_refuse_the_others(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path) as service:
            files = (("one.wav", CLIP), ("notes.txt", b"no audio"), ("two.wav", LONGER))
            response = await service.post(*files, headers={"X-Request-ID": "the-post"})
            created = job(response, 202)
            assert response.headers["location"] == f"/jobs/{created['job_id']}"
            assert (created["status"], created["progress"], created["results"]) == ("queued", 0.0, [])
            done = await service.until(created["job_id"], "done")
            assert [file["filename"] for file in done["files"]] == ["one.wav", "notes.txt", "two.wav"]
            one, notes, two = done["results"]
            assert (one["filename"], one["status"], one["duration_seconds"]) == ("one.wav", "no_speech", 1.0)
            assert (two["filename"], two["status"], two["duration_seconds"]) == ("two.wav", "no_speech", 2.0)
            assert notes["status"] == "failed" and notes["error"]["type"] == "/docs#unsupported-format"
            assert notes["error"]["request_id"] == "the-post"
            assert (done["successful"], done["failed"], done["total_files"]) == (2, 1, 3)
            assert (done["progress"], done["stage"], done["seconds_left"]) == (1.0, None, None)
            assert done["kept_until"] > done["finished_at"] >= done["started_at"] >= done["created_at"]
            await service.until_silent()

    run(test)


def test_files_of_jobs_count_in_the_metrics_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    monkeypatch.setattr(metrics, "count_verdict", lambda verdict: counted.append(verdict.overall))
    monkeypatch.setattr(metrics, "count_refusal", lambda error: counted.append(error.kind()))
    monkeypatch.setattr(running, "RETRY_SECONDS", 0.1)

    async def test() -> None:
        async with served(tmp_path) as service:
            service.stages.errors = [StageUnavailable("down"), ZeroDivisionError()]
            await service.create(CLIP, CLIP, b"no audio")
            while len(counted) < 3:
                await asyncio.sleep(0.05)
            assert sorted(counted) == ["No Speech", "stage-failed", "unsupported-format"], "the first was tried again"
            service.stages.go.clear()
            cancelled = (await service.create(CLIP))["job_id"]
            while not service.stages.at_work:
                await asyncio.sleep(0.05)
            await service.client.delete(f"/jobs/{cancelled}")
            while service.stages.at_work:
                await asyncio.sleep(0.05)
            assert len(counted) == 3

    run(test)


def test_the_runner_counts_jobs_by_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[dict[str, int]] = []
    monkeypatch.setattr(metrics, "show_jobs", shown.append)
    monkeypatch.setattr(metrics, "count_verdict", lambda verdict: None)
    monkeypatch.setattr(running, "COUNT_SECONDS", 0.05)

    async def test() -> None:
        async with served(tmp_path) as service:
            await service.create(CLIP)
            while not shown or shown[-1]["done"] < 1:
                await asyncio.sleep(0.05)
            assert shown[-1] == {"queued": 0, "running": 0, "done": 1, "cancelled": 0}

    run(test)


def test_sound_lies_in_a_private_folder_until_its_file_is_judged(tmp_path: Path) -> None:
    async def test() -> None:
        tmp_path.chmod(0o755)
        async with served(tmp_path, runs=False) as service:
            await service.create(CLIP, LONGER)
            folder = service.settings.sound_path
            assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)] == [0o700, 0o700]
            files = sorted(folder.iterdir())
            assert [file.read_bytes() for file in files] == [CLIP, LONGER]
            assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
            service.stages.go.clear()
            service.start_runner()
            while not service.stages.at_work:
                await asyncio.sleep(0.05)
            assert len(service.sounds()) == 2
            service.stages.go.set()
            await service.until_silent()

    run(test)


def test_a_folder_of_another_user_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.chmod

    def chmod(path: Path, mode: int) -> None:
        if path == tmp_path:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        real(path, mode)

    monkeypatch.setattr(Path, "chmod", chmod)
    SoundFolder(tmp_path / "sound").create()
    assert stat.S_IMODE((tmp_path / "sound").stat().st_mode) == 0o700


def test_a_running_job_tells_its_stage_and_is_cancelled_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path) as service:
            service.stages.go.clear()
            job_id = (await service.create(CLIP, LONGER))["job_id"]
            while (state := await service.get(job_id))["stage"] != "VoiceActivityDetector":
                await asyncio.sleep(0.05)
            assert [file["status"] for file in state["files"]] == ["running", "queued"]
            cancelled = job(await service.client.delete(f"/jobs/{job_id}"))
            assert cancelled["status"] == "cancelled" and not service.sounds()
            while service.stages.at_work:  # until the graph has stopped
                await asyncio.sleep(0.02)
            service.stages.go.set()
            other = await service.create(CLIP)
            await service.until(other["job_id"], "done")
            assert (await service.get(job_id))["results"] == []

    run(test)


def test_a_finished_job_is_forgotten_when_it_is_deleted(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path) as service:
            job_id = (await service.create(CLIP))["job_id"]
            done = await service.until(job_id, "done")
            assert job(await service.client.delete(f"/jobs/{job_id}")) == done
            for response in (
                await service.client.get(f"/jobs/{job_id}"),
                await service.client.delete(f"/jobs/{job_id}"),
                await service.client.get(f"/jobs/{job_id}/events"),
            ):
                assert problem(response, 404).title == "No such job"

    run(test)


def test_a_job_that_is_finished_while_it_is_being_stopped_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get, running = JobStore.get, []

    def read(store: JobStore, *arguments: str, **options: Any) -> Job:
        found = get(store, *arguments, **options)
        if found.state == "running":
            running.append(found)
        return found

    async def test() -> None:
        async with served(tmp_path) as service:
            service.stages.go.clear()
            monkeypatch.setattr(JobStore, "get", read)
            job_id = (await service.create(CLIP))["job_id"]
            await service.until(job_id, "running")
            service.stages.go.set()
            await service.until(job_id, "done")
            monkeypatch.setattr(JobStore, "get", lambda *_, **__: running[0])  # as it was a moment ago
            assert job(await service.client.delete(f"/jobs/{job_id}"))["status"] == "done"
            monkeypatch.setattr(JobStore, "get", get)
            assert problem(await service.client.get(f"/jobs/{job_id}"), 404).title == "No such job"

    run(test)


@pytest.mark.parametrize("job_id", ["%00", "none", "0" * 31, "0" * 31 + "%0A", "0" * 32 + "%0A", "%F0%9F%8E%99" * 32])
def test_what_is_not_an_id_is_not_looked_for(tmp_path: Path, job_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL refuses a NUL with an error."""

    async def test() -> None:
        async with served(tmp_path, runs=False) as service:
            monkeypatch.setattr(JobStore, "get", lambda *_, **__: 1 / 0)
            for response in (
                await service.client.get(f"/jobs/{job_id}"),
                await service.client.delete(f"/jobs/{job_id}"),
                await service.client.get(f"/jobs/{job_id}/events"),
            ):
                assert problem(response, 404).title == "No such job"

    run(test)


def test_the_same_idempotency_key_is_the_same_job(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, runs=False) as service:
            again = {"Idempotency-Key": "k1"}
            first = await service.create(CLIP, headers=again)
            second = await service.create(CLIP, headers=again)
            assert second == first
            assert len(service.sounds()) == 1
            for changed in (
                service.post(LONGER, headers=again),
                service.post(("b.wav", CLIP), headers=again),
                service.post(CLIP, headers=again, use_diarization="true"),
            ):
                assert "Use a new key" in problem(await changed, 409).detail
            assert len(service.sounds()) == 1
            for bad in ("x" * 201, ""):
                problem(await service.post(CLIP, headers={"Idempotency-Key": bad}), 422)

    run(test)


@pytest.mark.parametrize(
    ("files", "fields", "status", "detail"),
    [
        ([], {"explain": "true"}, 422, "field files"),
        ([CLIP] * 4, {}, 413, "at most 3 files"),
        ([bytes(1_100_000)], {}, 413, "at most 1 MiB"),
        ([bytes(4_000_000)], {}, 413, "at most 1 MiB"),
        ([CLIP], {"use_diarization": "perhaps"}, 422, "use_diarization"),
        ([CLIP], {"webhook": "https://example.org/"}, 422, "sends none"),
    ],
    ids=["no file", "too many", "too large", "far too large", "a bad value", "a webhook where there are none"],
)
def test_what_is_refused_leaves_nothing(
    tmp_path: Path, files: list[bytes], fields: dict[str, str], status: int, detail: str
) -> None:
    async def test() -> None:
        async with served(tmp_path, limits=JobLimits(max_files=3, max_upload_mib=1), runs=False) as service:
            form: Any = [("files", ("a.wav", file)) for file in files] or [("other", ("a.wav", CLIP))]
            response = await service.client.post("/jobs", files=form, data=fields)
            assert detail in problem(response, status).detail
            assert not service.sounds()
            assert (await service.client.get("/jobs")).json() == {"jobs": [], "next": None}

    run(test)


def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, runs=False) as service:
            request = service.client.build_request("POST", "/jobs", files=[("files", ("a.wav", CLIP))])
            whole = await request.aread()

            async def part() -> AsyncIterator[bytes]:
                yield whole[:-200]

            headers = {"Content-Type": request.headers["content-type"]}
            problem(await service.client.post("/jobs", content=part(), headers=headers), 422)
            assert not service.sounds()

    run(test)


@pytest.mark.parametrize(
    ("where", "what"),
    [(JobStore, "latest"), (endpoints, "_settle"), (JobStore, "claim")],
    ids=["read", "flush", "claim"],
)
def test_a_database_or_a_disk_that_hangs_holds_up_nothing_but_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, what: str
) -> None:
    """Ray gives asyncio few threads. Health checks need them."""
    begun, goes_on, act = threading.Event(), threading.Event(), getattr(where, what)

    def hang(*arguments: Any) -> Any:
        begun.set()
        goes_on.wait(60)
        return act(*arguments)

    monkeypatch.setattr(where, what, hang)

    async def test() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        async with served(tmp_path) as service:
            sent = [asyncio.create_task(service.create(CLIP)) for _ in range(3)]
            asked = [asyncio.create_task(service.client.get("/jobs")) for _ in range(3)]
            while not begun.is_set():
                await asyncio.sleep(0.02)
            await asyncio.wait_for(asyncio.to_thread(int), 5)
            goes_on.set()
            assert {response.status_code for response in await asyncio.gather(*asked)} == {200}
            for created in await asyncio.gather(*sent):
                await service.until(created["job_id"], "done")

    try:
        run(test)
    finally:
        goes_on.set()


def test_no_more_files_wait_than_may(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, max_waiting_files=2, runs=False) as service:
            await service.create(CLIP)
            response = await service.post(CLIP, LONGER)
            assert "Try again" in problem(response, 503).detail and int(response.headers["retry-after"]) > 0
            await service.create(CLIP)

    run(test)


def test_one_key_fills_no_more_than_half_of_the_queue_and_the_keys_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    claim = JobStore.claim

    def record(store: JobStore, *arguments: Any) -> Claim | None:
        claimed = claim(store, *arguments)
        begun.extend([claimed.owner] if claimed else [])
        return claimed

    monkeypatch.setattr(JobStore, "claim", record)

    async def test() -> None:
        keys = (key("ann's", "ann"), key("bob's", "bob"))
        ann, bob = ({"Authorization": f"Bearer {secret}"} for secret in ("ann's", "bob's"))
        async with served(tmp_path, keys=keys, max_waiting_files=6, runs=False) as service:
            await service.create(CLIP, CLIP, headers=ann)
            read = await service.post(CLIP, CLIP, headers=ann)  # refused when its two files are known
            await service.create(CLIP, headers=ann)
            unread = await service.post(CLIP, headers=ann)
            for response in (read, unread):
                assert "a key may have half" in problem(response, 429).detail
                assert int(response.headers["retry-after"]) > 0
            assert len(service.sounds()) == 3
            last = await service.create(CLIP, CLIP, headers=bob)
            service.start_runner()
            while (await service.get(last["job_id"], headers=bob))["status"] != "done":
                await asyncio.sleep(0.05)
            await service.until_silent()
            assert begun == ["ann", "bob", "ann", "bob", "ann"]

    run(test)


def test_a_job_for_which_there_is_no_room_is_refused_unread(tmp_path: Path) -> None:
    async def test() -> None:
        limits = JobLimits(max_files=1, max_upload_mib=1)
        async with served(tmp_path, max_waiting_files=1, limits=limits, runs=False) as service:
            read = 0

            async def body() -> AsyncIterator[bytes]:
                nonlocal read
                read += 1
                yield b"--b\r\n"

            async def post(**headers: str) -> httpx.Response:
                form = {"Content-Type": "multipart/form-data; boundary=b", **headers}
                return await service.client.post("/jobs", content=body(), headers=form)

            assert "1 MiB" in problem(await post(**{"Content-Length": "100000000000"}), 413).detail
            first = await service.create(CLIP, headers={"Idempotency-Key": "k1"})
            assert "files are waiting" in problem(await post(), 503).detail
            assert read == 0
            assert await service.create(CLIP, headers={"Idempotency-Key": "k1"}) == first
            assert not {name for name in service.sounds() if not name.startswith(first["job_id"])}

    run(test)


def test_so_many_bytes_of_jobs_arrive_at_once_and_no_more(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, limits=JobLimits(max_files=1, max_upload_mib=1), runs=False) as service:
            request = service.client.build_request("POST", "/jobs", files=[("files", ("a.wav", bytes(2**20)))])
            whole, headers = await request.aread(), {"Content-Type": request.headers["content-type"]}
            go, begun, arrived = asyncio.Event(), 0, 0

            async def body() -> AsyncIterator[bytes]:
                nonlocal begun, arrived
                begun += 1
                yield whole[:-200]
                arrived += 1
                await go.wait()
                yield whole[-200:]

            def post() -> asyncio.Task[httpx.Response]:
                return asyncio.create_task(service.client.post("/jobs", content=body(), headers=headers))

            slow = [post() for _ in range(endpoints.UPLOADS_AT_ONCE)]
            while arrived < len(slow):
                await asyncio.sleep(0.02)
            assert problem(await post(), 503).title == "Overloaded"
            assert begun == len(slow), "a body of undeclared size counts as the largest that is allowed"
            go.set()
            assert [job(response, 202)["status"] for response in await asyncio.gather(*slow)] == ["queued"] * 2
            await service.create(CLIP)

    run(test)


def test_bodies_of_jobs_count_among_those_that_arrive(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, runs=False, max_arriving=1) as service:
            begun = asyncio.Event()

            async def silence() -> AsyncIterator[bytes]:
                begun.set()
                await asyncio.Event().wait()
                yield b""

            headers = {"Content-Type": "multipart/form-data; boundary=b"}
            silent = asyncio.create_task(service.client.post("/jobs", content=silence(), headers=headers))
            await begun.wait()
            assert problem(await service.post(CLIP), 503).title == "Overloaded"
            problem(await service.client.post("/predict", files={"audio": CLIP}), 503)
            silent.cancel()
            await asyncio.gather(silent, return_exceptions=True)
            await service.create(CLIP)

    run(test)


def test_jobs_page_by_page(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, runs=False) as service:
            ids = [(await service.create(CLIP))["job_id"] for _ in range(3)]
            first = JobsAnswer.model_validate_json((await service.client.get("/jobs?limit=2")).text)
            assert [one.job_id for one in first.jobs] == ids[:0:-1] and first.next == ids[1]
            second = JobsAnswer.model_validate_json((await service.client.get(f"/jobs?before={first.next}")).text)
            assert [one.job_id for one in second.jobs] == ids[:1] and second.next is None
            full = JobsAnswer.model_validate_json((await service.client.get("/jobs?limit=3")).text)
            assert [one.job_id for one in full.jobs] == ids[::-1] and full.next is None
            for query in ("limit=0", "limit=101", "limit=x", "beffore=1"):
                assert query.split("=")[0] in problem(await service.client.get(f"/jobs?{query}"), 422).detail
            problem(await service.client.get(f"/jobs?before={'0' * 32}"), 404)
            for before in ("none", "%00", f"{ids[0]}%0A"):
                assert "before" in problem(await service.client.get(f"/jobs?before={before}"), 422).detail

    run(test)


def test_the_methods_of_jobs(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, runs=False) as service:
            job_id = (await service.create(CLIP))["job_id"]
            for path, methods in {
                "/jobs": "GET, HEAD, POST",
                f"/jobs/{job_id}": "DELETE, GET, HEAD",
                f"/jobs/{job_id}/events": "GET",
            }.items():
                refused = await service.client.put(path)
                problem(refused, 405)
                assert refused.headers["allow"] == methods
                assert (await service.client.head(path)).status_code == (200 if "HEAD" in methods else 405)

    run(test)


def test_jobs_are_seen_by_the_key_that_sent_them_and_their_sound_counts_against_it(tmp_path: Path) -> None:
    async def test() -> None:
        keys = (key("ann's", "ann", audio_seconds_per_minute=60), key("bob's", "bob"))
        async with served(tmp_path, keys=keys) as service:
            ann, bob = ({"Authorization": f"Bearer {secret}"} for secret in ("ann's", "bob's"))
            job_id = (await service.create(LONGER, headers=ann))["job_id"]
            problem(await service.client.get(f"/jobs/{job_id}"), 401)
            for method in ("GET", "DELETE"):
                problem(await service.client.request(method, f"/jobs/{job_id}", headers=bob), 404)
            assert (await service.client.get("/jobs", headers=bob)).json()["jobs"] == []
            while (state := await service.get(job_id, headers=ann))["status"] != "done":
                await asyncio.sleep(0.05)
            assert [result["status"] for result in state["results"]] == ["no_speech"]
            while await service.limits.left(keys) != {"ann": {"audio_seconds": 58.0}, "bob": {}}:
                await asyncio.sleep(0.05)

    run(test)


def states(text: str) -> list[dict[str, Any]]:
    """The jobs in server-sent events."""
    events = [event.split("\n") for event in text.strip().split("\n\n") if not event.startswith(":")]
    assert all(event[0] == "event: state" and len(event) == 2 for event in events)
    return [json.loads(event[1].removeprefix("data: ")) for event in events]


def test_a_job_is_followed_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "KEEP_ALIVE_SECONDS", 1.0)

    async def test() -> None:
        async with served(tmp_path, max_followers=1, runs=False) as service:
            service.stages.go.clear()
            job_id = (await service.create(CLIP))["job_id"]
            read, get = threading.Event(), JobStore.get

            def seen(store: JobStore, *arguments: str, **options: Any) -> Job:
                found = get(store, *arguments, **options)
                read.set()
                return found

            monkeypatch.setattr(JobStore, "get", seen)
            following = asyncio.create_task(service.client.get(f"/jobs/{job_id}/events"))
            while not read.is_set():
                await asyncio.sleep(0.05)
            service.start_runner()
            while not service.stages.at_work:
                await asyncio.sleep(0.05)
            assert "follow jobs" in problem(await service.client.get(f"/jobs/{job_id}/events"), 503).detail
            while (await service.get(job_id))["stage"] != "VoiceActivityDetector":
                await asyncio.sleep(0.05)
            await asyncio.sleep(3)
            service.stages.go.set()
            response = await following
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["x-accel-buffering"] == "no"
            received = states(response.text)
            assert received[0]["status"] == "queued"
            assert {one["stage"] for one in received if one["status"] == "running"} >= {"VoiceActivityDetector"}
            assert received[-1] == await service.get(job_id) and received[-1]["status"] == "done"
            assert ": the job goes on\n\n" in response.text
            assert states((await service.client.get(f"/jobs/{job_id}/events")).text) == [received[-1]]

    run(test)


def test_the_results_of_a_job_that_is_followed_are_read_when_it_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job of long calls has megabytes of them, and its state is read twice a second."""
    reads, get = 0, JobStore.get

    def count(store: JobStore, *arguments: str, **options: Any) -> Job:
        nonlocal reads
        reads += 1
        return get(store, *arguments, **options)

    monkeypatch.setattr(JobStore, "get", count)

    def rename(name: str, other: str) -> None:
        with closing(sqlite3.connect(tmp_path / "jobs.sqlite3", timeout=60)) as database:
            database.execute(f"ALTER TABLE job_files RENAME COLUMN {name} TO {other}")

    async def test() -> None:
        async with served(tmp_path, runs=False) as service:
            job_id = (await service.create(CLIP))["job_id"]
            rename("result", "gone")
            following = asyncio.create_task(service.client.get(f"/jobs/{job_id}/events"))
            while reads < 4:
                await asyncio.sleep(0.05)
                assert not following.done(), following.result().text
            rename("gone", "result")
            service.start_runner()
            (*earlier, last) = states((await following).text)
            assert last["results"] and not any("results" in state for state in earlier)

    run(test)


@pytest.mark.parametrize("failing", ["during the work", "at the end"])
def test_a_client_follows_on_after_the_database_was_away(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "KEEP_ALIVE_SECONDS", 1.0)
    outage, failed, get = threading.Event(), threading.Event(), JobStore.get

    def get_later(store: JobStore, *arguments: str, with_results: bool = True) -> Job:
        if outage.is_set() and with_results == (failing == "at the end"):
            failed.set()
            raise StoreUnavailable("The jobs cannot be reached at present. Try again in a while.")
        return get(store, *arguments, with_results=with_results)

    async def test() -> None:
        async with served(tmp_path, runs=False) as service:
            job_id = (await service.create(CLIP))["job_id"]
            monkeypatch.setattr(JobStore, "get", get_later)
            following = asyncio.create_task(service.client.get(f"/jobs/{job_id}/events"))
            await asyncio.sleep(0.3)
            outage.set()
            service.start_runner()
            while not failed.is_set():
                await asyncio.sleep(0.05)
            await asyncio.sleep(2.5)
            assert not following.done()
            outage.clear()
            text = (await following).text
            assert states(text)[-1]["status"] == "done" and states(text)[-1]["results"]
            assert ": the job goes on\n\n" in text

    run(test)


def test_no_more_clients_follow_at_once_than_may(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, max_followers=1) as service:
            service.stages.go.clear()
            job_id = (await service.create(CLIP))["job_id"]
            following = [asyncio.create_task(service.client.get(f"/jobs/{job_id}/events")) for _ in range(3)]
            while sum(one.done() for one in following) < 2:
                await asyncio.sleep(0.05)
            service.stages.go.set()
            assert sorted([(await one).status_code for one in following]) == [200, 503, 503]

    run(test)


def test_a_client_that_leaves_makes_room_for_another(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, max_followers=1) as service:
            service.stages.go.clear()
            job_id = (await service.create(CLIP))["job_id"]
            for steps in range(30):  # it leaves at each step of the request
                following = asyncio.create_task(service.client.get(f"/jobs/{job_id}/events"))
                for _ in range(steps):
                    await asyncio.sleep(0.001)
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
            problem(await service.client.get("/jobs/none/events"), 404)
            service.stages.go.set()
            assert (await service.client.get(f"/jobs/{job_id}/events")).status_code == 200

    run(test)


def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET + b"\n")
    return path


def test_a_webhook_is_told_of_the_results_and_tried_again_until_it_answers(tmp_path: Path, receiver: Receiver) -> None:
    async def test() -> None:
        secret = secret_file(tmp_path)
        options: dict[str, Any] = {
            "webhook_secret_file": secret,
            "webhook_networks": LOOPBACK,
            "webhook_first_pause_seconds": 0.1,
        }
        async with served(tmp_path / "jobs", **options) as service:
            receiver.status = 500
            created = await service.create(CLIP, webhook=receiver.url)
            assert created["webhook"] == {"status": "waiting", "attempts": 0}
            job_id = created["job_id"]
            while (await service.get(job_id))["webhook"]["attempts"] < 2:
                await asyncio.sleep(0.05)
            receiver.status = 200
            while (state := await service.get(job_id))["webhook"]["status"] != "delivered":
                await asyncio.sleep(0.05)
            assert state["webhook"]["attempts"] == len(receiver.received) >= 2
            for _, headers, body in receiver.received:
                expected = "sha256=" + hmac.new(SECRET, body, "sha256").hexdigest()
                assert headers["X-Sound-Sentry-Signature"] == expected
                sent = JobAnswer.model_validate_json(body)
                assert (sent.job_id, sent.status, sent.results[0].status) == (job_id, "done", "no_speech")
            await asyncio.sleep(1)
            assert len(receiver.received) == state["webhook"]["attempts"], "no attempt after the answer"

    run(test)


def test_a_webhook_that_never_answers_is_given_up(tmp_path: Path, receiver: Receiver) -> None:
    async def test() -> None:
        options: dict[str, Any] = {"webhook_secret_file": secret_file(tmp_path), "webhook_networks": LOOPBACK}
        options |= {"webhook_first_pause_seconds": 0.01, "webhook_attempts": 3}
        async with served(tmp_path / "jobs", **options) as service:
            receiver.status = 503
            job_id = (await service.create(CLIP, webhook=receiver.url))["job_id"]
            while (state := await service.get(job_id))["webhook"]["status"] != "failed":
                await asyncio.sleep(0.05)
            assert state["status"] == "done" and state["webhook"]["attempts"] == len(receiver.received) == 3

    run(test)


def test_a_receiver_that_is_slow_delays_no_other(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT_SECONDS", 60.0)

    async def test() -> None:
        options: dict[str, Any] = {"webhook_secret_file": secret_file(tmp_path), "webhook_networks": LOOPBACK}
        with listening("127.0.0.2") as slow:
            async with served(tmp_path / "jobs", **options) as service:
                slow.delay.clear()
                waiting = [(await service.create(CLIP, webhook=slow.url))["job_id"] for _ in range(3)]
                prompt = (await service.create(CLIP, webhook=receiver.url))["job_id"]
                while (await service.get(prompt))["webhook"]["status"] != "delivered":
                    await asyncio.sleep(0.05)
                assert len(slow.received) == 1, "one at a time to a host"
                slow.delay.set()
                for job_id in waiting:
                    while (await service.get(job_id))["webhook"]["status"] != "delivered":
                        await asyncio.sleep(0.05)
                assert len(slow.received) == 3

    run(test)


def test_a_webhook_whose_turn_does_not_come_is_given_up_so_that_its_job_expires(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT_SECONDS", 60.0)
    monkeypatch.setattr(webhooks, "SPARE_SECONDS", 3.0)
    monkeypatch.setattr(running, "SWEEP_SECONDS", 0.2)

    async def test() -> None:
        options: dict[str, Any] = {"webhook_secret_file": secret_file(tmp_path), "webhook_networks": LOOPBACK}
        options |= {"webhook_attempts": 2, "webhook_first_pause_seconds": 1, "keep_results_hours": 6 / 3_600}
        async with served(tmp_path / "jobs", **options) as service:
            receiver.delay.clear()
            waiting = [(await service.create(CLIP, webhook=receiver.url))["job_id"] for _ in range(2)]
            while (state := await service.get(waiting[-1]))["webhook"]["status"] != "failed":
                await asyncio.sleep(0.05)
            assert state["webhook"]["attempts"] == 0
            for job_id in waiting:
                while (await service.client.get(f"/jobs/{job_id}")).status_code != 404:
                    await asyncio.sleep(0.1)
            receiver.delay.set()

    run(test)


def test_a_webhook_that_waited_while_the_service_was_down_is_still_sent(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "SPARE_SECONDS", 3.0)

    async def test() -> None:
        options: dict[str, Any] = {"webhook_secret_file": secret_file(tmp_path), "webhook_networks": LOOPBACK}
        async with served(tmp_path / "jobs", runs=False, webhook_attempts=1, **options) as service:
            job_id = (await service.create(CLIP, webhook=receiver.url))["job_id"]
            with closing(JobStore(service.settings.database_url)) as store:
                claim = store.claim(30)
                assert claim and store.finish(claim, {"status": "failed"})
            await asyncio.sleep(3.5)
            runner = service.start_runner()
            await runner._sweep()
            with closing(JobStore(service.settings.database_url)) as store:
                assert store.get("", job_id).webhook_state != "failed"
                while store.get("", job_id).webhook_state != "delivered":
                    await asyncio.sleep(0.05)

    run(test)


def test_a_cancelled_job_says_that_no_webhook_is_sent(tmp_path: Path, receiver: Receiver) -> None:
    async def test() -> None:
        options: dict[str, Any] = {"webhook_secret_file": secret_file(tmp_path), "webhook_networks": LOOPBACK}
        async with served(tmp_path / "jobs", runs=False, **options) as service:
            job_id = (await service.create(CLIP, webhook=receiver.url))["job_id"]
            cancelled = job(await service.client.delete(f"/jobs/{job_id}"))
            assert cancelled["webhook"] == {"status": "cancelled", "attempts": 0}
            assert await service.get(job_id) == cancelled

    run(test)


@pytest.mark.parametrize("character", ["x", "é", "🎙"], ids=["1 byte", "2 bytes", "4 bytes"])
def test_a_long_address_of_a_webhook_is_taken_and_a_longer_one_is_told(
    tmp_path: Path, receiver: Receiver, character: str
) -> None:
    async def test() -> None:
        options: dict[str, Any] = {"webhook_secret_file": secret_file(tmp_path), "webhook_networks": LOOPBACK}
        async with served(tmp_path / "jobs", runs=False, **options) as service:
            longest = receiver.url + character * (webhooks.MAX_URL_LENGTH - len(receiver.url))
            await service.create(CLIP, webhook=longest)
            if character != "🎙":
                response = await service.post(CLIP, webhook=longest + character)
                assert "at most 2000 characters" in problem(response, 422).detail

    run(test)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "10.0.0.1", "169.254.169.254"])
def test_a_webhook_to_a_private_address_is_refused(tmp_path: Path, receiver: Receiver, host: str) -> None:
    async def test() -> None:
        async with served(tmp_path / "jobs", webhook_secret_file=secret_file(tmp_path)) as service:
            response = await service.post(CLIP, webhook=f"http://{host}:{receiver.port}/")
            assert "private network" in problem(response, 422).detail
            assert not service.sounds()
        assert not receiver.received

    run(test)


def test_results_are_kept_for_so_long_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "SWEEP_SECONDS", 0.05)
    later, sweeps, delete = 0.0, 0, JobStore.delete_finished

    def count(store: JobStore, before: float) -> int:
        nonlocal sweeps
        deleted = delete(store, before)
        sweeps += 1
        return deleted

    monkeypatch.setattr(JobStore, "delete_finished", count)
    monkeypatch.setattr(running, "time", SimpleNamespace(time=lambda: time.time() + later))

    async def test() -> None:
        nonlocal later
        async with served(tmp_path, keep_results_hours=1) as service:
            job_id = (await service.create(CLIP))["job_id"]
            await service.until(job_id, "done")
            later, before = 3_000, sweeps
            while sweeps < before + 2:  # the first may have begun before that
                await asyncio.sleep(0.05)
            assert (await service.get(job_id))["status"] == "done"
            later = 3_601
            while (response := await service.client.get(f"/jobs/{job_id}")).status_code == 200:
                await asyncio.sleep(0.1)
            problem(response, 404)

    run(test)


def test_results_are_kept_for_a_century_at_most(tmp_path: Path) -> None:
    """The day until which they are kept must have a date."""
    century = 876_000

    async def test() -> None:
        async with served(tmp_path, keep_results_hours=century) as service:
            done = await service.until((await service.create(CLIP))["job_id"], "done")
            assert int(done["kept_until"][:4]) - int(done["finished_at"][:4]) in (99, 100)

    run(test)
    with pytest.raises(ValidationError, match="keep_results_hours"):
        JobSettings(keep_results_hours=century + 1)


def test_sound_that_nobody_needs_is_swept_away_at_start(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, runs=False) as service:
            service.stages.go.clear()
            folder = service.settings.sound_path
            waiting = (await service.create(CLIP))["job_id"]
            cancelled = (await service.create(CLIP))["job_id"]
            await service.client.delete(f"/jobs/{cancelled}")
            (folder / f"{cancelled}.0").write_bytes(CLIP)  # as if a crash had prevented that it was deleted
            (folder / "unknown.0").write_bytes(CLIP)
            os.utime(folder / "unknown.0", (0, 0))
            (folder / "arriving.0").write_bytes(CLIP)
            for name, seconds in (("arriving.1", BODY_SECONDS), ("stopped.0", BODY_SECONDS + 3_600)):
                (folder / name).write_bytes(CLIP)
                os.utime(folder / name, (time.time() - seconds,) * 2)
            (folder / "README").write_text("not ours")
            service.start_runner()
            while {f"{cancelled}.0", "unknown.0", "stopped.0"} & service.sounds():
                await asyncio.sleep(0.05)
            assert service.sounds() == {f"{waiting}.0", "arriving.0", "arriving.1", "README"}

    run(test)


def test_a_job_that_is_added_during_a_sweep_keeps_its_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with served(tmp_path) as service:
            runner = service.runners[0]
            await service.kill_runner()
            store, asked = runner._store, []
            (service.settings.sound_path / "late.0").write_bytes(CLIP)

            def then_add(name: str) -> None:
                ask = getattr(store, name)

                def answer(among: Any) -> Any:
                    found = ask(among)
                    asked.append(name)
                    if len(asked) == 1:
                        store.add("", [NewFile("a.wav", len(CLIP))], {}, job_id="late", fingerprint="", max_waiting=9)
                    return found

                monkeypatch.setattr(store, name, answer)

            then_add("known")
            then_add("unfinished")
            runner._sweep_sound()
            assert len(asked) == 2 and service.sounds() == {"late.0"}

    run(test)


def test_a_runner_that_dies_leaves_its_file_to_the_next(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, lease_seconds=5) as service:
            service.stages.go.clear()
            job_id = (await service.create(CLIP, LONGER))["job_id"]
            while not service.stages.at_work:
                await asyncio.sleep(0.05)
            await service.kill_runner()
            service.stages.go.set()
            service.start_runner()
            done = await service.until(job_id, "done")
            assert [file["attempts"] for file in done["files"]] == [2, 1]
            assert [result["duration_seconds"] for result in done["results"]] == [1.0, 2.0]

    run(test)


def test_a_file_whose_stage_is_down_is_tried_again_and_given_up_after_so_many_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "RETRY_SECONDS", 0.1)

    async def test() -> None:
        async with served(tmp_path, max_attempts=3) as service:
            service.stages.errors = [StageUnavailable("down")] * 2
            job_id = (await service.create(CLIP))["job_id"]
            done = await service.until(job_id, "done")
            assert (done["results"][0]["status"], done["files"][0]["attempts"]) == ("no_speech", 3), done
            service.stages.errors = [StageUnavailable("The stage is down.")] * 3
            lost = await service.until((await service.create(CLIP))["job_id"], "done")
            assert lost["results"][0]["error"]["detail"] == "The stage is down."
            await service.until_silent()

    run(test)


def test_a_file_that_kills_whatever_judges_it_is_given_up(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, max_attempts=1, lease_seconds=5) as service:
            service.stages.go.clear()
            job_id = (await service.create(CLIP))["job_id"]
            while not service.stages.at_work:
                await asyncio.sleep(0.05)
            await service.kill_runner()
            service.start_runner()
            done = await service.until(job_id, "done")
            assert done["results"][0]["error"]["detail"].startswith("Each process that judged this file was lost.")
            assert service.stages.detections == 1

    run(test)


def test_our_own_mistake_is_told_as_such_and_the_runner_goes_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path) as service:
            service.stages.errors = [ZeroDivisionError("secret detail")]
            failed = await service.until((await service.create(CLIP))["job_id"], "done")
            error = failed["results"][0]["error"]
            assert error["status"] == 500 and "secret" not in json.dumps(failed)
            await service.until((await service.create(CLIP))["job_id"], "done")
            await service.runners[0].check_health()

    run(test)


def test_sound_that_is_lost_is_a_sentence(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, runs=False) as service:
            job_id = (await service.create(CLIP, LONGER))["job_id"]
            (service.settings.sound_path / f"{job_id}.0").unlink()
            service.start_runner()
            done = await service.until(job_id, "done")
            assert done["results"][0]["error"]["detail"] == "The sound of this file is lost. Send it again."
            assert done["results"][1]["status"] == "no_speech"

    run(test)


def test_a_runner_that_is_there_before_the_ingress_makes_the_folder(tmp_path: Path) -> None:
    async def test() -> None:
        settings = JobSettings(folder=tmp_path / "not" / "yet")
        service = Service(httpx.AsyncClient(), Stages(), settings, AccessConfig(), LocalLimits(Clock()))
        await service.start_runner().check_health()
        await service.kill_runner()
        assert settings.sound_path.is_dir()

    run(test)


def test_a_runner_whose_part_has_ended_is_not_healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with served(tmp_path) as service:
            runner = service.runners[0]
            await runner.check_health()
            monkeypatch.setattr(runner._store, "claim", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                while True:
                    await asyncio.sleep(0.05)
                    await runner.check_health()
            runner._loops = [loop for loop in runner._loops if not loop.done()]

    run(test)


def test_without_its_database_only_jobs_are_unavailable_until_it_is_back(tmp_path: Path) -> None:
    async def test() -> None:
        away = tmp_path / "away"
        async with served(tmp_path / "jobs", database=f"sqlite:///{away}/jobs.sqlite3", runs=False) as service:
            for response in (await service.client.get("/jobs"), await service.post(CLIP)):
                assert problem(response, 503).title == "Jobs unavailable"
            assert (await service.client.post("/predict", files={"audio": CLIP})).json()["overall"] == "No Speech"
            assert not service.sounds()
            away.mkdir()
            assert (await service.client.get("/jobs")).json() == {"jobs": [], "next": None}
            service.start_runner()
            await service.until((await service.create(CLIP))["job_id"], "done")

    run(test)


def test_a_service_without_jobs(tmp_path: Path) -> None:
    async def test() -> None:
        async with served(tmp_path, runs=False) as service:
            assert (await service.client.get("/openapi.json")).json()["paths"].keys() >= {"/jobs", "/jobs/{job_id}"}
        from tests.ingress import served as without

        async with without() as (client, _):
            problem(await client.get("/jobs"), 404)
            assert "/jobs" not in (await client.get("/openapi.json")).json()["paths"]

    run(test)
