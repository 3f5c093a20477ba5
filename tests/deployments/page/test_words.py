"""The page takes the meanings of results, reasons and warnings from /info, so that they are written only once."""

from __future__ import annotations

from pipeline.config import ROOT
from pipeline.verdict.answer import MEANINGS
from pipeline.verdict.reasons import AnswerWarning, Reason

PAGE = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "deployments" / "page").glob("*.js"))


def test_the_page_names_no_reason_and_no_warning() -> None:
    assert not [word for word in (*Reason, *AnswerWarning) if word in PAGE or word.sentence in PAGE]
    assert "info.reasons" in PAGE and "info.warnings" in PAGE


def test_the_page_explains_no_result_by_itself() -> None:
    assert not [sentence for sentence in MEANINGS.values() if sentence in PAGE]
    assert "info.meanings" in PAGE
