from __future__ import annotations

import os
from pathlib import Path

import pytest

from tune.corpora.manifest import Clip, of_split, read_manifest, require_usable, with_contents, write_manifest
from tune.errors import CorpusError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_relative_paths_either_label_and_empty_columns(tmp_path: Path) -> None:
    manifest = write(
        tmp_path / "m.csv",
        "path,label,speaker,generator,source,language\na.wav,real,ann,,lab,en\nsub/b.wav,Spoof,,vocoder,,\n",
    )
    first, second = read_manifest(manifest)
    assert first == Clip(tmp_path / "a.wav", "bonafide", "ann", "", "lab", "en")
    assert second.path == tmp_path / "sub" / "b.wav"
    assert second.is_spoof and second.generator == "vocoder" and second.speaker == ""


def test_ignores_columns_it_does_not_know_and_a_byte_order_mark(tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.csv", "\ufeffpath,label,licence\na.wav,fake,MIT\n")
    assert read_manifest(manifest)[0].label == "spoof"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("path,lable\na.wav,real\n", "'lable'.*'label'"),
        ("path,label,speker\na.wav,real,ann\n", "'speker'.*'speaker'"),
        ("file,label\na.wav,real\n", "no column 'path'"),
        ("path,label,label\na.wav,real,fake\n", "'label' twice"),
        ("path,label\na.wav,real\nb.wav,human\n", "line 3.*'human'"),
        ("path,label\n,real\n", "line 2: no path"),
        ("path,label\na.wav,real,extra\n", "line 2: more values"),
        ("path,label\n\n\na.wav,real\n\nb.wav,human\n", "line 6.*'human'"),
        ('path,label\na.wav,real\n"b.wav,fake\nc.wav,fake\n', "cannot be read after line 2 .*: close every quote"),
        ('path,label\na.wav,real\n"b.wav,fake\n"c.wav",fake\n', "cannot be read after line 2 .*: close every quote"),
        ("path,label\n", "no rows"),
    ],
)
def test_says_which_column_or_row_is_wrong(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(CorpusError, match=named):
        read_manifest(write(tmp_path / "m.csv", text))


def test_a_manifest_that_is_not_text_or_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(b"\xff\xfe\x00\x01")
    for name in ("m.csv", "absent.csv"):
        with pytest.raises(CorpusError, match=name):
            read_manifest(tmp_path / name)


def test_written_manifest_reads_back(tmp_path: Path) -> None:
    clips = [Clip(tmp_path / "audio" / "a,b.wav", "bonafide", "ann", site="page", pair_id="1")]
    write_manifest(tmp_path / "m.csv", clips)
    assert read_manifest(tmp_path / "m.csv") == clips
    assert str(tmp_path) not in (tmp_path / "m.csv").read_text(encoding="utf-8")


def test_a_file_name_that_is_not_utf8_survives_but_other_text_must_be(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    path.touch()
    write_manifest(tmp_path / "m.csv", [Clip(path, "bonafide")])
    assert b"\ncaf\xe9.wav," in (tmp_path / "m.csv").read_bytes()
    (clip,) = read_manifest(tmp_path / "m.csv")
    assert clip.path.is_file()
    (tmp_path / "m.csv").write_bytes(b"path,label,speaker\na.wav,real,Andr\xe9\n")
    with pytest.raises(CorpusError, match="line 2: speaker is not UTF-8"):
        read_manifest(tmp_path / "m.csv")


def test_missing_files_and_a_missing_class_are_found_before_work_starts(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    there, gone = Clip(tmp_path / "a.wav", "bonafide"), Clip(tmp_path / "b.wav", "spoof")
    with pytest.raises(CorpusError, match=r"1 of 2 files are missing: b\.wav"):
        require_usable([there, gone])
    with pytest.raises(CorpusError, match="no spoof clip"):
        require_usable([there])


def test_a_name_that_is_too_long_is_that_of_a_missing_file(tmp_path: Path) -> None:
    name = f"{'a' * 300}.wav"
    with pytest.raises(CorpusError, match=f"1 of 1 files are missing: {name}"):
        require_usable(read_manifest(write(tmp_path / "m.csv", f"path,label\n{name},real\n")))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "b.wav").mkdir()  # stands for a file without the right to read it: root may read every file
    clips = [Clip(tmp_path / name, "bonafide") for name in ("a.wav", "b.wav")]
    with pytest.raises(CorpusError, match=r"^1 of 2 files cannot be read: b\.wav \(Is a directory\)\. Allow reading"):
        with_contents(clips)


def test_a_split_is_kept_and_chosen_by(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write(tmp_path / "m.csv", "path,label,split\na.wav,real,dev\nb.wav,fake,check\nc.wav,fake,\n")
    clips = read_manifest(manifest)
    write_manifest(tmp_path / "again.csv", clips)
    assert [clip.split for clip in read_manifest(tmp_path / "again.csv")] == ["dev", "check", ""]
    assert [clip.path.name for clip in of_split(clips, "dev")] == ["a.wav"]
    assert capsys.readouterr().err == ""
    assert of_split(clips, None) == clips
    assert "clips of all splits are taken: none (1), check (1), dev (1)" in capsys.readouterr().err
    with pytest.raises(CorpusError, match=r"split 'test': the column split says none \(1\), check"):
        of_split(clips, "test")
    of_split(clips[:1], None)
    assert capsys.readouterr().err == ""
