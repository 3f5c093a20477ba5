"""Prints the part of requirements.lock for an image: everything except packages for tests and development.

    python3.11 ops/docker/requirements.py            with torch and the CUDA libraries that it brings
    python3.11 ops/docker/requirements.py --no-torch  without both
    python3.11 ops/docker/requirements.py --torch     only torch and torchaudio, with versions but without hashes

Runs in a bare Python 3.11, before anything is installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = "sound-sentry"
TORCH = {"torch", "torchaudio"}
"""An index of CPU builds has other files of these packages, and their hashes are not in the lock."""


def entries(lock: str) -> dict[str, str]:
    """The lines of a lock, by the name of the package that they pin."""
    blocks = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)
    return {block.split("==")[0]: block for block in blocks if "==" in block}


def needed(lock: str, development: set[str]) -> dict[str, str]:
    """The entries of `lock` without the packages in `development` and those that only they need."""
    kept = entries(lock)
    while True:
        unneeded = [name for name, entry in kept.items() if not _askers(name, entry, development) & {PRODUCT, *kept}]
        if not unneeded:
            return kept
        for name in unneeded:
            del kept[name]


def _askers(name: str, entry: str, development: set[str]) -> set[str]:
    """The packages that need a package, from uv's comments."""
    askers = set(re.findall(r"^    #(?: via|  ) (\S+)", entry, flags=re.MULTILINE))
    if PRODUCT in askers and name in development:
        askers.remove(PRODUCT)
    return askers


def main(arguments: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    development = {re.split(r"[=\[]", line)[0].lower() for line in extras["dev"]}
    kept = needed((ROOT / "requirements.lock").read_text(encoding="utf-8"), development)
    cuda = {name for name in kept if name.startswith("nvidia-")} | {"triton"}
    if arguments == ["--torch"]:
        print("\n".join(kept[name].split()[0] for name in sorted(TORCH)))
    elif arguments == ["--no-torch"]:
        print("".join(entry for name, entry in kept.items() if name not in TORCH | cuda))
    else:
        print("".join(kept.values()))


if __name__ == "__main__":
    main(sys.argv[1:])
