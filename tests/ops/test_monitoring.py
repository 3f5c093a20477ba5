"""Rules, configuration and dashboard without a service. tests/deployments/test_metrics.py uses them on the running
graph."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from pipeline.config import ROOT

PROMETHEUS = ROOT / "ops" / "prometheus"
DASHBOARD = json.loads((ROOT / "ops" / "grafana" / "sound_sentry.json").read_text(encoding="utf-8"))

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="needs promtool: on Debian, apt-get install prometheus"
)


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_promtool_accepts_rules_and_configuration() -> None:
    assert "SUCCESS" in promtool("check", "rules", "rules.yml")
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")


@needs_promtool
def test_every_alert_is_raised_when_it_should_be_and_not_before() -> None:
    promtool("test", "rules", "rules_test.yml")
    alerts = set(re.findall(r"alert: (\w+)", (PROMETHEUS / "rules.yml").read_text(encoding="utf-8")))
    cases = (PROMETHEUS / "rules_test.yml").read_text(encoding="utf-8")
    raised = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts", cases))
    assert raised == alerts


def test_the_page_of_operation_lists_the_metrics_of_the_graph() -> None:
    code = (ROOT / "deployments" / "metrics.py").read_text(encoding="utf-8")
    page = (ROOT / "ops" / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(sound_sentry_\w+)`", page))
    assert {name.removesuffix("_total") for name in listed} == set(re.findall(r'"(sound_sentry_\w+)"', code))


def test_panels_that_rules_speak_of_exist() -> None:
    titles = {panel["title"] for panel in DASHBOARD["panels"]}
    named = set(re.findall(r'panel "([^"]+)"', (PROMETHEUS / "rules.yml").read_text(encoding="utf-8")))
    assert named and named <= titles


def test_the_dashboard_takes_the_variables_that_rays_dashboard_sends() -> None:
    """Ray's dashboard shows a panel of Grafana by its id, with these variables in the address."""
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert {"datasource", "SessionName"} <= variables
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in DASHBOARD["panels"]:
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"
