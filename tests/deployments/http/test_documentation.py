"""The type of a problem is a link to a place on /docs that exists."""

from __future__ import annotations

import re

import pytest

from deployments.http import answers, documentation
from deployments.results import problem
from pipeline.errors import RequestTimeout, SoundSentryError, UnsupportedFormat


def test_the_page_names_each_kind_of_problem_once() -> None:
    names = re.findall(r'<tr id="([^"]+)">', documentation.page())
    assert sorted(names) == sorted({kind.kind() for kind in documentation.kinds()})
    assert {"sound-sentry-error", "unsupported-format", "stage-timeout"} <= set(names)


@pytest.mark.parametrize("error", [UnsupportedFormat("Send WAV."), RequestTimeout("Try again."), *answers.FORM_ERRORS])
def test_the_type_of_a_problem_leads_to_its_place_on_the_page(error: SoundSentryError) -> None:
    path, anchor = problem(error)["type"].split("#")
    assert path == "/docs" and f'id="{anchor}"' in documentation.page()
