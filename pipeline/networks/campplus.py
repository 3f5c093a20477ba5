"""CAM++, the speaker-recognition network whose neurons give the default features.

Source: CAM++: A Fast and Efficient Network for Speaker Verification Using Context-Aware Masking, Wang et al.,
Interspeech 2023 (arXiv 2303.00332). Written after the reference implementation in 3D-Speaker
(https://github.com/modelscope/3D-Speaker, Copyright 3D-Speaker, Apache License 2.0). It keeps the parameter names of
that implementation, so that the published weights load. It differs in two points: it is for inference only, and no
operation works in place, so that every module's output can be read after the pass.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.compliance import kaldi

from pipeline.models import load_checkpoint
from pipeline.types import SAMPLE_RATE, Spectrum

BANDS = 80
LINEAR_WINDOW, LINEAR_HOP, LINEAR_FFT = 256, 160, 512  # samples
PREEMPHASIS = 0.97
ENERGY_FLOOR = 1e-16
"""Keeps the logarithm of digital silence finite. It is this low because sound 70 dB below the speech is evidence."""

EMBEDDING_SIZE = 192
GROWTH = 32
BLOCKS = ((12, 1), (24, 2), (16, 2))
"""(layers, dilation) of each densely connected block."""


class CamPlusPlus(nn.Module):
    """Mel filterbank features to a speaker embedding.

    Shape: (batch, frames, 80) -> (batch, 192).
    """

    def __init__(self) -> None:
        super().__init__()
        self.head = Head()
        self.xvector = nn.Sequential()
        self.xvector.add_module("tdnn", StridedLayer(self.head.out_channels, 128))
        channels = 128
        for index, (layers, dilation) in enumerate(BLOCKS, start=1):
            self.xvector.add_module(f"block{index}", DenseBlock(channels, layers, dilation))
            channels += layers * GROWTH
            self.xvector.add_module(f"transit{index}", Transition(channels))
            channels //= 2
        self.xvector.add_module("out_nonlinear", normalize_rectify(channels))
        self.xvector.add_module("dense", Projection(2 * channels))

    def frames(self, features: Tensor) -> Tensor:
        """The frames before the pooling over time: (batch, frames, 80) -> (batch, 512, frames / 2)."""
        frames: Tensor = self.xvector[:-1](self.head(features.transpose(1, 2)))
        return frames

    def embed(self, pooled: Tensor) -> Tensor:
        """Mean and standard deviation of the frames to embedding: (batch, 1024) -> (batch, 192)."""
        embedding: Tensor = self.xvector[-1](pooled)
        return embedding

    def forward(self, features: Tensor) -> Tensor:
        frames = self.frames(features)
        sd = frames.std(dim=-1) if frames.shape[-1] > 1 else torch.full_like(frames[..., 0], 1e-2)
        return self.embed(torch.cat([frames.mean(dim=-1), sd], dim=-1))


class Head(nn.Module):
    """The 2-D front: (batch, 80, frames) -> (batch, 320, frames), 32 channels at 10 frequencies."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = nn.Sequential(ResidualBlock(channels, 2), ResidualBlock(channels, 1))
        self.layer2 = nn.Sequential(ResidualBlock(channels, 2), ResidualBlock(channels, 1))
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.out = nn.ReLU()  # a module, so that its channels and frequencies can be read separately
        self.out_channels = channels * BANDS // 8

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x.unsqueeze(1))))
        x = self.layer2(self.layer1(x))
        flattened: Tensor = self.out(self.bn2(self.conv2(x))).flatten(1, 2)
        return flattened


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut. `stride` reduces the number of frequencies."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride=(stride, 1), padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.append(nn.Conv2d(channels, channels, 1, stride=(stride, 1), bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def normalize_rectify(channels: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(batchnorm=nn.BatchNorm1d(channels), relu=nn.ReLU()))


class StridedLayer(nn.Module):
    """Halves the frame rate: (batch, in_channels, frames) -> (batch, out_channels, frames / 2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(in_channels, out_channels, 5, stride=2, padding=2, bias=False)
        self.nonlinear = normalize_rectify(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.nonlinear(self.linear(x))
        return y


class DenseBlock(nn.Module):
    """Layers that each add 32 channels to the channels of all layers before."""

    def __init__(self, channels: int, layers: int, dilation: int) -> None:
        super().__init__()
        for index in range(layers):
            self.add_module(f"tdnnd{index + 1}", DenseLayer(channels + index * GROWTH, dilation))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = torch.cat([x, layer(x)], dim=1)
        return x


class DenseLayer(nn.Module):
    def __init__(self, in_channels: int, dilation: int, channels: int = 4 * GROWTH) -> None:
        super().__init__()
        self.nonlinear1 = normalize_rectify(in_channels)
        self.linear1 = nn.Conv1d(in_channels, channels, 1, bias=False)
        self.nonlinear2 = normalize_rectify(channels)
        self.cam_layer = ContextAwareMask(channels, dilation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))))
        return y


class ContextAwareMask(nn.Module):
    """A convolution gated by the means of the whole input and of each second of it."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.linear_local = nn.Conv1d(channels, GROWTH, 3, padding=dilation, dilation=dilation, bias=False)
        self.linear1 = nn.Conv1d(channels, channels // 2, 1)
        self.linear2 = nn.Conv1d(channels // 2, GROWTH, 1)

    def forward(self, x: Tensor, segment_frames: int = 100) -> Tensor:
        segments = F.avg_pool1d(x, segment_frames, segment_frames, ceil_mode=True)
        mask = torch.sigmoid(self.linear2(F.relu(self.linear1(x.mean(-1, keepdim=True) + segments))))
        local: Tensor = self.linear_local(x)
        return local * mask.repeat_interleave(segment_frames, dim=-1)[..., : x.shape[-1]]


class Transition(nn.Module):
    """Halves the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.nonlinear = normalize_rectify(channels)
        self.linear = nn.Conv1d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.nonlinear(x))
        return y


class Projection(nn.Module):
    """Pooled statistics to the embedding: (batch, channels) -> (batch, 192)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels, EMBEDDING_SIZE, 1, bias=False)
        self.nonlinear = nn.Sequential(OrderedDict(batchnorm=nn.BatchNorm1d(EMBEDDING_SIZE, affine=False)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.nonlinear(self.linear(x.unsqueeze(-1)).squeeze(-1))
        return y


def load_campplus() -> CamPlusPlus:
    """CAM++ with its published parameters."""
    network = CamPlusPlus()
    network.load_state_dict(load_checkpoint("campplus"))
    return network.eval()


def filterbank(samples: Tensor, spectrum: Spectrum = "mel") -> Tensor:
    """Log energies of 80 bands with their mean over time removed: (time,) samples at 16 kHz -> (frames, 80).

    `linear` also takes a batch: (batch, time) -> (batch, frames, 80). `mel` is the bank that the network was trained
    with: Kaldi's, 25 ms windows every 10 ms, no dither. `linear` has bands of equal width, so it resolves high
    frequencies as finely as low ones: 16 ms windows every 10 ms. In `linear`, frames of digital silence do not count
    towards the mean, and are raised to the level of the quietest other frame.
    """
    if spectrum == "mel":
        energies: Tensor = kaldi.fbank(samples.unsqueeze(0), num_mel_bins=BANDS, sample_frequency=SAMPLE_RATE)
        return energies - energies.mean(dim=0)
    energies = linear_energies(samples)
    silence = energies.new_tensor(ENERGY_FLOOR).log()
    audible = (energies > silence).any(dim=-1, keepdim=True)
    quietest = energies.masked_fill(~audible, math.inf).amin(dim=-2, keepdim=True)
    mean = (energies * audible).sum(dim=-2, keepdim=True) / audible.sum(dim=-2, keepdim=True).clamp(min=1)
    return torch.where(audible.any(dim=-2, keepdim=True), torch.maximum(energies, quietest) - mean, 0.0)


def band_centres(spectrum: Spectrum) -> Tensor:
    """The centres in Hz of the bands of `filterbank`, (80,)."""
    if spectrum == "linear":
        return torch.linspace(0, SAMPLE_RATE / 2, BANDS + 2)[1:-1]
    low, high = (1127 * math.log1p(hertz / 700) for hertz in (20, SAMPLE_RATE / 2))  # mel, by Kaldi's formula
    return 700 * torch.expm1(torch.linspace(low, high, BANDS + 2)[1:-1] / 1127)


def linear_energies(samples: Tensor) -> Tensor:
    """Log energies of 80 triangular bands of equal width: (..., time) samples at 16 kHz -> (..., frames, 80)."""
    frames = samples.unfold(-1, LINEAR_WINDOW, LINEAR_HOP)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    frames = torch.cat([frames[..., :1], frames[..., 1:] - PREEMPHASIS * frames[..., :-1]], dim=-1)
    window = torch.hann_window(LINEAR_WINDOW, periodic=False, device=samples.device)
    power = torch.fft.rfft(frames * window, LINEAR_FFT).abs().square()
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, LINEAR_FFT // 2 + 1, device=samples.device)
    centres = torch.linspace(0, SAMPLE_RATE / 2, BANDS + 2, device=samples.device)
    distance = (frequencies[:, None] - centres[None, 1:-1]).abs()
    triangles = (1 - distance / centres[1]).clamp(min=0)
    energies: Tensor = power @ triangles
    return energies.clamp(min=ENERGY_FLOOR).log()
