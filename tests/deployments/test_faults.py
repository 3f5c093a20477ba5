"""The graph while a part of it breaks, and while its model is exchanged."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from websockets.sync.client import ClientConnection, connect

from pipeline.audio.decode import decode
from pipeline.detector import Detector
from pipeline.networks.front import parameters_sha256
from pipeline.networks.spec import load_spec
from pipeline.stages.classify import Classifier
from pipeline.stages.extract import TkanExtractor, layer_sizes
from pipeline.stream import STEP_SECONDS
from pipeline.verdict.bundle import Arrays, save_bundle
from tests.audio import by_espeak, encode
from tests.graph import Cluster, cpu_seconds, wait_until, wait_until_idle
from tests.pipeline.audio.test_pool import children
from tune.adapt import Adaptation, ScoredClips, adapt

pytestmark = pytest.mark.timeout(900)

RATE = 16_000


def test_a_replica_dies_with_a_request_in_hand(
    service: httpx.Client, cluster: Cluster, sample_wav: bytes, ten_seconds: NDArray[np.float32]
) -> None:
    (replica,) = cluster.application()["deployments"]["Diarizer"]["replicas"]
    long = encode(np.tile(ten_seconds, 10))
    used = partial(cpu_seconds, replica["pid"])
    body: dict[str, Any] = {}

    def is_down() -> bool:
        nonlocal body
        response = service.get("/health")
        body = response.json()
        return bool(body["stages"]["Diarizer"]["status"] == "down")

    with ThreadPoolExecutor(1) as other:
        before = used()
        answer = other.submit(service.post, "/predict", files={"audio": long}, data={"use_diarization": "true"})
        wait_until(lambda: used() > before + 0.5, 120)  # it is working on the recording, and needs many more seconds
        assert not answer.done()
        os.kill(replica["pid"], signal.SIGKILL)
        wait_until(is_down, 120)
        assert body["status"] == "unhealthy"
        assert {stage for stage, state in body["stages"].items() if state["status"] != "healthy"} == {"Diarizer"}
        without = service.post("/predict", files={"audio": sample_wav})
        assert without.status_code == 200, "a request without diarization does not need the Diarizer"
        response = answer.result()

    assert response.status_code == 200, "the request went through the graph once more"
    assert len(response.json()["speakers"]) == 2

    wait_until(lambda: service.get("/health").status_code == 200, 120)
    short = sample_wav[: 44 + 5 * 32_000]
    again = service.post("/predict", files={"audio": short}, data={"use_diarization": "true"})
    assert again.status_code == 200, again.text


def test_a_decoder_that_crashes_costs_one_request(
    service: httpx.Client, cluster: Cluster, sample_wav: bytes, ten_seconds: NDArray[np.float32]
) -> None:
    (replica,) = cluster.application()["deployments"]["Decoder"]["replicas"]
    long = encode(np.tile(ten_seconds, 50), "mp3")

    def crash() -> httpx.Response:
        """The answer for a recording. A decoding process is killed meanwhile; it may have decoded it before."""
        with ThreadPoolExecutor(1) as other:
            answer = other.submit(service.post, "/predict", files={"audio": long})
            forks: list[int] = []

            def is_decoding() -> bool:
                forks.extend(fork for worker in children(replica["pid"]) for fork in children(worker))
                return bool(forks)

            wait_until(is_decoding, 60, every=0.005)
            with suppress(ProcessLookupError):
                os.kill(forks[0], signal.SIGSEGV)
            return answer.result()

    response = next(answer for answer in (crash() for _ in range(5)) if answer.status_code != 200)
    assert response.status_code == 422, response.text
    assert "breaks the decoder" in response.json()["detail"]

    assert service.post("/predict", files={"audio": sample_wav}).status_code == 200
    (same,) = cluster.application()["deployments"]["Decoder"]["replicas"]
    assert same["pid"] == replica["pid"]


def test_a_bundle_is_swapped_while_requests_are_served_and_a_bad_one_is_refused(
    service: httpx.Client,
    cluster: Cluster,
    config: dict[str, Any],
    detector: Detector,
    ten_seconds: NDArray[np.float32],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    clip = encode(ten_seconds[: 3 * 16_000])
    old = detector.classifier.bundle
    # A bundle like those that `tune.adapt` makes: calibrated again, and with a moved head.
    inputs = np.random.default_rng(0).normal(size=(16, len(old.arrays["mean"]))).astype(np.float32)
    labels = np.arange(16) % 2 == 0
    scored = ScoredClips(labels, inputs[:, 0].astype(np.float64), inputs, np.ones(16), np.arange(16))
    adapted, arrays = adapt(old, Adaptation(0.9, 3.0, inputs[0] / inputs.size), scored, scored.scores, narrow=False)
    shifted = adapted.model_copy(update={"name": "shifted"})
    new = save_bundle(tmp_path / "shifted", shifted, arrays, "# shifted", old.front)
    assert "correction" in new.arrays

    deploy = partial(deploy_bundle, cluster, config)

    def model() -> dict[str, Any]:
        # While the only replica changes its bundle, the service stays healthy.
        assert service.get("/health").status_code == 200
        body: dict[str, Any] = service.get("/info").json()["model"]
        return body

    def refused(name: str) -> bool:
        return name in (model()["refused_update"] or "")

    def judge() -> dict[str, Any]:
        response = service.post("/predict", files={"audio": clip})
        assert response.status_code == 200, response.text
        body: dict[str, Any] = response.json()
        return body

    def swapped() -> bool:
        seen.append(judge()["model"]["name"])
        return bool(seen[-1] == "shifted")

    replicas = replica_ids(cluster)
    # This is asked before the deployment, because the new bundle may serve at once after it.
    seen = [judge()["model"]["name"]]
    assert seen[0] == old.info.name
    # The other tests share this graph. They get their bundle back, even if this test fails.
    request.addfinalizer(lambda: deploy(detector.config.bundle))
    deploy(tmp_path / "shifted")
    wait_until(swapped, 180)
    assert model() == {"name": "shifted", "sha256": new.sha256, "refused_update": None}

    features = detector.extractor.extract(*recording_and_speech(detector, clip), None)
    expected = Classifier(detector.config, new).classify(features).model_dump(mode="json")
    answer = judge()
    assert {key: answer[key] for key in expected} == expected

    damaged = tmp_path / "damaged"
    save_bundle(damaged, shifted, old.arrays, "# damaged", old.front)
    with (damaged / "classifier.safetensors").open("ab") as file:
        file.write(b"x")
    deploy(damaged)
    wait_until(lambda: model()["refused_update"] is not None, 180)
    assert "damaged" in model()["refused_update"]
    assert judge()["model"]["sha256"] == new.sha256

    for name, other, front in (
        ("other-layers", {"layers": dict(reversed(shifted.layers.items()))}, old.front),
        ("other-recipe", {"features": load_spec("linear-textures"), "backbone_sha256": "0" * 64}, None),
    ):
        # Under other weights, because a bundle with features like those of the configuration is not tried out.
        front = front and moved_fronts(front)
        sha256 = {"backbone_sha256": parameters_sha256(front)} if front else {}
        save_bundle(tmp_path / name, shifted.model_copy(update=other | sha256), old.arrays, f"# {name}", front)
        deploy(tmp_path / name)
        wait_until(partial(refused, name), 180)
        assert judge()["model"]["sha256"] == new.sha256

    deploy(detector.config.bundle)
    wait_until(lambda: model() == {"name": old.info.name, "sha256": old.sha256, "refused_update": None}, 180)
    assert replica_ids(cluster) == replicas, "no replica was replaced"


def test_a_bundle_with_other_features_is_swapped_while_requests_are_served(
    service: httpx.Client,
    cluster: Cluster,
    config: dict[str, Any],
    detector: Detector,
    ten_seconds: NDArray[np.float32],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """A bundle whose fronts were tuned again, and one with another recipe and another network, as `tune.train` makes
    them. Neither costs a request, or a stream that is open."""
    clip = encode(by_espeak())
    old = detector.classifier.bundle
    assert old.front is not None
    moved = moved_fronts(old.front)
    tuned_again = old.info.model_copy(update={"name": "again", "backbone_sha256": parameters_sha256(moved)})
    save_bundle(tmp_path / "again", tuned_again, old.arrays, "# again", moved)
    extractor = TkanExtractor(detector.config, load_spec("linear-textures"))
    sizes = layer_sizes(extractor)
    count = sum(sizes.values())
    textures = {
        "name": "textures",
        "features": extractor.spec,
        "layers": sizes,
        "backbone_sha256": extractor.backbone.sha256,
        "head": "linear",
        "narrow": None,
        "humans": None,
    }
    arrays = {
        "mean": np.zeros(count, np.float32),
        "scale": np.ones(count, np.float32),
        "limit": np.full(1, 3, np.float32),
        "weight": np.random.default_rng(0).normal(scale=count**-0.5, size=count).astype(np.float32),
        "bias": np.zeros(1, np.float32),
    }
    save_bundle(tmp_path / "textures", old.info.model_copy(update=textures), arrays, "# textures")
    folders = {"again": tmp_path / "again", "textures": tmp_path / "textures", old.info.name: detector.config.bundle}
    probabilities = {
        name: Detector(detector.config.model_copy(update={"bundle": folder}))
        .predict(clip)
        .model_dump(mode="json")["mean_probability"]
        for name, folder in folders.items()
    }
    assert len(set(probabilities.values())) == 3

    deploy = partial(deploy_bundle, cluster, config)
    answers: list[dict[str, Any]] = []

    def judge(explain: bool = False) -> str:
        response = service.post("/predict", files={"audio": clip}, data={"explain": str(explain)})
        assert response.status_code == 200, response.text
        answers.append(response.json())
        return str(answers[-1]["model"]["name"])

    def ask() -> None:
        while not done.is_set():
            judge()

    def speak(stream: ClientConnection) -> int:
        steps = 0
        while not done.wait(STEP_SECONDS):
            stream.send(parts[steps % len(parts)].tobytes())
            steps += 1
        return steps

    request.addfinalizer(lambda: deploy(detector.config.bundle))
    replicas = replica_ids(cluster)
    url = str(service.base_url).replace("http", "ws", 1).rstrip("/") + "/stream"
    parts = (ten_seconds * 2**15).astype("<i2").reshape(-1, round(STEP_SECONDS * RATE))
    done = Event()
    with ThreadPoolExecutor(3) as clients, connect(url, max_size=None) as stream:
        stream.send(json.dumps({"format": "pcm_s16le", "sample_rate": RATE}))
        asking = [clients.submit(ask) for _ in range(2)]
        speaking = clients.submit(speak, stream)
        try:
            for name, folder in folders.items():
                deploy(folder)
                wait_until(lambda name=name: judge() == name, 180)  # type: ignore[misc]
                assert judge(explain=True) == name
        finally:
            done.set()
        for client in asking:
            client.result()
        steps = speaking.result()
        stream.send('{"end": true}')
        updates: list[dict[str, Any]] = []
        while not updates or not updates[-1]["final"]:
            updates.append(json.loads(stream.recv(120)))
    for answer in answers:
        assert answer["mean_probability"] == probabilities[answer["model"]["name"]]
    explained = [answer for answer in answers if "explanation" in answer]
    assert {answer["model"]["name"] for answer in explained if answer["explanation"]["bands"]} == set(folders)
    assert [update["end"] for update in updates[:-1]] == [(i + 1) * STEP_SECONDS for i in range(steps)]
    assert updates[-1]["overall"] in ("Real", "Fake", "Inconclusive")
    assert replica_ids(cluster) == replicas, "no replica was replaced"


def deploy_bundle(cluster: Cluster, config: dict[str, Any], bundle: Path) -> None:
    """Name `bundle` in the Classifier's `user_config`, and deploy that."""
    changed = deepcopy(config)
    (classifier,) = [d for d in changed["applications"][0]["deployments"] if d["name"] == "Classifier"]
    classifier["user_config"] = {"bundle": str(bundle)}
    cluster.deploy(changed)


def moved_fronts(fronts: Arrays) -> Arrays:
    """Fronts as another tuning might give them, with other parameters."""
    return fronts | {"tuned_1.conv1.bias": fronts["tuned_1.conv1.bias"] + np.float32(0.1)}


def recording_and_speech(detector: Detector, data: bytes) -> tuple[Any, Any]:
    """The recording in the file `data`, and its speech."""
    recording = decode(data, detector.config.limits)
    return recording, detector.voice_activity.detect(recording)


def replica_ids(cluster: Cluster) -> set[str]:
    return {
        replica["replica_id"]
        for deployment in cluster.application()["deployments"].values()
        for replica in deployment["replicas"]
    }


def test_work_ends_with_its_client(
    service: httpx.Client, cluster: Cluster, ten_seconds: NDArray[np.float32], sample_wav: bytes
) -> None:
    """The longest allowed recording, diarized, for a client that disconnects."""
    (replica,) = cluster.application()["deployments"]["Diarizer"]["replicas"]
    used = partial(cpu_seconds, replica["pid"])
    request = service.build_request(
        "POST", "/predict", files={"audio": encode(np.tile(ten_seconds, 59))}, data={"use_diarization": "true"}
    )
    before = used()
    connection = HTTPConnection(service.base_url.host, service.base_url.port)
    connection.request("POST", "/predict", request.read(), dict(request.headers))
    wait_until(lambda: used() > before + 1.0, 120)
    connection.close()
    closed_at = used()
    wait_until_idle(replica["pid"], 120)
    assert used() < closed_at + 5, "the whole recording takes many times as much"

    short = sample_wav[: 44 + 5 * 32_000]
    answer = service.post("/predict", files={"audio": short}, data={"use_diarization": "true"})
    assert answer.status_code == 200, answer.text


def test_an_ingress_replica_dies_with_requests_in_hand(
    service: httpx.Client, cluster: Cluster, sample_wav: bytes
) -> None:
    """Ray's proxy answers instead of the replica. Without our middleware it would answer in plain text."""
    deployments = cluster.application()["deployments"]
    first, second = deployments["Ingress"]["replicas"]
    used = partial(cpu_seconds, deployments["Diarizer"]["replicas"][0]["pid"])
    before = used()
    with ThreadPoolExecutor(8) as others:
        fields = {"use_diarization": "true"}
        answers = [others.submit(service.post, "/predict", files={"audio": sample_wav}, data=fields) for _ in range(8)]
        wait_until(lambda: used() > before + 0.5, 120)  # the first is with the Diarizer, which takes them one by one
        os.kill(first["pid"], signal.SIGKILL)
        responses = [answer.result() for answer in answers]
    statuses = {response.status_code for response in responses}
    assert 503 in statuses and statuses <= {200, 503}
    for response in responses:
        if response.status_code == 503:
            assert response.headers["content-type"] == "application/problem+json"
            assert response.headers["retry-after"] and response.json()["request_id"]

    def both_run() -> bool:
        ingress = cluster.application()["deployments"]["Ingress"]["replicas"]
        running = {replica["pid"] for replica in ingress if replica["state"] == "RUNNING"}  # a starting one has no pid
        return len(running) == 2 and second["pid"] in running

    wait_until(both_run, 120)
    assert service.get("/health").status_code == 200
