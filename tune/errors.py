"""Errors of corpora and of experiments, in addition to those of the pipeline."""

from __future__ import annotations

from pipeline.errors import SoundSentryError


class CorpusError(SoundSentryError):
    """A corpus cannot be used as it is. `detail` says which row, group or class is wrong."""

    title = "Corpus not usable"


class LeakError(SoundSentryError):
    """A test clip took part in training, calibration or the choice of a threshold."""

    title = "Leak between training and test"
