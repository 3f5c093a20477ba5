"""The gate refuses requests without a key, and those of other web sites."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ingress import CLIP, EXTENSION, key, problem, run, served

SAME_SITE, OTHER = {"Origin": "http://test"}, {"Origin": "https://other.example"}
NO_ORIGIN = {"Origin": "null"}


async def stream(ingress: Any, headers: dict[str, str]) -> list[dict[str, Any]]:
    """What the service sends to a client that opens a stream with these headers, and leaves it at once."""
    app = type(ingress).__serve_build_asgi_app__(ingress)
    sent: list[dict[str, Any]] = []
    received: list[dict[str, Any]] = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}]

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return received.pop(0)

    scope = {
        "type": "websocket",
        "path": "/stream",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "query_string": b"",
        "subprotocols": [],
        "extensions": {"websocket.http.response": {}},
    }
    await app(scope, receive, send)
    return sent


def test_a_websocket_without_a_key_is_refused_before_it_opens() -> None:
    async def test() -> None:
        async with served((key("right"),)) as (_, ingress):
            first, *_ = await stream(ingress, {})
            assert (first["type"], first["status"]) == ("websocket.http.response.start", 401)

    run(test)


@pytest.mark.parametrize(
    ("headers", "is_foreign"),
    [
        ({}, False),
        (SAME_SITE, False),
        (OTHER, True),
        (NO_ORIGIN, True),
        ({"Origin": "http://test:8000"}, True),
        ({"Origin": EXTENSION}, False),
        ({"Origin": EXTENSION, "Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-origin"}, False),
        (NO_ORIGIN | {"Sec-Fetch-Site": "same-origin"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, True),
        (SAME_SITE | {"Sec-Fetch-Site": "same-site"}, True),
    ],
    ids=str,
)
def test_another_web_site_starts_no_work_and_opens_no_stream(headers: dict[str, str], is_foreign: bool) -> None:
    async def test() -> None:
        async with served() as (client, ingress):
            for path in ("/predict", "/batch-predict", "/report"):
                answer = await client.post(path, headers=headers)
                refused = problem(answer, 403 if is_foreign else 422)
                assert ("cors_origins" in refused.detail) == is_foreign
            assert (await client.delete("/jobs/1", headers=headers)).status_code == (403 if is_foreign else 404)
            assert (await client.get("/", headers=headers)).status_code == 200
            assert (await client.head("/docs", headers=headers)).status_code == 200
            (first, *_) = await stream(ingress, {"Host": "test"} | headers)
            assert first["type"] == ("websocket.http.response.start" if is_foreign else "websocket.accept")
            assert first.get("status") == (403 if is_foreign else None)

    run(test)


def test_a_site_on_the_list_can_read_that_the_service_failed() -> None:
    async def test() -> None:
        async with served() as (client, ingress):
            ingress._graph = None
            answer = await client.post("/predict", files={"audio": CLIP}, headers={"Origin": EXTENSION})
            assert "failed on this request" in problem(answer, 500).detail
            assert answer.headers["access-control-allow-origin"] == EXTENSION

    run(test)
