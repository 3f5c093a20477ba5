"""Logs an error of a client in one line in the log of a stage, instead of with a stack trace."""

from __future__ import annotations

import logging

from ray.exceptions import RayTaskError

from pipeline.errors import OtherFeatures, SoundSentryError

logger = logging.getLogger("ray.serve")


def log_in_one_line() -> None:
    """Make this process log refused requests in one line. Serve itself logs every error as a failure of the stage."""
    if _shorten not in logger.filters:
        logger.addFilter(_shorten)


def unwrap(error: BaseException | None) -> BaseException | None:
    """The error that a stage raised, without Ray's wrappers."""
    while isinstance(error, RayTaskError):
        error = error.cause
    return error


def _shorten(record: logging.LogRecord) -> bool:
    error = unwrap(record.exc_info[1]) if record.exc_info else None
    if isinstance(error, SoundSentryError) and (error.status < 500 or isinstance(error, OtherFeatures)):
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args = "Refused with %s, %s.", (error.status, error.kind())
        record.exc_info, record.exc_text = None, None
    return True
