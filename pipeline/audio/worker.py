"""The process that decodes uploads for `pipeline.audio.pool`, started as `python -m pipeline.audio.worker`.

A worker has libav and numpy loaded, and little else. It reads no upload itself: it forks a decoder for each. The fork
gives up every right that it could do harm with, decodes that one upload, and ends. So nothing passes from one upload to
the next, and a crash does not end the worker.

`docs/untrusted-audio.md` says how the fork is confined, and what the kernel must allow for that.
"""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import resource
import select
import signal
import socket
import sys
import traceback
import wave
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import av.subtitles.codeccontext  # noqa: F401  PyAV loads it late, for a file with subtitles, and a fork cannot load it

from pipeline.audio.channels import channel_name
from pipeline.audio.decode import decode, decode_channels
from pipeline.errors import InputError
from pipeline.types import SAMPLE_RATE, Channel

if TYPE_CHECKING:
    from pyseccomp import SyscallFilter

    from pipeline.config import Limits

MIB = 2**20
HEADER_BYTES = MIB
"""The most bytes that a fork may write besides samples."""

WORKING_MIB = 256
"""Memory that a decoder may use in addition to that for the upload and its samples."""

MESSAGE_BYTES = 1024

SYSTEM_CALLS = (
    *("read", "pread64", "readv", "write", "writev", "lseek", "fstat", "newfstatat", "close"),
    *("mmap", "munmap", "mremap", "mprotect", "madvise", "brk", "futex"),
    *("clock_gettime", "gettimeofday", "getrandom", "getpid", "gettid", "sched_getaffinity", "sched_yield"),
    *("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "restart_syscall", "exit", "exit_group"),
)
"""All system calls that a fork may make: they use memory and files that are already open. All others are refused."""

_TOO_MUCH_MEMORY = "The audio takes more memory to decode than is allowed. Send it in parts."


@dataclass(frozen=True)
class Order:
    """What to decode: each channel by itself (`split`) or their mix, and the `track`, counted from 0."""

    split: bool = False
    track: int | None = None


def serve(limits: Limits) -> None:
    """Fork a decoder for each pair of files from the service, until the service is gone. SIGTERM kills the decoder."""
    decoder = 0

    def kill(*_: object) -> None:
        if decoder:
            os.kill(decoder, signal.SIGKILL)

    signal.signal(signal.SIGTERM, kill)
    control = socket.socket(fileno=sys.stdin.fileno())
    seccomp = _system_call_filter()
    if seccomp is None:
        print("Decoders run without a system call filter: see docs/untrusted-audio.md.", file=sys.stderr)
    with suppress(InputError):  # if the limits do not even allow this file
        decode(_silence(), limits)  # loads the modules that are loaded at first use
    gc.freeze()  # so that forks need not copy this memory
    with suppress(ConnectionError):  # the service may be gone at any time
        control.send(b"ready")
    while True:
        try:
            message, files, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 2)
        except ConnectionError:
            return
        if not message:
            return
        order = Order(**json.loads(message))
        upload, result = files
        decoder = _fork()
        if decoder == 0:
            os.dup2(sys.stderr.fileno(), control.fileno())
            _confine(limits, order, seccomp)
            _decode(upload, result, limits, order)
            os._exit(0)
        os.close(upload)
        os.close(result)
        _wait(decoder, control)
        ended, decoder = decoder, 0  # before another process can get its number
        _, status = os.waitpid(ended, 0)
        with suppress(ConnectionError):
            control.send(str(os.waitstatus_to_exitcode(status)).encode())


def _fork() -> int:
    """Like os.fork. If the system has no process or memory left, this process ends with EX_TEMPFAIL."""
    try:
        return os.fork()
    except OSError as error:
        print(f"A decoder cannot be forked: {error.strerror}", file=sys.stderr)
        sys.exit(os.EX_TEMPFAIL)


def _wait(decoder: int, control: socket.socket) -> None:
    """Wait until a decoder has ended, without reaping it. If the service is gone before, the decoder is killed."""
    ended = os.pidfd_open(decoder)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(control, 0)  # a hang-up is always reported
    if ended not in dict(poll.poll()):
        os.kill(decoder, signal.SIGKILL)
    os.close(ended)
    os.waitid(os.P_PID, decoder, os.WEXITED | os.WNOWAIT)


def _confine(limits: Limits, order: Order, seccomp: SyscallFilter | None) -> None:
    """Give up for ever all rights that decoding does not need."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # the kernel kills this process first if memory runs out
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    samples, seconds = 4 * most_samples(limits, order), int(limits.max_decode_seconds) + 1
    most = {
        resource.RLIMIT_AS: size + WORKING_MIB * MIB + 3 * (int(limits.max_upload_mib * MIB) + samples),
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: HEADER_BYTES + samples,
        resource.RLIMIT_NOFILE: 0,  # besides the files that are open already
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in most.items():
        _, ceiling = resource.getrlimit(kind)
        soft = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        # At the hard limit of CPU time the kernel sends SIGKILL, at the soft one SIGXCPU, which tells the reason.
        resource.setrlimit(kind, (soft, soft + 1 if kind == resource.RLIMIT_CPU and soft == value else soft))
    if seccomp is not None:
        seccomp.load()


def _system_call_filter() -> SyscallFilter | None:
    """A filter that allows SYSTEM_CALLS only; None if libseccomp is missing or the kernel does not support it."""
    try:
        import pyseccomp

        seccomp = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
        for name in SYSTEM_CALLS:
            seccomp.add_rule(pyseccomp.ALLOW, name)
    except (OSError, RuntimeError):
        return None
    pid = _fork()
    if pid == 0:
        with suppress(OSError):
            seccomp.load()
            os._exit(0)
        os._exit(1)
    return seccomp if os.waitpid(pid, 0)[1] == 0 else None


def _decode(upload: int, result: int, limits: Limits, order: Order) -> None:
    """Decode a file in memory and write the outcome to another: a line of JSON, then the samples, if any."""
    header: dict[str, Any]
    channels: tuple[Channel, ...] = ()
    try:
        data = os.pread(upload, os.fstat(upload).st_size, 0)
        if order.split:
            channels = decode_channels(data, limits, order.track)
        else:
            channels = (Channel(channel_name(0), decode(data, limits, order.track)),)
        header = {"channels": [_describe(channel) for channel in channels]}
    except InputError as error:
        header = {"refused": type(error).__name__, "detail": error.detail}
    except MemoryError:
        header = {"refused": "UnreadableAudio", "detail": _TOO_MUCH_MEMORY}
    except Exception:
        header = {"failed": traceback.format_exc()}
    with open(result, "wb", closefd=False) as file:
        file.write(json.dumps(header).encode() + b"\n")
        for channel in channels:
            if channel.recording:
                file.write(channel.recording.waveform.samples.data)


def _describe(channel: Channel) -> dict[str, Any]:
    described: dict[str, Any] = {"note": channel.note}
    if recording := channel.recording:
        described["samples"] = len(recording.waveform.samples)
        described["format"] = recording.original_format
        described["warnings"] = recording.warnings
        described["opus_kbits"] = recording.opus_kbits
    return described


def _silence() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(SAMPLE_RATE)
        wav.writeframes(bytes(SAMPLE_RATE))
    return file.getvalue()


def most_samples(limits: Limits, order: Order) -> int:
    """The most samples that a decoder may answer with.

    These are the samples of the longest recording, or of all its channels, and one second a channel for its codec.
    """
    channels = limits.max_channels if order.split else 1
    durations = min(limits.max_split_durations, channels)
    return int((durations * limits.max_duration_seconds + channels) * SAMPLE_RATE)


if __name__ == "__main__":
    # pydantic has checked them in the service. It is not imported here, because it loads slower than all the rest.
    serve(cast("Limits", SimpleNamespace(**json.loads(sys.argv[1]))))
