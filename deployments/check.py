"""Finds wrong keys of a Serve config file that Serve itself ignores.

    python -m deployments.check [serve_config.yaml]

prints the errors of the file, or that it has none. The exit code is 1 or 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from ray.runtime_env import RuntimeEnv
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ServeDeploySchema

from deployments.args import BuildArgs, ClassifierSettings, ExtractorSettings, FrontSettings, Stages
from deployments.http.uploads import max_form_bytes
from pipeline.config import ROOT, DetectorConfig, describe_misfits
from pipeline.errors import ConfigurationError

DESCRIPTION = "Find the wrong keys and values of a Serve config file."

FRONT = "deployments.http.front.FrontRouter"
BUILDER = "deployments.app:build"
MAX_PORT = 65_535
CLOSE = 0.8
"""How similar to BUILDER, from 0 to 1, an `import_path` is that was meant to be BUILDER."""

USER_CONFIGS: dict[str, type[BaseModel]] = {"Classifier": ClassifierSettings, "TkanExtractor": ExtractorSettings}


def check_serve_config(path: Path) -> None:
    """Raises ConfigurationError that names every wrong key and value of the Serve config file `path`."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"there is no readable Serve config file {path.name}: give the path of one") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path.name} is not valid YAML: {error}") from error

    if not isinstance(document, dict):
        raise ConfigurationError(f"{path.name} is not a Serve config file: it has no keys")
    problems = [f"{key}: Serve has no such key" for key in unknown_keys(document, ServeDeploySchema)]
    shapeless = list(_shapeless_deployments(document))
    problems += shapeless or _misfits(ServeDeploySchema, document)
    if not problems:
        if not 1 <= ServeDeploySchema.model_validate(document).http_options.port <= MAX_PORT:
            problems.append(f"http_options.port: give a number from 1 to {MAX_PORT}")
        for application in document["applications"]:
            problems += _check_application(application)
    if problems:
        raise ConfigurationError(f"{path.name}: " + "; ".join(problems))


def unknown_keys(value: Any, annotation: Any, where: str = "") -> Iterator[str]:
    """The keys in `value`, as read from YAML, that the pydantic models in `annotation` do not have, with their paths.

    If there is no model (`args`, `user_config`), any key is allowed.
    """
    if isinstance(value, list):
        for index, item in enumerate(value):
            name = item.get("name", index) if isinstance(item, dict) else index
            yield from unknown_keys(item, annotation, f"{where}{name}.")
    elif isinstance(value, dict):
        model = next(_models(annotation), None)
        for key, inner in value.items():
            if key == "runtime_env":
                names = inner if isinstance(inner, dict) else ()  # anything else is a wrong value, not a key
                yield from (f"{where}{key}.{name}" for name in names if name not in RuntimeEnv.known_fields)
            elif model is not None and key not in model.model_fields:
                yield f"{where}{key}"
            elif model is not None:
                yield from unknown_keys(inner, model.model_fields[key].annotation, f"{where}{key}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


def _shapeless_deployments(document: dict[Any, Any]) -> Iterator[str]:
    """The deployments that hold no keys. Serve's own check of them would end in a stack trace."""
    match document:
        case {"applications": [*applications]}:
            for place, application in enumerate(applications):
                match application:
                    case {"deployments": [*deployments]}:
                        for index, deployment in enumerate(deployments):
                            if not isinstance(deployment, dict):
                                yield f"applications.{place}.deployments.{index}: it has no keys; write `name: NAME`"


def _is_ours(application: dict[str, Any]) -> bool:
    return str(application["import_path"]).replace(":", ".") == BUILDER.replace(":", ".")  # Serve takes both


def _deployments(args: BuildArgs) -> set[str]:
    """The names of the deployments that `deployments.app.build` makes."""
    names = {"Ingress"}
    if args.jobs:
        names.add("JobRunner")
    if not args.embedded:
        names |= set(Stages.model_fields) | ({"JobDecoder"} if args.jobs else set())
    return names


def _check_application(application: dict[str, Any]) -> list[str]:
    if not _is_ours(application):
        path = application["import_path"]
        if get_close_matches(path, [BUILDER], cutoff=CLOSE):
            return [f"applications.import_path: there is no {path}: did you mean {BUILDER}?"]
        return []
    problems: list[str] = []
    largest_mib, names = 0.0, None
    try:
        args = BuildArgs.model_validate(application.get("args", {}))
        largest_mib, names = _largest_form_mib(args), _deployments(args)
    except RayServeException as error:
        problems.append(str(error))
    for deployment in application.get("deployments", []):
        name, settings = deployment["name"], deployment.get("user_config")
        if names is not None and name not in names:
            likely = get_close_matches(name, names, n=1)
            hint = f"did you mean {likely[0]}?" if likely else "remove it, or change `args` so that there is one"
            problems.append(f"deployments.{name}: there is no such deployment: {hint}")
            continue
        router = deployment.get("request_router_config", {})
        if router.get("request_router_class") == FRONT:
            where = f"deployments.{name}.request_router_config.request_router_kwargs."
            front = router.get("request_router_kwargs", {})
            misfits = _misfits(FrontSettings, front, where)
            problems += misfits
            if not misfits and front["max_body_mib"] < largest_mib:
                problems.append(f"{where}max_body_mib: the largest form has {largest_mib:g} MiB; set no less")
        if settings is not None and name not in USER_CONFIGS:
            problems.append(f"deployments.{name}.user_config: {name} takes none")
        elif settings is not None:
            problems += _misfits(USER_CONFIGS[name], settings, f"deployments.{name}.user_config.")
    return problems


def _largest_form_mib(args: BuildArgs) -> float:
    """How large the body of a request may be that the ingress accepts. Raises ConfigurationError."""
    limits = [DetectorConfig.load(ROOT / args.config).limits]
    if args.jobs:
        limits.append(args.jobs.limits)
    return max(max_form_bytes(one, one.max_files) for one in limits) / 2**20


def _misfits(model: type[BaseModel], value: Any, where: str = "") -> list[str]:
    try:
        model.model_validate(value)
    except ValidationError as error:
        return [describe_misfits(error, where, model)]
    except (ImportError, AttributeError) as error:  # Serve imports the classes and functions that the file names
        return [f"a class or function that the file names cannot be imported: {error}"]
    return []


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deployments.check", description=DESCRIPTION)
    default = ROOT / "serve_config.yaml"
    parser.add_argument("config", nargs="?", type=Path, default=default, help="serve_config.yaml by default")
    path = parser.parse_args(arguments).config
    try:
        check_serve_config(path)
        for application in yaml.safe_load(path.read_text(encoding="utf-8"))["applications"]:
            if _is_ours(application):
                DetectorConfig.load(ROOT / BuildArgs.model_validate(application.get("args", {})).config)
    except ConfigurationError as error:
        print(error.detail, file=sys.stderr)
        return 1
    print(f"{path.name} has no errors.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
