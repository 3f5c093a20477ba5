"""The starter corpus, built from small packages that are made here like real ones."""

from __future__ import annotations

import argparse
import csv
import hashlib
import re
import shutil
import subprocess
import zipfile
from collections import defaultdict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import av
import numpy as np
import pytest
import yaml

from pipeline.config import ROOT, parse
from pipeline.errors import ConfigurationError
from pipeline.types import SAMPLE_RATE, Waveform
from tests.audio import encode
from tune.corpora.build import DEFAULT_CONFIG, StarterCorpus, add_build_arguments, build, speech_start, write_flac
from tune.corpora.manifest import Clip, read_manifest
from tune.corpora.packages import LEVEL_DB, cut, read_audio
from tune.errors import CorpusError

MIRROR = ROOT.parent / "shared" / "field-dev"

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")

SYNTHESIZER = """
import numpy as np
class Hibari:
    sample_rate = 24_000
    def __call__(self, text):
        time = np.arange(3_000 * len(text)) / 24_000
        return np.sin(2 * np.pi * 200 * time) * np.abs(np.sin(2 * np.pi * 4 * time))
"""


TITLE = b"LIST" + (16).to_bytes(4, "little") + b"INFOINAM" + (4).to_bytes(4, "little") + "Ёлка".encode("koi8-r")
"""A RIFF chunk as in an old recording: its title is not valid UTF-8."""


def speech_like(seconds: float, seed: int) -> np.ndarray:
    """Noise whose level rises and falls like syllables."""
    noise = np.random.default_rng(seed).normal(0, 0.1, round(seconds * SAMPLE_RATE))
    return (noise * np.abs(np.sin(np.arange(len(noise)) * 12 / SAMPLE_RATE))).astype(np.float32)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with `corpus.yaml` and the packages that it pins, already downloaded into `cache`."""
    files = tmp_path / "cache" / "files"
    files.mkdir(parents=True)
    root = tmp_path / "deb"
    for speaker, language in (("anna", "en"), ("boris", "ru")):
        for index in range(8):
            recording = root / f"usr/share/talks/{language}/{speaker}/{index}.wav"
            recording.parent.mkdir(parents=True, exist_ok=True)
            recording.write_bytes(encode(speech_like(1.0 + index / 2, index), "wav") + TITLE)
        (recording.parent / "beep.wav").write_bytes(encode(speech_like(30, 0), "wav"))
        (recording.parent / "broken.wav").write_bytes(b"RIFF....WAVE")
    captions = root / "usr/share/tuxpaint/stamps/animals"
    captions.mkdir(parents=True)
    for index, animal in enumerate(("horse", "cow", "very old dog", "goat")):
        text = f"This is a picture of a {animal}.\nfr.utf8=Une image d'un animal.\n"
        (captions / f"{index}.txt").write_text(text, encoding="utf-8")
    (root / "DEBIAN").mkdir()
    control = "Package: talks\nVersion: 1:2.0-3\nArchitecture: all\nMaintainer: nobody <a@b.c>\nDescription: talks\n"
    (root / "DEBIAN" / "control").write_text(control)
    deb = files / "talks_1%3a2.0-3_all.deb"
    subprocess.run(["dpkg-deb", "--build", root, deb], check=True, capture_output=True)
    wheel = files / "hibari_tts-0.2.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("hibari/__init__.py", SYNTHESIZER)
        for index in range(2):
            archive.writestr(f"hibari/samples/mimi-{index}.wav", encode(speech_like(1.5, 20 + index), "wav"))
    configure(
        tmp_path,
        packages=[
            package("talks", "deb", "1:2.0-3", deb),
            package("hibari-tts", "wheel", "0.2.1", wheel),
        ],
    )
    return tmp_path


def package(name: str, kind: str, version: str, file: Path) -> dict[str, str]:
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"name": name, "kind": kind, "version": version, "sha256": sha256, "licence": "none"}


def configure(place: Path, **changes: Any) -> None:
    config = place / "corpus.yaml"
    values = (
        yaml.safe_load(config.read_text())
        if config.exists()
        else {
            "seed": 0,
            "clips_per_speaker": 3,
            "vocoders": {"griffin-lim": 1, "phase": 1},
            "recordings": [
                {
                    "source": "talks",
                    "files": "usr/share/talks/*/*/*",
                    "pattern": "talks/(?P<language>..)/(?P<speaker>[a-z]+)/",
                },
                {
                    "source": "samples",
                    "files": "hibari/samples/*.wav",
                    "pattern": "samples/(?P<speaker>[a-z]+)",
                    "language": "en",
                    "generator": "murmur",
                },
            ],
            "voices": [
                {"generator": "hum", "engine": "hibari", "voice": "a", "language": "en", "texts": "en", "clips": 2}
            ],
            "pages": {
                "manifest": "pages.csv",
                "url": "http://127.0.0.1:1/{repo}/{commit}/{path}",
                "seconds": {"start": 2, "speech": 1},
            },
        }
    )
    config.write_text(yaml.safe_dump(values | changes))


def run_build(place: Path, *arguments: str) -> list[Clip]:
    parser = argparse.ArgumentParser()
    add_build_arguments(parser)
    where = ["--config", f"{place}/corpus.yaml", "--cache", f"{place}/cache", "--out", f"{place}/out", "--jobs", "1"]
    build(parser.parse_args([*where, *arguments]))
    return read_manifest(place / "out" / "manifest.csv")


@needs_dpkg
def test_packages_become_clips_of_both_classes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = run_build(place)

    assert {(clip.label, clip.speaker, clip.language, clip.source) for clip in clips} == {
        ("bonafide", "talks-anna", "en", "talks"),
        ("spoof", "talks-anna", "en", "talks"),
        ("bonafide", "talks-boris", "ru", "talks"),
        ("spoof", "talks-boris", "ru", "talks"),
        ("spoof", "hum:a", "en", "hum"),
        ("spoof", "samples-mimi", "en", "samples"),
    }
    assert len(clips) == 2 * 3 * 2 + 2 + 1
    real = {clip.pair_id: clip for clip in clips if not clip.is_spoof}
    copies = {clip.pair_id: clip for clip in clips if clip.is_spoof and clip.pair_id}
    assert len(real) == 6 and set(real) == set(copies)
    assert {clip.generator for clip in copies.values()} == {"griffin-lim", "phase"}
    for pair in real:
        one, other = read_audio(real[pair].path), read_audio(copies[pair].path)
        assert len(one.samples) == len(other.samples)
        assert not np.array_equal(one.samples, other.samples)
    for clip in clips:
        waveform = read_audio(clip.path)
        assert 2 <= waveform.duration_seconds <= 6
        level = 10 * np.log10(np.mean(np.square(waveform.samples)))
        assert level == pytest.approx(LEVEL_DB, abs=0.1)
        with av.open(str(clip.path)) as container:
            stream = container.streams.audio[0]
            assert (stream.codec_context.name, stream.rate, stream.channels) == ("flac", SAMPLE_RATE, 1)
    assert "bonafide" in (printed := capsys.readouterr().out) and "2 speakers, 0 generators" in printed

    # Existing clips are not made again. Missing clips are made again, and are the same as before. If the configuration
    # changes, the clips change.
    written = {clip.path: clip.path.stat().st_mtime_ns for clip in clips}
    bytes_before = {clip.path: clip.path.read_bytes() for clip in clips}
    lost = place / "out" / "audio" / "real-talks-anna-en"
    shutil.rmtree(lost)
    again = run_build(place)
    assert again == clips
    for clip in again:
        assert (clip.path.stat().st_mtime_ns == written[clip.path]) == (clip.path.parent != lost)
        assert clip.path.read_bytes() == bytes_before[clip.path]
    configure(place, seed=1)
    assert [clip.path.read_bytes() for clip in run_build(place)] != list(bytes_before.values())


@needs_dpkg
def test_a_package_that_is_not_the_one_pinned_is_refused(place: Path) -> None:
    next((place / "cache" / "files").glob("*.whl")).write_bytes(b"something else")
    with pytest.raises(CorpusError, match=r"hibari-tts 0\.2\.1"):
        run_build(place)
    assert not (place / "out").exists()


@needs_dpkg
def test_what_the_configuration_asks_for_must_exist(place: Path) -> None:
    configure(place, vocoders={"griffin-lin": 1})
    with pytest.raises(CorpusError, match="griffin-lin"):
        run_build(place)
    configure(place, vocoder={"griffin-lim": 1})
    with pytest.raises(ConfigurationError, match="vocoder"):
        run_build(place)


def test_clips_are_cut_from_long_recordings_and_joined_from_short_ones() -> None:
    short = [Waveform(speech_like(0.5, seed)) for seed in range(40)]
    long = [Waveform(np.pad(speech_like(20, 0), 16_000))]
    for recordings, least in ((short, 3), (long, 4)):
        clips = list(cut(recordings, np.random.default_rng(0)))
        assert len(clips) >= least
        assert all(2 <= clip.duration_seconds <= 6 for clip in clips)
        assert len({clip.duration_seconds for clip in clips}) > 1
        assert all(np.abs(clip.samples[:1_600]).max() > 0.01 for clip in clips)
    # This recording is shorter than every piece that is cut, but long enough for a clip.
    assert len(list(cut([Waveform(speech_like(2.15, 0))], np.random.default_rng(0)))) == 1


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """A folder with `corpus.yaml` and a list of three clips. Two of the original recordings are in `web`, and the
    clips of these two are in `mirror`.

    The first clip starts where its recording starts. The second clip starts where the speech in its recording starts,
    and is of another split.
    """
    configure(tmp_path, packages=[])
    rows = []
    for index, path in enumerate(("wavs/a (1).wav", "wavs/b.mp3", "wavs/gone.wav")):
        rows.append(
            {
                "path": f"audio/site/{index}.flac",
                "label": "spoof" if index else "bonafide",
                "speaker": f"speaker {index}",
                "site": "site",
                "split": "check" if index == 1 else "dev",
                "cut": "speech" if index else "start",
                "origin_repo": "someone/page",
                "origin_commit": "c0ffee",
                "origin_path": path,
            }
        )
        if "gone" not in path:
            original = tmp_path / "web" / "someone/page/c0ffee" / path
            original.parent.mkdir(parents=True, exist_ok=True)
            samples = speech_like(3, index)
            samples[: index * SAMPLE_RATE] = 0
            original.write_bytes(encode(samples, original.suffix[1:], rate=22_050))
            clip = tmp_path / "mirror" / rows[-1]["path"]
            clip.parent.mkdir(parents=True, exist_ok=True)
            write_flac(clip, Waveform(speech_like(1, index)))
    with (tmp_path / "pages.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path


def test_pages_come_from_a_mirror(pages: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = run_build(pages, "--part", "demo-pages", "--mirror", str(pages / "mirror"))
    assert [(clip.label, clip.speaker, clip.site, clip.split) for clip in clips] == [
        ("bonafide", "speaker 0", "site", "dev"),
        ("spoof", "speaker 1", "site", "check"),
    ]
    for index, clip in enumerate(clips):
        assert np.allclose(read_audio(clip.path).samples, speech_like(1, index), atol=1e-4)
    printed = capsys.readouterr().err
    assert "left out: audio/site/2.flac" in printed
    assert "clips of all splits are taken: check (1), dev (2)" in printed


def test_of_the_pages_only_a_split_is_taken_where_one_is_named(pages: Path) -> None:
    clips = run_build(pages, "--part", "demo-pages", "--mirror", str(pages / "mirror"), "--split", "dev")
    assert [clip.speaker for clip in clips] == ["speaker 0"]
    assert not (pages / "out/audio/site/1.flac").exists()
    with pytest.raises(CorpusError, match=r"split 'test': the column split says check \(1\), dev \(2\)"):
        run_build(pages, "--part", "demo-pages", "--split", "test")


def test_pages_come_by_http_and_only_once(pages: Path) -> None:
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=pages / "web")) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{{repo}}/{{commit}}/{{path}}"
        seconds = {"start": 1.5, "speech": 1.25}
        configure(pages, pages={"manifest": "pages.csv", "url": url, "seconds": seconds})
        clips = run_build(pages, "--part", "demo-pages")
        whole, late = (read_audio(clip.path) for clip in clips)
        assert (whole.duration_seconds, late.duration_seconds) == (1.5, 1.25)
        # MP3 moves the onset by less than a frame.
        assert speech_start(Waveform(late.samples[1_000:])) == pytest.approx(0, abs=0.03)
        assert np.abs(late.samples[:2_000]).max() < 0.01 < np.abs(late.samples[3_500:5_000]).max()
        first = len(asked)
        run_build(pages, "--part", "demo-pages")
        server.shutdown()
    assert "/someone/page/c0ffee/wavs/a%20%281%29.wav" in asked
    assert set(asked[first:]) == {"/someone/page/c0ffee/wavs/gone.wav"}


def test_speech_is_found_where_the_corpus_of_the_pages_was_cut() -> None:
    speech = speech_like(5, 0)
    original = Waveform(np.concatenate([np.full(12_000, 0.001, np.float32), speech]))
    onset = 12_000 + int(np.argmax(np.abs(speech) > 0.03 * np.abs(speech[: 6 * SAMPLE_RATE - 12_000]).max()))
    start = speech_start(original)
    assert round(start * SAMPLE_RATE) == onset - 3_200
    # Nothing is cut from a recording that is already cut, from one in which speech begins at once, and from silence.
    assert speech_start(Waveform(original.samples[round(start * SAMPLE_RATE) :])) == pytest.approx(0, abs=1e-9)
    assert speech_start(Waveform(speech)) == speech_start(Waveform(np.zeros(16_000, np.float32))) == 0


@pytest.mark.skipif(not MIRROR.exists(), reason="needs the clips of the pages")
def test_clips_of_the_pages_are_cut_as_the_corpus_has_them(tmp_path: Path) -> None:
    """The clips of the mirror stay exactly as they are. If silence is put before a clip, its speech is found again."""
    corpus = parse(StarterCorpus, DEFAULT_CONFIG)
    with (DEFAULT_CONFIG.parent / corpus.pages.manifest).open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "dev"]
    chosen = rows[::90]
    with (tmp_path / "pages.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(chosen)
    configure(tmp_path, packages=[], pages=corpus.pages.model_dump(mode="json") | {"manifest": "pages.csv"})
    clips = run_build(tmp_path, "--part", "demo-pages", "--mirror", str(MIRROR))
    assert len(clips) == len(chosen) and {row["cut"] for row in chosen} == {"start", "speech"}
    begun_later = 0
    for clip, row in zip(clips, chosen, strict=True):
        cut_out, original = read_audio(clip.path).samples, read_audio(MIRROR / row["path"]).samples
        assert np.array_equal(cut_out, original)
        level = np.abs(original)
        onset = int(np.argmax(level > 0.03 * level.max()))
        if row["cut"] == "speech" and onset == 3_200:
            padded = Waveform(np.concatenate([np.zeros(8_000, np.float32), original]))
            assert round(speech_start(padded) * SAMPLE_RATE) == 8_000
            begun_later += 1
    assert begun_later >= 3


def test_no_page_at_all_is_an_error(pages: Path) -> None:
    with pytest.raises(CorpusError, match="--mirror"):
        run_build(pages, "--part", "demo-pages")


def test_the_starter_corpus_is_pinned_and_wide() -> None:
    corpus = parse(StarterCorpus, DEFAULT_CONFIG)
    assert all(re.fullmatch("[0-9a-f]{64}", package.sha256) for package in corpus.packages)
    assert len({package.name for package in corpus.packages}) == len(corpus.packages)
    assert len({voice.generator for voice in corpus.voices} | set(corpus.vocoders)) >= 8
    listed = DEFAULT_CONFIG.parent / corpus.pages.manifest
    clips = read_manifest(listed)
    assert len(clips) == 3_277 and {clip.split for clip in clips} == {"dev", "check"}
    with listed.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["origin_repo"] for row in rows}) == 138
    assert all(re.fullmatch("[0-9a-f]{40}", row["origin_commit"]) for row in rows)
    assert {row["cut"] for row in rows} == set(corpus.pages.seconds)
    # Each page is in only one split. Otherwise `check` would have clips of pages that are in the training.
    splits = defaultdict(set)
    for clip in clips:
        splits[clip.site].add(clip.split)
    assert all(len(of_site) == 1 for of_site in splits.values())
