from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import pytest
from sound_sentry import AsyncSoundSentry, SoundSentry

from tests.client.stand_in import StandIn, stand_in

Ask = Callable[..., Any]
Listen = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    with stand_in() as server:
        yield server


@pytest.fixture(params=["SoundSentry", "AsyncSoundSentry"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Calls a method, once with each of the two clients: `ask(url, "predict", path, use_diarization=True)`."""

    def ask(url: str, method: str, *arguments: Any, client: dict[str, Any] | None = None, **options: Any) -> Any:
        if request.param == "SoundSentry":
            with SoundSentry(url, **client or {}) as sentry:
                return getattr(sentry, method)(*arguments, **options)

        async def ask_async() -> Any:
            async with AsyncSoundSentry(url, **client or {}) as sentry:
                return await getattr(sentry, method)(*arguments, **options)

        return asyncio.run(ask_async())

    return ask


@pytest.fixture(params=["SoundSentry", "AsyncSoundSentry"])
def listen(request: pytest.FixtureRequest) -> Listen:
    """Everything that a stream yields, once with each of the two clients."""

    def listen(url: str, sound: Iterable[bytes], api_key: str | None = None, **options: Any) -> list[Any]:
        if request.param == "SoundSentry":
            with SoundSentry(url, api_key) as sentry:
                return list(sentry.stream(sound, **options))

        async def chunks() -> AsyncIterator[bytes]:
            for chunk in sound:
                yield chunk

        async def listen_async() -> list[Any]:
            async with AsyncSoundSentry(url, api_key) as sentry:
                return [answer async for answer in sentry.stream(chunks(), **options)]

        return asyncio.run(listen_async())

    return listen
