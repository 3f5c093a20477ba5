from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.check import check_serve_config, main
from pipeline.config import ROOT
from pipeline.errors import ConfigurationError
from tests.graph import SERVE_CONFIG


def paths(value: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every key in the content of a YAML file."""
    if isinstance(value, dict):
        return [(*where, key) for key in value] + [p for key in value for p in paths(value[key], (*where, key))]
    if isinstance(value, list):
        return [p for index, item in enumerate(value) for p in paths(item, (*where, index))]
    return []


def misspell(document: Any, path: tuple[Any, ...]) -> str:
    """Misspell the last key of `path` in the document; returns the misspelt key."""
    for step in path[:-1]:
        document = document[step]
    document[f"{path[-1]}z"] = document.pop(path[-1])
    return f"{path[-1]}z"


CONFIG = SERVE_CONFIG.read_text(encoding="utf-8")
FREE = {"env_vars"}
"""Sections that may have any keys."""


def test_the_file_as_it_is() -> None:
    check_serve_config(SERVE_CONFIG)


def test_the_command_checks_the_file_that_is_served(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr() == ("serve_config.yaml has no errors.\n", "")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no readable Serve config file"),
        (b"\xff\xfe\x00", "no readable Serve config file"),
        (b"", "it has no keys"),
        (b"- 1", "it has no keys"),
        (b"a: [", "not valid YAML"),
        (b"applications: 1", "applications"),
        (b"applications: [{import_path: 'deployments.app:build', args: {configg: x}}]", "args.configg"),
        (b"applications: [{import_path: 'deployments.app:build', runtime_env: }]", "runtime_env"),
        (b"applications: [{import_path: 'deployments.app:build', runtime_env: 1}]", "runtime_env"),
        (
            b"applications: [{import_path: 'deployments.app:build', "
            b"deployments: [{name: Ingress, ray_actor_options: {runtime_env: }}]}]",
            "runtime_env",
        ),
        (b"applications: [{import_path: 'deployments.app:build', args: {config: no.yaml}}]", "no.yaml"),
    ],
)
def test_a_file_that_does_not_hold_is_a_sentence(
    content: bytes | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content)
    assert main([str(path)]) == 1
    out, err = capsys.readouterr()
    assert says in err and not out


@pytest.mark.parametrize("port", [0, -1, 99999])
def test_a_number_that_is_no_port_is_a_sentence(port: int, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"http_options: {{port: {port}}}\napplications: [{{import_path: 'greeting:application'}}]")
    with pytest.raises(ConfigurationError, match=r"^c\.yaml: http_options\.port: give a number from 1 to 65535$"):
        check_serve_config(path)


ROUTER = "{{name: Ingress, request_router_config: {{request_router_class: {}}}}}"


@pytest.mark.parametrize(
    ("deployments", "says"),
    [
        (ROUTER.format("deployments.http.frunt.FrontRouter"), "cannot be imported: No module named"),
        (ROUTER.format("deployments.http.front.FrontRuter"), "cannot be imported: .* has no attribute 'FrontRuter'"),
        ("[{name: Ingress}]", "applications.0.deployments.0: it has no keys"),
        ("{name: Ingress}, null", "applications.0.deployments.1: it has no keys"),
        ("Ingress", "applications.0.deployments.0: it has no keys"),
        ("{name: Ingres}", "deployments.Ingres: there is no such deployment: did you mean Ingress"),
        ("{name: Other, user_config: {a: 1}}", "deployments.Other: there is no such deployment: remove it"),
    ],
)
def test_a_deployment_that_serve_cannot_make_is_a_sentence(deployments: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"applications: [{{import_path: 'deployments.app:build', deployments: [{deployments}]}}]")
    with pytest.raises(ConfigurationError, match=rf"^c\.yaml: .*{says}"):
        check_serve_config(path)


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ("{jobs: null}", {"JobDecoder", "JobRunner"}),
        ("{embedded: true}", {"JobDecoder", "Decoder", "VoiceActivityDetector", "Diarizer"}),
        ("{embedded: true, jobs: null}", {"JobDecoder", "JobRunner", "Classifier", "TkanExtractor"}),
    ],
)
def test_a_deployment_that_the_arguments_leave_out_is_named(args: str, names: set[str], tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    deployments = ", ".join(f"{{name: {name}}}" for name in sorted(names | {"Ingress"}))
    path.write_text(
        f"applications: [{{import_path: 'deployments.app:build', args: {args}, deployments: [{deployments}]}}]"
    )
    with pytest.raises(ConfigurationError) as raised:
        check_serve_config(path)
    assert {part.split(":")[0] for part in raised.value.detail.removeprefix("c.yaml: ").split("; ")} == {
        f"deployments.{name}" for name in names
    }


@pytest.mark.parametrize("path", ["deployments.app:biuld", "deployment.app:build", "deployments.apps:build"])
def test_a_misspelt_import_path_is_named(path: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"applications: [{{import_path: '{path}'}}]")
    with pytest.raises(ConfigurationError, match=f"there is no {path}: did you mean deployments.app:build"):
        check_serve_config(file)


def test_other_applications_are_left_to_serve_and_ours_may_be_written_with_a_dot(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("applications: [{import_path: 'greeting:application', args: {a: 1}, deployments: [{name: A}]}]")
    check_serve_config(file)
    file.write_text("applications: [{import_path: deployments.app.build, args: {configg: x}}]")
    with pytest.raises(ConfigurationError, match=r"args\.configg"):
        check_serve_config(file)


def test_a_config_without_args_has_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("applications: [{import_path: 'deployments.app:build'}]")
    assert main([str(path)]) == 0


def test_the_command_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: python -m deployments.check")


@pytest.mark.parametrize(
    "path",
    [path for path in paths(yaml.safe_load(CONFIG)) if not FREE & set(path[:-1])],
    ids=lambda path: ".".join(str(step) for step in path),
)
def test_every_key_is_known_and_misspelt_is_named(path: tuple[Any, ...], tmp_path: Path) -> None:
    document = yaml.safe_load(CONFIG)
    key = misspell(document, path)
    file = tmp_path / "serve_config.yaml"
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigurationError, match=rf"^serve_config.yaml: .*\b{key}\b"):
        check_serve_config(file)


def test_the_front_must_let_the_largest_form_pass(tmp_path: Path) -> None:
    document = yaml.safe_load(CONFIG)
    (application,) = document["applications"]
    file = tmp_path / "serve_config.yaml"

    def check() -> None:
        file.write_text(yaml.safe_dump(document))
        check_serve_config(file)

    application["args"]["jobs"]["limits"]["max_files"] += 1
    with pytest.raises(ConfigurationError, match=r"max_body_mib: the largest form has 4200\.06 MiB"):
        check()
    application["args"]["jobs"] = None
    application["deployments"] = [d for d in application["deployments"] if d["name"] not in ("JobDecoder", "JobRunner")]
    (ingress,) = (one for one in application["deployments"] if one["name"] == "Ingress")
    ingress["request_router_config"]["request_router_kwargs"]["max_body_mib"] = 251
    check()
    ingress["request_router_config"]["request_router_kwargs"]["max_body_mib"] = 250
    with pytest.raises(ConfigurationError, match="max_body_mib"):
        check()


def test_serve_build_writes_the_same_graph(tmp_path: Path) -> None:
    """`serve build` takes an application, and ours is a function of its arguments. So a module calls it first."""
    application = yaml.safe_load(CONFIG)["applications"][0]
    arguments = application["args"] | {"serve_config": None, "accelerator": "gpu", "jobs": None}
    lines = ("from deployments.app import BuildArgs, build", f"app = build(BuildArgs(**{arguments!r}))")
    (tmp_path / "built.py").write_text("\n".join(lines))
    serve = Path(sys.executable).with_name("serve")
    built_file = tmp_path / "built.yaml"
    command = [str(serve), "build", "built:app", f"--app-dir={tmp_path}", f"--output-path={built_file}"]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    document = yaml.safe_load(built_file.read_text())
    built = {deployment["name"]: deployment for deployment in document["applications"][0]["deployments"]}
    of_jobs = {"JobDecoder", "JobRunner"}
    assert set(built) == {deployment["name"] for deployment in application["deployments"]} - of_jobs
    for name, stage in arguments["stages"].items():
        if "gpu_fraction" in stage:
            options = built[name]["ray_actor_options"]
            assert (options["num_cpus"], options["num_gpus"]) == (stage["cpu_share"], stage["gpu_fraction"])
    # With the deployments of our own file in place of the defaults, it is a file that Serve and we accept.
    document["applications"][0]["deployments"] = application["deployments"]
    whole = tmp_path / "whole.yaml"
    whole.write_text(yaml.safe_dump(document))
    check_serve_config(whole)
