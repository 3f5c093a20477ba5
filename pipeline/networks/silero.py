"""Silero VAD: the small voice activity detector, for recordings of any length.

Source: Silero VAD, Silero Team, https://github.com/snakers4/silero-vad (Copyright (c) 2020-present Silero Team, MIT
License). It loads the 16 kHz weights of that network. The published network goes through a recording chunk by chunk.
Here half a minute of chunks is encoded at once, and only the recurrence goes chunk by chunk. The probabilities are the
same, and it is faster.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.types import Checkpoint, go_on

CHUNK = 512
CONTEXT = 64
FFT = 256
BLOCK = 1_024
"""The number of chunks that are encoded at once, 33 s. An hour of chunks would not fit in memory."""


class SileroVad(nn.Module):
    """Probability of speech in every 32 ms: (samples,) at 16 kHz -> (ceil(samples / 512),)."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, FFT + 2, FFT, stride=FFT // 2, bias=False)
        self.conv1 = nn.Conv1d(FFT // 2 + 1, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def load(self, parameters: dict[str, Tensor]) -> None:
        """Load the published parameters. They are those of an LSTM cell, and this network has an LSTM layer."""
        cell, layer = "lstm_cell.", "lstm."
        self.load_state_dict(
            {k.replace(cell, layer) + ("_l0" if k.startswith(cell) else ""): v for k, v in parameters.items()}
        )

    def forward(self, samples: Tensor, checkpoint: Checkpoint = go_on) -> Tensor:
        padded = F.pad(samples, (CONTEXT, -len(samples) % CHUNK))
        chunks = padded.unfold(0, CONTEXT + CHUNK, CHUNK)  # each begins with the end of the one before
        probabilities, memory = [], None
        for block in torch.split(chunks, BLOCK):
            checkpoint()
            states, memory = self.lstm(self.encode(block), memory)
            probabilities.append(torch.sigmoid(self.final_conv(F.relu(states.transpose(1, 2))))[:, 0, 0])
        return torch.cat(probabilities)

    def encode(self, chunks: Tensor) -> Tensor:
        """The input of the recurrence for each chunk: (chunks, 576) -> (chunks, 1, 128)."""
        spectrum = self.stft_conv(F.pad(chunks.unsqueeze(1), (0, FFT // 4), mode="reflect"))
        real, imaginary = spectrum.chunk(2, dim=1)
        x = (real.square() + imaginary.square()).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(layer(x))
        states: Tensor = x.transpose(1, 2)
        return states
