"""A Ray cluster to work on: the one at an address, or one of this process's own."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ray
from ray._private import ray_constants


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
    actor: type, arguments: Sequence[Any], rows: Sequence[dict[str, Any]], *, actors: int, num_gpus: float = 0
) -> Iterator[dict[str, Any]]:
    """Run `rows` through a pool of `actors`, and yield what they return, row by row, as it comes.

    `actor(*arguments)` is called with a few rows at a time as columns, and returns columns of as many rows.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Blocks small enough for every actor to have work until the end, and for progress to be seen.
    blocks = min(len(rows), max(8 * actors, len(rows) // 8))
    dataset = ray.data.from_items(list(rows), override_num_blocks=blocks)
    yield from dataset.map_batches(
        actor,
        fn_constructor_args=tuple(arguments),
        batch_size=None,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=num_gpus or None,
    ).iter_rows()


def map_with_tasks(function: Callable[..., Any], shared: Sequence[Any], items: Iterable[Any]) -> list[Any]:
    """`function(*shared, item)` of each item, in their order, as many at once as the cluster has CPUs; `shared` is sent
    only once. Raises what `function` raises."""
    task = ray.remote(num_cpus=1)(function)
    references = [ray.put(part) for part in shared]
    try:
        found: list[Any] = ray.get([task.remote(*references, item) for item in items])
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    return found


def default_actors() -> int:
    """One actor a CPU of the cluster."""
    resources: dict[str, float] = ray.cluster_resources()
    return max(1, int(resources.get("CPU", 1)))
