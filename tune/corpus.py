"""Build a corpus, or check one for what a detector could learn from it instead of speech.

    python -m tune.corpus check --kind in-the-wild PATH
    python -m tune.corpus build --kind asvspoof PATH --out corpus/manifest.csv
    python -m tune.corpus build --out corpus

`build` with `--kind` writes the manifest of an existing corpus. Without `--kind` it makes the starter corpus of
`configs/corpus.yaml`. Without `check` or `build`, a corpus at PATH is checked, and without PATH the starter corpus is
built.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.audio.decode import decode
from pipeline.audio.formats import sniff
from pipeline.audio.quality import measure_quality
from pipeline.config import Limits
from pipeline.errors import InputError
from pipeline.progress import with_progress
from pipeline.types import Segment
from tune.command import finish, run
from tune.corpora.build import add_build_arguments, build
from tune.corpora.manifest import Clip, add_split_argument, of_split, slash_hint, some, write_manifest
from tune.corpora.readers import READERS, read_corpus
from tune.errors import CorpusError
from tune.places import make_writable
from tune.reports.metrics import Labels, auc
from tune.reports.plots import plot_corpus

NUMBERS = ("duration_seconds", "level_db", "snr_db", "bandwidth_hz")
NAMES = ("sample_rate", "codec")
QUARTILES = (25, 50, 75)
NAMES_SHOWN = 3
"""The number of names in the table. check.json has all."""
FILES_SHOWN = 5
SHUFFLES = 500
FALSE_ALARMS = 0.05
"""How often a false leak may be reported for a corpus that has none."""
LEAKS = ((0.8, "leaks badly"), (0.65, "leaks"), (0.0, "leaks a bit"))
"""For each verdict, the lowest AUC that gets it. Only traits above chance get a verdict."""


@dataclass(frozen=True)
class Traits:
    """The properties of a recording that do not depend on its speech."""

    content_sha256: str
    """SHA-256 of the decoded samples. It is the same for the same sound in another container."""
    duration_seconds: float
    level_db: float
    snr_db: float
    bandwidth_hz: float
    """The bandwidth, at most that of 16 kHz audio."""
    sample_rate: int
    codec: str


def measure(path: Path) -> Traits | str:
    """The traits of a recording, or what is wrong with it."""
    try:
        data = path.read_bytes()
        waveform = decode(
            data, Limits(max_upload_mib=4096, max_duration_seconds=24 * 3600, max_decode_seconds=600)
        ).waveform
        form = sniff(data)
        # libav alone cannot tell the format of a very short file.
        with av.open(io.BytesIO(data), format=form.demuxer if form else None) as container:
            stream = container.streams.audio[0]
            codec, rate = stream.codec_context.name, stream.codec_context.sample_rate
    except OSError:
        return "missing or cannot be read"
    except InputError as error:
        return error.detail
    except (av.FFmpegError, IndexError):
        return "its codec is not recognised: export it again"
    whole = Segment(0.0, waveform.duration_seconds)
    quality = measure_quality(waveform, (whole,))
    level = float(np.sqrt(np.mean(np.square(waveform.samples))))
    return Traits(
        content_sha256=hashlib.sha256(np.round(waveform.samples * 2**15).astype("<i4").tobytes()).hexdigest(),
        duration_seconds=waveform.duration_seconds,
        level_db=20 * np.log10(max(level, 1e-6)),
        snr_db=quality.snr_db,
        bandwidth_hz=quality.bandwidth_hz,
        sample_rate=rate,
        codec=codec,
    )


def check(clips: Sequence[Clip]) -> tuple[dict[str, Any], list[tuple[Clip, Traits]]]:
    """The errors and leaks of a corpus, and the traits of the clips that can be read. Raises CorpusError if a class has
    no such clip."""
    with ThreadPoolExecutor() as pool:
        measured = list(with_progress(pool.map(measure, [clip.path for clip in clips]), len(clips), "clips"))
    good = [(clip, traits) for clip, traits in zip(clips, measured, strict=True) if isinstance(traits, Traits)]
    unreadable = [(_name(clip), found) for clip, found in zip(clips, measured, strict=True) if isinstance(found, str)]
    copies: dict[str, list[Clip]] = defaultdict(list)
    for clip, traits in good:
        copies[traits.content_sha256].append(clip)
    repeated = [same for same in copies.values() if len(same) > 1]
    by_label = {label: [(clip, t) for clip, t in good if clip.label == label] for label in ("bonafide", "spoof")}
    if unreadable and not all(by_label.values()):
        raise CorpusError(
            f"a class has no clip that can be read, so there is nothing to compare; {len(unreadable)} of {len(clips)} "
            f"files cannot be read: {some([f'{name}: {what}' for name, what in unreadable])}"
            f"{slash_hint(name for name, _ in unreadable)}"
        )
    speakers = {label: {clip.speaker for clip, _ in of} - {""} for label, of in by_label.items()}
    result = {
        "clips": len(clips),
        "missing": [name for name, what in unreadable if what.startswith("missing")],
        "unreadable": [f"{name}: {what}" for name, what in unreadable if not what.startswith("missing")],
        "duplicated": [[_name(clip) for clip in same] for same in repeated],
        "duplicated_in_both_classes": [
            [_name(clip) for clip in same] for same in repeated if len({clip.label for clip in same}) > 1
        ],
        "without_speaker": sum(not clip.speaker for clip in clips),
        "speakers_in_both_classes": sorted(speakers["bonafide"] & speakers["spoof"]),
        "classes": {
            label: {
                "clips": len(of),
                "minutes": sum(traits.duration_seconds for _, traits in of) / 60,
                "speakers": len(speakers[label]),
                "generators": len({clip.generator for clip, _ in of} - {""}),
            }
            for label, of in by_label.items()
        },
        "leaks": leaks(good),
    }
    return result, good


def _name(clip: Clip) -> str:
    """The path of a clip as its manifest gives it. A bare file name may be that of many clips."""
    return clip.listed or str(clip.path)


def leaks(good: Sequence[tuple[Clip, Traits]]) -> dict[str, dict[str, Any]]:
    """The leaks of each trait: its distribution in each class, its AUC, the AUC by chance, and the verdict.

    One in twenty corpora without a leak has a trait above chance. The distribution of a number is given by its
    quartiles, that of names by the share of each, the most common first.
    """
    labels = np.array([clip.is_spoof for clip, _ in good])
    if not len(labels) or labels.all() or not labels.any():
        raise CorpusError("the corpus has readable clips of one class only: there is nothing to compare")
    found: dict[str, dict[str, Any]] = {}
    for trait in NUMBERS:
        values = np.array([getattr(traits, trait) for _, traits in good], dtype=np.float64)
        found[trait] = {
            "bonafide": np.percentile(values[~labels], QUARTILES).tolist(),
            "spoof": np.percentile(values[labels], QUARTILES).tolist(),
            **_leak(labels, partial(_auc_of_numbers, values)),
        }
    for trait in NAMES:
        names = np.array([str(getattr(traits, trait)) for _, traits in good])
        shares = {of: Counter(names[labels == of].tolist()) for of in (False, True)}
        found[trait] = {
            "bonafide": {name: n / shares[False].total() for name, n in shares[False].most_common()},
            "spoof": {name: n / shares[True].total() for name, n in shares[True].most_common()},
            **_leak(labels, partial(_auc_of_names, names)),
        }
    return found


def _auc_of_numbers(values: NDArray[np.float64], labels: Labels) -> float:
    alone = auc(labels, values)
    return max(alone, 1 - alone)


def _auc_of_names(names: NDArray[np.str_], labels: Labels) -> float:
    """The AUC if a clip's score is the share of spoofs among the clips with the same name."""
    _, place = np.unique(names, return_inverse=True)
    return auc(labels, (np.bincount(place, labels) / np.bincount(place))[place])


def _leak(labels: Labels, auc_of: Callable[[Labels], float]) -> dict[str, Any]:
    """The AUC, the AUC by chance, and the verdict. Chance is the AUC of the same trait with shuffled labels."""
    rng = np.random.default_rng(0)
    traits = len(NUMBERS) + len(NAMES)
    chance = float(np.quantile([auc_of(rng.permutation(labels)) for _ in range(SHUFFLES)], 1 - FALSE_ALARMS / traits))
    found = auc_of(labels)
    verdict = "no leak" if found <= chance else next(name for least, name in LEAKS if found >= least)
    return {"auc": found, "chance": chance, "verdict": verdict}


def describe(result: dict[str, Any]) -> str:
    """The result of `check` as text for a person."""
    unnamed = result["without_speaker"]
    lines = [
        f"{label:9} {of['minutes']:.1f} min: " + ", ".join(f"{of[n]} {n}" for n in ("clips", "speakers", "generators"))
        for label, of in result["classes"].items()
    ]
    lines += [
        f"{what.replace('_', ' ')}: {len(result[what])}" + _first(result[what])
        for what in ("missing", "unreadable", "duplicated", "duplicated_in_both_classes", "speakers_in_both_classes")
    ]
    lines += [
        f"without speaker: {unnamed}"
        + (" (without a site, too, each counts as a separate speaker: figures are then too good)" if unnamed else ""),
        "",
        "How well each trait gives the label away without the speech (AUC 0.5: not at all, 1.0: always):",
        f"  {'trait':17}{'AUC':>4}  {'verdict':13}{'class':8}  quartiles, or the most common and their shares",
    ]
    for trait, row in sorted(result["leaks"].items(), key=lambda item: -item[1]["auc"]):
        lines += [
            f"  {trait:17}{row['auc']:.2f}  {row['verdict']:13}bonafide  {_distribution(row['bonafide'])}",
            f"  {'':34}  spoof     {_distribution(row['spoof'])}",
        ]
    bad = [trait for trait, row in result["leaks"].items() if row["verdict"] in ("leaks", "leaks badly")]
    lines += ["", _advice(bad, max(row["chance"] for row in result["leaks"].values()))]
    return "\n".join(lines)


def _advice(bad: Sequence[str], chance: float) -> str:
    if not bad:
        return (
            "No trait gives the label away: a detector has to listen. In a corpus of this size chance alone reaches an "
            f"AUC of {chance:.2f}, so a smaller leak would not be seen."
        )
    return (
        f"{', '.join(bad)}: the classes differ in traits that are not speech. A detector can learn these instead of "
        "speech. It then looks good on this corpus and fails elsewhere. Record, cut and encode both classes alike; "
        "train with copies through random channels (draws: 1); and trust only figures from corpora that were made in "
        "another way."
    )


def _first(items: Sequence[Any]) -> str:
    """The first of the files found, in brackets."""
    if not items:
        return ""
    shown = [" = ".join(item) if isinstance(item, list) else str(item) for item in items[:FILES_SHOWN]]
    more = f" and {len(items) - FILES_SHOWN} more" if len(items) > FILES_SHOWN else ""
    return f" ({'; '.join(shown)}{more})"


def _distribution(of: list[float] | dict[str, float]) -> str:
    if isinstance(of, list):
        return "  ".join(f"{value:8.1f}" for value in of)
    shown = dict(list(of.items())[:NAMES_SHOWN])
    parts = [f"{name} {100 * share:.0f} %" for name, share in shown.items()]
    if len(of) > NAMES_SHOWN:
        parts.append(f"{len(of) - NAMES_SHOWN} more {100 * (1 - sum(shown.values())):.0f} %")
    return ", ".join(parts)


def with_verb(argv: Sequence[str], building: argparse.ArgumentParser) -> list[str]:
    """The arguments with their verb in front, if they have none: `check` if they name a corpus, else `build`."""
    if argv and argv[0] in ("check", "build", "-h", "--help"):
        return list(argv)
    # `build` has all options of `check`, too, so it can tell PATH from their values.
    known, _ = building.parse_known_args(argv)
    return ["build" if known.path is None else "check", *argv]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tune.corpus", description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(
        dest="verb", help="default: check if a PATH is given, else build the starter corpus", required=True
    )
    checking = verbs.add_parser("check", help="report errors of a corpus, and traits that tell the classes apart")
    checking.add_argument("path", type=Path, help="the corpus: its manifest or its folder")
    checking.add_argument(
        "--kind", choices=READERS, help="layout (default: a manifest, or a folder with manifest.csv or real/ and fake/)"
    )
    add_split_argument(checking)
    checking.add_argument("--out", type=Path, help="folder for check.json and check.png")
    building = verbs.add_parser("build", help="make the starter corpus, or with --kind the manifest of a corpus")
    building.add_argument("path", type=Path, nargs="?", help="with --kind: the corpus")
    building.add_argument("--kind", choices=READERS, help="layout of the corpus at PATH")
    add_build_arguments(building)
    arguments = parser.parse_args(with_verb(sys.argv[1:] if argv is None else argv, building))
    if arguments.verb == "check":
        if arguments.out:
            make_writable(arguments.out)
        result, good = check(of_split(read_corpus(arguments.kind, arguments.path), arguments.split))
        print(describe(result))
        if arguments.out:
            (arguments.out / "check.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
            labels = np.array([clip.is_spoof for clip, _ in good])
            columns: dict[str, Sequence[Any]] = {
                trait: [getattr(traits, trait) for _, traits in good] for trait in (*NUMBERS, *NAMES)
            }
            plot_corpus(labels, columns).savefig(arguments.out / "check.png", dpi=110)
        broken = bool(result["missing"] or result["unreadable"] or result["duplicated_in_both_classes"])
        # Other commands read only manifests and plain folders.
        train = f"python -m tune.train --manifest {arguments.path} --out runs/mine"
        if arguments.kind not in (None, "manifest"):
            train = f"python -m tune.corpus build {arguments.path} --kind {arguments.kind} --out corpora/mine.csv"
        finish(
            f"check.json and check.png in {arguments.out}" if arguments.out else "nothing: --out DIR keeps the figures",
            "repair the files named above, and check again" if broken else train,
        )
        if broken:
            sys.exit(1)
    elif arguments.kind:
        if arguments.path is None or arguments.out is None:
            building.error("--kind needs the PATH of the corpus and --out for its manifest")
        if arguments.part or arguments.mirror:
            building.error("--part and --mirror are for the starter corpus, not for --kind: leave them out")
        if arguments.out.is_dir():
            building.error(f"--out is the folder {arguments.out}: name a file in it, such as manifest.csv")
        make_writable(arguments.out.parent)
        clips = of_split(read_corpus(arguments.kind, arguments.path), arguments.split)
        write_manifest(arguments.out, clips)
        finish(f"{arguments.out}: {len(clips)} clips", f"python -m tune.corpus check {arguments.out}")
    else:
        if arguments.path is not None:
            building.error(f"the corpus {arguments.path} needs --kind: name its layout, or leave it out")
        if arguments.part != "demo-pages" and (arguments.split or arguments.mirror):
            building.error("--split and --mirror are for --part demo-pages: leave them out")
        build(arguments)


if __name__ == "__main__":
    run(main)
