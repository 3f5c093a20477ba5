"""Tunes the front of CAM++ on short crops of clips. Many crops go through a random channel first.

Only the front of the network is tuned, not its later layers. A head is trained together with the front; it gives one
logit for each crop. It becomes a part of the bundle's head (`tune.training.tuned.assemble`).
"""

from __future__ import annotations

import copy
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from pipeline.config import Strict
from pipeline.networks.campplus import BANDS, LINEAR_HOP, band_centres, filterbank
from pipeline.networks.front import CHANNELS, LAYERS, published_front
from pipeline.networks.tkan import RANGES, SMALL
from pipeline.stages.extract import ABOVE_TELEPHONE
from pipeline.types import SAMPLE_RATE, Segment, Waveform
from pipeline.verdict.bundle import Arrays
from tune.corpora.augment import Codec, apply_channel, draw_channel, through_telephone

FRAME_SECONDS = LINEAR_HOP / SAMPLE_RATE
STATISTICS = 5
CORRELATIONS = RANGES * CHANNELS * (CHANNELS - 1) // 2
LAYER_FEATURES = {
    "layer2": STATISTICS * CHANNELS * 20 + CORRELATIONS,
    "out": STATISTICS * CHANNELS * 10 + CORRELATIONS,
}
"""The number of features of each layer of a tuned front in the preset `tuned-fronts`, in their order."""

LAGS = (1, 4)
"""The lags of the two changes, in frames."""

PART = 8
"""The number of crops that go through the network together on a CPU. On a GPU all crops of a step go together."""

STANDARDIZER_SHARE = 0.05
"""Mean and variance of the features move this share of the way to those of the crops in each step, because the front
changes."""

LIMIT = 3.0
"""Standardised features are clipped at this many standard deviations."""


class FrontConfig(Strict):
    """How the front is tuned. A step sees `batch_size` crops of `min_crop_seconds` to `max_crop_seconds`."""

    steps: int = Field(1_300, ge=1)
    batch_size: int = Field(32, ge=2)
    min_crop_seconds: float = Field(2.0, gt=0)
    max_crop_seconds: float = Field(2.8, gt=0)
    learning_rate: float = Field(2e-4, gt=0)
    head_learning_rate: float = Field(5e-4, gt=0)
    weight_decay: float = Field(1e-3, ge=0)
    warm_up_share: float = Field(0.12, gt=0, lt=1)
    label_smoothing: float = Field(0.02, ge=0, lt=0.5)
    hidden: int = Field(96, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    average_steps: int = Field(150, ge=1)
    """The result has the mean of the weights over about this many of the last steps."""
    background_share: float = Field(0.2, ge=0, lt=1)
    vocoded_share: float = Field(0.15, ge=0, lt=1)
    channel_share: float = Field(0.55, ge=0, le=1)
    telephone_share: float = Field(0.15, ge=0, le=1)
    bfloat16: bool = False
    """Whether the front computes with bfloat16. This takes 0.6 of the time on processors that support it."""
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """A clip for tuning. `page`: the site or the source that it comes from. `kind`: its generator, or the source of a
    recording. `vocoded`: whether it is one of the two clips of a copy-synthesis pair."""

    samples: NDArray[np.float32]
    speech: tuple[Segment, ...]
    spoof: bool
    page: str
    kind: str
    background: bool = False
    vocoded: bool = False


class Drawing:
    """Draws the index of the next clip. Both classes are drawn equally often.

    First the class is drawn, then a page that has it, then a kind. Pages and kinds are drawn with a probability in
    proportion to the square root of their number of clips. So a page that has both classes does not reveal the class.
    The background is drawn only for the classes that it has.
    """

    def __init__(self, samples: Sequence[Sample], config: FrontConfig) -> None:
        self.config = config
        self.pools: dict[bool, dict[str, dict[bool, dict[str, list[int]]]]] = {False: {}, True: {}}
        self.vocoded: dict[tuple[str, bool], list[int]] = defaultdict(list)
        for index, sample in enumerate(samples):
            if sample.vocoded:
                self.vocoded[sample.page, sample.spoof].append(index)
                continue
            classes = self.pools[sample.background].setdefault(sample.page, {})
            classes.setdefault(sample.spoof, defaultdict(list))[sample.kind].append(index)
        self.background = {spoof for classes in self.pools[True].values() for spoof in classes}
        self.shares = {
            background: _shares(
                [sum(len(c) for kinds in classes.values() for c in kinds.values()) for classes in pages.values()]
            )
            for background, pages in self.pools.items()
        }

    def __call__(self, rng: np.random.Generator) -> int:
        background = bool(self.pools[True]) and rng.random() < self.config.background_share
        spoof = bool(rng.random() < 0.5)
        background = background and spoof in self.background
        pages = list(self.pools[background])
        for _ in range(100):
            page = pages[rng.choice(len(pages), p=self.shares[background])]
            pairs = self.vocoded.get((page, spoof))
            if pairs and rng.random() < self.config.vocoded_share:
                return pairs[rng.integers(len(pairs))]
            if kinds := self.pools[background][page].get(spoof):
                clips = list(kinds.values())
                clip = clips[rng.choice(len(clips), p=_shares([len(c) for c in clips]))]
                return clip[rng.integers(len(clip))]
        raise ValueError(f"100 drawn pages have no {'spoof' if spoof else 'bonafide'} clip")


def _shares(counts: Sequence[int]) -> NDArray[np.float64]:
    roots = np.sqrt(np.asarray(counts, dtype=np.float64))
    return np.asarray(roots / roots.sum())


class Crops(IterableDataset[tuple[Tensor, Tensor, Tensor, Tensor]]):
    """Endless batches of four tensors: crops (batch, time), a mask of the frames with speech (batch, frames), a mask of
    the crops that went over a telephone line (batch,), and labels (batch,), 1 = spoof."""

    def __init__(self, samples: Sequence[Sample], config: FrontConfig) -> None:
        self.samples = samples
        self.config = config

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.config.seed, worker.id if worker else 0])
        draw = Drawing(self.samples, self.config)
        while True:
            seconds = rng.uniform(self.config.min_crop_seconds, self.config.max_crop_seconds)
            length = round(seconds / FRAME_SECONDS) * LINEAR_HOP + 96  # whole frames
            crops, masks, lines, labels = [], [], [], []
            for _ in range(self.config.batch_size):
                sample = self.samples[draw(rng)]
                crop, mask = cut(sample, length, rng)
                crop, is_line = disturb(crop, self.config, rng)
                crops.append(crop)
                masks.append(mask)
                lines.append(is_line)
                labels.append(sample.spoof)
            yield (
                torch.from_numpy(np.stack(crops)),
                torch.from_numpy(np.stack(masks)),
                torch.tensor(lines),
                torch.tensor(labels, dtype=torch.float32),
            )


def cut(sample: Sample, length: int, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A random crop of `length` samples from the part of the clip with speech, and a mask (frames,): 1 for frames with
    speech. If this part is shorter, zeros are added at the end; they count as no speech."""
    first = round(sample.speech[0].start * SAMPLE_RATE)
    last = min(round(sample.speech[-1].end * SAMPLE_RATE), len(sample.samples))
    start = int(rng.integers(first, max(last - length, first) + 1))
    crop = sample.samples[start : min(start + length, last)]
    frames = 1 + (length - 256) // LINEAR_HOP
    centres = (start + np.arange(frames) * LINEAR_HOP + 128) / SAMPLE_RATE
    mask = np.zeros(frames, np.float32)
    for part in sample.speech:
        mask[(centres >= part.start) & (centres < part.end) & (centres < (start + len(crop)) / SAMPLE_RATE)] = 1
    return np.pad(crop, (0, length - len(crop))), mask


def disturb(
    crop: NDArray[np.float32], config: FrontConfig, rng: np.random.Generator
) -> tuple[NDArray[np.float32], bool]:
    """The crop after a random channel, and whether the channel is a telephone line. Some crops get no channel.

    The length stays the same. The peak becomes 1.
    """
    waveform = Waveform(crop)
    kind = rng.random()
    is_line = bool(kind < config.telephone_share)
    if is_line:
        received = through_telephone(waveform, rng, whole=True)
    elif kind < config.telephone_share + config.channel_share:
        channel = replace(draw_channel(rng), trimmed=False, crop_seconds=None, denoised=False)
        if channel.codec and channel.codec.name == "vorbis":
            channel = replace(channel, codec=Codec("vorbis_native", channel.codec.rate, channel.codec.kbits))
        elif channel.codec and channel.codec.name == "gsm":
            channel = replace(channel, codec=Codec("amr", 8_000, 12.2))
        received = apply_channel(waveform, channel, rng)
    else:
        received = waveform
    samples = received.samples[: len(crop)]
    samples = np.pad(samples, (0, len(crop) - len(samples)))
    return (samples / max(float(np.abs(samples).max()), 1e-4)).astype(np.float32), is_line


def blank(energies: Tensor, rng: torch.Generator) -> Tensor:
    """The energies (batch, bands, frames). In a random half of the items, 2 to 8 adjacent bands are set to 0. The bands
    are drawn for each item. `rng` is on the CPU."""
    energies = energies.clone()
    for item in range(len(energies)):
        if torch.rand(1, generator=rng) < 0.5:
            width = int(torch.randint(2, 9, (1,), generator=rng))
            low = int(torch.randint(0, BANDS - width + 1, (1,), generator=rng))
            energies[item, low : low + width] = 0
    return energies


def hide_above_telephone(energies: Tensor, lines: Tensor) -> Tensor:
    """The energies (batch, bands, frames). If `lines` (batch,) is true for an item, its bands above the band of a
    telephone are set to 0, as in the service."""
    above = (band_centres("linear") >= ABOVE_TELEPHONE[0]).to(energies.device)
    return energies.masked_fill((lines[:, None] & above)[..., None], 0)


def batch_features(activations: Tensor, mask: Tensor) -> Tensor:
    """The features of one layer: five statistics of each neuron over the frames in the mask, and the correlation of
    each pair of channels in each of RANGES ranges of frequencies.

    The statistics are mean, sd, log change over 1 and over 4 frames, and skewness. `pipeline.networks.tkan` defines
    them.

    Shape: activations (batch, channels, frequencies, frames) and mask (batch, frames) -> (batch, features).
    """
    mean, covariances, third, *changes = _Moments.apply(activations, mask)  # type: ignore[no-untyped-call]
    # The small number keeps the gradient finite for a neuron that never fires.
    sd = (covariances.diagonal(dim1=2, dim2=3) + 1e-8).sqrt()
    log_changes = [(((change + 1e-8).sqrt() + SMALL) / (sd + SMALL)).log() for change in changes]
    skewness = (third / sd.pow(3)).clamp(-20, 20)
    of_neurons = torch.stack([mean, sd, *log_changes, skewness], dim=1).transpose(2, 3).flatten(1)
    correlated = covariances / (sd[..., None] * sd[:, :, None])  # (batch, frequencies, channels, channels)
    ranges = torch.stack([part.mean(dim=1) for part in correlated.tensor_split(RANGES, dim=1)], dim=1)
    first, second = torch.triu_indices(sd.shape[2], sd.shape[2], offset=1, device=sd.device)
    return torch.cat([of_neurons, ranges[..., first, second].flatten(1)], dim=1)


class _Moments(torch.autograd.Function):
    """Means over the frames in a mask: of each neuron, of the products of deviations of each pair of channels, of cubed
    deviations, and of the squared change over each of LAGS.

    Gradients by hand take a third of the time of those by autograd, which copies the activations a dozen times.

    Shape: activations (batch, channels, frequencies, frames) and mask (batch, frames) -> (batch, frequencies,
    channels), and for the products (batch, frequencies, channels, channels).
    """

    @staticmethod
    def forward(ctx: Any, activations: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        x = activations.permute(0, 2, 3, 1).to(mask.dtype)
        m = mask[:, None, :, None]
        count = m.sum(dim=2, keepdim=True).clamp(min=1)
        mean = (m / count).transpose(2, 3) @ x
        deviations = (x - mean).mul_(m)
        covariances = deviations.transpose(2, 3) @ deviations / count
        third = deviations.square().mul_(deviations).sum(dim=2) / count[:, :, 0]
        changes = []
        for lag in LAGS:
            both, pairs = _both(mask, lag)
            change = (deviations[:, :, lag:] - deviations[:, :, :-lag]).mul_(both)
            changes.append(change.square_().sum(dim=2) / pairs)
        ctx.save_for_backward(deviations, mask, count)
        ctx.dtype = activations.dtype
        return mean[:, :, 0], covariances, third, *changes

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        deviations, mask, count = ctx.saved_tensors
        of_mean, of_covariances, of_third, *of_changes = gradients
        m = mask[:, None, :, None]
        gradient = deviations @ ((of_covariances + of_covariances.transpose(2, 3)) / count)
        gradient.addcmul_(deviations.square(), 3 * of_third[:, :, None] / count)
        for lag, of_change in zip(LAGS, of_changes, strict=True):
            both, pairs = _both(mask, lag)
            change = (deviations[:, :, lag:] - deviations[:, :, :-lag]).mul_(both)
            change.mul_((2 * of_change / pairs)[:, :, None])
            gradient[:, :, lag:] += change
            gradient[:, :, :-lag] -= change
        gradient.mul_(m)
        # The mean was subtracted from each deviation.
        gradient += m * ((of_mean[:, :, None] - gradient.sum(dim=2, keepdim=True)) / count)
        return gradient.to(ctx.dtype).permute(0, 3, 1, 2), None


def _both(mask: Tensor, lag: int) -> tuple[Tensor, Tensor]:
    """Of pairs of frames `lag` apart: which are both in the mask, (batch, 1, pairs, 1), and how many, at least 1,
    (batch, 1, 1)."""
    both = mask[:, lag:] * mask[:, :-lag]
    return both[:, None, :, None], both.sum(dim=1).clamp(min=1)[:, None, None]


class Standardizer(nn.Module):
    """Standardises features with a moving mean and variance, and clips them at LIMIT.

    `follow` updates the mean and the variance. No gradient flows through them, so a batch may be split into any parts.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))

    @property
    def scale(self) -> Tensor:
        return (self.variance + 1e-5).sqrt()

    def forward(self, features: Tensor) -> Tensor:
        return ((features - self.mean) / self.scale).clamp(-LIMIT, LIMIT)

    @torch.no_grad()
    def follow(self, features: Tensor, share: float) -> None:
        """Move the mean and the variance this share of the way to those of `features`."""
        self.variance.lerp_((features - self.mean).square().mean(dim=0), share)
        self.mean.lerp_(features.mean(dim=0), share)


class TuningHead(nn.Module):
    """Features (batch, features) -> logit (batch,): the sum of a linear function and a small perceptron."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        features = sum(LAYER_FEATURES.values())
        self.standardizer = Standardizer(features)
        self.linear = nn.Linear(features, 1)
        self.perceptron = nn.Sequential(
            nn.Linear(features, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, 1)
        )
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        x = self.standardizer(features)
        logit: Tensor = (self.linear(x) + self.perceptron(x))[:, 0]
        return logit

    def arrays(self) -> Arrays:
        """The arrays with which `pipeline.verdict.head` computes the same logits in the service, for one front."""
        first, last = self.perceptron[0], self.perceptron[-1]
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        found = {
            "mean": self.standardizer.mean,
            "scale": self.standardizer.scale,
            "limit": torch.tensor([LIMIT]),
            "weight": self.linear.weight[0],
            "bias": self.linear.bias + last.bias,
            "hidden": first.weight.T[None],
            "hidden_bias": first.bias[None],
            "output": last.weight,
        }
        return {name: np.ascontiguousarray(values.detach().numpy(), np.float32) for name, values in found.items()}


class Tuned(nn.Module):
    """The front and the head that it is tuned with."""

    def __init__(self, config: FrontConfig) -> None:
        super().__init__()
        self.front = published_front()
        self.head = TuningHead(config.hidden, config.dropout)

    def features(self, energies: Tensor, mask: Tensor, *, bfloat16: bool = False) -> Tensor:
        with torch.autocast(energies.device.type, torch.bfloat16, enabled=bfloat16):
            activations = self.front(energies)
        return torch.cat([batch_features(activations[layer], mask) for layer in LAYERS], dim=1)

    def forward(self, energies: Tensor, mask: Tensor) -> Tensor:
        logit: Tensor = self.head(self.features(energies, mask))
        return logit


def tune_front(
    samples: Sequence[Sample],
    config: FrontConfig,
    *,
    start: Tuned | None = None,
    device: str = "cpu",
    threads: int = 2,
    watch: Callable[[int, float, Tuned], None] | None = None,
) -> Tuned:
    """Tune the front on `samples`. Tuning begins with `start`, or with the published front of CAM++.

    Every twenty steps `watch` is called with the step, the mean loss and the averaged network. The result is on the
    CPU. On a CPU the crops of a step are divided among `threads` threads, in parts that fit into the processor's cache.
    This takes half the time of one pass over all crops. On a GPU all crops of a step go through the network together,
    and one process for each core makes crops.
    """
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)
    model: Tuned = copy.deepcopy(start) if start else Tuned(config)
    model = model.train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    learner = _Learner(model, config, device)
    optimizer, schedule = _make_optimizer(model, config)
    part, threads, workers = (PART, threads, 1) if device == "cpu" else (config.batch_size, 1, os.cpu_count() or 1)
    batches = iter(DataLoader(Crops(samples, config), batch_size=None, num_workers=workers, prefetch_factor=4))
    standardizer = model.head.standardizer
    if start is None:
        with torch.no_grad():
            first = torch.cat([learner.features(*next(batches)[:3]) for _ in range(10)])
        standardizer.follow(first, 1)
        standardizer.follow(first, 1)  # again, because the first variance was around the old mean of 0
    average: Tuned = copy.deepcopy(model).eval()
    losses: list[float] = []
    with ThreadPoolExecutor(threads) as pool:
        for step in range(1, config.steps + 1):
            found = list(pool.map(learner.gradients, *(values.split(part) for values in next(batches))))
            for parameter, *given in zip(learner.parameters, *(gradient for _, gradient, _ in found), strict=True):
                parameter.grad = torch.stack(given).sum(dim=0)
            nn.utils.clip_grad_norm_(learner.parameters, 2.0)
            optimizer.step()
            schedule.step()
            standardizer.follow(torch.cat([features for *_, features in found]), STANDARDIZER_SHARE)
            _follow(average, model, max(1 / step, 1 / config.average_steps))
            losses.append(sum(loss for loss, *_ in found))
            if watch and step % 20 == 0:
                watch(step, float(np.mean(losses[-20:])), average)
    return average.cpu()


class _Learner:
    """Computes the features and the gradients of `model` for crops. Threads may share it."""

    def __init__(self, model: Tuned, config: FrontConfig, device: str) -> None:
        self.parameters = list(model.parameters())
        self._model = model
        self._config = config
        self._device = device
        self._rng = torch.Generator().manual_seed(config.seed)

    def features(self, crops: Tensor, mask: Tensor, lines: Tensor) -> Tensor:
        """The features of a part of a batch, (crops, features)."""
        energies = blank(filterbank(crops.to(self._device), "linear").transpose(1, 2), self._rng)
        energies = hide_above_telephone(energies, lines.to(self._device))
        return self._model.features(energies, mask.to(self._device), bfloat16=self._config.bfloat16)

    def gradients(
        self, crops: Tensor, mask: Tensor, lines: Tensor, labels: Tensor
    ) -> tuple[float, tuple[Tensor, ...], Tensor]:
        """The share of a part in the mean loss of its batch, the gradients of this share, and the features."""
        features = self.features(crops, mask, lines)
        smoothing = self._config.label_smoothing
        target = (labels * (1 - 2 * smoothing) + smoothing).to(self._device)
        loss = F.binary_cross_entropy_with_logits(self._model.head(features), target, reduction="sum")
        loss = loss / self._config.batch_size
        return float(loss.detach()), torch.autograd.grad(loss, self.parameters), features.detach()


def _make_optimizer(
    model: Tuned, config: FrontConfig
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW, with a learning rate for the front and one for the head, and one cycle of both rates."""
    rates = [config.learning_rate, config.head_learning_rate]
    groups = [
        {"params": part.parameters(), "lr": rate} for part, rate in zip((model.front, model.head), rates, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, total_steps=config.steps, pct_start=config.warm_up_share, cycle_momentum=False
    )
    return optimizer, schedule


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, share: float) -> None:
    """Move each weight of `average` this share of the way to the model's."""
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, share)
        else:
            mean.copy_(value)
