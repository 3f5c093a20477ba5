"""The options of the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.bulk.__main__ import main


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--actors", "-1", "-1 is too small: give at least 1"),
        ("--actors", "0", "0 is too small: give at least 1"),
        ("--actors", "two", "invalid"),
        ("--gpu", "-0.5", "-0.5 is no share: give a number from 0 to 1"),
        ("--gpu", "2", "2 is no share"),
        ("--gpu", "nan", "nan is no share"),
        ("--gpu", "0.33333", "with at most four decimals"),
    ],
)
def test_a_number_out_of_range_is_told_with_its_option(
    option: str, value: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["calls", "--out", "v.csv", f"{option}={value}"])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"argument {option}: " in said and sentence in said


@pytest.mark.parametrize(
    "address", ["nonsense", "127.0.0.1:99999", "http://127.0.0.1:8265", "nosuch://127.0.0.1:1", "a b:1"]
)
@pytest.mark.parametrize("by", ["option", "variable"])
def test_what_is_no_address_is_told_in_a_sentence(
    address: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    options = [str(tmp_path), "--out", str(tmp_path / "v.csv")]
    if by == "option":
        options += ["--address", address]
    else:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert main(options) == 2
    assert f"{address!r} is no address of a Ray cluster: write HOST:PORT, or auto." in capsys.readouterr().err
