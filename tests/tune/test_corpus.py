from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import MissingInput
from tests.audio import encode
from tune.corpora.manifest import Clip, read_manifest, write_manifest
from tune.corpus import Traits, leaks, main, measure
from tune.errors import CorpusError
from tune.reports.plots import plot_corpus


def speech_like(seconds: float, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    noise = np.random.default_rng(seed).standard_normal(round(16_000 * seconds)).astype(np.float32)
    envelope = 0.55 + 0.45 * np.sin(np.arange(len(noise)) / 1_600)
    return 0.1 * noise * envelope.astype(np.float32)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Real clips are long WAV files, fake clips short MP3 files. So one can tell them apart without the sound."""
    clips = []
    for number in range(6):
        real, fake = tmp_path / f"real{number}.wav", tmp_path / f"fake{number}.mp3"
        real.write_bytes(encode(speech_like(2 + 0.1 * number, number)))
        fake.write_bytes(encode(speech_like(1 + 0.1 * number, 10 + number), "mp3"))
        clips += [Clip(real, "bonafide", "ann"), Clip(fake, "spoof", "ann" if number else "", "vocoder")]
    write_manifest(tmp_path / "manifest.csv", clips)
    return tmp_path / "manifest.csv"


def test_check_shows_the_shortcuts(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", str(corpus), "--out", str(tmp_path / "check")])
    result = json.loads((tmp_path / "check" / "check.json").read_text())
    assert result["leaks"]["codec"]["auc"] == result["leaks"]["duration_seconds"]["auc"] == 1
    assert result["leaks"]["sample_rate"]["auc"] == 0.5
    codec = result["leaks"]["codec"]
    assert (codec["bonafide"], codec["spoof"], codec["verdict"]) == ({"pcm_s16le": 1}, {"mp3float": 1}, "leaks badly")
    assert codec["chance"] < 1 and result["leaks"]["sample_rate"]["verdict"] == "no leak"
    assert result["leaks"]["duration_seconds"]["bonafide"] == pytest.approx([2.125, 2.25, 2.375], abs=0.01)
    assert result["speakers_in_both_classes"] == ["ann"] and result["without_speaker"] == 1
    assert result["classes"]["spoof"]["generators"] == 1
    assert (tmp_path / "check" / "check.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert re.search(r"codec +1\.00 +leaks badly +bonafide +pcm_s16le 100 %\n +spoof +mp3float 100 %\n", printed)
    assert re.search(r"duration_seconds +1\.00 +leaks badly +bonafide +2\.1 +2\.2 +2\.4\n", printed)


def test_check_finds_missing_unreadable_and_repeated_files(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = read_manifest(corpus)
    sound = speech_like(2, 0)
    (tmp_path / "copy.flac").write_bytes(encode(sound, "flac"))
    (tmp_path / "broken.wav").write_bytes(b"no sound in here" * 50)
    clips += [Clip(tmp_path / name, "spoof", "bob") for name in ("copy.flac", "broken.wav", "gone.wav")]
    write_manifest(corpus, clips)
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(corpus), "--out", str(tmp_path / "check")])
    assert stopped.value.code == 1
    result = json.loads((tmp_path / "check" / "check.json").read_text())
    assert result["missing"] == ["gone.wav"]
    assert [entry.split(":")[0] for entry in result["unreadable"]] == ["broken.wav"]
    # The two files have the same samples, one as WAV and one as FLAC.
    assert result["duplicated_in_both_classes"] == [["real0.wav", "copy.flac"]]
    assert "missing: 1 (gone.wav)\n" in capsys.readouterr().out


@pytest.mark.parametrize("lost", ["spoof", "all"])
def test_files_of_a_class_that_cannot_be_read_at_all_are_named(lost: str, corpus: Path, tmp_path: Path) -> None:
    rows = ["path,label"]
    rows += [f"{'lost/' * (lost == 'all')}real{number}.wav,real" for number in range(2)]
    rows += [rf"fakes\{number}.wav,fake" for number in range(6)]
    corpus.write_text("\n".join(rows))
    with pytest.raises(
        CorpusError, match=r"of 8 files cannot be read: .*\.wav: missing.* more\. Write / between folders"
    ):
        main(["check", str(corpus)])


def test_a_clip_of_a_few_frames_is_measured(tmp_path: Path) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(900).astype(np.float32)
    (tmp_path / "short.aac").write_bytes(encode(noise, "aac"))
    traits = measure(tmp_path / "short.aac")
    assert isinstance(traits, Traits)
    assert (traits.codec, traits.sample_rate) == ("aac", 16_000)


def test_of_many_codecs_the_commonest_are_shown_and_the_rest_counted(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips = read_manifest(corpus)
    for number, name in enumerate(("aac", "flac", "flac", "m4a", "ogg", "wav")):
        path = tmp_path / f"more{number}.{name}"
        path.write_bytes(encode(speech_like(1, 20 + number), name))
        clips.append(Clip(path, "spoof", "bob", "vocoder"))
    write_manifest(corpus, clips)
    main(["check", str(corpus), "--out", str(tmp_path / "check")])
    assert re.search(r"spoof +mp3float 50 %, aac 17 %, flac 17 %, 2 more 17 %\n", capsys.readouterr().out)
    codecs = json.loads((tmp_path / "check" / "check.json").read_text())["leaks"]["codec"]["spoof"]
    assert len(codecs) == 5 and sum(codecs.values()) == pytest.approx(1)


def test_build_writes_the_manifest_of_a_corpus_that_is_there(tmp_path: Path) -> None:
    for name in ("real/ann/a.wav", "fake/vits/b.wav"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    main(["build", "--kind", "folder", str(tmp_path), "--out", str(tmp_path / "manifest.csv")])
    speakers = {clip.label: clip.speaker for clip in read_manifest(tmp_path / "manifest.csv")}
    assert speakers == {"bonafide": "ann", "spoof": ""}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["FOLDER", "--out=OUT"], "needs --kind"),
        (["--split=dev", "--out=OUT"], "--split and --mirror are for --part demo-pages"),
        (["--part=packages", "--mirror=FOLDER"], "--split and --mirror are for --part demo-pages"),
        (["FOLDER", "--kind=folder", "--mirror=FOLDER", "--out=OUT"], "--part and --mirror are for the starter corpus"),
        (["FOLDER", "--kind=folder", "--part=packages", "--out=OUT"], "--part and --mirror are for the starter corpus"),
        (["FOLDER", "--kind=folder", "--out=FOLDER"], "name a file in it, such as manifest.csv"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    arguments: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("real/ann/a.wav", "fake/vits/b.wav"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    places = {"FOLDER": str(tmp_path), "OUT": str(tmp_path / "out")}
    with pytest.raises(SystemExit):
        main(["build", *(re.sub("FOLDER|OUT", lambda found: places[found[0]], one) for one in arguments)])
    assert named in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_of_a_corpus_that_is_there_only_a_split_is_taken_where_one_is_named(corpus: Path, tmp_path: Path) -> None:
    clips = read_manifest(corpus)
    splits = [replace(clip, split="dev" if number < 5 else "check") for number, clip in enumerate(clips)]
    write_manifest(corpus, splits)
    main(["build", str(corpus), "--kind=manifest", "--split=dev", f"--out={tmp_path / 'dev.csv'}"])
    assert read_manifest(tmp_path / "dev.csv") == splits[:5]


@pytest.mark.parametrize("verb", ["check", "build"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(verb: str, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    kind = ["--kind=manifest"] if verb == "build" else []
    with pytest.raises(MissingInput, match="Choose another --out"):
        main([verb, str(corpus), *kind, f"--out={tmp_path / 'file' / 'out'}"])


def test_a_plain_folder_is_checked_as_it_is(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("Real", "fake"):
        (tmp_path / "plain" / folder).mkdir(parents=True)
    for number in range(8):
        (tmp_path / "plain" / "Real" / f"{number}.wav").write_bytes(encode(speech_like(1, 2 * number)))
        (tmp_path / "plain" / "fake" / f"{number}.wav").write_bytes(encode(speech_like(1, 2 * number + 1)))
    main(["check", str(tmp_path / "plain")])
    printed, then = capsys.readouterr()
    assert f"next: python -m tune.train --manifest {tmp_path / 'plain'}" in then
    assert "without speaker: 16 (without a site, too, each counts as a separate speaker" in printed
    assert "No trait gives the label away" in printed and "leaks" not in printed
    with pytest.raises(CorpusError, match="no audio in folders real and fake"):
        main(["check", str(tmp_path / "plain" / "fake")])
    with pytest.raises(CorpusError, match=r"there is no .*gone"):
        main(["check", str(tmp_path / "gone")])


def test_duplicates_are_named_by_their_path_and_another_layout_is_built_before_it_is_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("real/ann/0.wav", "real/bob/0.wav", "fake/vits/0.wav", "fake/vits/1.wav")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encode(speech_like(1, max(number, 1))))
    main(["check", str(tmp_path), "--kind", "folder"])
    printed, then = capsys.readouterr()
    assert "duplicated: 1 (real/ann/0.wav = real/bob/0.wav)" in printed
    assert f"next: python -m tune.corpus build {tmp_path} --kind folder --out" in then


def test_a_command_without_a_verb_checks_a_corpus_that_is_named_and_else_builds(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--kind", "manifest", str(corpus)])
    checked = capsys.readouterr().out
    main(["check", "--kind", "manifest", str(corpus)])
    assert "codec" in checked and capsys.readouterr().out == checked
    # What an option takes is no corpus. No arguments at all build the starter corpus, too, for minutes.
    with pytest.raises(SystemExit):
        main(["--out", str(corpus), "--mirror", str(corpus)])
    assert "--mirror are for --part demo-pages" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--kind", "folder"])
    assert "--kind needs the PATH of the corpus" in capsys.readouterr().err


def test_only_a_trait_that_tells_more_than_chance_leaks() -> None:
    rng = np.random.default_rng(0)

    def verdicts(count: int, shift: float) -> dict[str, str]:
        good = []
        for number in range(count):
            spoof = number % 2 == 1
            traits = Traits(str(number), 3.0, rng.normal() + shift * spoof, 20.0, 8000.0, 16_000, "flac")
            good.append((Clip(Path(str(number)), "spoof" if spoof else "bonafide"), traits))
        return {trait: row["verdict"] for trait, row in leaks(good).items()}

    assert set(verdicts(400, 0).values()) == {"no leak"}
    assert [verdicts(1200, shift)["level_db"] for shift in (0.35, 0.9, 2)] == ["leaks a bit", "leaks", "leaks badly"]
    # With twelve clips, a difference of this size is found by chance.
    assert verdicts(12, 0.1)["level_db"] == "no leak"


def test_the_axis_of_a_trait_that_all_clips_share_can_be_read() -> None:
    labels = np.arange(6) % 2 == 0
    figure = plot_corpus(labels, {"bandwidth_hz": [8_000.0] * 6, "level_db": np.linspace(-30, -20, 6).tolist()})
    figure.canvas.draw()
    shown = figure.axes[0].xaxis
    assert shown.get_offset_text().get_text() == ""
    ticks = [float(tick.get_text()) for tick in shown.get_ticklabels()]
    assert min(ticks) < 8_000 < max(ticks) and len(set(ticks)) == len(ticks)
