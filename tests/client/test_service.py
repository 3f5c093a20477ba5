"""The client and its command, on the real graph."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import BaseModel
from sound_sentry import NotFound, RequestRefused, SoundSentry
from sound_sentry.command import main
from sound_sentry.models import Answer, Batch, Health, Info, Job, JobList, Prediction, Problem

from tests.audio import encode
from tests.client.conftest import Ask, Listen

pytestmark = pytest.mark.timeout(900)

ANSWERS: dict[tuple[str, str, str], type[BaseModel]] = {
    ("/predict", "post", "200"): Prediction,
    ("/predict", "post", "422"): Problem,
    ("/batch-predict", "post", "200"): Batch,
    ("/jobs", "post", "202"): Job,
    ("/jobs", "get", "200"): JobList,
    ("/jobs/{job_id}", "get", "200"): Job,
    ("/jobs/{job_id}", "delete", "200"): Job,
    ("/info", "get", "200"): Info,
    ("/health", "get", "200"): Health,
    ("/health", "get", "503"): Health,
}


@pytest.fixture(scope="session")
def url(service: httpx.Client) -> str:
    return str(service.base_url)


@pytest.fixture(scope="session")
def clip(ten_seconds: NDArray[np.float32]) -> bytes:
    return encode(ten_seconds, "flac")


def without_timestamp(answer: Answer) -> dict[str, Any]:
    """The JSON from which `answer` was read, without the timestamp."""
    return {k: v for k, v in answer.model_dump(mode="json", exclude_unset=True).items() if k != "timestamp"}


def post(service: httpx.Client, data: bytes, name: str, **fields: str) -> dict[str, Any]:
    """The answer of the service to a file, without the timestamp."""
    body: dict[str, Any] = service.post("/predict", files={"audio": (name, data)}, data=fields).json()
    del body["timestamp"]
    return body


def kinds(schema: dict[str, Any], definitions: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Every field of a JSON schema, with each of its possible values: a type, a certain word, or `absent`."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    for choice in schema.get("anyOf", ()):
        yield from kinds(choice, definitions, path)
    words = schema.get("enum", [schema["const"]] if "const" in schema else [])
    yield from ((path, repr(word)) for word in words)
    if not words and "anyOf" not in schema:
        yield path, schema.get("type", "anything")
    for name, field in schema.get("properties", {}).items():
        yield from kinds(field, definitions, f"{path}.{name}")
        if name not in schema.get("required", ()):
            yield f"{path}.{name}", "absent"
    parts = [schema[key] for key in ("items", "additionalProperties") if isinstance(schema.get(key), dict)]
    for part in (*parts, *schema.get("prefixItems", ())):
        yield from kinds(part, definitions, f"{path}[]")


@pytest.mark.parametrize(("path", "method", "status"), ANSWERS)
def test_the_models_read_all_that_the_service_documents(
    service: httpx.Client, path: str, method: str, status: str
) -> None:
    document = service.get("/openapi.json").json()
    (content,) = document["paths"][path][method]["responses"][status]["content"].values()
    model = ANSWERS[path, method, status].model_json_schema()
    written = set(kinds(content["schema"], document["components"]["schemas"]))
    read = set(kinds(model, model.get("$defs", {})))
    unread = {
        (place, kind)
        for place, kind in written - read
        if not (kind.startswith("'") and (place, "string") in read)  # a client that reads any string accepts every word
    }
    assert not unread
    assert {place for place, _ in read} <= {place for place, _ in written}


@pytest.mark.parametrize("use_diarization", [False, True])
def test_predict_is_what_the_service_answers(
    ask: Ask, service: httpx.Client, url: str, clip: bytes, tmp_path: Path, use_diarization: bool
) -> None:
    path = tmp_path / "call.flac"
    path.write_bytes(clip)
    answer = ask(url, "predict", path, use_diarization=use_diarization)
    assert not answer.model_extra, "every field is known"
    assert without_timestamp(answer) == post(service, clip, "call.flac", use_diarization=str(use_diarization))
    assert answer.overall in ("Real", "Fake", "Inconclusive")
    assert bool(answer.speakers) == use_diarization


def test_samples_are_judged_as_their_file(
    ask: Ask, service: httpx.Client, url: str, ten_seconds: NDArray[np.float32]
) -> None:
    integers = np.round(ten_seconds * 2**15).astype(np.int16)
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setparams((1, 2, 16_000, 0, "NONE", ""))
        wav.writeframes(integers.tobytes())
    expected = post(service, file.getvalue(), "samples.wav")
    expected.pop("file_sha256", None)
    for samples in (integers, ten_seconds):
        answer = without_timestamp(ask(url, "predict", samples, 16_000, explain=False))
        answer.pop("file_sha256", None)
        assert answer == expected


def test_a_batch_with_a_broken_file(ask: Ask, url: str, clip: bytes) -> None:
    batch = ask(url, "batch", [clip, b"no recording at all" * 100, encode(np.zeros(16_000, np.float32))])
    assert (batch.total_files, batch.successful, batch.failed) == (3, 2, 1)
    judged, broken, silent = batch.results
    assert (judged.status, judged.overall) == ("success", ask(url, "predict", clip).overall)
    assert (broken.status, broken.error.status) == ("failed", 415)
    assert (silent.status, silent.overall) == ("no_speech", "No Speech")


def test_a_job_is_submitted_followed_and_forgotten(ask: Ask, url: str, clip: bytes) -> None:
    job = ask(url, "submit", [clip, b"no recording at all" * 100], use_diarization=True)
    done = ask(url, "wait", job)
    judged, broken = done.results
    expected = ask(url, "predict", clip, use_diarization=True)
    assert (judged.overall, judged.speakers, judged.timeline) == (
        expected.overall,
        expected.speakers,
        expected.timeline,
    )
    assert (broken.status, broken.error.status) == ("failed", 415)
    assert done.job_id in [latest.job_id for latest in ask(url, "jobs", 5).jobs]
    with SoundSentry(url) as sentry:
        assert [state.status for state in sentry.events(done)] == ["done"]
    assert ask(url, "cancel", done) == done
    with pytest.raises(NotFound):
        ask(url, "job", done)


def test_a_stream_ends_with_the_verdict_on_the_whole(
    listen: Listen, ask: Ask, url: str, ten_seconds: NDArray[np.float32]
) -> None:
    said_in_it = np.round(ten_seconds[: 3 * 16_000] * 2**15).astype(np.int16)
    *updates, verdict = listen(url, [said_in_it.tobytes()], sample_rate=16_000)
    assert [update.end for update in updates] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert not verdict.model_extra, "every field is known"
    whole = ask(url, "predict", said_in_it, 16_000)
    assert (verdict.overall, verdict.mean_probability) == (whole.overall, whole.mean_probability)


def test_a_refusal_says_what_to_do(ask: Ask, url: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        ask(url, "predict", b"no recording at all" * 100)
    assert (caught.value.status, caught.value.title) == (415, "Unsupported format")
    assert "Send WAV" in caught.value.detail


def test_info_and_health(ask: Ask, url: str) -> None:
    info = ask(url, "info")
    assert set(info.operating_points) == {"balanced", "recall", "precision"}
    assert "flac" in info.supported_formats
    health = ask(url, "health")
    assert (health.status, health.stages["Classifier"].status) == ("healthy", "healthy")


def test_the_command_judges_a_folder(url: str, clip: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "silence.wav").write_bytes(encode(np.zeros(16_000, np.float32)))
    assert main(["predict", "--url", url, str(tmp_path)]) == 3
    (tmp_path / "call.flac").write_bytes(clip)
    (tmp_path / "broken.mp3").write_bytes(b"no recording at all" * 100)
    capsys.readouterr()
    page = tmp_path / "report.html"
    code = main(["predict", "--url", url, "--json", "--report", str(page), str(tmp_path)])
    broken, call, silence = map(json.loads, capsys.readouterr().out.splitlines())
    assert [result["status"] for result in (broken, call, silence)] == ["failed", "success", "no_speech"]
    assert code == (1 if call["overall"] == "Fake" else 2)
    assert call["model"]["sha256"] in page.read_text(encoding="utf-8")


def test_the_command_submits_a_job_and_listens_to_a_file(
    url: str, ten_seconds: NDArray[np.float32], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "call.wav").write_bytes(encode(ten_seconds[: 3 * 16_000]))
    codes = {"Real": 0, "Fake": 1, "Inconclusive": 3}
    code = main(["jobs", "submit", "--url", url, "--wait", "--json", str(tmp_path / "call.wav")])
    (result,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert code == codes[result["overall"]]
    assert main(["jobs", "list", "--url", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["status"] == "done"
    assert main(["listen", "--url", url, str(tmp_path / "call.wav")]) == code
