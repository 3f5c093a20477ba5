"""What a client did wrong, in the log of a stage: one line instead of an error with its stack."""

from __future__ import annotations

import logging

from ray.exceptions import RayTaskError

from pipeline.errors import SoundSentryError

logger = logging.getLogger("ray.serve")


def log_in_one_line() -> None:
    """Have this process log refused requests so. Serve logs whatever a stage raises as a fault of the stage."""
    if _shorten not in logger.filters:
        logger.addFilter(_shorten)


def unwrap(error: BaseException | None) -> BaseException | None:
    """What a stage raised, out of what Ray puts around it."""
    while isinstance(error, RayTaskError):
        error = error.cause
    return error


def _shorten(record: logging.LogRecord) -> bool:
    error = unwrap(record.exc_info[1]) if record.exc_info else None
    if isinstance(error, SoundSentryError) and error.status < 500:
        record.levelno, record.levelname = logging.INFO, "INFO"
        record.msg, record.args = "Refused with %s, %s.", (error.status, error.kind())
        record.exc_info, record.exc_text = None, None
    return True
