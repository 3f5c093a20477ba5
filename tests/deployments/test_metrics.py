"""A real Prometheus, with the configuration of ops/, scrapes the served graph: every panel and rule finds its data."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from websockets.sync.client import connect

from pipeline.config import ROOT
from tests.audio import by_espeak, encode
from tests.graph import Cluster, free_port, running, wait_until

OPS = ROOT / "ops"
DASHBOARD = json.loads((OPS / "grafana" / "sound_sentry.json").read_text(encoding="utf-8"))
DISCOVERY = "prom_metrics_service_discovery.json"
VARIABLES = {"$SessionName": ".*", "$Application": ".*", "$__rate_interval": "2m"}
SCRAPE_SECONDS = 240
"""How long to wait for metrics. Ray's agents publish those of the replicas every 10 s; slow machines need longer."""

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs prometheus: on Debian, apt-get install it"),
]

Query = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def query(cluster: Cluster, service: httpx.Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Query]:
    """A function that sends an expression to a Prometheus and returns its samples. The Prometheus scrapes the graph's
    cluster."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((OPS / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    config["scrape_configs"][0]["file_sd_configs"][0]["files"] = [str(cluster.folder / DISCOVERY)]
    config["rule_files"] = [str(OPS / "prometheus" / "rules.yml")]
    config["global"] = {"scrape_interval": "5s", "evaluation_interval": "5s"}  # a busy machine takes 2 s to answer
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    url = f"http://127.0.0.1:{free_port()}"
    command: list[str | Path] = ["prometheus", f"--config.file={folder / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={url.removeprefix('http://')}"]
    with running(command, cluster.environment, folder / "log", signal.SIGTERM):

        def ask(expression: str) -> list[dict[str, Any]]:
            response = httpx.get(f"{url}/api/v1/query", params={"query": expression}, timeout=30)
            assert response.status_code == 200, response.text
            result: list[dict[str, Any]] = response.json()["data"]["result"]
            return [sample for sample in result if sample["value"][1] != "NaN"]

        def ready() -> bool:
            try:
                return httpx.get(f"{url}/-/ready", timeout=30).is_success and bool(ask("up == 1"))
            except httpx.TransportError:
                return False

        wait_until(ready, SCRAPE_SECONDS)
        yield ask


@pytest.fixture(scope="module")
def traffic(service: httpx.Client, ten_seconds: NDArray[np.float32]) -> Callable[[], None]:
    """Sends four requests: a recording of a wide band, a short one with diarization, silence, and a file that is
    refused."""
    wide = encode(by_espeak())

    def send() -> None:
        short = encode(ten_seconds[:16_000])
        silence = encode(np.zeros(32_000, np.float32))
        for data, form, status in (
            (wide, {}, 200),
            (short, {"use_diarization": "true"}, 200),
            (silence, {}, 200),
            (b"not a recording", {}, 415),
        ):
            assert service.post("/predict", files={"audio": data}, data=form).status_code == status

    return send


@pytest.mark.slow
def test_answers_are_counted_once_each(service: httpx.Client, query: Query, traffic: Callable[[], None]) -> None:
    def counts() -> dict[str, float]:
        samples = query("sum by (result) (ray_sound_sentry_verdicts_total)")
        samples += query('sum by (reason) (ray_sound_sentry_refusals_total{reason="unsupported-format", status="415"})')
        return {next(iter(sample["metric"].values())): float(sample["value"][1]) for sample in samples}

    traffic()  # so that each counter exists
    wait_until(lambda: {"No Speech", "Inconclusive", "unsupported-format"} <= counts().keys(), SCRAPE_SECONDS)
    before = settled(counts)
    traffic()
    with connect(str(service.base_url).replace("http", "ws", 1).rstrip("/") + "/stream") as stream:
        stream.send('{"format": "pcm_s16le", "sample_rate": 16000}')
        stream.send(bytes(32_000))
        stream.send('{"end": true}')
        assert '"final":true' in [*stream][-1]
    wait_until(lambda: sum(counts().values()) >= sum(before.values()) + 5, SCRAPE_SECONDS)
    after = settled(counts)
    assert sum(after.values()) == sum(before.values()) + 5
    assert after["unsupported-format"] == before["unsupported-format"] + 1
    assert after["No Speech"] == before["No Speech"] + 2, "one of them is the stream's"


def test_every_panel_of_the_dashboard_has_data(query: Query, traffic: Callable[[], None]) -> None:
    expressions = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", [])
    }
    assert len(expressions) >= 16
    for variable, value in VARIABLES.items():
        expressions = {name: text.replace(variable, value) for name, text in expressions.items()}
    assert not [text for text in expressions.values() if "$" in text], "an unknown variable"
    traffic()
    without: list[str] = []

    def all_have_data() -> bool:
        traffic()  # a rate needs a counter that grows
        without[:] = [name for name, expression in expressions.items() if not query(expression)]
        return not without

    try:
        wait_until(all_have_data, SCRAPE_SECONDS, every=2.0)
    except TimeoutError:
        pytest.fail(f"panels without data: {without}")


def test_rules_and_dashboard_speak_of_metrics_that_exist(query: Query, traffic: Callable[[], None]) -> None:
    rules = yaml.safe_load((OPS / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
    text = " ".join(rule["expr"] for group in rules["groups"] for rule in group["rules"])
    text += " ".join(target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", []))
    names = set(re.findall(r"ray_\w+", text))
    assert len(names) >= 15
    traffic()
    wait_until(lambda: not [name for name in names if not query(f"{{__name__='{name}'}}")], SCRAPE_SECONDS)


def test_no_alert_is_raised_by_a_graph_that_works(query: Query, traffic: Callable[[], None]) -> None:
    """An alert is only raised if its condition holds for long. Here it must not hold at all."""
    rules = yaml.safe_load((OPS / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
    alerts = {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    assert len(alerts) >= 7
    traffic()
    wait_until(lambda: not query(alerts["SoundSentryNotScraped"]), SCRAPE_SECONDS)
    assert {name: found for name, expression in alerts.items() if (found := query(expression))} == {}
    assert query("ALERTS{alertstate='firing'}") == []


def settled(counts: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The counts, when they have not changed for 12 s. Ray's agents may delay some of them by almost this long."""
    last: dict[str, float] = {}
    since = 0

    def same() -> bool:
        nonlocal last, since
        now = counts()
        last, since = now, since + 1 if now == last else 0
        return since > 60  # 60 checks, one each 0.2 s

    wait_until(same, SCRAPE_SECONDS)
    return last
