"""How fast the parts and the whole are, in one run on one machine.

    python -m tests.bench [--rounds N]

On 10 s of pyannote's sample: the forward passes of the networks alone, feature extraction by the recipe that hears the
whole network and by the default bundle's, the Detector in this process, and the served graph with one client. They take
turns, so that whatever else the machine does falls on all of them alike. At its turn each runs twice, and the second
run counts: before the first one the processor has just heard the same speech by other parts of the Detector, but the
graph's processes have slept.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import statistics
import time
import wave
from collections.abc import Callable
from pathlib import Path

import httpx
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pipeline.audio.decode import decode
from pipeline.detector import Detector
from pipeline.networks.tkan import load_spec
from pipeline.stages.extract import TkanExtractor
from pipeline.types import Recording, go_on
from tests.graph import ray_cluster, serve_config, served_graph

START, SECONDS = 7, 10
WARM_UP_ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure the parts and the whole.")
    parser.add_argument("--rounds", type=int, default=50, help="how often each is timed")
    rounds = parser.parse_args().rounds

    console = Console()
    detector = Detector.from_config()
    data = sample()
    recording = decode(data, detector.config.limits)
    speech = detector.voice_activity.detect(recording)
    whole_network = TkanExtractor(detector.config, load_spec("neuron-statistics"))
    console.print("Starting the graph ...")
    with (
        ray_cluster() as cluster,
        served_graph(cluster, serve_config()) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):

        def served() -> dict[str, object]:
            answer: dict[str, object] = client.post("/predict", files={"audio": data}).raise_for_status().json()
            return answer

        expected = detector.predict(data).model_dump(mode="json")
        assert expected.items() <= served().items(), "the graph must answer what the Detector does"
        parts: dict[str, Callable[[], object]] = {
            f"{detector.extractor.backbone.name} forward": lambda: forward_backbone(detector, recording),
            "VAD forward": lambda: forward_voice_activity(detector, recording),
            "features neuron-statistics": lambda: whole_network.extract(recording, speech, None),
            f"features {detector.extractor.spec.name}": lambda: detector.extractor.extract(recording, speech, None),
            "Detector": lambda: detector.predict(data),
            "served graph, one client": served,
        }
        times = measure(parts, rounds)
    console.print(report(times, detector.config.threads))


def pyannote_sample() -> bytes:
    """The recording that pyannote.audio brings, 30 s as a WAV file."""
    package = importlib.util.find_spec("pyannote.audio")
    assert package is not None and package.origin is not None
    return (Path(package.origin).parent / "sample" / "sample.wav").read_bytes()


def sample() -> bytes:
    """Seconds of pyannote's recording as a WAV file, from where its two people begin to talk without a pause."""
    cut = io.BytesIO()
    with wave.open(io.BytesIO(pyannote_sample())) as whole, wave.open(cut, "wb") as part:
        part.setparams(whole.getparams())
        whole.setpos(START * whole.getframerate())
        part.writeframes(whole.readframes(SECONDS * whole.getframerate()))
    return cut.getvalue()


@torch.inference_mode()
def forward_backbone(detector: Detector, recording: Recording) -> None:
    """The whole network on the whole recording, filter bank included, with nothing captured."""
    backbone = detector.extractor.backbone
    backbone.network(backbone.front_end(torch.from_numpy(recording.waveform.samples)))


@torch.inference_mode()
def forward_voice_activity(detector: Detector, recording: Recording) -> None:
    detector.voice_activity.frames(torch.from_numpy(recording.waveform.samples), go_on)


def measure(parts: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds that each part took in each round."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for turn in track(range(WARM_UP_ROUNDS + rounds), description="Measuring", transient=True):
        for name, part in parts.items():
            part()
            start = time.perf_counter()
            part()
            if turn >= WARM_UP_ROUNDS:
                times[name].append((time.perf_counter() - start) * 1_000)
    return times


def report(times: dict[str, list[float]], threads: int) -> Table:
    rounds = len(times["Detector"])
    table = Table(title=f"{SECONDS} s of speech, {rounds} rounds, {threads} thread(s) a process", title_justify="left")
    for heading in ("", "median ms", "quartiles ms", "x Detector"):
        table.add_column(heading, justify="left" if not heading else "right")
    whole = statistics.median(times["Detector"])
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        table.add_row(name, f"{median:.0f}", f"{low:.0f} - {high:.0f}", f"{median / whole:.2f}")
    return table


if __name__ == "__main__":
    main()
