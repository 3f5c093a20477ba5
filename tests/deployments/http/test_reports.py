"""Every valid answer becomes a report, even an unusual one."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.core.result import Ok

from deployments.http import reports
from deployments.http.answers import predict_examples
from pipeline.errors import InputError

BODY, PARTS = reports.describe()
DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "reports", "version": "1"},
    "paths": {"/report": {"post": BODY | {"responses": {"200": {"description": "The report"}}}}},
    "components": {"schemas": PARTS},
}
(FOUND,) = schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()
assert isinstance(FOUND, Ok)


@settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)  # fmt: skip
@given(case=FOUND.ok().as_strategy())
def test_any_answer_that_the_document_allows_becomes_a_report(case: schemathesis.Case[Any]) -> None:
    response = asyncio.run(reports.respond(json.dumps(case.body).encode()))
    assert response.status_code == 200
    assert b"</html>" in response.body


SURROGATE = json.dumps(predict_examples()["fake"] | {"filename": "\ud800"}).encode()


@pytest.mark.parametrize(
    "body", [b"{", b"", b"\xff", b"[" * 100_000, b"9" * 10_000, b'{"peaks": [NaN]}', b"[]", SURROGATE]
)
def test_what_is_no_answer_is_refused(body: bytes) -> None:
    with pytest.raises(InputError, match="This is not an answer of this service"):
        asyncio.run(reports.respond(body))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"details": [%s]}' % b",".join([b"{}"] * 1_300_000), "overall: Field required"),
        (b'{"peaks": [%s]}' % b",".join([b'""'] * 1_300_000), "overall: Field required"),
        (json.dumps(dict.fromkeys(map(str, range(400_000)))).encode(), "too many to name"),
    ],
    ids=["details", "peaks", "keys"],
)
def test_a_million_faults_are_found_quickly(body: bytes, says: str) -> None:
    """All of them took up to a minute and 6 GB, in which the replica answered nobody."""
    began = time.process_time()
    with pytest.raises(InputError, match=says):
        asyncio.run(reports.respond(body))
    assert time.process_time() - began < 3
