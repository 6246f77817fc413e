"""A small vision transformer as a chain of stages (Dosovitskiy et al., arXiv:2010.11929).

Narrowing keeps the first attention heads and the first hidden units of each block's perceptron;
tokens keep their size, so borders keep theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from runtime.precision.slimmable import SlimmableNetwork, SlimmableStage, narrowed


class Attention(nn.Module):
    """Self-attention whose projection is laid out head by head, so that heads can be cut off.

    Rows of `enter` are [heads, (query, key, value), size of a head]: its leading rows are the first
    heads, whole.
    """

    def __init__(self, channels: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.heads, self.head_size = heads, head_size
        self.enter = nn.Linear(channels, heads * 3 * head_size)
        self.leave = nn.Linear(heads * head_size, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [n, tokens, channels] to the same shape."""
        tokens = x.shape[1]
        split = self.enter(x).reshape(-1, tokens, self.heads, 3, self.head_size)
        query, key, value = (split[:, :, :, k].permute(0, 2, 1, 3) for k in range(3))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        joined = mixed.permute(0, 2, 1, 3).reshape(-1, tokens, self.heads * self.head_size)
        return self.leave(joined)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and perceptron, each after a layer normalisation and added to the tokens."""

    def __init__(self, channels: int, heads: int, head_size: int, hidden: int) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(channels)
        self.attention = Attention(channels, heads, head_size)
        self.before_hidden = nn.LayerNorm(channels)
        self.hidden = nn.Linear(channels, hidden)
        self.leave = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [n, tokens, channels] to the same shape."""
        x = x + self.attention(self.before_attention(x))
        hidden = functional.gelu(self.hidden(self.before_hidden(x)))
        return x + self.leave(hidden)  # type: ignore[no-any-return]


class Patches(nn.Module):
    """Two strided convolutions, then one token per place, with a learned position added.

    Convolutions instead of one linear map of each patch: they train better on little data (Xiao et
    al., arXiv:2106.14881).
    """

    def __init__(self, inputs: int, interior: int, channels: int, tokens: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(inputs, interior, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(interior)
        self.leave = nn.Conv2d(interior, channels, 3, stride=2, padding=1)
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map images [n, inputs, h, w] to tokens [n, h * w / 16, channels]."""
        x = self.leave(functional.relu(self.norm(self.enter(x))))
        return x.flatten(2).transpose(1, 2) + self.position


class TokenHead(nn.Module):
    """Layer normalisation, mean over the tokens, logits."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.logits = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [n, tokens, channels] to [n, classes]."""
        return self.logits(self.norm(x).mean(1))  # type: ignore[no-any-return]


def fashion_vit(channels: int = 128, heads: int = 4, hidden: int = 256) -> SlimmableNetwork:
    """Return a transformer of four blocks for Fashion-MNIST: about 32 million multiplications.

    Args:
        channels: Size of a token; a multiple of `heads`.
        heads: Attention heads of a block at full width; a multiple of four.
        hidden: Hidden units of a block's perceptron at full width.
    """
    size = channels // heads

    def block(fraction: float) -> nn.Module:
        return Block(channels, narrowed(heads, fraction), size, narrowed(hidden, fraction))

    stages = {
        "patches": SlimmableStage(lambda f: Patches(1, narrowed(64, f), channels, 49)),
        **{f"block{k}": SlimmableStage(block) for k in range(1, 5)},
        "head": SlimmableStage(lambda f: TokenHead(channels, 10), widths=(1.0,)),
    }
    return SlimmableNetwork("fashion_vit", stages, (1, 28, 28), 10)
