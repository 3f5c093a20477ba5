"""Each reader reads a small folder that is laid out like its corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from tune.corpora.readers import READERS, read_corpus
from tune.errors import CorpusError


def grow(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_in_the_wild(tmp_path: Path) -> None:
    root = grow(tmp_path, "0.wav", "1.wav")
    (root / "meta.csv").write_text("file,speaker,label\n0.wav,Alan Watts,spoof\n1.wav,Bill,bona-fide\n")
    first, second = read_corpus("in-the-wild", root)
    assert (first.path, first.label, first.speaker) == (root / "0.wav", "spoof", "Alan Watts")
    assert (second.label, second.speaker) == ("bonafide", "Bill")


@pytest.mark.parametrize(
    ("protocol", "line", "audio", "expected"),
    [
        (
            "ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.train.trn.txt",
            "LA_0079 LA_T_1 - A04 spoof",
            "ASVspoof2019_LA_train/flac/LA_T_1.flac",
            ("LA_0079", "A04", "spoof"),
        ),
        (
            "keys/LA/CM/trial_metadata.txt",
            "LA_0009 LA_E_9 alaw ita_tx A07 spoof notrim eval",
            "ASVspoof2021_LA_eval/flac/LA_E_9.flac",
            ("LA_0009", "A07", "spoof"),
        ),
        (
            "keys/DF/CM/trial_metadata.txt",
            "LA_0023 DF_E_2 nocodec asvspoof - bonafide notrim progress bonafide - - - -",
            "ASVspoof2021_DF_eval/flac/DF_E_2.flac",
            ("LA_0023", "", "bonafide"),
        ),
        (
            "ASVspoof5.train.tsv",
            "T_4850 T_0000000000 F - - - AC3 A05 spoof -",
            "flac_T/T_0000000000.flac",
            ("T_4850", "A05", "spoof"),
        ),
    ],
)
def test_asvspoof(tmp_path: Path, protocol: str, line: str, audio: str, expected: tuple[str, str, str]) -> None:
    grow(tmp_path, protocol, audio)
    (tmp_path / protocol).write_text(line + "\n")
    (clip,) = read_corpus("asvspoof", tmp_path)
    assert (clip.speaker, clip.generator, clip.label) == expected
    assert clip.path == tmp_path / audio


def test_asvspoof_as_it_is_distributed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The lists without labels, the protocols of speaker verification, and PA lie in the same tree."""
    protocols = {
        "LA/ASVspoof2019_LA_cm_protocols/ASVspoof2019.LA.cm.eval.trl.txt": "LA_0039 LA_E_1 - A11 spoof",
        "LA/ASVspoof2019_LA_asv_protocols/ASVspoof2019.LA.asv.eval.gi.trl.txt": "LA_0001 LA_E_2 bonafide target",
        "ASVspoof2021_LA_eval/ASVspoof2021.LA.cm.eval.trl.txt": "LA_E_9",
        "keys/LA/CM/trial_metadata.txt": "LA_0009 LA_E_9 alaw ita_tx A07 spoof notrim eval",
        "keys/LA/ASV/trial_metadata.txt": "LA_0007-alaw-ita_tx LA_E_5 alaw ita_tx bonafide nontarget notrim eval",
        "ASVspoof2021_DF_eval/ASVspoof2021.DF.cm.eval.trl.txt": "DF_E_2",
        "keys/DF/CM/trial_metadata.txt": "LA_0023 DF_E_2 low_mp3 asvspoof A09 spoof notrim eval vocoder - - - -",
        "keys/PA/CM/trial_metadata.txt": "PA_0010 PA_E_3 r1 m1 s4 c4 d1 r1 spoof spoof notrim eval",
        "ASVspoof5.train.tsv": "T_4850 T_0000000000 F - - - AC3 A05 spoof -",
        "ASVspoof5.eval.track_1.tsv": "E_1607 E_0000000001 F C01 2 E_0000000009 AC1 A17 spoof -",
        "ASVspoof5.eval.track_2.enroll.tsv": "E_1607\tE_A0000000001,E_A0000000002",
        "ASVspoof5.eval.track_2.trial.tsv": "E_1607 E_0009538969 F spoof A18",
    }
    grow(tmp_path, *protocols)
    for name, line in protocols.items():
        (tmp_path / name).write_text(f"{line}\n")
    clips = read_corpus("asvspoof", tmp_path)
    assert {clip.path.stem for clip in clips} == {"LA_E_1", "LA_E_9", "DF_E_2", "T_0000000000", "E_0000000001"}
    assert all(clip.is_spoof for clip in clips) and len(clips) == 5
    assert capsys.readouterr().err.startswith("left out: keys/PA/CM/trial_metadata.txt: ASVspoof 2021 PA is not read")


def test_asvspoof_2021_without_its_keys_says_so(tmp_path: Path) -> None:
    grow(tmp_path, "ASVspoof2021.LA.cm.eval.trl.txt")
    (tmp_path / "ASVspoof2021.LA.cm.eval.trl.txt").write_text("LA_E_9\n")
    with pytest.raises(CorpusError, match=r"no ASVspoof protocol with labels: .* download the keys"):
        read_corpus("asvspoof", tmp_path)


def test_a_bad_protocol_line_is_named(tmp_path: Path) -> None:
    grow(tmp_path, "a.cm.b.txt")
    (tmp_path / "a.cm.b.txt").write_text("LA_0079 LA_T_1 - A04 spoof\nwhat is this\n")
    with pytest.raises(CorpusError, match="line 2"):
        read_corpus("asvspoof", tmp_path)


def test_wavefake_pairs_an_utterance_with_its_copies(tmp_path: Path) -> None:
    grow(
        tmp_path,
        "LJSpeech-1.1/wavs/LJ001-0001.wav",
        "generated_audio/ljspeech_hifiGAN/LJ001-0001_gen.wav",
        "generated_audio/jsut_parallel_wavegan/BASIC5000_0001_gen.wav",
        "generated_audio/common_voices_prompts_from_conformer_fastspeech2_pwg_ljspeech/gen_1.wav",
    )
    clips = {clip.path.parent.name: clip for clip in read_corpus("wavefake", tmp_path)}
    real, copy = clips["wavs"], clips["ljspeech_hifiGAN"]
    assert real.label == "bonafide" and copy.label == "spoof" and copy.generator == "hifigan"
    assert real.pair_id == copy.pair_id and real.speaker == copy.speaker == "LJ"
    assert clips["jsut_parallel_wavegan"].language == "ja"
    prompted = clips["common_voices_prompts_from_conformer_fastspeech2_pwg_ljspeech"]
    assert prompted.label == "spoof" and not prompted.pair_id


def test_mlaad_beside_m_ailabs(tmp_path: Path) -> None:
    grow(
        tmp_path,
        "fake/de/tts_models_de_thorsten_vits/a.wav",
        "real/de/by_book/male/karlsson/some_book/wavs/b.wav",
    )
    fake, real = read_corpus("mlaad", tmp_path)
    assert (fake.label, fake.generator, fake.language) == ("spoof", "tts_models_de_thorsten_vits", "de")
    assert (real.label, real.speaker, real.language) == ("bonafide", "karlsson", "de")


def test_plain_folder(tmp_path: Path) -> None:
    grow(tmp_path, "real/ann/a.wav", "real/b.mp3", "fake/vits/ann/c.flac", "fake/d.OGG", "fake/notes.txt")
    found = {clip.path.stem: (clip.label, clip.speaker, clip.generator) for clip in read_corpus("folder", tmp_path)}
    assert found == {
        "a": ("bonafide", "ann", ""),
        "b": ("bonafide", "", ""),
        "c": ("spoof", "ann", "vits"),
        "d": ("spoof", "", ""),
    }


def test_a_speaker_who_is_read_as_a_generator_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grow(tmp_path, "real/ann/a.wav", "real/bob/b.wav", "fake/vits/ann/c.wav", "fake/d.wav")
    read_corpus("folder", tmp_path)
    assert capsys.readouterr().err == ""
    grow(tmp_path, "fake/ann/e.wav")
    read_corpus("folder", tmp_path)
    assert capsys.readouterr().err.startswith("warning: ann: the same folder name")


def test_a_folder_holds_every_kind_of_recording_but_nothing_hidden(tmp_path: Path) -> None:
    grow(tmp_path, "real/a.wav", "real/b.WAVE", "fake/c.m4v", "fake/d.aifc", "fake/e.rf64", "real/.trash/f.wav")
    (tmp_path / "real" / "._a.wav").write_bytes(b"\0\5\x16\7 what macOS keeps beside a file on other disks")
    (tmp_path / "real" / "takes.wav").mkdir()
    assert [clip.listed for clip in read_corpus("folder", tmp_path)] == [
        "fake/c.m4v",
        "fake/d.aifc",
        "fake/e.rf64",
        "real/a.wav",
        "real/b.WAVE",
    ]


@pytest.mark.parametrize("kind", sorted(set(READERS) - {"manifest"}))
def test_a_tree_of_another_layout_is_an_error(tmp_path: Path, kind: str) -> None:
    with pytest.raises(CorpusError):
        read_corpus(kind, grow(tmp_path / "corpus", "readme.txt"))
    for absent in ("absent", "a" * 300):
        with pytest.raises(CorpusError, match="there is no"):
            read_corpus(kind, tmp_path / absent)


def test_without_a_kind_a_file_is_a_manifest_and_a_folder_what_it_holds(tmp_path: Path) -> None:
    plain = grow(tmp_path / "plain", "Real/a.wav", "fake/vits/b.mp3", "fake/c.wav", "notes/d.wav", "real/notes.txt")
    clips = read_corpus(None, plain)
    assert [(clip.listed, clip.label, clip.generator) for clip in clips] == [
        ("Real/a.wav", "bonafide", ""),
        ("fake/c.wav", "spoof", ""),
        ("fake/vits/b.mp3", "spoof", "vits"),
    ]
    (plain / "manifest.csv").write_text("path,label\nnotes/d.wav,real\n")
    assert read_corpus(None, plain) == read_corpus(None, plain / "manifest.csv")
    with pytest.raises(CorpusError, match=r"there is no .*gone\.csv"):
        read_corpus(None, tmp_path / "gone.csv")
    with pytest.raises(CorpusError, match="is a file: a corpus in the layout of kind folder"):
        read_corpus("folder", plain / "manifest.csv")


@pytest.mark.parametrize(("kind", "file"), [("in-the-wild", "meta.csv"), ("asvspoof", "LA.cm.train.txt")])
def test_a_list_that_is_not_text_is_named(tmp_path: Path, kind: str, file: str) -> None:
    (tmp_path / file).write_bytes(b"file,speaker,label\n\xff\xfe,a,spoof\n")
    with pytest.raises(CorpusError, match=f"^{file} cannot be read: it must be a"):
        read_corpus(kind, tmp_path)
