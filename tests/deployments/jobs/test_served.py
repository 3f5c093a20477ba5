"""Jobs on the real graph: their answers. If processes are killed, nothing is lost and nothing is done twice."""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import os
import signal
import time
import wave
from collections import Counter
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from deployments.jobs.answer import JobAnswer
from pipeline.detector import Detector
from tests.audio import encode
from tests.deployments.jobs.test_webhooks import Receiver, receiver
from tests.graph import (
    Cluster,
    cpu_seconds,
    ray_cluster,
    serve_config,
    served_graph,
    wait_until,
    wait_until_idle,
)

__all__ = ["receiver"]

pytestmark = pytest.mark.timeout(1800)

PATIENCE_SECONDS = 600
SECRET = b"a secret of the tests, 32 bytes."


def post(client: httpx.Client, *files: bytes, key: str | None = None, **fields: str) -> dict[str, Any]:
    """Send these files as a job. Each file is named by its position. Returns the new job."""
    form = [("files", (f"{i}.wav", file)) for i, file in enumerate(files)]
    response = client.post("/jobs", files=form, data=fields, headers={"Idempotency-Key": key} if key else None)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    assert response.headers["location"] == f"/jobs/{job['job_id']}"
    return job


def get(client: httpx.Client, job_id: str) -> dict[str, Any]:
    response = client.get(f"/jobs/{job_id}")
    assert response.status_code == 200, response.text
    JobAnswer.model_validate_json(response.text)
    job: dict[str, Any] = response.json()
    return job


def is_delivered(client: httpx.Client, job_id: str) -> bool:
    return bool(get(client, job_id)["webhook"]["status"] == "delivered")


def wait_for(client: httpx.Client, job_id: str, *statuses: str) -> dict[str, Any]:
    """Wait until the files of a job have these states, and return the job."""
    wait_until(lambda: tuple(file["status"] for file in get(client, job_id)["files"]) == statuses, PATIENCE_SECONDS)
    return get(client, job_id)


def is_verdict(result: dict[str, Any], detector: Detector, data: bytes, **options: Any) -> bool:
    """Whether a result is the Detector's verdict on the same bytes."""
    expected = verdict(detector, data, **options)
    return {key: result[key] for key in expected} == expected


@cache
def verdict(detector: Detector, data: bytes, **options: Any) -> dict[str, Any]:
    """The Detector's verdict as JSON. Several tests need the one on the same minute, so it is computed only once."""
    return detector.predict(data, **options).model_dump(mode="json")


@pytest.fixture(scope="module")
def short(ten_seconds: NDArray[np.float32]) -> bytes:
    return encode(ten_seconds[: 3 * 16_000])


@pytest.fixture(scope="module")
def half_minute(sample_wav: bytes) -> NDArray[np.float32]:
    """pyannote's sample, (time,) at 16 kHz."""
    with wave.open(io.BytesIO(sample_wav)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / np.float32(2**15)


@pytest.fixture(scope="module")
def minute(half_minute: NDArray[np.float32]) -> bytes:
    """A recording that takes a while to diarize."""
    return encode(np.tile(half_minute, 2))


def test_a_job_is_followed_to_the_verdicts_of_the_detector(
    service: httpx.Client, cluster: Cluster, detector: Detector, short: bytes, half_minute: NDArray[np.float32]
) -> None:
    # The runner writes the stage every half second, and the follower reads it as often. So a stage must last for more.
    long = encode(np.tile(half_minute, 6))
    job_id = post(service, short, b"not audio", long, use_diarization="true")["job_id"]
    with service.stream("GET", f"/jobs/{job_id}/events", timeout=PATIENCE_SECONDS) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    states = [json.loads(line) for line in lines]
    progress = [state["progress"] for state in states]
    assert progress == sorted(progress) and progress[-1] == 1.0
    assert len({state["stage"] for state in states} - {None}) >= 2
    assert any(state["seconds_left"] for state in states)
    done = get(service, job_id)
    assert states[-1] == done and done["status"] == "done"
    first, broken, last = done["results"]
    assert broken["status"] == "failed" and broken["error"]["status"] == 415
    for result, data in ((first, short), (last, long)):
        assert is_verdict(result, detector, data, use_diarization=True)
    assert not list((cluster.folder / "jobs" / "sound").iterdir()), "sound is kept only until it is judged"
    assert done["job_id"] in {job["job_id"] for job in service.get("/jobs").json()["jobs"]}


def test_a_job_is_cancelled_and_its_stage_stops(
    service: httpx.Client, cluster: Cluster, short: bytes, half_minute: NDArray[np.float32]
) -> None:
    (replica,) = cluster.application()["deployments"]["Diarizer"]["replicas"]
    used = partial(cpu_seconds, replica["pid"])
    long = encode(np.tile(half_minute, 20))  # to diarize it takes far more than the 5 s below
    before = used()
    job_id = post(service, long, long, use_diarization="true")["job_id"]
    wait_until(lambda: get(service, job_id)["stage"] == "Diarizer" and used() > before + 1.0, PATIENCE_SECONDS)
    assert service.delete(f"/jobs/{job_id}").json()["status"] == "cancelled"
    cancelled_at = used()
    assert not list((cluster.folder / "jobs" / "sound").iterdir())
    wait_until_idle(replica["pid"], PATIENCE_SECONDS)
    assert used() < cancelled_at + 5
    after = post(service, short, use_diarization="true")["job_id"]
    wait_for(service, after, "done")
    cancelled = get(service, job_id)
    assert [file["status"] for file in cancelled["files"]] == ["cancelled", "cancelled"]
    assert cancelled["results"] == []


def test_a_runner_and_an_ingress_that_are_killed_lose_nothing(
    service: httpx.Client, cluster: Cluster, detector: Detector, short: bytes, minute: bytes
) -> None:
    job_id = post(service, short, minute, short, use_diarization="true")["job_id"]
    before = wait_for(service, job_id, "done", "running", "queued")
    deployments = cluster.application()["deployments"]
    for name in ("JobRunner", "Ingress"):
        os.kill(deployments[name]["replicas"][0]["pid"], signal.SIGKILL)
    with httpx.Client(base_url=service.base_url, timeout=120) as client:
        wait_until(lambda: is_up(client), PATIENCE_SECONDS)
        done = wait_for(client, job_id, "done", "done", "done")
    assert [file["attempts"] for file in done["files"]] == [1, 2, 1]
    assert done["results"][0] == before["results"][0], "what was done is not done again"
    for result, data in zip(done["results"], (short, minute, short), strict=True):
        assert is_verdict(result, detector, data, use_diarization=True)


def is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.HTTPError:
        return False


def kill_everything(cluster: Cluster) -> None:
    """Send SIGKILL to every process of a cluster at once, including Ray's own."""
    parents, roots = {}, set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if str(cluster.folder) in (process / "cmdline").read_text():
                roots.add(int(process.name))
        except OSError:  # the process has ended
            continue
    found, grows = roots, True
    while grows:
        more = found | {child for child, parent in parents.items() if parent in found}
        found, grows = more, more != found
    for pid in found:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_cluster_that_is_killed_and_started_again_loses_nothing_and_does_nothing_twice(
    database: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    receiver: Receiver,
    detector: Detector,
    short: bytes,
    minute: bytes,
) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    config = serve_config()
    config["applications"][0]["args"]["jobs"] |= {
        "folder": str(tmp_path / "jobs"),
        "database": None if database == "sqlite" else request.getfixturevalue("postgresql"),
        "lease_seconds": 5,
        "webhook_secret_file": str(tmp_path / "secret"),
        "webhook_networks": ["127.0.0.0/8"],
    }
    with (
        ray_cluster() as cluster,
        served_graph(cluster, deepcopy(config)) as url,
        httpx.Client(base_url=url, timeout=120) as client,
    ):
        over = post(client, short, webhook=receiver.url)["job_id"]
        wait_until(lambda: get(client, over)["webhook"]["status"] == "delivered", PATIENCE_SECONDS)
        running = post(client, short, minute, b"not audio", use_diarization="true", webhook=receiver.url)["job_id"]
        waiting = post(client, short, key="k", webhook=receiver.url)["job_id"]
        before = {running: wait_for(client, running, "done", "running", "queued"), over: get(client, over)}
        kill_everything(cluster)
    assert {job["status"] for job in before.values()} == {"running", "done"}

    config["http_options"] = serve_config()["http_options"]
    with (
        ray_cluster() as cluster,
        served_graph(cluster, config) as url,
        httpx.Client(base_url=url, timeout=120) as client,
    ):
        assert post(client, short, key="k", webhook=receiver.url)["job_id"] == waiting
        for job_id in (running, waiting):
            wait_until(partial(is_delivered, client, job_id), PATIENCE_SECONDS)
        assert get(client, over) == before[over]
        done = get(client, running)
        assert [file["attempts"] for file in done["files"]] == [1, 2, 1]
        first, second, third = done["results"]
        assert first == before[running]["results"][0], "what was done is not done again"
        assert is_verdict(second, detector, minute, use_diarization=True)
        assert third["status"] == "failed"
        (only,) = get(client, waiting)["results"]
        assert is_verdict(only, detector, short)
        assert not list((tmp_path / "jobs" / "sound").iterdir())
        time.sleep(2)
    deliveries = Counter(headers["X-Sound-Sentry-Job"] for _, headers, _ in receiver.received)
    assert deliveries == {over: 1, running: 1, waiting: 1}
    for _, headers, body in receiver.received:
        expected = "sha256=" + hmac.new(SECRET, body, hashlib.sha256).hexdigest()
        assert headers["X-Sound-Sentry-Signature"] == expected
