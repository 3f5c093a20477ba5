"""What kind of program a generator is, and how old: `configs/generators.csv`."""

from __future__ import annotations

import csv
import re
from functools import cache
from typing import NamedTuple

from pipeline.config import ROOT

GENERATORS = ROOT / "configs" / "generators.csv"
FAMILIES = ("vocoder", "codec", "conversion", "TTS", "codec language model")


class Generator(NamedTuple):
    """`family` is one of FAMILIES, `year` that of the newest part its name tells of; empty where not known.

    A codec language model predicts tokens of speech; TTS is every other synthesis from text.
    """

    family: str = ""
    year: str = ""


def plain_name(generator: str) -> str:
    """The name without what is spelt now this way and now that: case, spaces, hyphens and dots."""
    return re.sub(r"[^\w+]|_", "", generator.lower())


def look_up(generator: str) -> Generator:
    """What is known of a generator by this name; nothing of one that the table does not list."""
    return _table().get(plain_name(generator), Generator())


@cache
def _table() -> dict[str, Generator]:
    with GENERATORS.open(newline="", encoding="utf-8") as file:
        return {plain_name(row["generator"]): Generator(row["family"], row["year"]) for row in csv.DictReader(file)}
