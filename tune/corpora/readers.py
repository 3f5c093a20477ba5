"""Readers of the folder layouts of public corpora."""

from __future__ import annotations

import csv
import os.path
import re
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.audio.formats import recordings_in
from tune.corpora.manifest import LABELS, Clip, Label, read_manifest, some
from tune.errors import CorpusError


def read_in_the_wild(root: Path) -> list[Clip]:
    """In-the-Wild (Müller et al., Interspeech 2022): recordings, and a `meta.csv` with file, speaker and label."""
    labels: dict[str, Label] = {"bona-fide": "bonafide", "bonafide": "bonafide", "spoof": "spoof"}
    try:
        with (root / "meta.csv").open(newline="", encoding="utf-8") as file:
            return [
                Clip(
                    root / row["file"],
                    labels[row["label"]],
                    speaker=row["speaker"],
                    source="In-the-Wild",
                    language="en",
                )
                for row in csv.DictReader(file)
            ]
    except FileNotFoundError as error:
        raise CorpusError(f"{root.name} holds no meta.csv: give the folder of In-the-Wild that holds it") from error
    except KeyError as error:
        raise CorpusError(f"meta.csv has no column or an unknown label {error}: it is not In-the-Wild's") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError("meta.csv cannot be read: it must be a UTF-8 CSV file that you may read") from error


# Number of fields in a line of a protocol -> positions of speaker, file, attack and key.
ASVSPOOF_LINES = {
    5: (0, 1, 3, 4),  # 2019 LA and PA
    8: (0, 1, 4, 5),  # 2021 LA
    13: (0, 1, 4, 5),  # 2021 DF
    10: (0, 1, 7, 8),  # ASVspoof 5
}
REPLAYED = 12
"""Number of fields in a line of the protocol of 2021 PA."""


def read_asvspoof(root: Path) -> list[Clip]:
    """ASVspoof 2019, 2021 (LA and DF) and 5: every countermeasure protocol below `root`, and the FLAC files it names.

    Protocols of speaker verification and lists without labels lie beside them, and are not read. Nor is 2021 PA: its
    spoofs are recordings of humans that were played again.
    """
    protocols: dict[Path, list[list[str]]] = {}
    for pattern in ("*.cm.*.txt", "trial_metadata.txt", "ASVspoof5.*.tsv"):
        for path in sorted(root.rglob(pattern)):
            if path.parent.name == "ASV" or ".track_2." in path.name:
                continue
            try:
                lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
            except (OSError, UnicodeDecodeError) as error:
                raise CorpusError(f"{path.name} cannot be read: it must be a text file that you may read") from error
            if lines and all(len(fields) == REPLAYED for fields in lines):
                print(
                    f"left out: {path.relative_to(root)}: ASVspoof 2021 PA is not read, because its spoofs are "
                    "recordings of humans that were played again",
                    file=sys.stderr,
                )
            elif not all(len(fields) == 1 for fields in lines):
                protocols[path] = lines
    if not protocols:
        raise CorpusError(
            f"{root.name} holds no ASVspoof protocol with labels: expected *.cm.*.txt (2019), trial_metadata.txt "
            "(2021: download the keys, too) or ASVspoof5.*.tsv"
        )
    audio = {path.stem: path for path in sorted(root.rglob("*.flac"))}
    clips = []
    for protocol, lines in protocols.items():
        for number, fields in enumerate(lines, start=1):
            positions = ASVSPOOF_LINES.get(len(fields))
            if positions is None or fields[positions[3]] not in ("bonafide", "spoof"):
                raise CorpusError(f"{protocol.name}, line {number}, is not a line of an ASVspoof protocol")
            speaker, name, attack, key = (fields[position] for position in positions)
            clips.append(
                Clip(
                    audio.get(name, protocol.parent / f"{name}.flac"),
                    "spoof" if key == "spoof" else "bonafide",
                    speaker=speaker,
                    generator=attack if key == "spoof" else "",
                    source="ASVspoof",
                    language="en",
                )
            )
    return clips


def read_wavefake(root: Path) -> list[Clip]:
    """WaveFake (Frank and Schönherr, NeurIPS 2021): folders `ljspeech_<vocoder>`, `jsut_<vocoder>` of generated audio,
    and the LJSpeech or JSUT recordings they imitate in any other folder with that name in its path."""
    voices = {"ljspeech": ("LJ", "LJSpeech", "en"), "jsut": ("JSUT", "JSUT", "ja")}
    clips = []
    for path in recordings_in(root):
        folder = path.relative_to(root).parent.as_posix().lower()
        corpus = next((name for name in voices if name in folder), None)
        if corpus is None:
            raise CorpusError(f"{folder or root.name} holds audio but names neither LJSpeech nor JSUT")
        speaker, source, language = voices[corpus]
        generated = re.match(rf"{corpus}_(.+)", path.parent.name.lower())
        from_text = path.parent.name.lower().startswith("common_voices_prompts")
        generator = generated[1] if generated else path.parent.name if from_text else ""
        utterance = path.stem.removesuffix("_gen")
        clips.append(
            Clip(
                path,
                "spoof" if generator else "bonafide",
                speaker=speaker,
                generator=generator,
                source=source,
                language=language,
                pair_id="" if from_text else f"{source}:{utterance}",
            )
        )
    return clips


def read_mlaad(root: Path) -> list[Clip]:
    """MLAAD (Müller et al., IJCNN 2024): `fake/<language>/<model>/`, and `real/<language>/` in the layout of M-AILABS,
    `by_book/<gender>/<speaker>/<book>/wavs/`."""
    clips = []
    for path in recordings_in(root / "fake"):
        language, model = _two(path, root / "fake")
        clips.append(Clip(path, "spoof", f"{model}:{language}", model, "MLAAD", language))
    for path in recordings_in(root / "real"):
        language, _ = _two(path, root / "real")
        parts = path.relative_to(root / "real" / language).parts
        speaker = parts[2] if parts[0] == "by_book" and len(parts) > 3 else parts[0] if len(parts) > 1 else ""
        clips.append(Clip(path, "bonafide", speaker, "", "M-AILABS", language))
    return clips


def _two(path: Path, root: Path) -> tuple[str, str]:
    parts = path.relative_to(root).parts
    if len(parts) < 3:
        raise CorpusError(f"{path.name} is too high in the folder tree: expected {root.name}/<language>/<folder>/")
    return parts[0], parts[1]


def read_folder(root: Path) -> list[Clip]:
    """A plain folder: `real/` or `bonafide/` with one folder per speaker, and `fake/` or `spoof/` with one folder per
    generator and in it one per speaker. Folders of unknown speakers and generators may be left out."""
    clips = []
    for folder in sorted(root.iterdir()):
        label = LABELS.get(folder.name.lower())
        if label is None:
            continue
        for path in recordings_in(folder):
            names = path.relative_to(folder).parts[:-1]
            generator, speaker, *_ = (*names, "", "") if label == "spoof" else ("", *names, "")
            listed = path.relative_to(root).as_posix()
            clips.append(Clip(path, label, speaker, generator, root.name, listed=listed))
    if both := sorted({clip.speaker for clip in clips} & {clip.generator for clip in clips} - {""}):
        print(
            f"warning: {some(both)}: the same folder name is that of a speaker and of a generator. The folders in "
            "fake/ are read as generators. If these are speakers, put a folder for the generator around them, such as "
            f"fake/unknown/{both[0]}. Otherwise a voice may be both in training and in the test.",
            file=sys.stderr,
        )
    return clips


READERS: dict[str, Callable[[Path], list[Clip]]] = {
    "in-the-wild": read_in_the_wild,
    "asvspoof": read_asvspoof,
    "wavefake": read_wavefake,
    "mlaad": read_mlaad,
    "folder": read_folder,
    "manifest": read_manifest,
}


def read_corpus(kind: str | None, path: Path) -> list[Clip]:
    """The clips of the corpus at `path`, in the layout `kind`.

    Without `kind`, a file is a manifest; a folder is read by its `manifest.csv`, or as a plain folder if it has none.
    Raises CorpusError if there is no corpus in this layout.
    """
    if not os.path.exists(path):
        raise CorpusError(f"there is no {path}: give a manifest, or the folder of a corpus")
    if kind not in (None, "manifest") and not path.is_dir():
        raise CorpusError(f"{path.name} is a file: a corpus in the layout of kind {kind} is a folder")
    if kind is None and (path / "manifest.csv").exists():
        path = path / "manifest.csv"
    clips = READERS[kind or ("folder" if path.is_dir() else "manifest")](path)
    if not clips:
        raise CorpusError(
            f"{path.name} holds no audio in the layout of kind {kind}"
            if kind
            else f"the folder {path.name} holds no audio in folders real and fake, and no manifest.csv: add one, or "
            f"name another layout with python -m tune.corpus build --kind ({', '.join(READERS)})"
        )
    return clips
