"""Scores of recordings as users get them, from a Detector in each actor or from a deployment over HTTP; explanations,
from a Detector in each actor."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.config import DetectorConfig
from pipeline.detector import Detector
from pipeline.errors import SoundSentryError
from pipeline.verdict.answer import Explanation
from pipeline.verdict.bundle import Bundle
from tune.cluster import connect, default_actors, map_with_actors
from tune.corpora.manifest import Clip
from tune.errors import CorpusError

HTTP_SECONDS = 120
TRIES = 6
"""How often a deployment that has too much to do is asked."""
LONGEST_WAIT_SECONDS = 60
KEY_VARIABLE = "SOUND_SENTRY_API_KEY"
"""The environment variable with the key for a deployment that asks for one. The client reads the same."""


@dataclass(frozen=True)
class Scored:
    """The outcome for one recording. If there is no score, `error` says why. `probability` is that of the answer
    `result`, which a part may decide; `score` is always that of the whole recording."""

    score: float | None
    probability: float | None
    result: str
    error: str
    category: str = ""
    original_format: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class Model:
    """The model that gives the scores: its name, its SHA-256, and its operating points.

    `trained_on`: the start of the SHA-256 of each file that it was trained on. `generators`: the plain names of the
    generators that it was trained on. Both are empty for a deployment, which does not tell them.
    """

    name: str
    sha256: str
    thresholds: dict[str, float]
    trained_on: frozenset[str] = frozenset()
    generators: frozenset[str] = frozenset()


def failed(error: str) -> Scored:
    return Scored(None, None, "", error)


def from_body(body: Mapping[str, Any], sha256: str) -> Scored:
    """The outcome in the JSON of a verdict. A recording without speech has no score. This counts as an error here,
    because the recording has a label. If a part decided the answer, the probability is that of the part."""
    error = "no speech found" if body["score"] is None else ""
    decider = body.get("decided_by")  # older services do not have it
    return Scored(
        body["score"],
        decider["probability"] if decider else body["mean_probability"],
        body["overall"],
        error,
        body["duration_config"]["category"],
        body["original_format"],
        sha256,
    )


def read_bundle(folder: Path) -> dict[str, bytes]:
    """The files of a bundle by name, to send them to nodes that cannot read the folder. Folders inside are left out."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def make_detector(config: DetectorConfig, bundle: Mapping[str, bytes]) -> Detector:
    """A Detector with the bundle in `bundle`, which holds the bundle's files by name."""
    with TemporaryDirectory(prefix="bundle-") as folder:
        for name, content in bundle.items():
            Path(folder, name).write_bytes(content)
        return Detector(config.model_copy(update={"bundle": Path(folder)}))


class Scoring:
    """An actor that gives verdicts on recordings, one by one. `bundle` holds the files of its bundle by name."""

    def __init__(self, config: DetectorConfig, bundle: Mapping[str, bytes]) -> None:
        self.detector = make_detector(config, bundle)

    def answer(self, row: tuple[int, bytes | None]) -> tuple[int, Scored]:
        """Index and bytes of a recording (None if it cannot be read) -> index and outcome."""
        index, data = row
        if data is None:
            return index, failed("the file is missing or cannot be read")
        try:
            body = self.detector.predict(data).model_dump(mode="json")
        except SoundSentryError as error:
            return index, failed(error.detail)
        except Exception as error:
            # One recording must not cost the scores of all others. Its row tells the error, and counts as an error.
            return index, failed(f"an error in this program, please report it: {error!r}")
        return index, from_body(body, hashlib.sha256(data).hexdigest())


class Explaining:
    """An actor that explains verdicts. `bundle` holds the files of its bundle by name."""

    def __init__(self, config: DetectorConfig, bundle: Mapping[str, bytes]) -> None:
        self.detector = make_detector(config, bundle)

    def answer(self, recording: bytes) -> Explanation | None:
        """The explanation of the verdict on one recording; None if nobody speaks in it."""
        return self.detector.predict(recording, explain=True).explanation


def score_locally(
    clips: Sequence[Clip], config: DetectorConfig, *, address: str | None, actors: int | None, num_gpus: float
) -> Iterator[tuple[int, Scored]]:
    """Index and outcome of each clip, in the order in which they are ready, from Detectors on a Ray cluster."""
    connect(address)
    pool = min(actors or default_actors(), len(clips))
    rows = ((index, _contents(clip.path)) for index, clip in enumerate(clips))
    arguments = (config, read_bundle(config.bundle_path))
    yield from map_with_actors(Scoring, arguments, rows, actors=pool, num_gpus=num_gpus)


def _contents(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def local_model(config: DetectorConfig) -> Model:
    bundle = Bundle.load(config.bundle_path)
    info = bundle.info
    thresholds = {point: getattr(info.thresholds, point) for point in ("balanced", "recall", "precision")}
    clips, generators = (frozenset(info.corpus.get(key, ())) for key in ("clips", "generator_names"))
    return Model(info.name, bundle.sha256, thresholds, clips, generators)


def score_over_http(clips: Sequence[Clip], url: str, *, clients: int) -> Iterator[tuple[int, Scored]]:
    """Index and outcome of each clip from the deployment at `url`. `clients` requests are sent at the same time."""
    with ThreadPoolExecutor(clients) as pool:
        yield from enumerate(pool.map(lambda clip: _post(url, clip.path), clips))


def deployed_model(url: str) -> Model:
    """The model of the deployment at `url`. Raises CorpusError if no deployment answers, or if it refuses."""
    try:
        info = _answer(_request(url, "/info"))
        thresholds = {name: point["threshold"] for name, point in info["operating_points"].items()}
        return Model(info["model"]["name"], info["model"]["sha256"], thresholds)
    except urllib.error.HTTPError as error:
        hint = f" Set the environment variable {KEY_VARIABLE} to your key." if error.code in (401, 403) else ""
        raise CorpusError(f"the deployment at {url} refuses: {_reason(error)}{hint}") from error
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"no deployment of Sound Sentry answers at {url}: start one, or check the address") from error


def _post(url: str, path: Path) -> Scored:
    try:
        data = path.read_bytes()
    except OSError:
        return failed("the file is missing or cannot be read")
    boundary = secrets.token_hex(16)
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="audio"; filename="audio"\r\n\r\n'
    request = _request(url, "/predict", head.encode() + data + f"\r\n--{boundary}--\r\n".encode())
    request.add_header("Content-Type", f"multipart/form-data; boundary={boundary}")
    try:
        return from_body(_answer(request), hashlib.sha256(data).hexdigest())
    except urllib.error.HTTPError as error:
        return failed(_reason(error))
    except (OSError, HTTPException, ValueError):
        return failed("the deployment did not answer")
    except (KeyError, TypeError):
        return failed("the answer is not that of a deployment of Sound Sentry")


def _request(url: str, path: str, data: bytes | None = None) -> urllib.request.Request:
    request = urllib.request.Request(f"{url.rstrip('/')}{path}", data)
    if key := os.environ.get(KEY_VARIABLE, "").strip():
        # If the service redirects to another host, that host does not get the key.
        request.add_unredirected_header("X-API-Key", key)
    return request


def _answer(request: urllib.request.Request) -> Any:
    """The JSON of the answer. A deployment that has too much to do is asked again when it says so: an error would count
    as an error of the model."""
    tries = 0
    while True:
        tries += 1
        try:
            with urllib.request.urlopen(request, timeout=HTTP_SECONDS) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            wait = error.headers.get("Retry-After", "1")
            seconds = int(wait) if wait.isdecimal() else 1
            if error.code not in (429, 503) or tries == TRIES or seconds > LONGEST_WAIT_SECONDS:
                raise
            error.close()
            time.sleep(seconds)


def _reason(error: urllib.error.HTTPError) -> str:
    """The status of an answer, and the sentence of its problem document (RFC 9457)."""
    with error:
        try:
            detail = str(json.loads(error.read())["detail"])
        except (OSError, HTTPException, ValueError, KeyError, TypeError):
            detail = "no reason given"
    return f"HTTP {error.code}: {detail}"
