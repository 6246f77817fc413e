"""A chain that is not only a neural net: spoken digits through a spectrogram to a classifier.

    wave -> stft (constant convolution) -> mel (power, constant matrix) -> log -> network

Its first three stages have no learned weights and no interior to narrow, but they can run at lower
precision like any other: the transform is a convolution with constant kernels, the mel scale a
convolution with a constant matrix.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from runtime.precision.slimmable import SlimmableNetwork, SlimmableStage, narrowed

RATE_HZ: Final = 8000
SAMPLES: Final = 8192
"""Length of a recording: 1.024 s, longer than 99 in 100 of the spoken digits."""
FRAME: Final = 256
HOP: Final = FRAME // 2
FRAMES: Final = SAMPLES // HOP - 1
BINS: Final = FRAME // 2 + 1
MELS: Final = 40
PITCHES: Final = MELS // 8
"""Bands that are left of the mel scale after the network's strides."""
FLOOR: Final = 1e-5
"""Mel power below which everything counts as silence: -50 dB of a full-scale tone's."""


def dft_kernels() -> NDArray[np.float64]:
    """Return the windowed Fourier transform of one frame as a matrix.

    Returns:
        float64 [2 * BINS, FRAME]: rows of the real, then of the imaginary part, of a Hann window
        times exp(-2 pi i k t / FRAME), scaled so that a full-scale tone on a bin gives 1.
    """
    t = np.arange(FRAME)
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * t / FRAME)
    phase = 2.0 * np.pi * np.outer(np.arange(BINS), t) / FRAME
    scaled = window * (2.0 / window.sum())
    kernels: NDArray[np.float64] = np.concatenate([np.cos(phase), -np.sin(phase)]) * scaled
    return kernels


def mel_matrix() -> NDArray[np.float64]:
    """Return triangular filters, evenly spaced on the mel scale of O'Shaughnessy.

    Returns:
        float64 [MELS, BINS], each row's peak at most 1; mel = 2595 log10(1 + f / 700 Hz), from
        60 Hz to half the sampling rate.
    """
    low, high = (2595.0 * math.log10(1.0 + f / 700.0) for f in (60.0, RATE_HZ / 2))
    edges_hz = 700.0 * (10.0 ** (np.linspace(low, high, MELS + 2) / 2595.0) - 1.0)
    bins_hz = np.arange(BINS) * RATE_HZ / FRAME
    left, centre, right = (edges_hz[k : k + MELS, None] for k in range(3))
    rising = (bins_hz - left) / (centre - left)
    falling = (right - bins_hz) / (right - centre)
    return np.maximum(0.0, np.minimum(rising, falling))


class Stft(nn.Module):
    """Short-time Fourier transform with half-overlapping frames.

    A frame is two hops, so framing, window and transform together are a convolution of length two
    over blocks of a hop, with the places inside a block as channels: no samples are copied.
    """

    kernels: Tensor

    def __init__(self) -> None:
        super().__init__()
        matrix = torch.from_numpy(dft_kernels()).float()
        kernels = matrix.reshape(2 * BINS, 2, HOP).transpose(1, 2).unsqueeze(2)
        self.register_buffer("kernels", kernels.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map waves [n, 1, SAMPLES] to real and imaginary parts [n, 2 * BINS, 1, FRAMES]."""
        blocks = x.reshape(-1, SAMPLES // HOP, HOP).permute(0, 2, 1).unsqueeze(2)
        return functional.conv2d(blocks, self.kernels)


class Mel(nn.Module):
    """Power of each bin, summed by triangular filters."""

    matrix: Tensor

    def __init__(self) -> None:
        super().__init__()
        # The same filters on the squares of real and imaginary parts: power and mel in one product.
        matrix = torch.from_numpy(np.tile(mel_matrix(), (1, 2))).float()
        self.register_buffer("matrix", matrix[:, :, None, None].contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, 2 * BINS, 1, FRAMES] to mel power [n, MELS, 1, FRAMES]."""
        return functional.conv2d(x.pow(2), self.matrix)


class Log(nn.Module):
    """Logarithm above a floor, mapped to 0 (silence) and 1 (a full-scale tone)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map mel power [n, MELS, 1, FRAMES] to an image [n, 1, MELS, FRAMES]."""
        level = x.clamp(min=FLOOR).log() * (-1.0 / math.log(FLOOR)) + 1.0
        return level.reshape(-1, 1, MELS, FRAMES)


class Features(nn.Module):
    """Two strided convolutions over time and pitch."""

    def __init__(self, interior: int, outputs: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, interior, 3, stride=2, padding=1, bias=False)
        self.enter_norm = nn.BatchNorm2d(interior)
        self.leave = nn.Conv2d(interior, outputs, 3, stride=2, padding=1, bias=False)
        self.leave_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, 1, MELS, FRAMES] to [n, outputs, MELS / 4, (FRAMES + 1) / 4]."""
        x = functional.relu(self.enter_norm(self.enter(x)))
        return functional.relu(self.leave_norm(self.leave(x)))


class Classifier(nn.Module):
    """Two convolutions, mean over time, logits from every channel at every pitch."""

    def __init__(self, channels: int, interior: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, interior, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(interior)
        self.second = nn.Conv2d(interior, interior, 3, stride=2, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(interior)
        self.logits = nn.Linear(interior * PITCHES, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, channels, h, w] to [n, classes]."""
        x = functional.relu(self.first_norm(self.first(x)))
        x = functional.relu(self.second_norm(self.second(x)))
        return self.logits(x.mean(3).flatten(1))  # type: ignore[no-any-return]


def fsdd_chain() -> SlimmableNetwork:
    """Return the chain for spoken digits: about 13 million multiplications, five stages."""
    fixed = (1.0,)
    stages = {
        "stft": SlimmableStage(lambda f: Stft(), widths=fixed),
        "mel": SlimmableStage(lambda f: Mel(), widths=fixed),
        "log": SlimmableStage(lambda f: Log(), widths=fixed),
        "features": SlimmableStage(lambda f: Features(narrowed(64, f), 32)),
        "classifier": SlimmableStage(lambda f: Classifier(32, narrowed(64, f), 10)),
    }
    return SlimmableNetwork("fsdd_chain", stages, (1, SAMPLES), 10)
