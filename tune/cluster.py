"""A Ray cluster to work on: the one at an address, or one of this process's own."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import ray
from ray._private import ray_constants

ROWS_AT_ONCE = 2
"""Rows that are sent to a process at once, so that it has the next one when it is done."""

RESTARTS = 3


def connect(address: str | None) -> None:
    """Connect this process, until it ends, to the cluster at `address` (`auto` finds one on this machine) or at
    RAY_ADDRESS, which Ray sets for its jobs; without either to a private cluster, with its own temporary folder, that
    listens on the loopback address alone. Where it is connected already, nothing changes.
    """
    if ray.is_initialized():
        return
    # Ray's core writes what it notes of its own affairs to the terminal, as errors, unless told otherwise.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    if address is None and not os.environ.get("RAY_ADDRESS"):
        # Only where Ray holds that this machine forms no clusters does it take 127.0.0.1 for its address, and listen on
        # no other. It has read the variable by now, at its import; the processes it starts are yet to read it.
        ray_constants.ENABLE_RAY_CLUSTER = False
        os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"
        folder = tempfile.mkdtemp(prefix="sound-sentry-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        options |= {"_temp_dir": folder, "include_dashboard": False}
    # At exit the last registered is first: Ray stops before its folder goes.
    atexit.register(ray.shutdown)
    ray.init(**options)


def map_with_actors(
    actor: type, arguments: Sequence[Any], rows: Iterable[Any], *, actors: int, num_gpus: float = 0
) -> Iterator[Any]:
    """Make a pool of `actors`, each as `actor(*arguments)`, and send it the rows one by one; yields what its method
    `answer` returns, in the order in which it comes.

    A row is read when an actor has room for it, and travels to the actor: no node needs the disk of another. If a node
    is lost, its actors start again elsewhere and get their rows again. Raises what `answer` raises.
    """
    remote: Any = ray.remote(num_cpus=1, num_gpus=num_gpus, max_restarts=RESTARTS, max_task_retries=RESTARTS)(actor)
    held = [ray.put(argument) for argument in arguments]  # as long as an actor may start again
    pool = [remote.remote(*held) for _ in range(actors)]
    waiting = iter(rows)
    # An actor gets its first rows when it is up: until the cluster has room for it, others can work on them.
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
                starting.clear()  # there is nothing left for those that are not up yet
            if not is_up:
                yield answer
    finally:
        for made in pool:
            ray.kill(made)


def map_with_tasks(function: Callable[..., Any], shared: Sequence[Any], items: Iterable[Any]) -> list[Any]:
    """`function(*shared, item)` of each item, in their order, as many at once as the cluster has CPUs; `shared` is sent
    only once, and an item is read when its turn comes. Raises what `function` raises."""
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
    """One actor a CPU of the cluster."""
    resources: dict[str, float] = ray.cluster_resources()
    return max(1, int(resources.get("CPU", 1)))
