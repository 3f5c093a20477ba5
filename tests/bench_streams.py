"""Checks that live streams keep up with the sound that they judge.

    python -m tests.bench_streams [--streams N] [--seconds S]

Several streams at once send pyannote's sample in real time, again and again. A stream keeps up if it skips no update,
and if the delay between sound and update is not longer at the end than at the start.
"""

from __future__ import annotations

import argparse
import io
import json
import threading
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.table import Table
from websockets.sync.client import connect

from tests.bench import pyannote_sample
from tests.graph import ray_cluster, serve_config, served_graph

CHUNK_SECONDS = 0.1
PATIENCE_SECONDS = 300


@dataclass
class Log:
    """The updates of one stream. `ends`: the end of the judged sound of each update, in seconds. `lags`: how long after
    that moment the update came."""

    ends: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    overall: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench_streams", description="Measure live streams.")
    parser.add_argument("--streams", type=int, default=2, help="how many at once")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each is")
    options = parser.parse_args()
    console = Console()
    console.print("Starting the graph ...")
    with ray_cluster() as cluster, served_graph(cluster, serve_config()) as url:
        stream(url, 1, 10.0)  # warms up: the first seconds after a start are slower
        logs = stream(url, options.streams, options.seconds)
    table = Table("STREAM", "UPDATES", "OF", "LAG MEDIAN", "95 %", "LAST", box=None, pad_edge=False)
    for i, log in enumerate(logs, start=1):
        lags = (f"{lag:.2f} s" for lag in (*np.quantile(log.lags, [0.5, 0.95]), log.lags[-1]))
        table.add_row(str(i), str(len(log.ends)), str(int(options.seconds / 0.5)), *lags)
    console.print(table)


def stream(url: str, count: int, seconds: float) -> list[Log]:
    """Send `seconds` of speech on each of `count` streams in real time."""
    with wave.open(io.BytesIO(pyannote_sample())) as file:
        rate, sound = file.getframerate(), file.readframes(file.getnframes())
    size = 2 * int(rate * seconds)
    sound = (sound * (size // len(sound) + 1))[:size]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: _send(url, sound, rate), range(count)))


def _send(url: str, sound: bytes, rate: int) -> Log:
    log, step = Log(), 2 * int(rate * CHUNK_SECONDS)
    with connect(url.replace("http", "ws", 1) + "/stream", max_size=None) as connection:
        connection.send(json.dumps({"format": "pcm_s16le", "sample_rate": rate}))
        began = time.monotonic()

        def listen() -> None:
            while not (message := json.loads(connection.recv(PATIENCE_SECONDS)))["final"]:
                log.ends.append(message["end"])
                log.lags.append(time.monotonic() - began - message["end"])
            log.overall = message["overall"]

        listener = threading.Thread(target=listen)
        listener.start()
        for offset in range(0, len(sound), step):
            sent = (offset + step) / (2 * rate)
            time.sleep(max(0.0, began + sent - time.monotonic()))  # a chunk can be sent only when it has been spoken
            connection.send(sound[offset : offset + step])
        connection.send('{"end": true}')
        listener.join()
    return log


if __name__ == "__main__":
    main()
