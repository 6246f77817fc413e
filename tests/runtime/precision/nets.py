"""Small networks of every kind that a bank must take, with weights from a fixed seed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class Residual(nn.Module):
    """Two convolutions around a shortcut; strided ones have a convolution in it."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outside)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outside)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inside != outside:
            conv = nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(y)) + self.shortcut(x))


class Narrowable(nn.Module):
    """Convolution, ReLU, convolution; the interior can be narrowed."""

    def __init__(self, inside: int, interior: int, outside: int, narrowest: float = 0.0) -> None:
        super().__init__()
        self.narrowest = narrowest
        self.first = nn.Conv2d(inside, interior, 3, padding=1)
        self.second = nn.Conv2d(interior, outside, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(functional.relu(self.first(x))))

    def narrow(self, fraction: float) -> nn.Module:
        if fraction < self.narrowest:
            raise ValueError(f"no width {fraction}")
        kept = int(self.first.out_channels * fraction)
        other = Narrowable(self.first.in_channels, kept, self.second.out_channels)
        with torch.no_grad():
            other.first.weight.copy_(self.first.weight[:kept])
            other.first.bias.copy_(self.first.bias[:kept])
            other.second.weight.copy_(self.second.weight[:, :kept])
            other.second.bias.copy_(self.second.bias)
        return other


class PatchEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, width, 4, 4)
        self.first = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 17, width) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.project(x).flatten(2).transpose(1, 2)
        first = self.first.expand(x.shape[0], -1, -1)
        return torch.cat([first, tokens], dim=1) + self.position


class Block(nn.Module):
    """A transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        parts = self.qkv(self.norm_1(x)).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.project(mixed.transpose(1, 2).reshape(n, tokens, width))
        return x + self.down(functional.gelu(self.up(self.norm_2(x))))


class Head(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.classify = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.norm(x)[:, 0] + x.mean(1))


class Power(nn.Module):
    """Frames of a signal and the power of their spectrum, by products with sines and cosines."""

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        angle = 2 * math.pi / size * torch.outer(torch.arange(size), torch.arange(size // 2))
        self.register_buffer("cosines", torch.cos(angle))
        self.register_buffer("sines", torch.sin(angle))
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        frames = x.unfold(-1, self.size, self.size // 2)
        return (frames @ self.cosines).pow(2) + torch.matmul(frames, self.sines) ** 2


class Mel(nn.Module):
    def __init__(self, bins: int = 16, bands: int = 8) -> None:
        super().__init__()
        self.register_buffer("bank", torch.rand(bins, bands))

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(torch.mm(x.flatten(0, 1), self.bank).clamp_(min=1e-3)).view(
            x.shape[0], -1, self.bank.shape[1]
        )


class Voice(nn.Module):
    """A 1-D convolution with batch normalisation, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.BatchNorm1d(15)
        self.conv = nn.Conv1d(15, 12, 3, padding="same")
        self.norm = nn.BatchNorm1d(12)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu_(self.norm(self.conv(self.before(x)))).mean(-1)


Modules = list[tuple[str, nn.Module]]


def _filled(modules: Modules, seed: int) -> Modules:
    """Give batch normalisation statistics as training would, and switch to evaluation."""
    generator = torch.Generator().manual_seed(seed)
    for _, module in modules:
        for inner in module.modules():
            if isinstance(inner, nn.BatchNorm1d | nn.BatchNorm2d):
                inner.running_mean.normal_(0, 0.2, generator=generator)
                inner.running_var.uniform_(0.5, 2.0, generator=generator)
        module.eval()
    return modules


def cnn() -> tuple[Modules, tuple[int, ...]]:
    """Convolutions: plain, normalised, grouped, depthwise, dilated; max-pools; a classifier."""
    torch.manual_seed(1)
    mixed = nn.Sequential(
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    modules: Modules = [
        ("stem", nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())),
        ("pool", nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1))),
        ("mixed", mixed),
        ("head", nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 10))),
    ]
    return _filled(modules, 1), (1, 14, 14)


def residual() -> tuple[Modules, tuple[int, ...]]:
    torch.manual_seed(2)
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    modules: Modules = [
        ("stem", nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU())),
        ("one", nn.Sequential(Residual(8, 8), Residual(8, 8))),
        ("two", Residual(8, 16, 2)),
        ("head", nn.Sequential(Residual(16, 16), *pooled)),
    ]
    return _filled(modules, 2), (3, 12, 12)


def transformer() -> tuple[Modules, tuple[int, ...]]:
    torch.manual_seed(3)
    blocks: Modules = [("one", Block(32, 2)), ("two", Block(32, 2))]
    modules = [("embed", PatchEmbedding(32)), *blocks, ("head", Head(32))]
    return _filled(modules, 3), (3, 16, 16)


def chain() -> tuple[Modules, tuple[int, ...]]:
    torch.manual_seed(4)
    modules = [("power", Power()), ("mel", Mel()), ("voice", Voice()), ("head", nn.Linear(12, 5))]
    return _filled(modules, 4), (256,)


def narrowable() -> tuple[Modules, tuple[int, ...]]:
    torch.manual_seed(5)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    modules = [("a", Narrowable(2, 16, 8)), ("b", Narrowable(8, 16, 8, 0.5)), ("head", head)]
    return _filled(modules, 5), (2, 8, 8)


NETS = {"cnn": cnn, "residual": residual, "transformer": transformer, "chain": chain}


def inputs(shape: tuple[int, ...], n: int, seed: int = 9) -> Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def plain(modules: Modules, x: Tensor) -> Tensor:
    """What the modules themselves say."""
    with torch.no_grad():
        for _, module in modules:
            x = module(x)
    return x
