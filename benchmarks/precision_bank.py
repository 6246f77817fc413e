"""Latency of every level of a bank of stages, against plain and compiled fp32.

    python -m benchmarks.precision_bank [NET ...] [batch=1,16,64] [rounds=9] [compile=true]

One thread; processor time counts, as medians over interleaved rounds: machines are shared.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.rows import BenchmarkRow
from runtime.precision.bank import Bank, BankOptions
from runtime.precision.levels import LEVELS, refusals
from runtime.precision.machine import instruction_set
from runtime.precision.memory import keep_memory
from runtime.precision.staging import StagedNetwork

Works = dict[str, Callable[[], object]]
Stages = list[tuple[str, nn.Module]]


class Residual(nn.Module):
    """A basic block of ResNet-18."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm_1, self.norm_2 = nn.BatchNorm2d(outside), nn.BatchNorm2d(outside)
        conv = nn.Conv2d(inside, outside, 1, stride, bias=False)
        plain = stride == 1 and inside == outside
        self.shortcut = nn.Identity() if plain else nn.Sequential(conv, nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 [n, outside, h / stride, w / stride]."""
        y = functional.relu(self.norm_1(self.first(x)))
        return functional.relu(self.norm_2(self.second(y)) + self.shortcut(x))


class Block(nn.Module):
    """A transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 [n, tokens, width]."""
        n, tokens, width = x.shape
        parts = self.qkv(self.norm_1(x)).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.project(mixed.transpose(1, 2).reshape(n, tokens, width))
        return x + self.down(functional.gelu(self.up(self.norm_2(x))))


class Patches(nn.Module):
    """Patches of 4 x 4 pixels as tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, width, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 64, width) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 [n, 64, width]."""
        return self.project(x).flatten(2).transpose(1, 2) + self.position


class Pooled(nn.Module):
    """Mean over tokens, and a linear classifier."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.classify = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return float32 [n, 10]."""
        return self.classify(self.norm(x).mean(1))


def resnet18() -> tuple[Stages, tuple[int, ...]]:
    """Return ResNet-18 for 32 x 32 images, 0.56 GMAC, in four stages."""
    stem = (nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    blocks = [
        nn.Sequential(*stem, Residual(64, 64, 1), Residual(64, 64, 1)),
        nn.Sequential(Residual(64, 128, 2), Residual(128, 128, 1)),
        nn.Sequential(Residual(128, 256, 2), Residual(256, 256, 1)),
        nn.Sequential(Residual(256, 512, 2), Residual(512, 512, 1), *head),
    ]
    return [(f"stage{i}", block) for i, block in enumerate(blocks)], (3, 32, 32)


def small_cnn() -> tuple[Stages, tuple[int, ...]]:
    """Return a convolutional net for 28 x 28 images, 0.43 M parameters, in four stages."""
    head = nn.Sequential(nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10))
    return [
        ("stem", nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU())),
        ("one", nn.Sequential(nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2))),
        ("two", nn.Sequential(nn.Conv2d(32, 64, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2))),
        ("head", head),
    ], (1, 28, 28)


def vit() -> tuple[Stages, tuple[int, ...]]:
    """Return a transformer of width 192 with 6 blocks for 32 x 32 images, in four stages."""
    return [
        ("embed", Patches(192)),
        ("low", nn.Sequential(*(Block(192, 3) for _ in range(3)))),
        ("high", nn.Sequential(*(Block(192, 3) for _ in range(3)))),
        ("head", Pooled(192)),
    ], (3, 32, 32)


NETS = {"resnet18": resnet18, "small_cnn": small_cnn, "vit": vit}


def make_bank(name: str, rest: str = "auto") -> tuple[Bank, nn.Sequential]:
    """Return a bank of the real levels that this machine runs at full width, and its source."""
    torch.manual_seed(0)
    stages, shape = NETS[name]()
    source = nn.Sequential(*(module for _, module in stages)).eval()
    real = [lv for lv in LEVELS if not lv.emulated and lv.width == 1.0]
    refused = refusals(real)
    levels = tuple(level for level in real if level.name not in refused)
    network = StagedNetwork.from_modules(stages, shape)
    return Bank(network, torch.rand(64, *shape), BankOptions(levels, rest=rest)), source


def works_at(bank: Bank, source: nn.Sequential, batch: int, compiled: bool) -> Works:
    """Return what is timed at a batch size: the bank at each level, mixes, and plain torch."""
    x = torch.rand(batch, *bank.network.input_shape)
    image = x.contiguous(memory_format=torch.channels_last)
    plain = source.to(memory_format=torch.channels_last)
    works: Works = {"eager fp32": lambda: plain(image)}
    if compiled:
        compile_: Any = torch.compile
        # Not isolated, the ninth variant of a process would silently run uncompiled. Freezing
        # prepacks weights, as the bank does; given as an option of one call it does nothing.
        inductor: Any = importlib.import_module("torch._inductor.config")
        inductor.freezing = True
        fast = compile_(plain, dynamic=False, isolate_recompiles=True)
        works["compiled fp32, frozen"] = lambda: fast(image)
    for at, level in enumerate(bank.levels):
        works[f"bank {level.name}"] = _pass(bank, x, (at,) * len(bank.stages))
    last = len(bank.levels) - 1
    mixed = tuple(last if k % 2 == 0 else 0 for k in range(len(bank.stages)))
    works["bank alternating with fp32"] = _pass(bank, x, mixed)
    return works


def _pass(bank: Bank, x: Tensor, levels: tuple[int, ...]) -> Callable[[], object]:
    return lambda: bank.run(x, levels)


def time_in_turn(works: Works, rounds: int) -> dict[str, np.ndarray]:
    """Return processor time per call of every work, float64 [rounds], seconds.

    Within a round, each work is called often enough to take some milliseconds.
    """
    with torch.no_grad():
        repeats = {}
        for name, work in works.items():
            for _ in range(2):
                work()
            start = time.thread_time()
            work()
            repeats[name] = max(1, int(0.01 / max(time.thread_time() - start, 1e-6)))
        times: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(rounds):
            for name, work in works.items():
                start = time.thread_time()
                for _ in range(repeats[name]):
                    work()
                times[name].append((time.thread_time() - start) / repeats[name])
    return {name: np.array(values) for name, values in times.items()}


def dispatch_us(bank: Bank) -> float:
    """Return what `run` costs per stage when the stages themselves do nothing, microseconds.

    Raises:
        RuntimeError: They do something.
    """

    def same(x: Tensor) -> Tensor:
        return x

    count = len(bank.levels)
    idle, passes = copy(bank), copy(bank._passes)
    idle._passes = passes
    passes._calls = [[[same] * count for _ in range(count)] for _ in bank.stages]
    passes._entries = [same] * count
    x, levels = torch.zeros(1, *bank.network.input_shape), (count - 1,) * len(bank.stages)
    if idle.run(x, levels) is not x:
        raise RuntimeError("the stages of an idle bank do something: dispatch cannot be timed")
    times = time_in_turn({"idle": _pass(idle, x, levels)}, 15)["idle"]
    return float(np.median(times)) * 1e6 / len(bank.stages)


def measure_net(name: str, batches: list[int], rounds: int, compiled: bool) -> list[BenchmarkRow]:
    """Return a row per batch size and work; ratios are medians over rounds against eager fp32."""
    bank, source = make_bank(name)
    rows = []
    for batch in batches:
        start, cpu = time.perf_counter(), time.process_time()
        times = time_in_turn(works_at(bank, source, batch, compiled), rounds)
        spent = time.perf_counter() - start, time.process_time() - cpu
        for work, values in times.items():
            ratio = float(np.median(times["eager fp32"] / values))
            note = "ratio: eager fp32, channels_last, batch normalisation not folded"
            title = f"{name} batch {batch}: {work}"
            value = float(np.median(values)) * 1e6
            rows.append(BenchmarkRow(title, value, "us", *spent, ratio, note))
    us = dispatch_us(bank)
    rows.append(BenchmarkRow(f"{name}: dispatch per stage", us, "us", 0.0, 0.0, None, "aim: 1 us"))
    return rows


def measure_all() -> list[BenchmarkRow]:
    """Return the rows of all networks at batch sizes 1 and 16; a minute, compiling included."""
    torch.set_num_threads(1)
    keep_memory()
    return [row for name in NETS for row in measure_net(name, [1, 16], rounds=9, compiled=True)]


def main(words: list[str]) -> None:
    """Print a table per network."""
    options = dict(word.split("=", 1) for word in words if "=" in word)
    names = [word for word in words if "=" not in word] or list(NETS)
    unknown = [name for name in names if name not in NETS]
    if unknown:
        raise SystemExit(f"no network {unknown[0]!r}; expected of {', '.join(NETS)}")
    batches = [int(batch) for batch in options.get("batch", "1,16,64").split(",")]
    rounds, compiled = int(options.get("rounds", 9)), options.get("compile", "true") == "true"
    torch.set_num_threads(1)
    keep_memory()
    print(f"torch {torch.__version__}, {instruction_set()}, one thread, {rounds} rounds")
    for name in names:
        for row in measure_net(name, batches, rounds, compiled):
            ratio = "" if row.ratio is None else f"{row.ratio:8.2f} x"
            print(f"{row.name:58} {row.value:12,.1f} {row.unit}{ratio}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
