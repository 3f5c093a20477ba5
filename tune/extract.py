"""Computes the features of a corpus on a Ray cluster, each only once.

The features of a clip are a file in the cache. The name of the file is the hash of the recording. The name of its
folder is the hash of everything else that decides the features: the recipe, the network, the windows, and the
augmentation or vocoder. So an extraction that was stopped can continue, and a finished one is not computed again.

    python -m tune.extract --manifest corpus/manifest.csv --features linear-textures
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from pipeline.audio.decode import decode
from pipeline.config import DetectorConfig
from pipeline.errors import InputError
from pipeline.networks.spec import TkanSpec, load_spec
from pipeline.progress import with_progress
from pipeline.stages.extract import TkanExtractor, layer_sizes
from pipeline.stages.vad import VoiceActivityDetector
from tune.cluster import connect, default_actors, map_with_actors
from tune.command import at_least, finish, gpu_share, run
from tune.corpora.augment import AUGMENT_VERSION, RANDOM_CHANNEL, augment
from tune.corpora.build import DEFAULT_CACHE as DEFAULT_PACKAGES
from tune.corpora.copy_synthesis import COPIES_VERSION
from tune.corpora.manifest import (
    NO_SPEECH,
    Clip,
    add_split_argument,
    of_split,
    require_usable,
    set_unnamed_apart,
    with_contents,
    write_csv,
)
from tune.corpora.readers import read_corpus
from tune.corpora.vocoded import PARTNER, VOCODED, fetch_hifigan, vocode
from tune.errors import CorpusError
from tune.places import fetched, local_folder, make_writable
from tune.training.table import FeatureKind, Table

DEFAULT_CACHE = Path(".cache") / "features"
ALONE = (
    "so each of them counts as a separate speaker. A voice with several of them may then be both in training and in "
    "the test. The errors found are then lower than on new voices. Name the speakers in the manifest, or put the "
    "recordings of each speaker into a separate folder."
)
FEATURES_VERSION = 4
"""The version of the features. Raise it when the same recording and recipe give different features. Old caches are
then ignored. A test fails if you forget."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides features, except the recording.

    `augmentation` names what is done to the recording first: an augmentation of `tune.corpora.augment`, or, if a
    vocoder is given, one of the two names of `tune.corpora.vocoded`. `clean` changes nothing.
    """

    spec: TkanSpec
    detector: DetectorConfig
    augmentation: str = "clean"
    vocoder_sha256: str = ""

    def key(self, backbone_sha256: str) -> str:
        """Hash of the recipe, the network, the augmentation or vocoder, and the versions of the code that computes
        them."""
        versions = [AUGMENT_VERSION, COPIES_VERSION] if self.vocoder_sha256 else [AUGMENT_VERSION]
        parts = {
            "version": FEATURES_VERSION,
            "features": self.spec.spec_id,
            "backbone": backbone_sha256,
            "windows": self.detector.windows.model_dump(),
            "voice_activity": self.detector.voice_activity.model_dump(),
            "max_drop_db": self.detector.decision.max_drop_db,  # decides whether bands are hidden
            "augmentation": None if self.augmentation == "clean" else [self.augmentation, *versions],
        }
        if self.vocoder_sha256:
            parts["vocoder"] = self.vocoder_sha256
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Row:
    """Work for an actor: the features of the recording at `path`, after it was changed as `augmentation` says.

    `draw` is the seed of the change. `data` holds the bytes of the recording while the row travels to an actor, and is
    empty otherwise. `stem` is the path of the file in the cache, without its ending.
    """

    path: Path
    augmentation: str
    draw: int
    stem: Path
    data: bytes = b""

    def read(self) -> Row:
        return replace(self, data=self.path.read_bytes())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Extraction:
    """An actor that computes the features of rows, one by one.

    `packages` is the folder for the packages with the vocoder. They are fetched if they are missing, when a row needs
    them for the first time.
    """

    def __init__(self, recipe: Recipe, packages: Path = DEFAULT_PACKAGES) -> None:
        torch.set_num_threads(1)
        self.packages = packages
        self.has_vocoder = False
        self.limits = recipe.detector.limits
        self.voice_activity = VoiceActivityDetector(recipe.detector)
        self.extractor = TkanExtractor(recipe.detector, recipe.spec)

    def answer(self, row: Row) -> tuple[Row, NDArray[np.float32] | str]:
        """The row without its data, and its features (windows, dimension) or the reason why it has none."""
        return replace(row, data=b""), self.extract(row)

    def extract(self, row: Row) -> NDArray[np.float32] | str:
        try:
            recording = decode(row.data, self.limits)
            if row.augmentation in (PARTNER, VOCODED):
                if not self.has_vocoder:
                    fetch_hifigan(self.packages)
                    self.has_vocoder = True
                recording = replace(recording, waveform=vocode(recording.waveform, row.augmentation, self.packages))
            elif row.augmentation != "clean":
                recording = replace(recording, waveform=augment(recording.waveform, row.augmentation, row.draw))
            speech = self.voice_activity.detect(recording)
            if not speech.segments:
                return NO_SPEECH
            return self.extractor.extract(recording, speech, turns=None).vectors
        except InputError as problem:
            return problem.detail


def _write(stem: Path, vectors: NDArray[np.float32]) -> None:
    """Write a file of the cache whole or not at all: the process may be killed at any time."""
    partial = stem.with_suffix(f".{os.getpid()}.partial")
    save_file({"vectors": vectors}, partial)
    partial.rename(stem.with_suffix(".safetensors"))


def _is_there(stem: Path) -> bool:
    return any(stem.with_suffix(end).exists() for end in (".safetensors", ".silent"))


def _read(stem: Path) -> NDArray[np.float32] | str | None:
    """The features of a recording from the cache, or NO_SPEECH; None if the cache has neither."""
    if stem.with_suffix(".silent").exists():
        return NO_SPEECH
    if stem.with_suffix(".safetensors").exists():
        return load_file(stem.with_suffix(".safetensors"))["vectors"]
    return None


def _plan(
    clips: Sequence[Clip], versions: Sequence[tuple[Recipe, int]], cache: Path, backbone_sha256: str
) -> list[list[Row]]:
    """What to extract from each clip: a row for each version that it gets. A version is a recipe and a draw."""
    rows: list[list[Row]] = [[] for _ in clips]
    for number, (version, draw) in enumerate(versions):
        folder = cache / version.key(backbone_sha256)
        folder.mkdir(parents=True, exist_ok=True)
        for clip, rows_of_clip in zip(clips, rows, strict=True):
            if number == 0 or not (clip.background or (clip.is_spoof and version.vocoder_sha256)):
                stem = folder / (f"{clip.sha256}-{draw}" if draw else clip.sha256)
                rows_of_clip.append(Row(clip.path, version.augmentation, draw, stem))
    return rows


def extract(
    clips: Sequence[Clip],
    recipe: Recipe,
    *,
    draws: int = 0,
    vocoded: bool = False,
    cache_folder: Path = DEFAULT_CACHE,
    packages: Path = DEFAULT_PACKAGES,
    address: str | None = None,
    actors: int | None = None,
    num_gpus: float = 0,
) -> tuple[Table, dict[Path, str]]:
    """The features of `clips`, and for each clip without features the reason. What the cache has is not computed.

    `draws` adds the features of this many augmented copies of each clip, for training. `vocoded` adds, for each bona
    fide clip, those of its copy by HiFi-GAN and of the copy's partner. Clips of the background get neither. Each node
    that needs the vocoder fetches it into the folder `packages`. Only this process reads the corpus and the cache.
    Raises CorpusError if files are missing, if the vocoder is not available, or if a class has no clip left.
    """
    require_usable(clips)
    extractor = TkanExtractor(recipe.detector, recipe.spec)
    kind = FeatureKind(recipe.spec, layer_sizes(extractor), extractor.backbone.sha256)
    clips = with_contents(clips)
    versions = [(recipe, 0)] + [(replace(recipe, augmentation=RANDOM_CHANNEL), draw) for draw in range(1, draws + 1)]
    if vocoded:
        packages = packages.resolve()
        vocoder = _sha256(fetch_hifigan(packages))
        versions += [(replace(recipe, augmentation=member, vocoder_sha256=vocoder), 0) for member in (PARTNER, VOCODED)]
    rows = _plan(clips, versions, cache_folder.resolve(), kind.backbone_sha256)
    # The keys are the files of the cache, because a recording may be in the corpus twice.
    pending = {row.stem: row for rows_of_clip in rows for row in rows_of_clip if not _is_there(row.stem)}
    # Why recordings cannot be decoded is not kept: under wider limits, or on a machine with less to do, they can be.
    reasons: dict[Path, str] = {}
    # All versions in one pass, so that the actors start once.
    if pending:
        connect(address)
        pool = min(actors or default_actors(), len(pending))
        read = (row.read() for row in pending.values())
        results = map_with_actors(Extraction, (recipe, packages), read, actors=pool, num_gpus=num_gpus)
        for row, result in with_progress(results, len(pending), "features"):
            if isinstance(result, np.ndarray):
                _write(row.stem, result)
            elif result == NO_SPEECH:
                row.stem.with_suffix(".silent").touch()
            else:
                reasons[row.stem] = result

    good, copies, by_vocoder, bad = [], [], [], {}
    for clip, rows_of_clip in zip(clips, rows, strict=True):
        found = [reasons.get(row.stem) or _read(row.stem) for row in rows_of_clip]
        if isinstance(found[0], str):
            bad[clip.path] = found[0]
        else:
            good.append(clip)
            copies.append([part for part in found if isinstance(part, np.ndarray)])
            augmentations = [
                row.augmentation for row, part in zip(rows_of_clip, found, strict=True) if isinstance(part, np.ndarray)
            ]
            by_vocoder.append([augmentation == VOCODED for augmentation in augmentations])
    for label in ("bonafide", "spoof"):
        if not any(clip.label == label for clip in good):
            raise CorpusError(f"no {label} clip has features; {len(bad)} have none, for example: {min(bad.values())}")
    return Table.of(good, copies, kind, by_vocoder), bad


def add_corpus_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every command that needs features."""
    parser.add_argument(
        "--manifest",
        type=fetched,
        nargs="+",
        required=True,
        help="manifests of the corpus, or folders with real/ and fake/ in them; paths or URIs such as s3://bucket/x",
    )
    add_split_argument(parser)
    parser.add_argument(
        "--background",
        type=fetched,
        nargs="+",
        default=(),
        help="manifests of clips for training only, never for tests; spoofs with a pair_id are left out",
    )
    parser.add_argument("--detector", type=Path, help="configuration of decoding, voice activity and windows")
    parser.add_argument(
        "--cache", default=str(DEFAULT_CACHE), help="folder or URI for the features (default %(default)s)"
    )
    parser.add_argument(
        "--packages",
        type=Path,
        default=DEFAULT_PACKAGES,
        help="folder for the packages with the vocoder, if the training uses it (default %(default)s)",
    )
    parser.add_argument("--address", help="Ray cluster to use, such as auto (default: RAY_ADDRESS, or a private one)")
    parser.add_argument(
        "--actors", type=at_least(1), help="number of processes that extract (default: one for each CPU)"
    )
    parser.add_argument(
        "--gpu", type=gpu_share, default=0, metavar="SHARE", help="share of a GPU for each process that extracts"
    )


def load_clips(arguments: argparse.Namespace, speakers_of: Literal["corpus", "site"] = "corpus") -> list[Clip]:
    """The corpus that the arguments name.

    If `speakers_of` is `site`, the same name on two sites counts as two speakers. A clip that names neither speaker nor
    site counts as a separate speaker, and a warning says that the figures are too good.
    Raises CorpusError if the corpus cannot be used.
    """
    clips = of_split([clip for path in arguments.manifest for clip in read_corpus(None, path)], arguments.split)
    clips, unnamed = set_unnamed_apart(clips)
    if unnamed:
        print(f"warning: {unnamed}, {ALONE}", file=sys.stderr)
    # Spoofs that are copies of recordings are left out. They make a detector worse on synthesizers that are new to it.
    clips += [
        replace(clip, background=True)
        for path in arguments.background
        for clip in read_corpus(None, path)
        if not (clip.is_spoof and clip.pair_id)
    ]
    if speakers_of == "site":
        clips = [replace(clip, speaker=f"{clip.site}: {clip.voice}") for clip in clips]
    require_usable(clips)
    return clips


def load_table(
    arguments: argparse.Namespace, clips: Sequence[Clip], preset: str, draws: int = 0, vocoded: bool = False
) -> Table:
    """The table of `clips`, with the options in `arguments`. Clips without features are listed on the standard
    error."""
    with local_folder(arguments.cache) as cache:
        table, bad = extract(
            clips,
            Recipe(load_spec(preset), DetectorConfig.load(arguments.detector)),
            draws=draws,
            vocoded=vocoded,
            cache_folder=cache,
            packages=arguments.packages,
            address=arguments.address,
            actors=arguments.actors,
            num_gpus=arguments.gpu,
        )
    for path, error in bad.items():
        print(f"left out: {path.name}: {error}", file=sys.stderr)
    return table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tune.extract", description=__doc__.split("\n")[0])
    add_corpus_arguments(parser)
    parser.add_argument("--features", default="linear-textures", help="preset (default %(default)s) or YAML file")
    parser.add_argument(
        "--draws", type=at_least(0), default=0, help="augmented copies of each clip (default %(default)s)"
    )
    parser.add_argument("--vocoded", action="store_true", help="also use copies of bona fide clips by HiFi-GAN")
    parser.add_argument("--out", help="folder or URI for features.npy, labels.npy and clips.csv (the clip of each row)")
    arguments = parser.parse_args(argv)
    clips = load_clips(arguments)
    with local_folder(arguments.out) if arguments.out else nullcontext() as out:
        if out:
            make_writable(out)
        table = load_table(arguments, clips, arguments.features, arguments.draws, arguments.vocoded)
        windows, dimension = table.vectors.shape
        print(f"{len(table.clips)} clips, {windows} windows, {dimension} features each, in {arguments.cache}")
        if out:
            write_arrays(out, table)
        manifests = " ".join(str(path) for path in arguments.manifest)
        finish(
            f"features.npy, labels.npy and clips.csv in {out}" if out else f"the features in {arguments.cache}",
            f"python -m tune.train --manifest {manifests} --out runs/mine, which uses these features",
        )


def write_arrays(folder: Path, table: Table) -> None:
    """Write `features.npy` (windows, dimension), `labels.npy` (windows,) with 1 = spoof, and `clips.csv`.

    `clips.csv` has what a split without leaks needs, for each window. `voice`: the speaker, or what stands for one if
    none is named; windows of one voice or one pair belong on one side. `copy`: 0 for the clip itself, 1, 2, ... for its
    copies. `vocoded`: 1 for copies by a vocoder, which are spoofs. `background`: 1 for clips that only train. Copies
    and background are never tested.
    """
    np.save(folder / "features.npy", table.vectors)
    np.save(folder / "labels.npy", table.spoof.astype(np.int64))
    rows = (
        (clip.path, clip.speaker, clip.pair_id, clip.voice, int(copy), int(vocoded), int(clip.background))
        for owner, copy, vocoded in zip(table.owner, table.copy, table.vocoded, strict=True)
        for clip in [table.clips[owner]]
    )
    columns = ("path", "speaker", "pair_id", "voice", "copy", "vocoded", "background")
    write_csv(folder / "clips.csv", columns, rows)


if __name__ == "__main__":
    # Imported under the module's name, because Ray's workers cannot find what __main__ defines.
    from tune.extract import main as command

    run(command)
