"""Corpora and results on an object store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from pipeline.errors import MissingInput
from tests.bucket import object_store
from tune import places
from tune.errors import CorpusError
from tune.places import beside, fetched, local_folder, make_writable

Place = Callable[[str], str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with object_store(tmp_path_factory.mktemp("store")) as place:
        yield place


def put(place: Place, files: dict[str, bytes]) -> None:
    bucket, _ = FileSystem.from_uri(place("corpus"))
    bucket.create_dir("corpus")
    for name, content in files.items():
        with bucket.open_output_stream(f"corpus/{name}") as file:
            file.write(content)


def test_a_manifest_comes_with_its_folder_and_only_once(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(place, {"mine/manifest.csv": b"path,label", "mine/a/1.wav": b"one", "other/2.wav": b"two"})
    manifest = fetched(place("corpus/mine/manifest.csv"))
    assert manifest.read_bytes() == b"path,label"
    assert (manifest.parent / "a" / "1.wav").read_bytes() == b"one"
    assert len([path for path in manifest.parent.rglob("*") if path.is_file()]) == 2
    before = (manifest.parent / "a" / "1.wav").stat().st_mtime_ns
    put(place, {"mine/a/3.wav": b"three"})
    assert fetched(place("corpus/mine/manifest.csv")) == manifest
    assert (manifest.parent / "a" / "1.wav").stat().st_mtime_ns == before
    assert (manifest.parent / "a" / "3.wav").read_bytes() == b"three"
    assert (fetched(place("corpus/mine")) / "manifest.csv").is_file()


def test_results_go_to_the_store_and_go_on_from_there(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for machine in ("first", "other"):  # words of one length, so that a file of the same size is copied, too
        (tmp_path / machine).mkdir()
        monkeypatch.chdir(tmp_path / machine)
        with local_folder(place("corpus/runs/grid")) as folder:
            assert (folder / "scores" / "0.npz").exists() == (machine == "other")
            (folder / "scores").mkdir(parents=True, exist_ok=True)
            (folder / "scores" / "0.npz").write_bytes(machine.encode())
    bucket, _ = FileSystem.from_uri(place("corpus"))
    with bucket.open_input_stream("corpus/runs/grid/scores/0.npz") as file:
        assert file.read() == b"other"
    with local_folder(place("corpus/features/grid")) as another:
        assert another != folder and another.name == folder.name
    output = capsys.readouterr().err
    assert f"copied {folder} to s3://corpus/runs/grid" in output and "secret" not in output


def test_what_was_done_before_an_error_goes_to_the_store(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    put(place, {})
    for error in (CorpusError("a trial failed"), KeyboardInterrupt(), SystemExit(15)):
        with pytest.raises(type(error)), local_folder(place("corpus/runs/failed")) as folder:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / type(error).__name__).touch()
            raise error
    bucket, _ = FileSystem.from_uri(place("corpus"))
    found = {info.base_name for info in bucket.get_file_info(FileSelector("corpus/runs/failed"))}
    assert found == {"CorpusError", "KeyboardInterrupt", "SystemExit"}


def test_an_error_of_the_work_is_not_hidden_by_one_of_the_store(
    dead_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(places, "locate", lambda _: (BrokenStore(), "corpus/runs/failed"))
    with pytest.raises(CorpusError, match="a trial failed"), local_folder("s3://corpus/runs/failed") as folder:
        make_writable(folder)
        (folder / "scores").touch()
        raise CorpusError("a trial failed")


class BrokenStore:
    """A store that can be read, but not written."""

    def get_file_info(self, what: str | FileSelector) -> FileInfo | list[FileInfo]:
        return [] if isinstance(what, FileSelector) else FileInfo(what, FileType.NotFound)

    def create_dir(self, *_: object, **__: object) -> None:
        raise OSError("no right to write")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (
            "s3://key:secret@bucket/runs/mine/?region=x&scheme=http",
            "s3://key:secret@bucket/runs/mine-held-out?region=x&scheme=http",
        ),
        ("gs://bucket/mine", "gs://bucket/mine-held-out"),
        (".", f"{Path.cwd()}-held-out"),
        ("runs/mine/", f"{Path.cwd()}/runs/mine-held-out"),
    ],
)
def test_a_place_beside_another_has_its_name_with_an_ending(place: str, expected: str) -> None:
    assert beside(place, "-held-out") == expected


def test_what_is_on_this_disk_stays_where_it_is(tmp_path: Path) -> None:
    assert fetched(str(tmp_path)) == tmp_path
    with local_folder(str(tmp_path / "out")) as folder:
        assert folder == tmp_path / "out"


@pytest.mark.parametrize("missing", ["corpus/none", "corpus/none/manifest.csv"])
def test_what_is_not_there_is_told(place: Place, missing: str) -> None:
    put(place, {})
    with pytest.raises(MissingInput, match="There is nothing at s3://corpus/none"):
        fetched(place(missing))


def test_a_store_that_cannot_be_reached_is_told_in_a_sentence(dead_port: int) -> None:
    query = f"endpoint_override=127.0.0.1:{dead_port}&scheme=http&region=us-east-1"
    with pytest.raises(MissingInput, match="s3://corpus/mine cannot be r") as caught:
        fetched(f"s3://key:secret@corpus/mine?{query}")
    assert "secret" not in caught.value.detail


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    make_writable(tmp_path / "runs" / "mine")
    make_writable(tmp_path / "runs" / "mine")
    assert not list((tmp_path / "runs" / "mine").iterdir())
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "mine"):
        with pytest.raises(MissingInput, match=r"cannot be written: .* Choose another --out"):
            make_writable(folder)
