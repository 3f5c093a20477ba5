"""The log of a stage for a request that it refuses, and for one that it fails on."""

from __future__ import annotations

import logging

import pytest
from ray.exceptions import RayTaskError

from deployments import refusals
from pipeline.errors import EmptyAudio, StageFailed


def logged(error: Exception, monkeypatch: pytest.MonkeyPatch) -> logging.LogRecord:
    """The record in the log when Serve has logged an error that a stage raised."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    monkeypatch.setattr(refusals.logger, "filters", [])
    refusals.log_in_one_line()
    refusals.logger.addHandler(handler)
    try:
        raise error
    except Exception:
        refusals.logger.exception("Request failed.")
    finally:
        refusals.logger.removeHandler(handler)
    (record,) = records
    return record


def by_ray(error: Exception) -> Exception:
    """The error in the form in which Ray gives it to the next stage."""
    wrapped: Exception = RayTaskError("decode", "the stack", error).as_instanceof_cause()
    return wrapped


def test_what_a_client_did_wrong_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (EmptyAudio("No bytes."), by_ray(EmptyAudio("No bytes."))):
        record = logged(error, monkeypatch)
        assert record.levelname == "INFO"
        assert logging.Formatter().format(record) == "Refused with 422, empty-audio."


def test_a_fault_of_ours_keeps_its_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ValueError("ours"), StageFailed("ours"), by_ray(ValueError("ours"))):
        record = logged(error, monkeypatch)
        assert record.levelname == "ERROR"
        assert "Traceback" in logging.Formatter().format(record)
