"""The service answers all requests as its own OpenAPI document says, both allowed ones and others."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

pytestmark = pytest.mark.timeout(900)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

SETTINGS: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.explicit, Phase.generate],
}


def ask_everything(service: httpx.Client, examples: int) -> None:
    """Send a number of requests of each kind in the document, valid ones and others, and check the answers."""
    document = schemathesis.openapi.from_url(f"{service.base_url}/openapi.json")
    for found in document.get_all_operations():
        assert isinstance(found, Ok)

        @settings(max_examples=examples, **SETTINGS)
        @given(case=found.ok().as_strategy())
        def ask(case: schemathesis.Case[Any]) -> None:
            response = case.call(timeout=120)
            while response.status_code == 503 and b"#overloaded" in response.content:
                time.sleep(1)  # the queue of jobs is full, and says so: this is no failure of the server
                response = case.call(timeout=120)
            case.validate_response(response, checks=CHECKS)

        ask()


def test_answers_are_as_documented(service: httpx.Client) -> None:
    ask_everything(service, 8)


@pytest.mark.slow
def test_many_answers_are_as_documented(service: httpx.Client) -> None:
    ask_everything(service, 300)
