"""What this machine's processor and torch can run, found out by trying.

The operators under `torch.ops.mkldnn` and `torch.ops.onednn` are private to torch: each kind of
level is tested against fp32 before it is offered, so a torch that changed them is refused with a
reason instead of computing something else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from runtime.precision import kernels
from runtime.precision.formats import Grid
from runtime.precision.levels import Level

_LEAST_DB = {"fp32": 100.0, "bf16": 35.0, "int8": 25.0}
"""Signal to noise that a working kernel exceeds by far on the self-tests' Gaussian data."""


_Weights = kernels.ConvWeights | kernels.LinearWeights


def sqnr_db(reference: Tensor, value: Tensor) -> float:
    """Return the signal-to-quantisation-noise ratio, decibels.

    inf where both are equal, silence included; -inf where noise is all that there is.
    """
    signal = reference.double().square().sum()
    noise = (reference.double() - value.double()).square().sum()
    if noise == 0.0:
        return math.inf
    return float(10.0 * torch.log10(signal / noise))


def instruction_set() -> str:
    """Return the name of the processor's abilities that decide which kernels oneDNN picks."""
    parts = [torch.backends.cpu.get_cpu_capability().lower()]
    abilities = torch.cpu.get_capabilities()
    wanted = ("avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16")
    parts += [name for name in wanted if abilities.get(name)]
    return "+".join(parts)


def kernel_family() -> str:
    """Return the ability that int8 kernels live on, such as `amx`, `avx512_vnni` or `avx2`."""
    abilities = torch.cpu.get_capabilities()
    families = {"amx_int8": "amx", "avx512_vnni": "avx512_vnni", "avx_vnni": "avx_vnni"}
    found = [name for ability, name in families.items() if abilities.get(ability)]
    return found[0] if found else torch.backends.cpu.get_cpu_capability().lower()


def has_matrix_units() -> bool:
    """Return whether bf16 runs on AMX tiles; without them it is slower than fp32 in places."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


@cache
def int8_weight_bits() -> int:
    """Return how many bits the weights of int8 kernels may have for exact sums: 8 or 7.

    Processors without VNNI instructions add pairs of products in 16 bits: with 8 bits on both sides
    those sums saturate without an error (seen with torch 2.13 on AVX2: half of the true value).
    """
    return 8 if all(_sums_exactly(weights) for weights in _extreme_weights()) else 7


def _extreme_weights() -> tuple[_Weights, ...]:
    """Return layers whose sums of products are the largest, one of each kind of kernel."""
    one, pair = (1, 1), (0, 0)
    return (
        kernels.ConvWeights(torch.ones(16, 16, 3, 3), None, one, pair, one, 1),
        kernels.ConvWeights(torch.ones(16, 16, 1, 1), None, one, pair, one, 1),
        kernels.LinearWeights(torch.ones(16, 64), None),
    )


def _sums_exactly(weights: _Weights) -> bool:
    conv = isinstance(weights, kernels.ConvWeights)
    shape = (1, 16, 4, 4) if conv else (4, 64)
    order = torch.channels_last if conv else torch.contiguous_format
    x = torch.full(shape, 255, dtype=torch.uint8).contiguous(memory_format=order)
    call = kernels.prepack_int8(kernels.quantise_weights(weights), Grid(1.0 / 255.0, 0), shape)
    expected = float(weights.weight[0].numel())
    return bool((call.run(x) - expected).abs().max() < 1e-3 * expected)


@cache
def refusal(kind: str, device: str = "cpu") -> str:
    """Return why levels of a kind cannot run here, or nothing if they can.

    Args:
        kind: As in `Level.kind`.
        device: As in `Level.device`.
    """
    if device == "cuda":
        # Here, not above: it needs this module's self-tests.
        from runtime.precision import gpu

        return gpu.refusal(kind)
    mkldnn: Any = torch.backends.mkldnn
    if not mkldnn.is_available():
        return "this torch was built without oneDNN"
    tested = "fp32" if kind == "emulated" else kind
    if tested not in _LEAST_DB:
        return f"no kernels for levels of kind {kind!r}"
    return failure(lambda: _worst_db(tested), _LEAST_DB[tested], "oneDNN operators")


def failure(self_test: Callable[[], float], least_db: float, what: str) -> str:
    """Return how a self-test fails, or nothing if it passes.

    Args:
        self_test: Gives the least signal to noise of kernels against fp32, decibels.
        least_db: What working kernels exceed.
        what: What they are.
    """
    try:
        found = self_test()
    except Exception as error:  # whatever operators, drivers or compilers raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return f"torch {torch.__version__} fails the self-test of its {what}: {reason}"
    if not found >= least_db:
        return (
            f"its kernels differ from fp32 more than rounding explains "
            f"({found:.1f} dB, expected at least {least_db:.0f} dB)"
        )
    return ""


def weight_bits(level: Level) -> int:
    """Return the bits of the integers that stand for weights at a level of at most 8 bits."""
    return level.bits if level.device == "cuda" else min(level.bits, int8_weight_bits())


def self_test_layers() -> list[tuple[_Weights, Tensor, Tensor, Tensor]]:
    """Return a convolution and a linear layer: weights, input, what is added, result before."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, other = normal(2, 16, 9, 9).relu(), normal(2, 24, 9, 9)
    x = x.contiguous(memory_format=torch.channels_last)
    conv = kernels.ConvWeights(normal(24, 16, 3, 3), normal(24), (1, 1), (1, 1), (1, 1), 1)
    rows, residual = normal(5, 32), normal(5, 48)
    linear = kernels.LinearWeights(normal(48, 32), normal(48))
    return [
        (conv, x, other, functional.conv2d(x, conv.weight, conv.bias, 1, 1)),
        (linear, rows, residual, functional.linear(rows, linear.weight, linear.bias)),
    ]


def _worst_db(kind: str) -> float:
    run = _integer if kind == "int8" else _floating
    return min(run(kind, *layer) for layer in self_test_layers())


def _floating(kind: str, weights: _Weights, x: Tensor, other: Tensor, exact: Tensor) -> float:
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    call = kernels.prepack_float(weights, dtype, x.shape)
    plain = call.run(x.to(dtype))
    added = call.run(x.to(dtype), kernels.Added(other.to(dtype)))
    return min(sqnr_db(exact, plain.float()), sqnr_db(exact + other, added.float()))


def _integer(kind: str, weights: _Weights, x: Tensor, other: Tensor, exact: Tensor) -> float:
    total = exact + other
    grid, on, target = Grid.of_tensor(x), Grid.of_tensor(other), Grid.of_tensor(total)
    integers = kernels.quantise_weights(weights, int8_weight_bits())
    call = kernels.prepack_int8(integers, grid, x.shape)
    found = [sqnr_db(exact, call.run(grid.quantise(x)))]
    order = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    added = kernels.Added(other.clone(memory_format=order))
    found.append(sqnr_db(total, call.run(grid.quantise(x), added)))
    if x.dim() == 4:
        # A uint8 result wants uint8 added; only convolutions do this.
        added = kernels.Added(on.quantise(other.contiguous(memory_format=order)), on)
        summed = call.run(grid.quantise(x), added, target)
        found.append(sqnr_db(total, target.dequantise(summed)))
    return min(found)
