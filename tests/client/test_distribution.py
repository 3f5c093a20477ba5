"""`pip install ./client`: which packages it needs, and that it runs if nothing else is installed."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest

from pipeline.config import ROOT

CLIENT = ROOT / "client"
PROJECT = tomllib.loads((CLIENT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEPENDENCIES = {re.split(r"[<>=]", line)[0] for line in PROJECT["dependencies"]}
BLOCKS = re.findall(r"```python\n(.*?)```", (CLIENT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_client_imports_what_it_declares_and_nothing_of_the_service() -> None:
    imported = set()
    for path in (CLIENT / "sound_sentry").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.module and not node.level
                imported.add(node.module.partition(".")[0])
    assert imported - sys.stdlib_module_names - {"sound_sentry"} == DEPENDENCIES


def test_importing_the_client_connects_nowhere_and_imports_nothing_heavy() -> None:
    program = """
import sys
def refuse(event, arguments):
    if event == "socket.connect":
        raise SystemExit(f"{event} {arguments}")
sys.addaudithook(refuse)
import sound_sentry
print(sorted({"numpy", "torch", "ray", "pipeline"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=CLIENT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_each_example_of_the_readme_is_five_lines() -> None:
    assert BLOCKS
    for block in BLOCKS:
        assert len([line for line in block.splitlines() if line]) <= 5, block


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has only the client and the packages that it needs."""
    folder = tmp_path_factory.mktemp("clean") / "environment"
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", f"--python={sys.executable}", folder], check=True)
    install: list[str | Path] = [uv, "pip", "install", "--quiet", f"--python={folder}", CLIENT]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        assert re.search("network|connect|dns|resolve host|fetch", done.stderr, re.IGNORECASE), done.stderr
        pytest.skip("no package registry can be reached")
    return folder / "bin" / "python"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_runs_in_a_clean_environment(
    python: Path, service: httpx.Client, sample_wav: bytes, tmp_path: Path
) -> None:
    done = subprocess.run([python, "-c", "import torch"], capture_output=True, text=True, check=False)
    assert "No module named 'torch'" in done.stderr
    (tmp_path / "call.wav").write_bytes(sample_wav)
    environment = {"PATH": os.environ["PATH"], "SOUND_SENTRY_URL": str(service.base_url)}
    done = subprocess.run(
        [python.with_name("sound-sentry"), "predict", "call.wav"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    name, result, *_ = done.stdout.splitlines()[1].split()
    assert (name, done.returncode) == ("call.wav", {"Real": 0, "Fake": 1, "Inconclusive": 3}[result]), done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("block", BLOCKS, ids=["predict", "batch", "job", "stream"])
def test_each_example_of_the_readme_runs_in_a_clean_environment(
    python: Path, service: httpx.Client, sample_wav: bytes, tmp_path: Path, block: str
) -> None:
    (tmp_path / "call.wav").write_bytes(sample_wav)
    (tmp_path / "call.s16").write_bytes(sample_wav[44 : 44 + 4 * 32_000])
    (tmp_path / "notes.md").write_text("no recording")
    program = block.replace("http://127.0.0.1:8000", str(service.base_url))
    assert program != block
    done = subprocess.run([python, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search("Real|Fake|Inconclusive", done.stdout)
    if "notes.md" in block:
        assert re.search("Unsupported format|none of the accepted formats", done.stdout)
