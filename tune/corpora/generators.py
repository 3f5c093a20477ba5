"""The family and the year of each generator, from `configs/generators.csv`."""

from __future__ import annotations

import csv
import re
from functools import cache
from typing import NamedTuple

from pipeline.config import ROOT

GENERATORS = ROOT / "configs" / "generators.csv"
FAMILIES = ("vocoder", "codec", "conversion", "TTS", "codec language model")


class Generator(NamedTuple):
    """The family and year of a generator. `family` is one of FAMILIES; `year` is the year of the newest part in the
    generator's name. Both are empty if unknown.

    A codec language model predicts tokens of speech. TTS is every other synthesis from text.
    """

    family: str = ""
    year: str = ""


def plain_name(generator: str) -> str:
    """The name without case, spaces, hyphens and dots, which people write in different ways."""
    return re.sub(r"[^\w+]|_", "", generator.lower())


def look_up(generator: str) -> Generator:
    """The family and year of the generator with this name; empty if the table does not list it."""
    return _table().get(plain_name(generator), Generator())


@cache
def _table() -> dict[str, Generator]:
    with GENERATORS.open(newline="", encoding="utf-8") as file:
        return {plain_name(row["generator"]): Generator(row["family"], row["year"]) for row in csv.DictReader(file)}
