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
    # NaN to 0: a cast to uint8 would be undefined.
    return t.nan_to_num_(0.0).clamp_(0.0, top).round_().to(torch.uint8)


def dequantise_eager(q: Tensor, scale: float, zero_point: float, dtype: torch.dtype) -> Tensor:
    """Return (q - zero_point) * scale in fp32 or bf16, with plain torch operators."""
    return q.float().sub_(zero_point).mul_(scale).to(dtype)


def quantise(x: Tensor, inverse: float, zero_point: float, top: float = 255.0) -> Tensor:
    """Return uint8 integers of values of a float type, in the memory order of `x`."""
    if x.is_cuda:
        return _store_on_gpu(x, inverse, zero_point, torch.uint8)
    loops = _loops()
    if loops is None or x.dtype not in _LOOPED:
        return quantise_eager(x, inverse, zero_point, top)
    x = _dense(x)
    q = torch.empty_like(x, dtype=torch.uint8)
    loop = loops[0] if x.dtype is torch.float32 else loops[1]
    loop(x.data_ptr(), q.data_ptr(), x.numel(), inverse, zero_point, top)
    return q


def dequantise(q: Tensor, scale: float, zero_point: float, dtype: torch.dtype) -> Tensor:
    """Return the values of uint8 integers in a float type, in the memory order of `q`."""
    if q.is_cuda:
        return _read_on_gpu(q, scale, zero_point, dtype)
    loops = _loops()
    if loops is None or dtype not in _LOOPED:
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


def to_fp8(x: Tensor, inverse: float) -> Tensor:
    """Return x * inverse as numbers of type float8_e4m3fn, NaN to 0, larger ones to the largest."""
    if x.is_cuda:
        return _store_on_gpu(x, inverse, 0.0, torch.float8_e4m3fn)
    top = torch.finfo(torch.float8_e4m3fn).max
    return x.float().mul(inverse).nan_to_num_(0.0).clamp_(-top, top).to(torch.float8_e4m3fn)


def from_fp8(q: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Return q * scale in a type of floats."""
    if q.is_cuda:
        return _read_on_gpu(q, scale, 0.0, dtype)
    return q.float().mul_(scale).to(dtype)


def count_outside(x: Tensor, low: float, high: float) -> int | Tensor:
    """Return how many values are at most `low` or at least `high`.

    On a GPU a tensor of it, so that nothing waits for the count.
    """
    loops = _loops()
    loop = _COUNTING.get(x.dtype)
    if loops is None or loop is None or x.is_cuda:
        x = x.float()
        count = ((x <= low) | (x >= high)).sum()
        return count if x.is_cuda else int(count)
    x = _dense(x)
    return int(loops[loop](x.data_ptr(), 0, x.numel(), low, high, 0.0))


_LOOPED = (torch.float32, torch.bfloat16)
"""Types that there are loops for."""

_COUNTING = {torch.float32: 4, torch.bfloat16: 5, torch.uint8: 6}
"""Place of the loop that counts values of a type."""


def _dense(x: Tensor) -> Tensor:
    """Return a tensor whose elements lie without gaps, in an order that empty_like repeats."""
    if x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def _store_on_gpu(x: Tensor, inverse: float, zero_point: float, dtype: torch.dtype) -> Tensor:
    # Here, not above: Triton need not be there where no level wants it.
    from runtime.precision import gpu_kernels

    return gpu_kernels.store(x, inverse, zero_point, dtype)


def _read_on_gpu(q: Tensor, scale: float, zero_point: float, dtype: torch.dtype) -> Tensor:
    from runtime.precision import gpu_kernels

    return gpu_kernels.read(q, scale, zero_point, dtype)


@cache
def _loops() -> tuple[Loop, ...] | None:
    """Return `quantise_loops.LOOPS`, or None where numba is missing."""
    try:
        # Here, not above: importing numba takes longer than reading the small file itself.
        from runtime.precision.quantise_loops import LOOPS
    except ImportError:
        return None
    return LOOPS
