"""Every valid answer becomes a report, even an unusual one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.core.result import Ok

from deployments.http import reports

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
