"""Decodes in processes that may do nothing else. A file that crashes the decoder cannot harm the service.

This is the service's side; `pipeline.audio.worker` is the other. An upload and its samples pass through anonymous
memory, never through a disk. If a worker does not report in time how its decoder ended, both are killed and replaced.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import partial
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.audio.channels import channel_name, same_as
from pipeline.audio.decode import takes_too_long
from pipeline.audio.formats import FORMATS
from pipeline.audio.worker import HEADER_BYTES, Order, most_samples
from pipeline.config import ROOT, Limits
from pipeline.errors import (
    EmptyAudio,
    RecordingTooLong,
    SoundSentryError,
    StageFailed,
    StageUnavailable,
    UnreadableAudio,
    UnsupportedFormat,
)
from pipeline.types import MAX_TRACK, Channel, Checkpoint, Recording, Waveform, go_on
from pipeline.verdict.reasons import AnswerWarning

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
"""How long a worker may take to start."""

GRACE_SECONDS = 2.0
"""A decoder ends by itself after `max_decode_seconds`. If it still runs this many seconds later, it is killed."""

CHECKPOINT_SECONDS = 0.05
"""Time between two calls of the checkpoint during a wait."""

REFUSALS = {error.__name__: error for error in (EmptyAudio, UnsupportedFormat, RecordingTooLong, UnreadableAudio)}

WARNINGS = {str(word): word for word in AnswerWarning}
"""The errors and warnings that a decoder may report, by their names in its answer."""

_BROKE = "The file breaks the decoder: it is damaged, or made to do harm. Export it again and send the new file."
_STOPPED = "The decoder was stopped from outside while it read this file. Send it again in a while."
_NOT_STARTED = "The decoder does not start. Try again in a while."
_FAILED = "The decoder failed because of an error in the service. Nothing can be said about this recording."


class DecoderPool:
    """Decodes uploads in worker processes. Threads may share one pool. Each worker decodes one upload at a time."""

    def __init__(self, limits: Limits, workers: int) -> None:
        self._limits = limits
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers = {_Worker(limits) for _ in range(workers)}
        for worker in self._workers:
            self._idle.put(worker)
        self.close = weakref.finalize(self, _stop_all, self._workers)
        """Ends the workers. This is called automatically when the pool is no longer used and when Python ends."""

    def decode(self, data: bytes, track: int | None = None, checkpoint: Checkpoint = go_on) -> Recording:
        """Like `pipeline.audio.decode.decode`, in a process of its own. Raises the same errors.

        Also raises UnreadableAudio if the decoder crashes on `data`, StageUnavailable if it does not start or is killed
        from outside twice, and StageFailed, which is logged, for a bug of ours. If `checkpoint` raises, the decoder is
        killed.
        """
        (channel,) = self._order(data, Order(track=track), partial(self._take, checkpoint), checkpoint)
        assert channel.recording
        return channel.recording

    def decode_channels(
        self, data: bytes, track: int | None = None, checkpoint: Checkpoint = go_on
    ) -> tuple[Channel, ...]:
        """Like `pipeline.audio.decode.decode_channels`, in a process of its own. Raises as `decode` does."""
        return self._order(data, Order(split=True, track=track), partial(self._take, checkpoint), checkpoint)

    def try_out(self, data: bytes) -> None:
        """Decode `data` on an idle worker; do nothing if all are busy. Raises as `decode` does."""
        with suppress(queue.Empty):
            self._order(data, Order(), self._idle.get_nowait, go_on)

    def _order(
        self, data: bytes, order: Order, take: Callable[[], _Worker], checkpoint: Checkpoint
    ) -> tuple[Channel, ...]:
        """The channels of `data`, decoded on a worker that `take` takes out of the idle ones."""
        if order.track is not None and not 0 <= order.track <= MAX_TRACK:
            raise UnreadableAudio(f"Choose a track by its number, from 0 to {MAX_TRACK}.")
        for _ in range(2):
            worker = take()
            try:
                if not worker.is_sound:
                    worker = self._replace(worker)
                return worker.decode(data, order, checkpoint)
            except _StoppedFromOutsideError:
                logger.warning("A decoder was killed from outside.")
            finally:
                if not worker.is_sound:
                    worker.stop()
                self._idle.put(worker)
        raise StageUnavailable(_STOPPED)

    def _take(self, checkpoint: Checkpoint) -> _Worker:
        while True:
            checkpoint()
            with suppress(queue.Empty):
                return self._idle.get(timeout=CHECKPOINT_SECONDS)

    def _replace(self, worker: _Worker) -> _Worker:
        """A new worker instead of one that is not sound. Raises StageUnavailable if no process can be started.

        A worker is replaced when the next upload needs it, not when it is given back. So a start that fails does not
        change the answer to the last upload, and the next upload tries again.
        """
        try:
            successor = _Worker(self._limits)
        except OSError as error:
            logger.error("A process for decoders cannot be started: %s", error)
            raise StageUnavailable(_NOT_STARTED) from error
        self._workers.remove(worker)
        self._workers.add(successor)
        return successor


class _StoppedFromOutsideError(Exception):
    """Something outside this service killed a worker or its fork."""


class _LateError(Exception):
    """A worker did not report in time."""


_WORKER_IS_GONE = (_StoppedFromOutsideError, StageUnavailable, StageFailed)
"""What the wait for a worker's message raises if the worker itself has ended. It and its decoder are killed then."""


class _Worker:
    """A worker process, seen from the service. `is_sound` tells whether it can take another upload."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, ExitStack() as unless_started:
            unless_started.enter_context(self._control)
            self._process = subprocess.Popen(
                [sys.executable, "-E", "-m", "pipeline.audio.worker", limits.model_dump_json()],
                cwd=ROOT,
                # One thread, because a process with several threads must not fork. The decoder does not get the rest
                # of the service's environment.
                env={"OPENBLAS_NUM_THREADS": "1"} | {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"},
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C goes to the service alone, which then ends its workers
            )
            unless_started.pop_all()
        self.is_sound = True
        self._is_ready = False

    def decode(self, data: bytes, order: Order, checkpoint: Checkpoint) -> tuple[Channel, ...]:
        """Like DecoderPool._order. Raises _StoppedFromOutsideError if the decoder did not end because of `data`."""
        with open(os.memfd_create("upload"), "wb") as upload, open(os.memfd_create("samples"), "rb") as result:
            upload.write(data)
            upload.flush()
            status = self._run(order, upload.fileno(), result.fileno(), checkpoint)
            if status == 0:
                return _read(result, self._limits, order, hashlib.sha256(data).hexdigest())
        if status == -signal.SIGKILL:
            raise _StoppedFromOutsideError
        logger.warning("A decoder ended with status %d over an upload of %d bytes.", status, len(data))
        raise UnreadableAudio(takes_too_long(self._limits) if status == -signal.SIGXCPU else _BROKE)

    def stop(self) -> None:
        """Kill the worker, and its decoder with it."""
        self._control.close()
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _run(self, order: Order, upload: int, result: int, checkpoint: Checkpoint) -> int:
        """Let the worker fork a decoder that reads `upload` and writes `result`. Returns the fork's exit status."""
        self.is_sound = False  # until it has reported how this ended
        if not self._is_ready:
            try:
                self._next_message(START_SECONDS, checkpoint)
            except _LateError as error:
                raise StageUnavailable(_NOT_STARTED) from error
            self._is_ready = True
        with suppress(OSError):  # the wait for the next message finds out why
            socket.send_fds(self._control, [json.dumps(asdict(order)).encode()], [upload, result])
        try:
            status = int(self._next_message(self._limits.max_decode_seconds + GRACE_SECONDS, checkpoint))
        except _WORKER_IS_GONE:
            raise
        except BaseException as error:
            # The worker then kills its decoder. It may have died meanwhile: Popen.send_signal would reap it, and
            # stop() could not kill its group any more.
            os.kill(self._process.pid, signal.SIGTERM)
            with suppress(_LateError, *_WORKER_IS_GONE):
                self._next_message(GRACE_SECONDS, go_on)
                self.is_sound = True
            if isinstance(error, _LateError):
                raise UnreadableAudio(takes_too_long(self._limits)) from error
            raise
        self.is_sound = True
        return status

    def _next_message(self, seconds: float, checkpoint: Checkpoint) -> bytes:
        """The worker's next message. Raises _LateError if none comes within `seconds`."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        while not poll.poll(CHECKPOINT_SECONDS * 1_000):
            checkpoint()
            if time.monotonic() > deadline:
                raise _LateError
        with suppress(OSError):
            if message := self._control.recv(64):
                return message
        # The worker itself is gone, and no upload can cause that. Its process group exists until the worker is
        # reaped: stop() kills the group first.
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        self.stop()
        if self._process.returncode == -signal.SIGKILL:
            raise _StoppedFromOutsideError
        logger.error("A process for decoders ended with status %d.", self._process.returncode)
        if self._process.returncode == os.EX_TEMPFAIL:
            raise StageUnavailable(_NOT_STARTED)
        raise StageFailed(_FAILED)


def _read(result: BinaryIO, limits: Limits, order: Order, file_sha256: str) -> tuple[Channel, ...]:
    """The channels that a fork wrote to `result`, a file in memory. A hijacked fork may write anything there."""
    result.seek(0)
    try:
        header = json.loads(result.readline(HEADER_BYTES))
        # Reads no more than the file holds: a buffer for the longest recording would take gigabytes.
        left = min(4 * most_samples(limits, order), os.fstat(result.fileno()).st_size)
        samples = np.frombuffer(result.read(left), np.float32)
        answer = _parse(header, samples, file_sha256, limits.max_channels if order.split else 1)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableAudio(_BROKE) from error
    if isinstance(answer, Exception):
        raise answer
    return answer


def _parse(
    header: Any, samples: NDArray[np.float32], file_sha256: str, max_channels: int
) -> tuple[Channel, ...] | SoundSentryError:
    """The channels or the error in a fork's answer.

    Raises ValueError, LookupError, TypeError or AttributeError for a false answer.
    """
    match header:
        case {"refused": str(error), "detail": str(detail)}:
            return REFUSALS[error](detail)
        case {"failed": str(stack)}:
            logger.error("The decoder failed:\n%s", stack)
            return StageFailed(_FAILED)
        case {"channels": [_, *_] as described} if len(described) <= max_channels and np.isfinite(samples).all():
            channels = []
            for number, channel in enumerate(described):
                count = channel.get("samples", 0)
                channels.append(_parse_channel(number, channel, samples[:count], file_sha256))
                samples = samples[count:]
            if len(samples) == 0 and any(channel.recording for channel in channels):
                return tuple(channels)
    raise ValueError


def _parse_channel(number: int, described: Any, samples: NDArray[np.float32], file_sha256: str) -> Channel:
    name, notes = channel_name(number), (None, "silent", *(same_as(earlier) for earlier in range(number)))
    match described:
        case {
            "note": note,
            "samples": int(count),
            "format": str(form),
            "warnings": [*words],
            "opus_kbits": None | float() as kbits,
        } if note in notes and count == len(samples) and form in FORMATS and (kbits is None or 0 <= kbits < math.inf):
            warnings = tuple(WARNINGS[word] for word in words)
            return Channel(name, Recording(Waveform(samples), form, warnings, file_sha256, kbits), note)
        case {"note": str(note)} if note in notes:
            return Channel(name, None, note)
    raise ValueError


def _stop_all(workers: set[_Worker]) -> None:
    for worker in workers:
        worker.stop()
