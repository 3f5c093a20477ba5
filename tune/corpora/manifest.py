"""The manifest: the recordings of a corpus, and what is known about each."""

from __future__ import annotations

import argparse
import csv
import hashlib
import os.path
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from tune.errors import CorpusError

Label = Literal["bonafide", "spoof"]
LABELS: dict[str, Label] = {"bonafide": "bonafide", "real": "bonafide", "spoof": "spoof", "fake": "spoof"}
REQUIRED = ("path", "label")
COLUMNS = (*REQUIRED, "speaker", "generator", "source", "language", "site", "pair_id", "split")
"""The columns that this product uses. Other columns are ignored."""

NO_SPEECH = "there is no speech in it"
"""Why a clip is left out."""

FILE_NAMES = "surrogateescape"
"""How Python reads and writes bytes of file names that are not UTF-8. So such names survive a CSV file."""


@dataclass(frozen=True)
class Clip:
    """One recording of a corpus. Unknown fields are empty.

    `speaker`: whose voice it is; in a spoof, the imitated speaker. `source`: the collection that the recording comes
    from; for a spoof, the collection of the imitated recording. `site`: where the clip was published. Clips with the
    same `pair_id` share an utterance. `split`: the part of the corpus that the clip belongs to, such as `dev` or
    `check`.
    """

    path: Path
    label: Label
    speaker: str = ""
    generator: str = ""
    source: str = ""
    language: str = ""
    site: str = ""
    pair_id: str = ""
    split: str = ""
    sha256: str = ""
    """SHA-256 of the file's bytes; known as soon as the clip has features."""
    listed: str = field(default="", compare=False)
    """The path as the manifest gives it."""
    background: bool = False
    """Whether the clip is only for training: it is never tested, and not used for calibration."""
    alone: bool = False
    """Whether the clip counts as a separate speaker, because it names neither speaker nor site."""

    @property
    def is_spoof(self) -> bool:
        return self.label == "spoof"

    @property
    def voice(self) -> str:
        """The speaker. Without a name, all clips of the same origin count as one speaker, except clips that are
        alone."""
        if self.alone:
            return f"unnamed:{self.path}"
        return self.speaker or f"unnamed:{self.site}:{self.source}:{self.generator}"


def read_manifest(path: Path) -> list[Clip]:
    """The clips of a manifest. Raises CorpusError that names the wrong column or rows."""
    rows: list[tuple[int, dict[str, Any]]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig", errors=FILE_NAMES) as file:
            # Without `strict`, a quote that is never closed swallows all rows after it.
            reader = csv.DictReader(file, strict=True)
            header = [(name or "").strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            # The inner reader counts the lines. The outer one does not count blank lines.
            rows.extend((reader.reader.line_num, row) for row in reader)
    except FileNotFoundError as error:
        raise CorpusError(f"there is no manifest {path}: give the path of a CSV file, or of a folder") from error
    except csv.Error as error:
        raise CorpusError(
            f"the manifest {path.name} cannot be read after line {rows[-1][0] if rows else 0} ({error}): close every "
            "quote, and put quotes only around whole values"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"the manifest {path.name} cannot be read: it must be a UTF-8 CSV file") from error
    _check_columns(path.name, header)
    clips, problems = [], []
    for line, row in rows:
        values = {column: (row.get(column) or "").strip() for column in COLUMNS}
        label = LABELS.get(values["label"].lower())
        if not values["path"]:
            problems.append(f"line {line}: no path")
        elif label is None:
            problems.append(f"line {line}: label {values['label']!r} is none of {', '.join(LABELS)}")
        elif wrong := [column for column in COLUMNS[1:] if not _is_utf8(values[column])]:
            problems.append(f"line {line}: {wrong[0]} is not UTF-8 text")
        elif None in row:
            problems.append(f"line {line}: more values than columns")
        else:
            rest: dict[str, Any] = {column: values[column] for column in COLUMNS[2:]}
            clips.append(Clip(path.parent / values["path"], label, **rest, listed=values["path"]))
    if problems:
        raise CorpusError(f"the manifest {path.name} has bad rows: {some(problems)}")
    if not clips:
        raise CorpusError(f"the manifest {path.name} has no rows")
    return clips


def _is_utf8(text: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in text)


def _check_columns(name: str, header: Sequence[str]) -> None:
    for column in header:
        likely = get_close_matches(column, COLUMNS, n=1, cutoff=0.8)
        if column not in COLUMNS and likely and likely[0] not in header:
            raise CorpusError(f"the manifest {name} has a column {column!r}: did you mean {likely[0]!r}?")
    for column in REQUIRED:
        if column not in header:
            raise CorpusError(f"the manifest {name} has no column {column!r}: its header is {', '.join(header)}")
    if repeated := sorted({column for column in header if header.count(column) > 1}):
        raise CorpusError(f"the manifest {name} has the column {repeated[0]!r} twice")


def write_manifest(path: Path, clips: Iterable[Clip]) -> None:
    """Write a manifest. Paths inside its folder become relative to it."""
    folder = path.parent.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)

    def listed(clip: Clip) -> str:
        place = clip.path.resolve()
        return (place.relative_to(folder) if place.is_relative_to(folder) else place).as_posix()

    write_csv(path, COLUMNS, ((listed(clip), *(getattr(clip, column) for column in COLUMNS[1:])) for clip in clips))


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file that may name files."""
    with path.open("w", newline="", encoding="utf-8", errors=FILE_NAMES) as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def set_unnamed_apart(clips: Iterable[Clip]) -> tuple[list[Clip], str]:
    """The clips, of which each with neither speaker nor site is alone; and how many these are, for a warning. The text
    is empty if there are none."""
    found = [replace(clip, alone=not (clip.speaker or clip.site)) for clip in clips]
    alone = sum(clip.alone for clip in found)
    return found, f"{alone} of {len(found)} clips name neither speaker nor site" if alone else ""


def with_contents(clips: Iterable[Clip]) -> list[Clip]:
    """The clips with the SHA-256 of their files. Raises CorpusError that names the files that cannot be read."""
    found, refused = [], []
    for clip in clips:
        try:
            found.append(replace(clip, sha256=hashlib.sha256(clip.path.read_bytes()).hexdigest()))
        except OSError as error:
            refused.append(f"{clip.listed or clip.path.name} ({error.strerror})")
    if refused:
        raise CorpusError(
            f"{len(refused)} of {len(found) + len(refused)} files cannot be read: {some(refused)}. Allow reading them, "
            "or take them out of the manifest"
        )
    return found


def missing_files(clips: Sequence[Clip]) -> str:
    """How many files are missing and which, as a sentence without a full stop; empty if all are there."""
    # pathlib raises an error for a name that is too long for the system.
    missing = [clip.listed or clip.path.name for clip in clips if not os.path.isfile(clip.path)]
    return f"{len(missing)} of {len(clips)} files are missing: {some(missing)}{slash_hint(missing)}" if missing else ""


def slash_hint(listed: Iterable[str]) -> str:
    """What to do about paths with a backslash, to be put after their names; empty if none has one."""
    return ". Write / between folders, not \\" if any("\\" in path for path in listed) else ""


def require_usable(clips: Sequence[Clip]) -> None:
    """Raise CorpusError unless every file is there and there are clips of both classes."""
    if missing := missing_files(clips):
        raise CorpusError(missing)
    for label in ("bonafide", "spoof"):
        if not any(clip.label == label for clip in clips):
            raise CorpusError(f"the corpus has no {label} clip: two classes are needed")


def add_split_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--split", help="only the clips with this value in the column `split`, such as dev (default: all)"
    )


def of_split(clips: Sequence[Clip], split: str | None) -> list[Clip]:
    """The clips of the named split, or all clips if none is named. In that case a note on the standard error lists the
    splits if there are several.

    Raises CorpusError that lists the splits if there is no such split.
    """
    counts = Counter(clip.split for clip in clips)
    listed = ", ".join(f"{name or 'none'} ({count})" for name, count in sorted(counts.items()))
    if split is None:
        if len(counts) > 1:
            print(f"clips of all splits are taken: {listed}; choose one split with --split NAME", file=sys.stderr)
        return list(clips)
    if split not in counts:
        raise CorpusError(f"no clip is of the split {split!r}: the column split says {listed}")
    return [clip for clip in clips if clip.split == split]


def some(items: Sequence[str], shown: int = 5) -> str:
    """The first of `items`, and the number of the others."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return "; ".join(items[:shown]) + more
