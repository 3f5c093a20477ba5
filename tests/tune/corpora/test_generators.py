from __future__ import annotations

import csv
import re

from pipeline.config import ROOT
from tune.corpora.generators import FAMILIES, GENERATORS, Generator, look_up, plain_name
from tune.corpora.manifest import read_manifest


def test_one_name_however_it_is_spelt() -> None:
    for names in (
        ("CosyVoice 2", "cosyvoice2"),
        ("EnCodec", "Encodec"),
        ("FastSpeech 2 + HiFi-GAN", "FastSpeech2+HiFi-GAN"),
    ):
        assert len({plain_name(name) for name in names}) == 1
    assert plain_name("HiFi-GAN-V1") != plain_name("HiFi-GAN") and plain_name("VITS") != plain_name("VITS2")


def test_what_is_known_of_a_generator() -> None:
    assert look_up("HiFi-GAN") == look_up("hifigan") == Generator("vocoder", "2020")
    assert look_up("CosyVoice 2").family == "codec language model"
    assert look_up("") == look_up("none that anybody knows") == Generator()


def test_the_table_is_whole() -> None:
    with GENERATORS.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["generator", "family", "year"]
    assert {row["family"] for row in rows} == {*FAMILIES, ""}
    assert all(re.fullmatch(r"(20[12]\d)?", row["year"]) for row in rows)
    known: dict[str, set[tuple[str, str]]] = {}
    for row in rows:
        known.setdefault(plain_name(row["generator"]), set()).add((row["family"], row["year"]))
    assert all(len(entries) == 1 for entries in known.values()), "the table contradicts itself"
    developed_on = [clip for clip in read_manifest(ROOT / "configs" / "demo-pages.csv") if clip.split == "dev"]
    missing = {clip.generator for clip in developed_on if clip.is_spoof and plain_name(clip.generator) not in known}
    assert not missing
