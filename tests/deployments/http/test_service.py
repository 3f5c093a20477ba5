"""The HTTP contract, on the real graph."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import BaseModel

from deployments.http.answers import (
    BatchAnswer,
    HealthAnswer,
    HomeAnswer,
    InfoAnswer,
    PredictAnswer,
    UsageAnswer,
)
from deployments.jobs.answer import JobAnswer, JobsAnswer
from deployments.results import Problem
from pipeline.audio.formats import ENDINGS, SUPPORTED_FORMATS
from pipeline.audio.pool import REFUSALS
from pipeline.config import DetectorConfig
from pipeline.detector import Detector
from pipeline.verdict.reasons import AnswerWarning, Reason
from tests.audio import CODECS, encode, remux
from tests.graph import Cluster
from tests.hostile import ROWS
from tune.errors import CorpusError
from tune.evaluate import main as evaluate_main

pytestmark = pytest.mark.timeout(900)

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
CODEC_TOLERANCE = 0.15
"""How much a lossy codec may change the probability of a recording with an unclear verdict."""

LIMITS = DetectorConfig.load().limits


def predict(service: httpx.Client, data: bytes, name: str = "audio.webm", **fields: str) -> httpx.Response:
    return service.post("/predict", files={"audio": (name, data)}, data=fields)


def verdict(response: httpx.Response) -> dict[str, Any]:
    """The verdict of an answer that fits its schema, without the fields that /predict adds."""
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    PredictAnswer.model_validate(body, strict=False)
    assert TIMESTAMP.fullmatch(body.pop("timestamp"))
    del body["filename"]
    return body


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The problem document of an answer with that status."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = Problem.model_validate_json(response.text)
    assert document.status == status
    assert "/" not in document.detail.replace("multipart/form-data", "").replace("/docs", "")
    assert "Traceback" not in response.text
    return document.model_dump()


@pytest.mark.parametrize("use_diarization", [False, True])
def test_the_verdict_is_the_detectors(
    service: httpx.Client, detector: Detector, ten_seconds: NDArray[np.float32], use_diarization: bool
) -> None:
    recordings = {
        "wav": encode(ten_seconds),
        "webm": encode(ten_seconds[: 4 * 16_000], "webm"),
        "m4a": encode(ten_seconds[32_000 : 32_000 + 7 * 16_000], "m4a"),
    }
    for name, data in recordings.items():
        answer = predict(service, data, use_diarization=str(use_diarization).lower())
        expected = detector.predict(data, use_diarization=use_diarization).model_dump(mode="json")
        assert verdict(answer) == expected
        assert expected["original_format"] == name
        assert expected["file_sha256"] == hashlib.sha256(data).hexdigest()
        assert expected["overall"] != "No Speech"


def test_a_recording_too_long_for_a_message_between_stages(
    service: httpx.Client, detector: Detector, ten_seconds: NDArray[np.float32], config: dict[str, Any]
) -> None:
    inlined_bytes = config["applications"][0]["runtime_env"]["env_vars"]["RAY_max_direct_call_object_size"]
    samples = np.tile(ten_seconds, 8)
    assert samples.nbytes > int(inlined_bytes)
    data = encode(samples)
    assert verdict(predict(service, data)) == detector.predict(data).model_dump(mode="json")


def test_operating_point_and_explanation_are_the_detectors(
    service: httpx.Client, detector: Detector, ten_seconds: NDArray[np.float32]
) -> None:
    data = encode(ten_seconds[: 3 * 16_000])
    answer = verdict(predict(service, data, operating_point="recall", explain="true"))
    assert answer == detector.predict(data, operating_point="recall", explain=True).model_dump(mode="json")
    assert answer["explanation"]["layers"]


@pytest.mark.parametrize("use_diarization", [False, True])
def test_channels_are_judged_as_the_detector_judges_them(
    service: httpx.Client, detector: Detector, ten_seconds: NDArray[np.float32], use_diarization: bool
) -> None:
    silence = np.zeros_like(ten_seconds)
    recordings = {
        "a call": np.stack([ten_seconds, silence, np.roll(ten_seconds, 80_000), ten_seconds]),
        "one channel": ten_seconds,
        "silence": np.stack([silence, silence]),
    }
    for samples in recordings.values():
        data = encode(samples)
        answer = verdict(predict(service, data, channels="split", use_diarization=str(use_diarization).lower()))
        expected = detector.predict(data, channels="split", use_diarization=use_diarization)
        assert answer == expected.model_dump(mode="json")
        assert len(answer["channels"]) == len(np.atleast_2d(samples))


def test_a_track_is_chosen_as_the_detector_chooses_it(
    service: httpx.Client, detector: Detector, ten_seconds: NDArray[np.float32]
) -> None:
    parts = [encode(part, muxer="mov", codec="pcm_s16le") for part in (ten_seconds[:80_000], ten_seconds[48_000:])]
    data = remux("mov", *parts, languages=["eng"])
    refused = problem(predict(service, data), 422)
    assert "2 audio tracks: 0, pcm_s16le, eng, 1 channel; 1, pcm_s16le, 1 channel." in refused["detail"]
    for track in (0, 1):
        expected = detector.predict(data, track=track)
        assert verdict(predict(service, data, track=str(track))) == expected.model_dump(mode="json")
    problem(predict(service, data, track="2"), 422)


def test_the_whole_sample_has_two_speakers(service: httpx.Client, sample_wav: bytes) -> None:
    answer = verdict(predict(service, sample_wav, use_diarization="true"))
    assert len(answer["speakers"]) == 2
    assert {detail["speaker"] for detail in answer["details"]} == {s["speaker"] for s in answer["speakers"]}


def test_every_format_gets_the_same_verdict(service: httpx.Client, sample_versions: dict[str, bytes]) -> None:
    answers = {name: verdict(predict(service, data)) for name, data in sample_versions.items()}
    assert set(answers) == set(CODECS)
    assert {name: answer["original_format"] for name, answer in answers.items()} == {name: name for name in CODECS}
    assert {answer["overall"] for answer in answers.values()} == {"Inconclusive"}
    assert all(answer["warnings"] == ["narrow_band_head"] for answer in answers.values())
    lossless = answers["wav"]
    for answer in answers.values():
        assert answer["speech_seconds"] == pytest.approx(lossless["speech_seconds"], abs=1.0)
    for name in ("webm", "mp3", "m4a", "opus", "aac", "ogg", "amr", "wma", "mp2"):
        assert answers[name]["mean_probability"] == pytest.approx(lossless["mean_probability"], abs=CODEC_TOLERANCE)
    for name in ("flac", "aiff", "caf", "au", "w64"):
        assert answers[name]["mean_probability"] == pytest.approx(lossless["mean_probability"], abs=1e-3)


def test_the_extensions_request(service: httpx.Client, ten_seconds: NDArray[np.float32]) -> None:
    """Four seconds as a browser records them: without a length in the header. The form has no other field."""
    clip = encode(ten_seconds[: 4 * 16_000], "webm", live=True)
    body = service.post("/predict", files={"audio": ("audio.webm", clip, "audio/webm;codecs=opus")}).json()
    assert body["overall"] in ("Real", "Fake", "Inconclusive")
    assert 0 <= body["mean_probability"] <= 1
    assert body["duration_config"] == {"use_diarization": False, "category": "short"}


def test_silence_is_no_speech(service: httpx.Client, detector: Detector) -> None:
    data = encode(np.zeros(3 * 16_000, np.float32))
    for use_diarization in (False, True):
        answer = verdict(predict(service, data, use_diarization=str(use_diarization)))
        assert answer == detector.predict(data, use_diarization=use_diarization).model_dump(mode="json")
        assert answer["overall"] == "No Speech"
        assert answer["mean_probability"] is None


def test_a_file_name_is_cleaned_and_a_wrong_one_does_no_harm(
    service: httpx.Client, ten_seconds: NDArray[np.float32]
) -> None:
    response = predict(service, encode(ten_seconds[:32_000], "flac"), name="../../x.m3u8")
    assert response.json()["filename"] == "x.m3u8"
    assert response.json()["original_format"] == "flac"


@pytest.mark.parametrize(
    ("name", "data", "status", "code"),
    [
        ("text", b"no recording at all " * 100, 415, "unsupported-format"),
        ("playlist", b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/a.wav\n", 415, "unsupported-format"),
        ("empty", b"", 422, "empty-audio"),
        ("header only", encode(np.zeros(0, np.float32)), 422, "empty-audio"),
        ("too long", encode(np.zeros(601 * 8_000, np.float32), "flac", rate=8_000), 413, "recording-too-long"),
        ("too large", bytes(LIMITS.max_upload_bytes + 1), 413, "upload-too-large"),
        ("far too large", bytes(2 * LIMITS.max_upload_bytes), 413, "upload-too-large"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_recording_that_cannot_be_judged(
    service: httpx.Client, name: str, data: bytes, status: int, code: str
) -> None:
    assert problem(predict(service, data, name="audio.wav"), status)["type"] == f"/docs#{code}"


def test_hostile_files_are_refused_or_judged(service: httpx.Client, cluster: Cluster) -> None:
    """Each file has a misleading name. Afterwards all replicas still exist."""

    def replicas() -> set[str]:
        stages = cluster.application()["deployments"].values()
        return {replica["replica_id"] for stage in stages for replica in stage["replicas"]}

    before = replicas()
    for number, (kind, row) in enumerate(ROWS.items()):
        try:
            data = row.make()
        except pytest.skip.Exception:  # the program that makes it is not installed
            continue
        answer = predict(service, data, name=("a.m3u8", "a.wav", "a.mpd", "-i.mp3", "file:a.webm")[number % 5])
        if row.error is None:
            assert verdict(answer)["duration_seconds"] == pytest.approx(row.seconds, abs=0.15), kind
        else:
            refused = problem(answer, REFUSALS[row.error].status)
            assert refused["title"] == REFUSALS[row.error].title, kind
            assert row.says in refused["detail"], kind
    assert before <= replicas()
    assert service.get("/health").status_code == 200


def test_a_body_without_end_is_refused_while_reading(service: httpx.Client) -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="audio"; filename="a.wav"\r\n\r\n'

    def endless() -> Any:
        yield head
        for _ in range(4 * int(LIMITS.max_upload_mib)):
            yield bytes(2**20)

    response = service.post("/predict", content=endless(), headers={"content-type": "multipart/form-data; boundary=b"})
    problem(response, 413)


def test_forms_that_are_wrong(service: httpx.Client, ten_seconds: NDArray[np.float32]) -> None:
    clip = encode(ten_seconds[:16_000])
    assert problem(service.post("/predict"), 422)["title"] == "Input missing"
    assert problem(service.post("/predict", data={"audio": "text"}), 422)["title"] == "Input missing"
    assert problem(service.post("/predict", json={"audio": "text"}), 422)["title"] == "Input missing"
    assert problem(service.post("/batch-predict", files={"audio": clip}), 422)["title"] == "Input missing"
    assert "use_diarization" in problem(predict(service, clip, use_diarization="perhaps"), 422)["detail"]
    assert "operating_point" in problem(predict(service, clip, operating_point="best"), 422)["detail"]
    eleven = [("files", ("a.wav", clip))] * 11
    assert problem(service.post("/batch-predict", files=eleven), 413)["title"] == "Too many files"


def test_a_batch_of_ten_with_a_broken_one(
    service: httpx.Client, detector: Detector, ten_seconds: NDArray[np.float32]
) -> None:
    clips = [encode(ten_seconds[i * 8_000 : i * 8_000 + 32_000]) for i in range(8)]
    files = [*clips[:4], b"broken", *clips[4:], encode(np.zeros(16_000, np.float32))]
    response = service.post(
        "/batch-predict", files=[("files", (f"{index}.wav", data)) for index, data in enumerate(files)]
    )
    answer = BatchAnswer.model_validate_json(response.text)
    assert (answer.total_files, answer.successful, answer.failed) == (10, 9, 1)
    assert [result.filename for result in answer.results] == [f"{index}.wav" for index in range(10)]
    statuses = [result.status for result in answer.results]
    assert statuses == ["success"] * 4 + ["failed"] + ["success"] * 4 + ["no_speech"]
    broken = response.json()["results"][4]
    assert broken["error"]["status"] == 415
    assert "overall" not in broken
    first = {key: value for key, value in response.json()["results"][0].items() if key not in ("filename", "status")}
    assert first == detector.predict(clips[0]).model_dump(mode="json")


def test_home_for_programs_and_for_browsers(service: httpx.Client) -> None:
    home = HomeAnswer.model_validate_json(service.get("/").text)
    assert TIMESTAMP.fullmatch(home.timestamp)
    page = service.get("/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert page.headers["content-type"].startswith("text/html")
    assert "Accept" in page.headers["vary"]
    assert page.headers["content-security-policy"] == "default-src 'self'; frame-ancestors 'none'"
    assert service.get("/page/index.html").text == page.text


def test_a_browser_asks_for_each_file_of_the_page_again(service: httpx.Client) -> None:
    """Otherwise it may mix files of two versions after an upgrade."""
    assert service.get("/", headers={"accept": "text/html"}).headers["cache-control"] == "no-cache"
    script = service.get("/page/page.js")
    same = service.get("/page/page.js", headers={"if-none-match": script.headers["etag"]})
    assert (script.status_code, same.status_code) == (200, 304)
    assert {answer.headers["cache-control"] for answer in (script, same)} == {"no-cache"}


def test_health(service: httpx.Client) -> None:
    response = service.get("/health")
    health = HealthAnswer.model_validate_json(response.text)
    assert response.status_code == 200
    assert (health.status, health.classifier_loaded) == ("healthy", True)
    assert set(health.stages) == {"Decoder", "VoiceActivityDetector", "Diarizer", "TkanExtractor", "Classifier"}


def test_info(service: httpx.Client, detector: Detector, config: dict[str, Any]) -> None:
    info = InfoAnswer.model_validate_json(service.get("/info").text)
    bundle = detector.classifier.bundle
    assert info.model == {"name": bundle.info.name, "sha256": bundle.sha256, "refused_update": None}
    assert info.operating_points["balanced"]["threshold"] == bundle.info.thresholds.balanced
    assert info.features["dimension"] == len(bundle.arrays["mean"])
    assert info.limits["max_upload_mib"] == LIMITS.max_upload_mib
    assert info.supported_formats == list(SUPPORTED_FORMATS)
    assert set(info.endings) == ENDINGS
    assert info.possible_results == ["Real", "Fake", "Inconclusive", "No Speech"]
    assert set(info.reasons) == set(Reason) and set(info.warnings) == set(AnswerWarning)
    args = config["applications"][0]["args"]
    stages = {name: stage["timeout_seconds"] for name, stage in args["stages"].items()}
    assert info.timeouts_seconds == {"request": args["request_timeout_seconds"], **stages}


def test_unknown_paths_and_methods_are_problems(service: httpx.Client) -> None:
    assert problem(service.get("/nothing"), 404)["type"] == "about:blank"
    assert problem(service.get("/page/nothing.js"), 404)["type"] == "about:blank"
    response = service.get("/predict")
    problem(response, 405)
    assert response.headers["allow"] == "POST"


def test_what_ray_itself_answers_has_our_headers_and_a_safe_request_id(service: httpx.Client) -> None:
    for path in ("/", "/nothing", "/info"):
        response = service.get(path, headers={"X-Request-ID": "<b>" + 5000 * "x"})
        (identity,) = response.headers.get_list("x-request-id")
        assert re.fullmatch("[0-9a-f]{32}", identity)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "server" not in response.headers
    refused = service.get("/nothing", headers={"X-Request-ID": "mine"})
    assert refused.headers["x-request-id"] == problem(refused, 404)["request_id"] == "mine"
    assert service.head("/").status_code == 200


def test_only_the_origins_on_the_list_may_read(service: httpx.Client, config: dict[str, Any]) -> None:
    (extension,) = config["applications"][0]["args"]["cors_origins"]
    response = service.get("/health", headers={"origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in response.headers
    response = service.post("/predict", headers={"origin": extension})
    assert response.headers["access-control-allow-origin"] == extension
    assert "access-control-allow-credentials" not in response.headers


def test_the_documentation_has_an_example_for_each_answer(service: httpx.Client) -> None:
    docs = service.get("/docs").text
    assert re.findall(r'(?:src|href)="([^"]*)"', docs) and "http" not in docs, "all it loads is served here"
    for path in re.findall(r'(?:src|href)="([^"]*)"', docs):
        assert service.get(path).status_code == 200, path
    document = service.get("/openapi.json").json()
    models: dict[str, type[BaseModel]] = {
        "/": HomeAnswer,
        "/health": HealthAnswer,
        "/info": InfoAnswer,
        "/usage": UsageAnswer,
        "/predict": PredictAnswer,
        "/batch-predict": BatchAnswer,
        "/jobs": JobsAnswer,
        "/jobs/{job_id}": JobAnswer,
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert "requestBody" in operation or path not in ("/predict", "/batch-predict")
            for status, response in operation["responses"].items():
                for media_type, content in response["content"].items():
                    if media_type in ("text/html", "text/event-stream"):
                        continue
                    assert content["examples"], (path, status)
                    if media_type == "application/problem+json":
                        model: type[BaseModel] = Problem
                    else:
                        model = JobAnswer if (path, method) == ("/jobs", "post") else models[path]
                    for example in content["examples"].values():
                        model.model_validate(example["value"])
    statuses = set(document["paths"]["/predict"]["post"]["responses"])
    assert statuses == {"200", "401", "403", "408", "413", "415", "422", "429", "500", "503", "504"}


def test_a_deployment_is_evaluated_as_users_meet_it(
    service: httpx.Client, detector: Detector, ten_seconds: NDArray[np.float32], tmp_path: Path
) -> None:
    clips = {f"{n}.flac": encode(ten_seconds[16_000 * n : 16_000 * (n + 3)], "flac") for n in range(4)}
    for name, data in (clips | {"noise.wav": b"this is not audio" * 100}).items():
        (tmp_path / name).write_bytes(data)
    rows = [f"{name},{'fake' if n % 2 else 'real'}" for n, name in enumerate([*clips, "noise.wav", "gone.wav"])]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,label", *rows]))
    evaluate_main([f"--manifest={tmp_path / 'manifest.csv'}", f"--url={service.base_url}", f"--out={tmp_path / 'out'}"])
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        scores = {row["path"]: row for row in csv.DictReader(file)}
    for name, data in clips.items():
        verdict = detector.predict(data)
        assert verdict.score is not None
        assert scores[name]["result"] == verdict.overall and not scores[name]["error"]
        assert float(scores[name]["score"]) == pytest.approx(verdict.score, abs=2e-4)
    assert (
        scores["noise.wav"]["error"].startswith("HTTP 415: The file is in none") and not scores["noise.wav"]["result"]
    )
    assert "missing" in scores["gone.wav"]["error"]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    info = service.get("/info").json()
    assert metrics["model"] == {"name": info["model"]["name"], "sha256": info["model"]["sha256"]}
    assert metrics["unscored"] == 2 and set(metrics["thresholds"]) == {"balanced", "recall", "precision"}


def test_evaluation_of_no_deployment_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("path,label\na.wav,real\nb.wav,fake\n")
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).touch()
    with pytest.raises(CorpusError, match="no deployment of Sound Sentry answers at http://localhost:1"):
        evaluate_main([f"--manifest={tmp_path / 'manifest.csv'}", "--url=http://localhost:1", f"--out={tmp_path}"])


def test_an_answer_becomes_a_report(service: httpx.Client, ten_seconds: NDArray[np.float32]) -> None:
    answer = predict(service, encode(ten_seconds), "<call>.wav", explain="true").json()
    response = service.post("/report", json=answer | {"peaks": [0.1, 1.0, 0.3]})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-disposition"].startswith("attachment")
    assert "sandbox" in response.headers["content-security-policy"]
    assert answer["file_sha256"] in response.text and "&lt;call&gt;.wav" in response.text
    assert service.post("/report", json=answer).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"), [(b"{", 422), (b"", 422), (b'{"overall": "Real"}', 422), (b" " * 5_000_000, 413)]
)
def test_what_is_no_answer_becomes_no_report(service: httpx.Client, body: bytes, status: int) -> None:
    problem(service.post("/report", content=body, headers={"content-type": "application/json"}), status)


def test_how_many_people_speak_can_be_told(
    service: httpx.Client, detector: Detector, ten_seconds: NDArray[np.float32]
) -> None:
    recording = encode(ten_seconds)
    for count in (1, 2):
        found = verdict(predict(service, recording, use_diarization="true", num_speakers=str(count)))
        assert len(found["speakers"]) == count
        expected = detector.predict(recording, use_diarization=True, num_speakers=count)
        assert found == expected.model_dump(mode="json")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_speakers": "0"}, "num_speakers: Input should be greater than or equal to 1"),
        ({"num_speakers": "two"}, "num_speakers: Input should be a valid integer"),
        ({"min_speakers": "3", "max_speakers": "2"}, "min_speakers is larger than max_speakers"),
        ({"num_speakers": "2", "max_speakers": "3"}, "Give num_speakers alone"),
        ({"num_speakers": "2", "use_diarization": "false"}, "only used if speakers are told apart"),
    ],
)
def test_numbers_of_speakers_that_cannot_be_are_refused(
    service: httpx.Client, fields: dict[str, str], words: str
) -> None:
    assert words in problem(predict(service, b"never read", **{"use_diarization": "true"} | fields), 422)["detail"]
