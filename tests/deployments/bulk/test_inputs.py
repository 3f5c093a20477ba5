"""Finding the files to score."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deployments.bulk.inputs import File, Opener, find_files, unambiguous
from deployments.bulk.scoring import BLOCK_BYTES, BLOCK_FILES, cut
from pipeline.errors import MissingInput
from pipeline.storage import locate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "calls" / "monday").mkdir(parents=True)
    (tmp_path / "calls" / ".cache").mkdir()
    for name, size in (("a.wav", 3), ("monday/b.wav", 5), (".hidden", 9), (".cache/c.wav", 9)):
        (tmp_path / "calls" / name).write_bytes(b"x" * size)
    return tmp_path / "calls"


def test_a_folder_is_searched_to_its_end_and_hidden_files_are_not_in_it(folder: Path) -> None:
    assert [(file.name, file.size) for file in find_files(str(folder))] == [("monday/b.wav", 5), ("a.wav", 3)]


def test_a_file_whose_name_is_not_utf_8_is_found_but_cannot_be_opened(folder: Path) -> None:
    (folder / os.fsdecode(b"monday\xfe")).mkdir()
    for name in (b"\xff.wav", b"monday\xfe/c.wav", b".\xff.wav"):
        (folder / os.fsdecode(name)).write_bytes(b"x")
    found = find_files(str(folder))
    assert [file.name for file in found] == ["monday/b.wav", "a.wav", "\\xff.wav", "monday\\xfe/c.wav"]
    for file in found[2:]:
        with pytest.raises(OSError, match="No such file"):
            Opener(str(folder)).open(file.place)


def test_lists_name_files_relative_to_themselves_and_each_once(folder: Path, tmp_path: Path) -> None:
    names = ["calls/a.wav", str(folder / "monday" / "b.wav"), "calls/a.wav", "gone.wav"]
    (tmp_path / "list.csv").write_text("\ufeffpath,label\n" + "".join(f"{name},real\n" for name in names))
    pq.write_table(pa.table({"path": names}), tmp_path / "list.parquet")
    for listing in ("list.csv", "list.parquet"):
        found = find_files(str(tmp_path / listing))
        assert sorted(file.name for file in found) == sorted(set(names))
        contents = {}
        for file in found:
            if file.name != "gone.wav":
                with Opener(str(tmp_path / listing)).open(file.place) as stream:
                    contents[file.name] = stream.read()
        assert contents == {names[0]: b"xxx", names[1]: b"xxxxx"}


def test_a_file_that_was_replaced_has_another_version(folder: Path, tmp_path: Path) -> None:
    names = ["calls/a.wav", (folder / "monday" / "b.wav").as_uri(), "gone.wav", "nosuch://x/y.wav", "calls", "\0"]
    pq.write_table(pa.table({"path": names}), tmp_path / "list.parquet")

    def versions(place: Path) -> dict[str, str | None]:
        return {file.name: file.version for file in find_files(str(place))}

    listed, found = versions(tmp_path / "list.parquet"), versions(folder)
    assert list(listed.values()) == [found["monday/b.wav"], found["a.wav"], None, None, None, None]
    assert versions(folder) == found
    (folder / "a.wav").write_bytes(b"four")
    later = folder / "monday" / "b.wav"
    os.utime(later, ns=(0, later.stat().st_mtime_ns + 1))
    for place, before in ((folder, found), (tmp_path / "list.parquet", listed)):
        after = versions(place)
        assert [name for name in before if before[name] != after[name]] == list(before)[:2]


def test_a_place_has_one_name_without_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("calls", "./calls/", tmp_path / "calls", f"file://{tmp_path}/calls/"):
        assert unambiguous(str(place)) == str(tmp_path / "calls")
    assert unambiguous("s3://key:secret@bucket/calls/?region=eu-west-1") == "s3://bucket/calls"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("list.csv", b"file,label\na.wav,real\n", "The manifest list.csv has no column `path`."),
        ("list.csv", b"path\n", "There is no file at"),
        ("list.csv", b"path\n\xff.wav\n", "The manifest list.csv is not in UTF-8"),
        ("list.parquet", b"no table", "is not a Parquet table with a column `path`."),
        ("a.wav", b"RIFF", "is one file"),
    ],
)
def test_what_lists_no_files_is_told_in_a_sentence(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MissingInput, match=sentence):
        find_files(str(tmp_path / name))


def test_a_place_that_is_not_there_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="There is nothing at"):
        find_files(str(tmp_path / "gone"))
    with pytest.raises(MissingInput, match="cannot be reached"):
        locate("nosuch://bucket/calls")


def test_a_bucket_that_cannot_be_reached_is_told_in_a_sentence(dead_port: int) -> None:
    address = f"s3://key:secret@calls/in?endpoint_override=127.0.0.1:{dead_port}&scheme=http&region=us-east-1"
    with pytest.raises(MissingInput, match="calls/in cannot be read: check address") as raised:
        find_files(address)
    assert "secret" not in raised.value.detail


def test_blocks_are_small_and_hold_every_file_once() -> None:
    files = [File("long", "long", 5 * BLOCK_BYTES), *(File(str(i), str(i), BLOCK_BYTES // 4) for i in range(10))]
    files += [File(f"unknown{i}", "", 0) for i in range(2 * BLOCK_FILES)]
    blocks = cut(files)
    assert [file for block in blocks for file in block] == files
    assert blocks[0] == files[:1] and max(map(len, blocks)) == BLOCK_FILES
    assert all(len(block) == 1 or sum(file.size for file in block) <= BLOCK_BYTES for block in blocks)
