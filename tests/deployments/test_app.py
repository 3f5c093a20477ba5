"""The application that the builder makes of its arguments. A cluster of several nodes is a stand-in."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import ray
from ray.serve import Application
from ray.serve.exceptions import RayServeException

from deployments import app
from deployments.args import BuildArgs, JobSettings
from deployments.jobs.idle import Idle
from tests.graph import serve_config


def deployments(application: Application) -> dict[str, Any]:
    """All deployments of `application` by name, with the class that each runs."""
    found = {application._bound_deployment.name: application._bound_deployment}
    waiting = [application._bound_deployment]
    while waiting:
        bound: Any = waiting.pop()
        for value in [*bound.init_args, *bound.init_kwargs.values()]:
            for one in value.values() if isinstance(value, dict) else [value]:
                if isinstance(one, Application) and one._bound_deployment.name not in found:
                    found[one._bound_deployment.name] = one._bound_deployment
                    waiting.append(one._bound_deployment)
    return found


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The nodes of the cluster, one at first."""
    found = [{"Alive": True}, {"Alive": False}]
    monkeypatch.setattr(ray, "nodes", lambda: found)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    return found


def listed() -> set[str]:
    """The deployments that serve_config.yaml lists."""
    return {deployment["name"] for deployment in serve_config()["applications"][0]["deployments"]}


def test_one_node_has_jobs(nodes: list[dict[str, Any]]) -> None:
    found = deployments(app.build(BuildArgs()))
    assert set(found) == listed()
    assert found["Ingress"].init_kwargs["jobs"] == JobSettings()
    assert not any(one.func_or_class is Idle.func_or_class for one in found.values())  # type: ignore[attr-defined]


@pytest.mark.parametrize("embedded", [False, True])
def test_several_nodes_that_cannot_share_jobs_have_none(
    nodes: list[dict[str, Any]], embedded: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.append({"Alive": True})
    monkeypatch.setattr(app.logger, "propagate", True)
    with caplog.at_level(logging.WARNING):
        found = deployments(app.build(BuildArgs(embedded=embedded)))
    assert "There are no jobs. The cluster has 2 nodes, which cannot share SQLite." in caplog.text
    assert set(found) == ({"Ingress", "JobRunner"} if embedded else listed())
    assert found["Ingress"].init_kwargs["jobs"] is None
    assert found["JobRunner"].func_or_class is Idle.func_or_class  # type: ignore[attr-defined]


def test_several_nodes_with_postgresql_have_jobs(nodes: list[dict[str, Any]]) -> None:
    nodes.append({"Alive": True})
    jobs = JobSettings(database="postgresql://user@host/jobs")
    found = deployments(app.build(BuildArgs(jobs=jobs)))
    assert found["Ingress"].init_kwargs["jobs"] == jobs


def test_a_sqlite_database_that_is_named_for_several_nodes_is_refused(nodes: list[dict[str, Any]]) -> None:
    nodes.append({"Alive": True})
    with pytest.raises(RayServeException, match=r"jobs\.database: The cluster has 2 nodes, which cannot share SQLite"):
        app.build(BuildArgs(jobs=JobSettings(database="sqlite:////tmp/jobs.sqlite3")))
