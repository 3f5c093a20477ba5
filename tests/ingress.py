"""The HTTP application of the service in this process, with stages that find no speech."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import numpy as np

from deployments.access import Access, AccessConfig, Buckets, Key, Limits
from deployments.http.admission import AdmissionConfig
from deployments.http.ingress import Ingress
from deployments.results import Problem
from pipeline.audio.decode import decode
from pipeline.config import DetectorConfig
from pipeline.stages.classify import Classifier
from pipeline.stream import LiveSettings
from pipeline.types import Speech
from tests.audio import encode
from tests.deployments.test_graph import Handle

CONFIG = DetectorConfig()
CLIP = encode(np.zeros(16_000, np.float32))
EXTENSION = "chrome-extension://abcdefghijklmnopabcdefghijklmnop"


def key(secret: str, name: str = "k", **rest: Any) -> Key:
    return Key(name=name, sha256=hashlib.sha256(secret.encode()).hexdigest(), **rest)


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class LocalLimits(Limits):
    """The buckets in this process, instead of in the actor that all replicas share."""

    def __init__(self, clock: Clock) -> None:
        self._buckets = Buckets(clock)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        return getattr(self._buckets, method)(*arguments)


class Silence:
    """Stages that find no speech."""

    def __init__(self) -> None:
        classifier = Classifier(CONFIG)
        self.handles = {
            "Decoder": Handle(lambda data, track: decode(data, CONFIG.limits, track)),
            "VoiceActivityDetector": Handle(lambda recording: Speech((), 1.0, "wav")),
            "Diarizer": Handle(lambda recording: ()),
            "TkanExtractor": Handle(lambda *_: None),
            "Classifier": Handle(lambda speech, diarized: classifier.no_speech(speech, use_diarization=diarized)),
        }


@asynccontextmanager
async def served(
    keys: tuple[Key, ...] = (), clock: Clock | None = None, **admission: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    """A client of the application, and its ingress. `admission` holds settings of AdmissionConfig."""
    plain = cast(Any, Ingress).func_or_class.__mro__[1]
    ingress = plain.__new__(plain)
    stages = Silence()
    settings = AdmissionConfig(**admission)
    plain.__init__(
        ingress,
        CONFIG,
        (EXTENSION,),
        AccessConfig(),
        settings,
        dict.fromkeys(stages.handles, 30.0),
        60.0,
        LiveSettings(),
        None,
        None,
        stages.handles,
    )
    ingress._access = Access(AccessConfig(keys=keys), LocalLimits(clock or Clock()))
    transport = httpx.ASGITransport(plain.__serve_build_asgi_app__(ingress), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        yield client, ingress


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 120))


def problem(response: httpx.Response, status: int) -> Problem:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    return Problem.model_validate_json(response.text)


def post(client: httpx.AsyncClient, secret: str | None = None, **fields: str) -> Coroutine[Any, Any, httpx.Response]:
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    return client.post("/predict", files={"audio": CLIP}, data=fields, headers=headers)
