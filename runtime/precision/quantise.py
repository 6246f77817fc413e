"""From floats to 8-bit integers and back, in one pass over memory.

The rule, defined once: q = clamp(rint(x * inverse + zero_point), 0, top), product and sum each
rounded to fp32, ties to even, NaN to 0. The eager expressions below say the same in torch and run
where numba does not; both give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

Loop = Callable[[int, int, int, float, float, float], Any]
"""Compiled loop: addresses of source and result, elements, and three numbers of the rule."""


def quantise_eager(x: Tensor, inverse: float, zero_point: float, top: float = 255.0) -> Tensor:
    """Return uint8 integers of fp32 or bf16 values, with plain torch operators.

    Args:
        x: Any shape.
        inverse: 1 / scale.
        zero_point: Integer that stands for 0.
        top: Largest integer.
    """
    t = x.float().mul(inverse).add_(zero_point)
    # fmax, not clamp: it takes NaN to 0, where a cast to uint8 would be undefined.
    return torch.fmax(t, torch.zeros(())).clamp_max_(top).round_().to(torch.uint8)


def dequantise_eager(q: Tensor, scale: float, zero_point: float, dtype: torch.dtype) -> Tensor:
    """Return (q - zero_point) * scale in fp32 or bf16, with plain torch operators."""
    return q.float().sub_(zero_point).mul_(scale).to(dtype)


def quantise(x: Tensor, inverse: float, zero_point: float, top: float = 255.0) -> Tensor:
    """Return uint8 integers of fp32 or bf16 values, in the memory order of `x`."""
    loops = _loops()
    if loops is None:
        return quantise_eager(x, inverse, zero_point, top)
    x = _dense(x)
    q = torch.empty_like(x, dtype=torch.uint8)
    loop = loops[0] if x.dtype is torch.float32 else loops[1]
    loop(x.data_ptr(), q.data_ptr(), x.numel(), inverse, zero_point, top)
    return q


def dequantise(q: Tensor, scale: float, zero_point: float, dtype: torch.dtype) -> Tensor:
    """Return the values of uint8 integers, fp32 or bf16, in the memory order of `q`."""
    loops = _loops()
    if loops is None:
        return dequantise_eager(q, scale, zero_point, dtype)
    q = _dense(q)
    x = torch.empty_like(q, dtype=dtype)
    loop = loops[2] if dtype is torch.float32 else loops[3]
    loop(q.data_ptr(), x.data_ptr(), q.numel(), scale, zero_point, 0.0)
    return x


def fake_quantise(x: Tensor, scale: float, zero_point: float, top: float) -> Tensor:
    """Return fp32 values rounded to a grid, as `dequantise(quantise(x))`."""
    q = quantise(x, 1.0 / scale, zero_point, top)
    return dequantise(q, scale, zero_point, torch.float32)


def count_outside(x: Tensor, low: float, high: float) -> int:
    """Return how many fp32, bf16 or uint8 values are at most `low` or at least `high`."""
    loops = _loops()
    if loops is None:
        return int(((x <= low) | (x >= high)).sum())
    x = _dense(x)
    loop = loops[{torch.float32: 4, torch.bfloat16: 5, torch.uint8: 6}[x.dtype]]
    return int(loop(x.data_ptr(), 0, x.numel(), low, high, 0.0))


def _dense(x: Tensor) -> Tensor:
    """Return a tensor whose elements lie without gaps, in an order that empty_like repeats."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


@cache
def _loops() -> tuple[Loop, ...] | None:
    """Return `quantise_loops.LOOPS`, or None where numba is missing."""
    try:
        # Here, not above: importing numba takes longer than reading the small file itself.
        from runtime.precision.quantise_loops import LOOPS
    except ImportError:
        return None
    return LOOPS
