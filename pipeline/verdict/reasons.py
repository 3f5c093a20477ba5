"""The reasons and warnings of an answer: why it is Inconclusive, and what else a person should know.

The command line, the page, the OpenAPI document and the docs all take the words and their sentences from here.
"""

from __future__ import annotations

from enum import StrEnum


class Word(StrEnum):
    """A word for programs; its `sentence` says the same to a person."""

    sentence: str

    def __new__(cls, word: str, sentence: str = "") -> Word:  # Reason("too_short") looks one up
        member = str.__new__(cls, word)
        member._value_ = word
        member.sentence = sentence
        return member


class Reason(Word):
    """Why an answer is Inconclusive."""

    TOO_SHORT = "too_short", "There is too little speech: send more of the recording."
    LOW_SNR = "low_snr", "There is too much noise over the speech."
    NARROW_BAND = (
        "narrow_band",
        "The sound was cut to a narrow band, as a telephone does: send the original if there is one.",
    )
    STRONG_COMPRESSION = (
        "strong_compression",
        "The file is compressed so strongly that humans sound like machines: send the original if there is one.",
    )
    OUT_OF_DISTRIBUTION = "out_of_distribution", "It sounds unlike anything the model was trained on."
    NEAR_THRESHOLD = "near_threshold", "The score lies too close to the threshold."
    MIXED_SPEAKERS = "mixed_speakers", "The speakers sound too different for one answer: see each of them."
    MIXED_VOICES = (
        "mixed_voices",
        "One speaker sounds like a human at some moments and like a machine at others, as if two voices were taken for "
        "one: listen to each moment, or say how many people speak.",
    )
    MIXED_PASSAGES = "mixed_passages", "The moments sound too different for one answer: see them one by one."


class AnswerWarning(Word):
    """What a person should know about an answer of any kind."""

    TRUNCATED = "truncated", "The file ends early: it holds less audio than it declares. Only what is there was judged."
    DAMAGED = "damaged", "Parts of the file are damaged and were left out."
    ANTI_PHASE = (
        "anti_phase_loudest_channel_scored",
        "The channels cancel each other, so the loudest one was judged.",
    )
    SYNTHETIC_SPEAKER = (
        "synthetic_speaker_among_others",
        "One speaker sounds machine-made among others who do not: see each speaker.",
    )
    SYNTHETIC_PASSAGE = (
        "synthetic_passage",
        "A passage sounds machine-made, though the recording as a whole does not: listen to it.",
    )
    OTHER_SPEAKER_COUNT = (
        "other_speaker_count",
        "The number of speakers that were found is not the number you gave. People who speak very little are often "
        "missed.",
    )
    NARROW_BAND_HEAD = (
        "narrow_band_head",
        "The sound was cut to a narrow band, as a telephone does, and was judged by the model for telephone sound.",
    )


def sentences(words: type[Word]) -> dict[str, str]:
    """Each word of an enumeration with its sentence."""
    return {word.value: word.sentence for word in words}
