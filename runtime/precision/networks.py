"""The networks of the lab, by name, each a chain of four to six stages.

Interiors are wide and borders narrow: a stage's cost then falls nearly in proportion to its width,
a quarter of 64 channels still fills a vector register, and little crosses a border.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime.precision.chain_fsdd import fsdd_chain
from runtime.precision.names import unknown
from runtime.precision.slimmable import SlimmableNetwork, SlimmableStage, narrowed
from runtime.precision.vit import fashion_vit

CHANNELS_AND_RESOLUTION: Final = (1.0, 0.25, 0.0625)
"""Shares of the interior that convolutional networks are trained for."""


class ConvNorm(nn.Sequential):
    """Convolution (padded to keep the size at stride 1), batch normalisation, ReLU if asked for."""

    def __init__(
        self, channels: int, outputs: int, kernel: int = 3, stride: int = 1, relu: bool = True
    ) -> None:
        padding = (kernel - 1) // 2
        conv = nn.Conv2d(channels, outputs, kernel, stride, padding, bias=False)
        # Random convolutions of positive inputs: keep the variance through the ReLU.
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(conv, nn.BatchNorm2d(outputs), *([nn.ReLU()] if relu else []))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around an interior, added to the input (He et al., arXiv:1512.03385).

    A coarse one computes its interior at half of the resolution.
    """

    def __init__(
        self, channels: int, interior: int, outputs: int, stride: int = 1, coarse: bool = False
    ) -> None:
        super().__init__()
        self.coarse = coarse
        self.enter = ConvNorm(channels, interior, stride=2 * stride if coarse else stride)
        self.leave = ConvNorm(interior, outputs, relu=False)
        self.shortcut: nn.Module = nn.Identity()
        if channels != outputs or stride != 1:
            self.shortcut = ConvNorm(channels, outputs, kernel=1, stride=stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, channels, h, w] to [n, outputs, h / stride, w / stride]."""
        aside = self.shortcut(x)
        inside = self.leave(self.enter(x))
        if self.coarse:
            inside = functional.interpolate(inside, size=aside.shape[2:], mode="nearest")
        return functional.relu(inside + aside)


class Stem(nn.Module):
    """Two 3x3 convolutions that make the image smaller, around an interior; see `ResidualBlock`."""

    def __init__(
        self, channels: int, interior: int, outputs: int, strides: tuple[int, int], coarse: bool
    ) -> None:
        super().__init__()
        self.coarse, self.shrinks = coarse, strides[0] * strides[1]
        self.enter = ConvNorm(channels, interior, stride=2 * strides[0] if coarse else strides[0])
        self.leave = ConvNorm(interior, outputs, stride=strides[1])

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, channels, h, w] to [n, outputs, h / strides, w / strides]."""
        result = self.leave(self.enter(x))
        if self.coarse:
            size = [side // self.shrinks for side in x.shape[2:]]
            result = functional.interpolate(result, size=size, mode="nearest")
        return result  # type: ignore[no-any-return]


class PooledHead(nn.Module):
    """Mean over the image, one hidden layer, logits."""

    def __init__(self, channels: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, hidden)
        self.logits = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, channels, h, w] to [n, classes]."""
        return self.logits(functional.relu(self.hidden(x.mean((2, 3)))))  # type: ignore[no-any-return]


def _shrunk(interior: int, fraction: float) -> tuple[int, bool]:
    """Return channels of an interior, and whether it is coarse, at a share of its values.

    Below a quarter, a quarter of the remaining values is had by half of the resolution: fewer
    channels than fill a vector register would cost as much as those that do.
    """
    coarse = fraction < 0.25
    return narrowed(interior, 4.0 * fraction if coarse else fraction), coarse


def _stem(channels: int, interior: int, outputs: int, strides: tuple[int, int]) -> SlimmableStage:
    """Return two convolutions that make the image smaller."""

    def make(fraction: float) -> nn.Module:
        inner, coarse = _shrunk(interior, fraction)
        return Stem(channels, inner, outputs, strides, coarse)

    return SlimmableStage(make, CHANNELS_AND_RESOLUTION)


def _blocks(channels: int, interior: int, outputs: int, stride: int, count: int) -> SlimmableStage:
    """Return a stage of residual blocks; the first changes channels and size.

    Where the interior is coarse, the first block is the only one.
    """

    def make(fraction: float) -> nn.Module:
        inner, coarse = _shrunk(interior, fraction)
        first = ResidualBlock(channels, inner, outputs, stride, coarse)
        further = 0 if coarse else count - 1
        return nn.Sequential(
            first, *(ResidualBlock(outputs, inner, outputs) for _ in range(further))
        )

    return SlimmableStage(make, CHANNELS_AND_RESOLUTION)


def _head(channels: int, hidden: int, classes: int) -> SlimmableStage:
    widths = CHANNELS_AND_RESOLUTION[:-1]  # no resolution is left to halve
    return SlimmableStage(lambda f: PooledHead(channels, narrowed(hidden, f), classes), widths)


def digits_cnn() -> SlimmableNetwork:
    """Return a net for scikit-learn's digits, 8x8: about 10 million multiplications."""
    stages = {
        "stem": _stem(1, 64, 32, (1, 1)),
        "middle": _blocks(32, 128, 32, 1, 1),
        "deep": _blocks(32, 128, 64, 2, 1),
        "head": _head(64, 64, 10),
    }
    return SlimmableNetwork("digits_cnn", stages, (1, 8, 8), 10)


def fashion_cnn() -> SlimmableNetwork:
    """Return a small net for Fashion-MNIST, 28x28: about 20 million multiplications."""
    stages = {
        "stem": _stem(1, 64, 32, (2, 1)),
        "middle": _blocks(32, 64, 32, 1, 1),
        "deep": _blocks(32, 128, 64, 2, 1),
        "head": _head(64, 128, 10),
    }
    return SlimmableNetwork("fashion_cnn", stages, (1, 28, 28), 10)


def eurosat_resnet() -> SlimmableNetwork:
    """Return a residual net for EuroSAT, 64x64 RGB: about 105 million multiplications."""
    stages = {
        "stem": _stem(3, 64, 32, (2, 2)),
        "shallow": _blocks(32, 64, 64, 1, 2),
        "middle": _blocks(64, 128, 128, 2, 2),
        "deep": _blocks(128, 256, 256, 2, 2),
        "head": _head(256, 128, 10),
    }
    return SlimmableNetwork("eurosat_resnet", stages, (3, 64, 64), 10)


NETWORKS: Final[dict[str, Callable[[], SlimmableNetwork]]] = {
    "digits_cnn": digits_cnn,
    "fashion_cnn": fashion_cnn,
    "fashion_vit": fashion_vit,
    "eurosat_resnet": eurosat_resnet,
    "fsdd_chain": fsdd_chain,
}


def build_network(name: str, generator: np.random.Generator) -> SlimmableNetwork:
    """Build a network with random weights.

    Args:
        name: One of `NETWORKS`.
        generator: What the weights are drawn with.

    Returns:
        The network, in training mode.

    Raises:
        ValueError: There is no such network.
    """
    if name not in NETWORKS:
        raise unknown("network", name, NETWORKS)
    # PyTorch's initialisers know the global generator only: give it a seed, and put it back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator.integers(2**62)))
        return NETWORKS[name]()
