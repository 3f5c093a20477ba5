"""The one model behind the JSON of HTTP and command line, the OpenAPI document and its examples."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.verdict.answer import EXAMPLES, DecidedBy, Detail, Timeline, Verdict
from pipeline.verdict.bundle import Thresholds
from pipeline.verdict.explanation import BANDS, LAYERS, MOMENTS_OF_SPEECH, RECORDINGS, clock
from pipeline.verdict.reasons import AnswerWarning, Reason, Word
from tests.agreement import disagreements

CONTRACT = {
    *("overall", "mean_probability", "max_probability", "min_probability", "confidence", "score", "interval"),
    *("reasons", "details", "speakers", "timeline", "duration_config", "duration_seconds", "speech_seconds"),
    *("original_format", "channels", "decided_by", "file_sha256", "model", "warnings"),
}
"""The fields of every answer, except `filename` and `timestamp`, which the service adds."""


def schema() -> dict[str, Any]:
    return Verdict.model_json_schema(mode="serialization")


def test_the_schema_has_every_field_of_the_contract_and_describes_all_it_has() -> None:
    whole = schema()
    assert set(whole["required"]) == CONTRACT
    assert set(whole["properties"]) == {*CONTRACT, "explanation"}
    parts = [part for part in (whole, *whole["$defs"].values()) if "properties" in part]
    assert len(parts) > 8
    for part in parts:
        assert part["description"], part["title"]
        for name, field in part["properties"].items():
            # A field without a description refers to a type, and has the description of that type.
            described = field if "description" in field else whole["$defs"][field["$ref"].split("/")[-1]]
            assert described["description"].endswith("."), f"{part['title']}.{name}"


def test_a_time_says_its_unit() -> None:
    whole = schema()
    for part in (whole, *whole["$defs"].values()):
        for name, field in part.get("properties", {}).items():
            if name in ("start", "end", "time") or name.endswith("_seconds"):
                assert "in seconds" in field["description"], name


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_survives_strict_json(name: str) -> None:
    example = EXAMPLES[name]
    text = json.dumps(example.model_dump(mode="json"), allow_nan=False)
    assert set(json.loads(text)) == CONTRACT | ({"explanation"} if example.explanation else set())
    assert Verdict.model_validate_json(text).model_dump(mode="json") == json.loads(text)
    assert example.confidence == (
        None if example.mean_probability is None else pytest.approx(abs(2 * example.mean_probability - 1))
    )


def test_there_is_an_example_of_each_status() -> None:
    assert {example.outcome for example in EXAMPLES.values()} == {"success", "no_speech"}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1, 1.1])
def test_what_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(ValidationError):
        Timeline(start=0.0, step_seconds=0.5, probability=(bad,))


def test_numbers_are_rounded_in_json_alone() -> None:
    detail = Detail(speaker=None, start=1 / 3, end=2.0, result="Real", probability=1 / 7, interval=(0, 1 / 3))
    assert detail.probability == 1 / 7
    assert detail.model_dump(mode="json") == {
        "speaker": None,
        "start": 0.3333,
        "end": 2.0,
        "time": "0.3-2.0s",
        "result": "Real",
        "probability": 0.1429,
        "interval": [0.0, 0.3333],
    }


def test_an_explained_example_says_what_the_code_would_say() -> None:
    explanation = EXAMPLES["fake_explained"].explanation
    assert explanation is not None
    (moment,), (band,), (layer,) = explanation.moments, explanation.bands, explanation.layers
    start = f"{clock(moment.start)} to {clock(moment.end)}: speaks for a machine"
    assert moment.sentence == f"{start}, more than in 95 of 100 {MOMENTS_OF_SPEECH}."
    (known,) = (one for one in BANDS if (one.low_hz, one.high_hz) == (band.low_hz, band.high_hz))
    assert f", {known.description}: " in band.sentence and band.sentence.endswith(f" as in some {RECORDINGS}.")
    assert layer.sentence == f"{LAYERS[layer.layer]} ({layer.layer}): says little either way."


def test_the_words_of_an_example_agree_with_its_numbers() -> None:
    thresholds = Thresholds(balanced=0.0, recall=-1.0, precision=1.0)
    for example in EXAMPLES.values():
        assert disagreements(example, thresholds) == []
        assert example.score is None or example.mean_probability == pytest.approx(
            1 / (1 + math.exp(-example.score)), abs=1e-4
        )


def test_the_number_to_show_is_that_of_what_decided() -> None:
    assert EXAMPLES["fake"].headline == (0.7234, (0.61, 0.82))
    assert EXAMPLES["fake_speaker_among_others"].headline == (0.93, (0.82, 0.98))
    assert EXAMPLES["no_speech"].headline is None


def test_what_decided_is_named_by_what_it_is() -> None:
    speaker = DecidedBy(speaker="SPEAKER_01", start=0.5, end=2.0, probability=0.97, interval=(0.9, 0.99))
    assert speaker.model_dump(mode="json") == {
        "speaker": "SPEAKER_01",
        "start": 0.5,
        "end": 2.0,
        "probability": 0.97,
        "interval": [0.9, 0.99],
    }
    channel = DecidedBy(channel="CHANNEL_2", start=0.5, end=2.0, probability=0.97, interval=(0.9, 0.99))
    assert "channel" in channel.model_dump(mode="json") and "speaker" not in channel.model_dump(mode="json")


@pytest.mark.parametrize("words", [Reason, AnswerWarning])
def test_a_word_has_a_sentence_that_stands_in_the_schema(words: type[Word]) -> None:
    field = schema()["properties"]["reasons" if words is Reason else "warnings"]
    for word in words:
        assert word.sentence[0].isupper() and word.sentence.endswith(".")
        assert f"`{word.value}`: {word.sentence}" in field["description"]
    assert schema()["$defs"][words.__name__]["enum"] == [word.value for word in words]
