"""Measures how well the detector tells the classes apart through fixed channels, and how often its words are wrong.

    python -m tests.bench_channels --manifest field-dev/manifest.csv --split dev --bundle runs/default-held-out

Only clips that the bundle was not trained on are taken. Each goes whole through each channel, and the Detector judges
it as a file: as WAV, which does not tell what was compressed before, or in the last rows as the compressed file itself.
"""

from __future__ import annotations

import argparse
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.audio.decode import decode
from pipeline.config import DetectorConfig
from pipeline.detector import Detector
from pipeline.progress import with_progress
from pipeline.types import Label, Waveform
from pipeline.verdict.bundle import Bundle
from tests.audio import encode
from tune.command import run
from tune.corpora.augment import (
    CONDITIONS,
    Codec,
    add_noise,
    high_pass,
    low_pass,
    resample,
    through_codec,
    through_telephone,
)
from tune.corpora.manifest import Clip, add_split_argument, of_split, with_contents
from tune.corpora.readers import read_corpus
from tune.reports.metrics import auc, eer


def line(codec: Codec) -> Callable[[Waveform], Waveform]:
    """A telephone line: the band from 250 to 3,500 Hz, through `codec`."""
    return lambda waveform: through_codec(low_pass(high_pass(waveform, 250), 3_500, 8), codec)


def random_line(waveform: Waveform, draw: int) -> Waveform:
    """A telephone line that is drawn for each clip, always the same one for the same clip and `draw`."""
    rng = np.random.default_rng([zlib.crc32(waveform.samples.tobytes()), draw])
    return through_telephone(waveform, rng, whole=True)


def as_wav(channel: Callable[[Waveform], Waveform]) -> Callable[[Waveform], bytes]:
    return lambda waveform: encode(channel(waveform).samples)


def opus_file(waveform: Waveform, kbits: int) -> bytes:
    return encode(resample(waveform, 48_000).samples, "opus", rate=48_000, kbits=kbits)


SOUNDS: dict[str, Callable[[Waveform], Waveform]] = {
    "as they are": lambda waveform: waveform,
    **{f"MP3, {kbit} kbit/s": partial(through_codec, codec=Codec("mp3", 44_100, kbit)) for kbit in (128, 64, 48)},
    "MP3 at 16 kHz, 32 kbit/s": CONDITIONS["mp3_32k"],
    **{f"AAC, {kbit} kbit/s": partial(through_codec, codec=Codec("aac", 44_100, kbit)) for kbit in (64, 32)},
    "FFmpeg's Vorbis, 48 kbit/s": partial(through_codec, codec=Codec("vorbis_native", 44_100, 48)),
    **{
        f"Opus, {kbit} kbit/s": partial(through_codec, codec=Codec("opus", 48_000, kbit))
        for kbit in (48, 32, 24, 16, 12)
    },
    "reverberation": CONDITIONS["reverb"],
    "noise, 10 dB": CONDITIONS["noise_10db"],
    **{f"telephone, random lines, draw {draw}": partial(random_line, draw=draw) for draw in range(4)},
    "telephone, µ-law": line(Codec("mulaw", 8_000)),
    "telephone, µ-law, noise at 30 dB": lambda waveform: add_noise(
        line(Codec("mulaw", 8_000))(waveform), 30, slope=0, rng=np.random.default_rng(0)
    ),
    "telephone, A-law": line(Codec("alaw", 8_000)),
    "telephone, Opus, 12 kbit/s": line(Codec("opus", 8_000, 12)),
    "telephone, AMR, 12.2 kbit/s": line(Codec("amr", 8_000, 12.2)),
    "telephone, GSM": line(Codec("gsm", 8_000)),
    "telephone, AMR, 4.75 kbit/s": line(Codec("amr", 8_000, 4.75)),
}
FILES: dict[str, Callable[[Waveform], bytes]] = {
    **{name: as_wav(sound) for name, sound in SOUNDS.items()},
    **{f"a file of Opus, {kbit} kbit/s": partial(opus_file, kbits=kbit) for kbit in (48, 32, 24, 16, 12)},
}
"""What arrives at the service, by channel."""


def judge(detector: Detector, channels: Sequence[str], clip: Clip) -> list[tuple[Label, float | None]]:
    """The result and the log-likelihood ratio of `clip` through each channel. The ratio is None without speech."""
    waveform = decode(clip.path.read_bytes(), DetectorConfig().limits).waveform
    verdicts = [detector.predict(FILES[channel](waveform)) for channel in channels]
    return [(verdict.overall, verdict.score) for verdict in verdicts]


def as_text(channels: Sequence[str], labels: np.ndarray, words: np.ndarray, scores: np.ndarray) -> str:
    """A table of the channels. Shape: labels (clips,), 1 = spoof; words and scores (clips, channels)."""
    lines = [
        "| channel | clips | EER % | AUC | answered % | recordings called Fake % | fakes called Real % |",
        "|---|---|---|---|---|---|---|",
    ]
    for column, name in enumerate(channels):
        judged = np.isfinite(scores[:, column])
        spoof, score, word = labels[judged], scores[judged, column], words[judged, column]
        shares = [
            np.isin(word, ["Real", "Fake"]).mean(),
            (word[~spoof] == "Fake").mean(),
            (word[spoof] == "Real").mean(),
        ]
        lines.append(
            f"| {name} | {judged.sum()} | {100 * eer(spoof, score):.1f} | {auc(spoof, score):.3f} | "
            + " | ".join(f"{100 * share:.1f}" for share in shares)
            + " |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench_channels", description=__doc__.split("\n")[0])
    parser.add_argument("--manifest", type=Path, required=True)
    add_split_argument(parser)
    parser.add_argument("--bundle", type=Path, required=True, help="a bundle that was trained without some pages")
    parser.add_argument("--only", default="", metavar="TEXT", help="only channels with this in their names")
    arguments = parser.parse_args(argv)
    channels = [name for name in FILES if arguments.only in name]
    known = set(Bundle.load(arguments.bundle).info.corpus["clips"])
    clips = with_contents(of_split(read_corpus(None, arguments.manifest), arguments.split))
    clips = [clip for clip in clips if clip.sha256[:12] not in known]
    detector = Detector(DetectorConfig.load(None).model_copy(update={"bundle": arguments.bundle.resolve()}))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(with_progress(pool.map(partial(judge, detector, channels), clips), len(clips), "recordings"))
    labels = np.array([clip.is_spoof for clip in clips])
    words = np.array([[word for word, _ in row] for row in found])
    scores = np.array([[score for _, score in row] for row in found], dtype=np.float64)
    print(as_text(channels, labels, words, scores), end="")


if __name__ == "__main__":
    run(main)
