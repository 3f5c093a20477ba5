from __future__ import annotations

import io
import sys

import pytest

from tune.command import run


def test_a_file_name_that_is_not_utf8_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="utf-8", write_through=True))
    run(lambda: print("missing: caf\udce9.wav"))
    assert printed.getvalue() == rb"missing: caf\udce9.wav" + b"\n"
