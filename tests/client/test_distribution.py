"""`pip install ./client`: what it needs, and that the README holds where nothing else is installed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib

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
