from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, Self

import pytest

from pipeline.config import DetectorConfig
from pipeline.errors import StageFailed, UnreadableAudio
from tune.corpora.manifest import Clip
from tune.errors import CorpusError
from tune.scoring import (
    KEY_VARIABLE,
    TRIES,
    Explaining,
    Scored,
    Scoring,
    deployed_model,
    read_bundle,
    score_over_http,
)

INFO = {"model": {"name": "m", "sha256": "0"}, "operating_points": {"balanced": {"threshold": 0.0}}}
VERDICT = {
    "score": 1.5,
    "mean_probability": 0.8,
    "overall": "Fake",
    "duration_config": {"category": "short"},
    "original_format": "wav",
}


class Service:
    """A deployment that gives `answers` one by one, and the last of them again and again. An answer is a status, the
    headers and a body. `asked` holds the headers of each request."""

    def __init__(self, *answers: tuple[int, dict[str, str], bytes]) -> None:
        self.answers = list(answers)
        self.asked: list[dict[str, str]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                service.asked.append({name.lower(): value for name, value in self.headers.items()})
                status, headers, body = service.answers.pop(0) if len(service.answers) > 1 else service.answers[0]
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, format: str, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def __enter__(self) -> Self:
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def answer(status: int, body: Any, **headers: str) -> tuple[int, dict[str, str], bytes]:
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, json.dumps(body).encode()


def scored_by(service: Service, folder: Path, count: int = 1) -> list[Scored]:
    clips = [Clip(folder / f"{number}.wav", "spoof") for number in range(count)]
    for clip in clips:
        clip.path.write_bytes(b"RIFF")
    return [one for _, one in score_over_http(clips, service.url, clients=1)]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of the client, which are left out."""
    found: list[float] = []
    monkeypatch.setattr("tune.scoring.time", SimpleNamespace(sleep=found.append))
    return found


def test_the_key_is_sent_but_not_to_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret\n")
    with Service(answer(200, INFO)) as other:
        with Service(answer(302, {}, Location=f"{other.url}info")) as service:
            assert deployed_model(service.url).name == "m"
        assert service.asked[0]["x-api-key"] == "secret" and "x-api-key" not in other.asked[0]
    with Service(answer(200, VERDICT)) as service:
        assert scored_by(service, tmp_path)[0].score == 1.5
    assert service.asked[0]["x-api-key"] == "secret"


def test_the_probability_is_that_of_the_part_that_decides(tmp_path: Path) -> None:
    part = {"speaker": "SPEAKER_01", "probability": 0.95, "interval": [0.9, 0.98]}
    whole = VERDICT | {"score": -2.6, "mean_probability": 0.07}
    with Service(
        answer(200, whole | {"decided_by": part}), answer(200, whole | {"decided_by": None}), answer(200, whole)
    ) as service:
        found = [(one.score, one.probability) for one in scored_by(service, tmp_path, 3)]
    assert found == [(-2.6, 0.95), (-2.6, 0.07), (-2.6, 0.07)]


def test_a_refusal_is_told_in_the_words_of_the_service() -> None:
    refused = rf"refuses: HTTP 401: Send a valid key\. Set .* {KEY_VARIABLE}"
    with Service(answer(401, {"detail": "Send a valid key."})) as service, pytest.raises(CorpusError, match=refused):
        deployed_model(service.url)
    with pytest.raises(CorpusError, match="no deployment of Sound Sentry answers"):
        deployed_model(service.url)


def test_a_service_with_too_much_to_do_is_asked_again_when_it_says_so(tmp_path: Path, waits: list[float]) -> None:
    with Service(answer(503, {}, Retry_After="3"), answer(429, {}, Retry_After="7"), answer(200, VERDICT)) as service:
        assert scored_by(service, tmp_path)[0].score == 1.5
    assert waits == [3, 7]
    with Service(answer(503, {"detail": "Try later."}, Retry_After="2")) as service:
        assert scored_by(service, tmp_path)[0].error == "HTTP 503: Try later."
    assert len(service.asked) == TRIES and waits[2:] == [2] * (TRIES - 1)
    with Service(answer(429, {"detail": "Used up."}, Retry_After="3600")) as service:
        assert scored_by(service, tmp_path)[0].error == "HTTP 429: Used up."
    assert len(service.asked) == 1


@pytest.mark.parametrize(
    "broken",
    [
        (200, {"Content-Length": "1000", "Connection": "close"}, b'{"score": 1'),
        answer(200, {"score": 1.5}),
        answer(200, ["no verdict"]),
        (200, {}, b"<html>"),
    ],
)
def test_a_broken_answer_costs_one_recording(broken: tuple[int, dict[str, str], bytes], tmp_path: Path) -> None:
    with Service(broken, answer(200, VERDICT)) as service:
        first, second = scored_by(service, tmp_path, 2)
    assert first.error and first.score is None and second.score == 1.5


@pytest.mark.parametrize(
    "error", [UnreadableAudio("It is broken."), StageFailed("A process died."), ValueError("ours")]
)
def test_a_recording_that_cannot_be_scored_costs_no_other(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def predict(self, _: bytes) -> Any:
            raise error

    monkeypatch.setattr("tune.scoring.make_detector", lambda *_: Broken())
    index, scored = Scoring(config=None, bundle={}).answer((3, b"RIFF"))  # type: ignore[arg-type]
    assert (index, scored.score, scored.result) == (3, None, "")
    assert str(error) in scored.error


def test_recordings_are_explained_as_a_service_would(sample_wav: bytes) -> None:
    config = DetectorConfig(device="cpu")
    explaining = Explaining(config, read_bundle(config.bundle_path))
    found = explaining.answer(sample_wav)
    assert found and found.moments and found.bands and found.layers
    nobody_speaks = sample_wav[: 44 + 2 * 16_000 * 6]
    assert explaining.answer(nobody_speaks) is None


def test_a_folder_inside_a_bundle_does_not_travel_with_it(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_bytes(b"{}")
    (tmp_path / "unseen").mkdir()
    (tmp_path / "unseen" / "report.html").touch()
    assert read_bundle(tmp_path) == {"bundle.json": b"{}"}
