"""Keys: who may use the service, and how much.

    python -m deployments.access NAME [--may predict admin]

makes a key, prints it once, and prints the entry for `access.keys` in serve_config.yaml, which holds its SHA-256. The
key itself is stored nowhere. Keys are 256 random bits, so a plain hash does not reveal them.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import logging
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray
from pydantic import Field, field_validator
from ray.exceptions import RayError

from pipeline.config import Strict
from pipeline.errors import KeyMissing, NotAllowed, RateExceeded, StageUnavailable

logger = logging.getLogger("ray.serve")

Right = Literal["predict", "admin"]

PAGE_PATH = "/page/"
OPEN_PATHS = {"/health"}
"""The paths that need no key, besides the files of the page: they tell whether the service is up."""

ADMIN_PATHS = {"/usage"}

AUDIO_PATHS = {"/predict", "/batch-predict", "/jobs", "/stream"}
"""The paths that sound is sent to, by POST or over a WebSocket."""

PREFIX = "ss_"
NO_KEY = "Send a valid key in the header Authorization, as `Bearer KEY`, or X-API-Key."
NOT_ALLOWED = "This key may not do that. Ask the operator of the service for a key that may."
CANNOT_COUNT = "The service cannot count requests at present. Try again in a while."
NOT_COUNTED = "%g s of audio were not counted."
USED_UP = "This key has used up its allowance for now. Try again later."

SUBPROTOCOL = "sound-sentry-key."
"""The prefix of the WebSocket subprotocol that holds a key. Browsers use it, because they cannot set a header there."""

MINUTE_SECONDS = 60.0

ANSWER_SECONDS = 5.0
"""How long a request waits for the actor that counts. If its node is lost, Ray notices that only after a while."""


class Key(Strict):
    """A key as its hash, what it may do, and how much per minute; None means no limit."""

    name: str = Field(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9._-]+$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    may: tuple[Right, ...] = Field(("predict",), min_length=1)
    requests_per_minute: float | None = Field(None, gt=0)
    audio_seconds_per_minute: float | None = Field(None, gt=0)


class AccessConfig(Strict):
    """All of `access`. Without keys anybody may use the service."""

    keys: tuple[Key, ...] = ()

    @field_validator("keys")
    @classmethod
    def _are_distinct(cls, keys: tuple[Key, ...]) -> tuple[Key, ...]:
        for what in ("name", "sha256"):
            values = [getattr(key, what) for key in keys]
            if len(set(values)) < len(values):
                raise ValueError(f"two keys have the same {what}")
        return keys


class Access:
    """Decides which requests are allowed. All replicas of the ingress share `limits`."""

    def __init__(self, config: AccessConfig, limits: Limits | None = None) -> None:
        self._keys = config.keys
        self._limits = limits

    @property
    def has_keys(self) -> bool:
        """Whether requests need a key."""
        return bool(self._keys)

    async def admit(
        self, path: str, headers: Mapping[str, str], *, is_page: bool = False, sends: bool = True
    ) -> Key | None:
        """The key of a request; None if it needs none. A request that `sends` has a body, or is a WebSocket.

        Raises KeyMissing, NotAllowed, RateExceeded, or StageUnavailable if the limits are not available.
        """
        if not self._keys or is_page or path in OPEN_PATHS or path.startswith(PAGE_PATH):
            return None
        key = self._find(presented_key(headers))
        if ("admin" if path in ADMIN_PATHS else "predict") not in key.may:
            raise NotAllowed(NOT_ALLOWED)
        brings_audio = sends and path in AUDIO_PATHS
        if self._limits and (key.requests_per_minute or (brings_audio and key.audio_seconds_per_minute)):
            wait_seconds = await self._limits.take(key, brings_audio=brings_audio)
            if wait_seconds > 0:
                raise RateExceeded(USED_UP, wait_seconds)
        return key

    async def spend(self, key: Key | None, audio_seconds: float) -> None:
        """Subtract the audio of a recording, whose length is known now, from what its key has left.

        Raises RateExceeded if recordings that came at the same time have used it up. If the limits are not available,
        that is only logged.
        """
        if key and key.audio_seconds_per_minute and self._limits:
            try:
                wait_seconds = await self._limits.spend(key, audio_seconds)
            except StageUnavailable:
                logger.warning(NOT_COUNTED, audio_seconds)
                return
            if wait_seconds > 0:
                raise RateExceeded(USED_UP, wait_seconds)

    async def charge(self, key: Key | None, audio_seconds: float) -> None:
        """Subtract the audio of a request from what its key has left. If that fails, it is only logged: the work is
        done by now, and its result should not be lost."""
        if key and key.audio_seconds_per_minute and self._limits:
            try:
                await self._limits.charge(key, audio_seconds)
            except StageUnavailable:
                logger.warning(NOT_COUNTED, audio_seconds)

    async def usage(self) -> dict[str, dict[str, float]]:
        """What each limited key has left of its limits."""
        return await self._limits.left(self._keys) if self._limits else {}

    def _find(self, presented: str) -> Key:
        digest = hashlib.sha256(presented.encode()).hexdigest()
        # Every key is compared completely, so the time that this takes reveals nothing about the keys.
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]
        if not presented or not found:
            raise KeyMissing(NO_KEY)
        return found[0]


def presented_key(headers: Mapping[str, str]) -> str:
    """The key in the headers of a request; empty if there is none.

    `X-API-Key` counts first, because a gateway may use `Authorization` for a token of its own.
    """
    if key := headers.get("x-api-key", "").strip():
        return key
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return bearer.strip()
    for protocol in headers.get("sec-websocket-protocol", "").split(","):
        if protocol.strip().startswith(SUBPROTOCOL):
            return protocol.strip().removeprefix(SUBPROTOCOL)
    return ""


def subprotocol(offered: Sequence[str]) -> str | None:
    """The subprotocol for a WebSocket. If the client offers any, one of them must be chosen."""
    return next((one for one in offered if not one.startswith(SUBPROTOCOL)), next(iter(offered), None))


@dataclass
class Bucket:
    """What is left of an amount per minute. It fills up evenly. A level below 0 is a debt."""

    level: float
    at: float

    def fill(self, per_minute: float, now: float) -> float:
        self.level = min(capacity(per_minute), self.level + (now - self.at) * per_minute / MINUTE_SECONDS)
        self.at = now
        return self.level


def capacity(per_minute: float) -> float:
    """What a full bucket holds: the amount of a minute, but at least 1. With less, no request could ever be taken."""
    return max(1.0, per_minute)


class Buckets:
    """The requests and the seconds of audio that each key has left."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def take(self, name: str, requests_per_minute: float | None, audio_seconds_per_minute: float | None) -> float:
        """Take one request and return 0. If a limit is used up, take nothing and return how many seconds to wait."""
        wait = 0.0
        if requests_per_minute:
            lacking = 1.0 - self._level(name, "requests", requests_per_minute)
            wait = max(wait, lacking * MINUTE_SECONDS / requests_per_minute)
        if audio_seconds_per_minute:
            lacking = -self._level(name, "audio_seconds", audio_seconds_per_minute)
            wait = max(wait, lacking * MINUTE_SECONDS / audio_seconds_per_minute)
        if wait <= 0 and requests_per_minute:
            self._buckets[name, "requests"].level -= 1.0
        return max(wait, 0.0)

    def spend(self, name: str, audio_seconds_per_minute: float, audio_seconds: float) -> float:
        """Take this much audio and return 0. If nothing is left, take nothing and return how many seconds to wait.

        The length of a recording is known late, so one recording may exceed the limit. The next ones then wait.
        """
        wait = self.take(name, None, audio_seconds_per_minute)
        if wait <= 0:
            self.charge(name, audio_seconds_per_minute, audio_seconds)
        return wait

    def charge(self, name: str, audio_seconds_per_minute: float, audio_seconds: float) -> None:
        self._level(name, "audio_seconds", audio_seconds_per_minute)
        self._buckets[name, "audio_seconds"].level -= audio_seconds

    def left(self, name: str, what: Literal["requests", "audio_seconds"], per_minute: float) -> float:
        return self._level(name, what, per_minute)

    def _level(self, name: str, what: str, per_minute: float) -> float:
        now = self._clock()
        bucket = self._buckets.setdefault((name, what), Bucket(capacity(per_minute), now))
        return bucket.fill(per_minute, now)


class Limits:
    """The Buckets of the whole cluster. They are one named actor, which Ray restarts if it dies.

    The actor outlives an update of the code, so its name holds VERSION. Raise it with each change of what Buckets does
    or takes: then a replica of the new code never calls an actor of the old one.
    """

    VERSION = 2
    NAME = f"sound-sentry-limits-{VERSION}"

    def __init__(self) -> None:
        options: dict[str, Any] = {"name": self.NAME, "namespace": "serve", "get_if_exists": True, "num_cpus": 0}
        self._actor: Any = ray.remote(Buckets).options(lifetime="detached", max_restarts=-1, **options).remote()

    async def take(self, key: Key, *, brings_audio: bool) -> float:
        """As Buckets.take. A debt of audio holds up only a request that brings more."""
        audio_seconds_per_minute = key.audio_seconds_per_minute if brings_audio else None
        wait: float = await self._ask("take", key.name, key.requests_per_minute, audio_seconds_per_minute)
        return wait

    async def spend(self, key: Key, audio_seconds: float) -> float:
        wait: float = await self._ask("spend", key.name, key.audio_seconds_per_minute, audio_seconds)
        return wait

    async def charge(self, key: Key, audio_seconds: float) -> None:
        await self._ask("charge", key.name, key.audio_seconds_per_minute, audio_seconds)

    async def left(self, keys: tuple[Key, ...]) -> dict[str, dict[str, float]]:
        left: dict[str, dict[str, float]] = {}
        for key in keys:
            rates = {"requests": key.requests_per_minute, "audio_seconds": key.audio_seconds_per_minute}
            left[key.name] = {
                what: await self._ask("left", key.name, what, rate) for what, rate in rates.items() if rate is not None
            }
        return left

    async def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await getattr(self._actor, method).remote(*arguments)
        except (RayError, TimeoutError) as error:
            raise StageUnavailable(CANNOT_COUNT) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a key and print what to do with it."""
    parser = argparse.ArgumentParser(
        prog="python -m deployments.access", description="Make a key for the service; it is printed once."
    )
    parser.add_argument("name", help="who it is for, as logs and /usage show it: letters, digits, dots and dashes")
    parser.add_argument("--may", nargs="+", choices=["predict", "admin"], default=["predict"], help="what it may do")
    options = parser.parse_args(arguments)
    secret = PREFIX + secrets.token_urlsafe(32)
    try:
        key = Key(name=options.name, sha256=hashlib.sha256(secret.encode()).hexdigest(), may=tuple(options.may))
    except ValueError:
        print("A name has 1 to 40 letters, digits, dots, dashes and underscores.", file=sys.stderr)
        return 1
    print("The key, for its user alone; it is shown only now:")
    print(f"\n  {secret}\n")
    print("For serve_config.yaml, under args.access.keys:")
    print(f"\n  - {{name: {key.name}, sha256: {key.sha256}, may: [{', '.join(key.may)}]}}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
