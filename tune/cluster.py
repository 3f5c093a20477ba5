"""Connects to a Ray cluster, or starts a private one, and distributes work on it."""

from __future__ import annotations

import atexit
import logging
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import ray
from ray._private import ray_constants

from pipeline.errors import ConfigurationError

ROWS_AT_ONCE = 2
"""The number of rows that a process holds at a time. The next row is then there when it has finished one."""

RESTARTS = 3
CONNECT_SECONDS = 10.0
MAX_PORT = 65_535


def connect(address: str | None) -> None:
    """Connect this process to a Ray cluster until the process ends.

    `address` is the address of the cluster; `auto` finds a cluster on this machine. If `address` is None, the variable
    RAY_ADDRESS gives it; Ray sets this variable for its jobs. If neither is given, a private cluster is started. It has
    a temporary folder and listens only on the loopback address. If this process is already connected, nothing is done.
    Raises ConfigurationError if this is no address, or if there is no cluster at it.
    """
    if ray.is_initialized():
        return
    place = address or os.environ.get("RAY_ADDRESS", "")
    found = re.fullmatch(r"auto|local|(?:ray://)?[^/\s]+:(\d+)", place)
    if place and not (found and int(found[1] or 0) <= MAX_PORT):
        raise ConfigurationError(f"{place!r} is no address of a Ray cluster: write HOST:PORT, or auto.")
    # Without this, Ray's core prints messages about itself to the terminal, as errors.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    if address is None and not os.environ.get("RAY_ADDRESS"):
        # This switches off clusters of several machines. Ray then uses only the address 127.0.0.1. Ray has already read
        # the variable, when it was imported, so its constant is changed here. The processes that Ray starts read the
        # variable later.
        ray_constants.ENABLE_RAY_CLUSTER = False
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
        folder = tempfile.mkdtemp(prefix="sound-sentry-", dir=_short_folder())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        options |= {"_temp_dir": folder, "include_dashboard": False}
    # At exit Python calls the function registered last first. So Ray stops before its folder is deleted.
    atexit.register(ray.shutdown)
    try:
        # Ray itself would try to connect for minutes.
        if found := re.fullmatch(r"([^:/]+):(\d+)", place):
            socket.create_connection((found[1], int(found[2])), CONNECT_SECONDS).close()
        ray.init(**options)
    except OSError as error:
        if not place:
            raise
        raise ConfigurationError(f"There is no Ray cluster at {place}: start one, or name another.") from error


def _short_folder() -> str | None:
    """Where to make the folder of a private cluster; None means the usual place. Ray puts sockets into the folder. The
    path of a socket may have 107 bytes, of which Ray needs up to 64."""
    return None if len(os.fsencode(tempfile.gettempdir())) <= 20 else "/tmp"


def map_with_actors(
    actor: type, arguments: Sequence[Any], rows: Iterable[Any], *, actors: int, num_gpus: float = 0
) -> Iterator[Any]:
    """Start `actors` actors, each as `actor(*arguments)`, and send the rows to them one by one.

    Yields what their method `answer` returns, in the order in which the answers are ready.

    A row is read only when an actor has room for it. It is sent to the actor, so no node needs the disk of another. If
    a node is lost, its actors start again on other nodes and get their rows again. Raises what `answer` raises, and
    ConfigurationError if the cluster has no GPU for an actor.
    """
    # Ray would wait for a GPU without an end.
    if num_gpus > (there := ray.cluster_resources().get("GPU", 0)):
        raise ConfigurationError(
            f"--gpu {num_gpus:g}: the Ray cluster has {there:g} GPUs, so no process could start. Leave out --gpu, or "
            "name a cluster with GPUs by --address."
        )
    remote: Any = ray.remote(num_cpus=1, num_gpus=num_gpus, max_restarts=RESTARTS, max_task_retries=RESTARTS)(actor)
    held = [ray.put(argument) for argument in arguments]  # kept, because an actor that starts again needs them
    pool = [remote.remote(*held) for _ in range(actors)]
    waiting = iter(rows)
    # An actor gets its first rows only when it has started. Until then the other actors can work on them.
    starting = {made.__ray_ready__.remote(): made for made in pool}
    working: dict[Any, Any] = {}
    try:
        while starting or working:
            (done,), _ = ray.wait([*starting, *working], num_returns=1)
            answer = _get(done)
            is_up = done in starting
            made = (starting if is_up else working).pop(done)
            room = ROWS_AT_ONCE if is_up else 1
            sent = [made.answer.remote(row) for row in islice(waiting, room)]
            working |= dict.fromkeys(sent, made)
            if len(sent) < room:
                starting.clear()  # no rows are left for the actors that have not started yet
            if not is_up:
                yield answer
    finally:
        for made in pool:
            ray.kill(made)


def map_with_tasks(function: Callable[..., Any], shared: Sequence[Any], items: Iterable[Any]) -> list[Any]:
    """The results of `function(*shared, item)` for each item, in the order of the items.

    The cluster runs as many calls at the same time as it has CPUs. `shared` is sent only once. An item is read shortly
    before its call. Raises what `function` raises.
    """
    task = ray.remote(num_cpus=1)(function)
    references = [ray.put(part) for part in shared]
    most = ROWS_AT_ONCE * default_actors()
    made: list[Any] = []
    for item in items:
        if len(made) >= most:
            ray.wait(made, num_returns=len(made) - most + 1)
        made.append(task.remote(*references, item))
    return [_get(one) for one in made]


def _get(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def default_actors() -> int:
    """The number of CPUs of the cluster, at least 1: one actor for each."""
    resources: dict[str, float] = ray.cluster_resources()
    return max(1, int(resources.get("CPU", 1)))
