"""The type of a problem is a link to a place on /docs that exists."""

from __future__ import annotations

import re

import pytest

from deployments.http import answers, documentation
from deployments.results import problem
from pipeline.errors import RequestTimeout, SoundSentryError, UnsupportedFormat
from tests.ingress import key, run, served


def test_the_page_names_each_kind_of_problem_once() -> None:
    names = re.findall(r'<tr id="([^"]+)">', documentation.page())
    assert sorted(names) == sorted({kind.kind() for kind in documentation.kinds()})
    assert {"sound-sentry-error", "unsupported-format", "stage-timeout"} <= set(names)


@pytest.mark.parametrize("error", [UnsupportedFormat("Send WAV."), RequestTimeout("Try again."), *answers.FORM_ERRORS])
def test_the_type_of_a_problem_leads_to_its_place_on_the_page(error: SoundSentryError) -> None:
    path, anchor = problem(error)["type"].split("#")
    assert path == "/docs" and f'id="{anchor}"' in documentation.page()


def test_a_service_with_keys_documents_how_they_are_sent() -> None:
    async def test() -> None:
        async with served((key("secret"),)) as (client, _):
            document = (await client.get("/openapi.json", headers={"X-API-Key": "secret"})).json()
        schemes = document["components"]["securitySchemes"]
        assert document["security"] == [{name: []} for name in schemes]
        assert document["paths"]["/health"]["get"]["security"] == []
        assert "security" not in document["paths"]["/predict"]["post"]
        async with served((key("secret"),)) as (client, _):
            for scheme in schemes.values():
                headers = {scheme["name"]: "secret"} if "name" in scheme else {"Authorization": "Bearer secret"}
                assert (await client.get("/openapi.json", headers=headers)).status_code == 200
            assert (await client.get("/openapi.json")).status_code == 401
        async with served() as (client, _):
            assert "security" not in (await client.get("/openapi.json")).json()

    run(test)
