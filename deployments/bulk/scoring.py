"""Scores files with Detectors, as many at once as a Ray cluster has room for."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import ray.data
from ray.util.annotations import RayDeprecationWarning

from deployments.bulk.inputs import File, Opener
from pipeline.config import DetectorConfig
from pipeline.detector import Detector, say_nothing
from pipeline.errors import ConfigurationError, MissingInput, StageFailed
from pipeline.predict import Settings, predict, take
from pipeline.writers import as_json

BLOCK_FILES, BLOCK_BYTES = 16, 2**22
"""The number of files that a process gets at a time. It is small, so that progress is visible and all processes are
busy until the end."""
READERS = 4
"""The number of files that a process reads in advance."""
RETRIES = 1
"""How often files are tried again if their process died."""


class Scorer:
    """An actor: names and places of files in, one answer for each out. A bad file gets an error as its answer."""

    def __init__(self, config: DetectorConfig, root: str, settings: Settings) -> None:
        self._detector = Detector(config)
        self._opener = Opener(root)
        self._settings = settings

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """Columns `name` and `place` -> column `answer`, what `as_json` says as JSON."""
        with ThreadPoolExecutor(READERS) as readers:
            # The next files are read while one is scored.
            contents = [readers.submit(self._read, place) for place in batch["place"]]
            answers = [predict(self._detector, content.result, self._settings, say_nothing) for content in contents]
        rows = zip(batch["name"], answers, strict=True)
        return {"answer": [json.dumps(as_json(name, answer), allow_nan=False) for name, answer in rows]}

    def _read(self, place: str) -> bytes:
        try:
            with self._opener.open(place) as file:
                return take(file, self._detector.config.limits)
        except OSError as error:
            reason = error.strerror or "the storage refuses it"
            raise MissingInput(f"The file cannot be read: {reason}. Name audio files.") from error


def score(
    files: Sequence[File], actor: type, arguments: Sequence[Any], *, actors: int, num_gpus: float
) -> Iterator[dict[str, Any]]:
    """An answer for each of `files`, in the order in which they are ready, by up to `actors` processes.

    A process runs `actor(*arguments)`. If it dies, its files are tried again, in the end one by one. A file that always
    kills its process gets an error as its answer.
    """
    left = {file.name: file for file in files}
    for one_by_one in (False, True):
        blocks = [[file] for file in left.values()] if one_by_one else cut(files)
        # A block that waits in a process dies with the block before it. So in the last pass no block may wait.
        at_once = 1 if one_by_one else None
        for answer in _pass(blocks, at_once, actor, arguments, actors=actors, num_gpus=num_gpus) if blocks else ():
            if left.pop(answer["filename"], None):
                yield answer
    for name in left:
        yield as_json(name, StageFailed("The file killed the process that scored it. There is no verdict on it."))


def _pass(
    blocks: Sequence[Sequence[File]],
    at_once: int | None,
    actor: type,
    arguments: Sequence[Any],
    *,
    actors: int,
    num_gpus: float,
) -> Iterator[dict[str, Any]]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # the next pass tries a block again if its process died
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    tables = [pa.table({"name": [f.name for f in block], "place": [f.place for f in block]}) for block in blocks]
    with warnings.catch_warnings():
        # Ray 2.60 deprecates this way to set the number of retries, but has no other way yet.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        answered = ray.data.from_arrow(tables).map_batches(
            actor,
            fn_constructor_args=tuple(arguments),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(
                min_size=1,
                max_size=actors,
                initial_size=min(actors, len(blocks)),
                max_tasks_in_flight_per_actor=at_once,
            ),
            num_cpus=1,
            num_gpus=num_gpus or None,
            max_task_retries=RETRIES,
        )
    for row in answered.iter_rows():
        yield json.loads(row["answer"])


def cut(files: Sequence[File]) -> list[list[File]]:
    """The files in blocks of at most BLOCK_FILES files. A block with several files has at most BLOCK_BYTES."""
    blocks: list[list[File]] = []
    room = 0
    for file in files:
        if not blocks or len(blocks[-1]) == BLOCK_FILES or file.size > room:
            blocks.append([])
            room = BLOCK_BYTES
        blocks[-1].append(file)
        room -= file.size
    return blocks


def places(num_gpus: float) -> int:
    """How many processes the cluster has room for now: one per CPU, or as many as fit on its GPUs."""
    resources: dict[str, float] = ray.cluster_resources()
    if num_gpus:
        return max(1, int(resources.get("GPU", 0) / num_gpus))
    return max(1, int(resources.get("CPU", 1)))


def gpu_share(asked: float | None) -> float:
    """The share of a GPU per process: `asked`, or by default a quarter if the cluster has GPUs, else none.

    Raises ConfigurationError if the cluster has no GPU for it.
    """
    gpus = ray.cluster_resources().get("GPU", 0)
    if asked is None:
        return 0.25 if gpus else 0.0
    if asked > gpus:  # Ray would wait for a GPU without an end
        raise ConfigurationError(
            f"--gpu {asked:g}: the Ray cluster has {gpus:g} GPUs, so no process could start. Leave out --gpu, or name "
            "a cluster with GPUs by --address."
        )
    return asked
