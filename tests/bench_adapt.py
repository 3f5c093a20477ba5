"""Measures the gain from a number of labelled clips of a channel, on pages that a bundle was not trained on.

    python -m tests.bench_adapt --bundle B --manifest field-dev/manifest.csv --sites neonbjb gemelo-ai ...
    python -m tests.bench_adapt ... --channels telephone mp3_32k ...

Without `--channels` each site is a channel: some of its clips adapt the bundle, and all others test it. The same voice
may be in both parts. With `--channels` all clips go through each of these channels of `tune.corpora.augment`. Some
clips of one half of the sites adapt the bundle, and the other half of the sites tests it. The table shows means over
draws.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.audio.decode import decode
from pipeline.config import DetectorConfig
from pipeline.verdict.bundle import Bundle
from tests.audio import encode
from tune.adapt import MIN_CLIPS, ScoredClips, compare, fit_adaptation, is_beyond_chance, nested_scores, score_clips
from tune.command import run
from tune.corpora.augment import CONDITIONS, augment
from tune.corpora.manifest import Clip, add_split_argument, of_split, require_usable, with_contents
from tune.corpora.readers import read_corpus
from tune.errors import CorpusError, LeakError
from tune.reports.breakdown import rates
from tune.reports.metrics import Indices, Metric, auc, cllr, eer

METRICS: dict[str, tuple[str, Metric, float, int]] = {
    "eer": ("EER %", eer, 100, 1),
    "auc": ("AUC", auc, 1, 3),
    "cllr": ("Cllr", cllr, 1, 3),
    **{
        name: (title, metric, 100, 1)
        for (name, metric), title in zip(
            rates(0.0).items(), ("fakes missed %", "human recordings accused %"), strict=True
        )
    },
}
"""Each metric: its title, its function, its unit and its number of digits."""
TESTED = 3
"""The number of clips of each class that must be left for the test."""


def draw(
    scored: ScoredClips, sites: Sequence[str], count: int, rng: np.random.Generator
) -> tuple[ScoredClips, ScoredClips] | None:
    """`count` clips to adapt with, and the clips to test with; None if there are too few.

    Half of the clips to adapt with are of each class, if possible. With one site, all other clips are test clips. With
    several sites, the clips of the other half of the sites are.
    """
    of_clip = np.array(sites)
    names = rng.permutation(np.unique(of_clip))
    inside = np.isin(of_clip, names[: -(-len(names) // 2)])
    spare = TESTED if len(names) == 1 else 0
    pools = [rng.permutation(np.flatnonzero(inside & (scored.labels == spoof))) for spoof in (False, True)]
    most = [max(0, len(pool) - spare) for pool in pools]
    first = min(most[0], max(count // 2, count - most[1]))
    if min(first, count - first) < MIN_CLIPS or count - first > most[1]:
        return None
    mine: Indices = np.sort(np.concatenate([pools[0][:first], pools[1][: count - first]]))
    others = np.setdiff1d(np.arange(len(of_clip)), mine) if len(names) == 1 else np.flatnonzero(~inside)
    return scored.of(mine), scored.of(others)


def bench(scored: ScoredClips, sites: Sequence[str], count: int, draws: int) -> dict[str, float] | None:
    """Means over draws of the metrics in three cases: before adapting, after adapting, and as the command decides. The
    command keeps the old bundle if the gain may be due to chance."""
    found: dict[str, list[float]] = defaultdict(list)
    for seed in range(draws):
        drawn = draw(scored, sites, count, np.random.default_rng([seed, count]))
        if drawn is None:
            return None
        mine, others = drawn
        adaptation = fit_adaptation(mine)
        written = is_beyond_chance(compare(mine, nested_scores(mine), draws=2)["gain"]["cllr"], mine)
        adapted = adaptation(others)
        for side, scores in (
            ("before", others.scores),
            ("adapted", adapted),
            ("as written", adapted if written else others.scores),
        ):
            for name, (_, metric, _, _) in METRICS.items():
                found[f"{side} {name}"].append(metric(others.labels, scores))
        found["written"].append(written)
        found["moved"].append(adaptation.direction is not None)
    return {name: float(np.mean(values)) for name, values in found.items()}


def as_row(channel: str, count: int, found: dict[str, float]) -> str:
    cells = [channel, str(count)]
    cells += [
        " → ".join(f"{unit * found[f'{side} {name}']:.{digits}f}" for side in ("before", "as written"))
        for name, (_, _, unit, digits) in METRICS.items()
    ]
    cells += [f"{found['adapted cllr']:.3f}", f"{found['written']:.0%}", f"{found['moved']:.0%}"]
    return f"| {' | '.join(cells)} |"


def through(clips: Sequence[Clip], channel: str, config: DetectorConfig, folder: Path) -> list[Clip]:
    """The clips as WAV files in `folder`, through one of CONDITIONS."""
    changed = []
    for number, clip in enumerate(clips):
        waveform = augment(decode(clip.path.read_bytes(), config.limits).waveform, channel)
        path = folder / f"{channel}-{number}.wav"
        path.write_bytes(encode(waveform.samples))
        changed.append(replace(clip, path=path))
    return changed


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench_adapt", description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True, help="a bundle that was trained without the sites")
    parser.add_argument("--manifest", type=Path, required=True)
    add_split_argument(parser)
    parser.add_argument("--sites", nargs="+", required=True, help="the sites whose clips adapt and test the bundle")
    parser.add_argument("--channels", nargs="+", choices=CONDITIONS, default=(), help="send all clips through these")
    parser.add_argument("--clips", type=int, nargs="+", default=(20, 50, 100), help="to adapt with (default 20 50 100)")
    parser.add_argument("--draws", type=int, default=10, help="draws for each channel (default %(default)s)")
    parser.add_argument("--detector", type=Path, help="configuration of the detector (default: configs/detector.yaml)")
    arguments = parser.parse_args(argv)
    clips = of_split(read_corpus(None, arguments.manifest), arguments.split)
    clips = [clip for clip in clips if clip.site in arguments.sites]
    if absent := sorted(set(arguments.sites) - {clip.site for clip in clips}):
        raise CorpusError(f"the manifest has no clips of the sites {', '.join(absent)}")
    require_usable(clips)
    clips = with_contents(clips)
    bundle = Bundle.load(arguments.bundle)
    if known := {clip.sha256[:12] for clip in clips} & set(bundle.info.corpus.get("clips", ())):
        raise LeakError(f"the bundle was trained on {len(known)} of these clips: train one without --sites")
    config = DetectorConfig.load(arguments.detector).model_copy(update={"bundle": arguments.bundle.resolve()})
    titles = [f"{title}, before → as written" for title, *_ in METRICS.values()]
    print(f"| channel | clips | {' | '.join(titles)} | Cllr, always adapted | written | head moved |", flush=True)
    print("|---" * (len(titles) + 5) + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for channel in arguments.channels or arguments.sites:
            print(channel, file=sys.stderr)
            if arguments.channels:
                channel_clips = through(clips, channel, config, Path(folder))
            else:
                channel_clips = [clip for clip in clips if clip.site == channel]
            scored, kept, _ = score_clips(bundle, config, channel_clips)
            for count in arguments.clips:
                found = bench(scored, [clip.site for clip in kept], count, arguments.draws)
                print(
                    as_row(channel, count, found) if found else f"| {channel} | {count} | too few clips |", flush=True
                )


if __name__ == "__main__":
    run(main)
