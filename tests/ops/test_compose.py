"""Checks the compose files with the schema of the Compose specification."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import ROOT, DetectorConfig

COMPOSE = ROOT / "ops" / "compose"
CHECK = Path(sys.executable).with_name("check-jsonschema")


def test_the_schema_of_the_compose_specification_holds() -> None:
    command: list[str | Path] = [
        CHECK,
        "--builtin-schema",
        "vendor.compose-spec",
        COMPOSE / "compose.yaml",
        COMPOSE / "gpu.yaml",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_schema_finds_a_misspelt_key(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text((COMPOSE / "compose.yaml").read_text().replace("read_only:", "readonly:", 1))
    command: list[str | Path] = [CHECK, "--builtin-schema", "vendor.compose-spec", tmp_path / "compose.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "readonly" in done.stdout


def test_files_that_services_mount_are_there() -> None:
    services: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", [])]
    files = [path for path in mounted if path.startswith(".")]
    assert len(files) >= 4
    assert not [path for path in files if not (COMPOSE / path).exists()]
    for service in services.values():
        if "build" in service:
            assert (COMPOSE / service["build"]["context"] / service["build"]["dockerfile"]).exists()


def test_one_address_fills_at_most_half_of_the_room_for_uploads() -> None:
    service: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]["proxy"]
    text = (COMPOSE / "nginx.conf").read_text()
    one, batch = (int(size) for size in re.findall(r"client_max_body_size (\d+)m;", text))
    connections, batches = (int(re.findall(rf"limit_conn {zone} (\d+);", text)[0]) for zone in ("address", "batches"))
    (room_gb,) = (int(re.findall(r"size=(\d+)g", mount)[0]) for mount in service["tmpfs"])
    assert batches * batch + (connections - batches) * one <= room_gb * 1024 / 2
    limits = DetectorConfig.load(ROOT / "configs" / "detector.yaml").limits
    assert one > limits.max_upload_mib + 1 and batch > limits.max_files * limits.max_upload_mib + 1


def test_every_service_is_closed_and_only_the_proxy_is_reached_from_elsewhere() -> None:
    services: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, "logs do not fill the disk"
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        if name != "proxy":
            assert not [port for port in service.get("ports", []) if not port.startswith("127.0.0.1:")], name
