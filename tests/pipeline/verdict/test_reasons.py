"""The reasons and warnings of an answer are defined in one place. docs/verdict.md has the same words and sentences."""

from __future__ import annotations

import pytest

from pipeline.config import ROOT
from pipeline.verdict.reasons import AnswerWarning, Reason, Word, sentences

DOCS = (ROOT / "docs" / "verdict.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("words", "heading"), [(Reason, "## Reasons"), (AnswerWarning, "## Warnings")])
def test_the_docs_have_each_word_with_its_sentence_and_no_other(words: type[Word], heading: str) -> None:
    section = DOCS.split(f"{heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{word}` | {sentence} |" for word, sentence in sentences(words).items()]


def test_a_word_is_the_string_of_the_contract() -> None:
    assert Reason.TOO_SHORT.value == str(Reason.TOO_SHORT) == "too_short"
    assert Reason("too_short") is Reason.TOO_SHORT
