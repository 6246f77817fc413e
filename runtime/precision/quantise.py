"""From floats to 8-bit integers and back, in one pass over memory.

The rule, defined once: q = clamp(rint(x * inverse + zero_point), 0, top), product and sum each
rounded to fp32, ties to even, NaN to 0. The eager expressions below say the same in torch and run
where numba does not; both give the same bits.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
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
    """Return the compiled loops, in the order of `_compile`; None where numba is missing."""
    try:
        return _compile()
    except ImportError:
        return None


def _compile() -> tuple[Loop, ...]:  # noqa: C901 (five loops)
    # numba's vectoriser uses whatever the processor has. Loops take addresses: wrapping tensors
    # as arrays costs more than the loop itself on a small tensor.
    import numba
    from numba import extending

    types: Any = numba.types
    ir: Any = importlib.import_module("llvmlite.ir")
    intrinsic: Any = extending.intrinsic
    njit: Any = numba.njit
    f4, u1, u2, u4 = np.float32, np.uint8, np.uint16, np.uint32

    @intrinsic
    def pointer(typing: Any, address: Any, kind: Any) -> Any:
        result = types.CPointer(kind.instance_type)

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(result))

        return result(types.int64, kind), generate

    @intrinsic
    def as_float(typing: Any, bits: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.bitcast(values[0], ir.FloatType())

        return types.float32(types.uint32), generate

    @intrinsic
    def as_bits(typing: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return builder.bitcast(values[0], ir.IntType(32))

        return types.uint32(types.float32), generate

    jit: Any = njit(nogil=True, error_model="numpy", _nrt=False)

    @jit
    def rounded(value: Any, inverse: Any, zero: Any, top: Any) -> Any:
        # Comparisons that are false for NaN, which so becomes 0.
        t = value * inverse + zero
        t = t if t > f4(0) else f4(0)
        t = t if t < top else top
        return u1(np.int32(np.rint(t)))

    @jit
    def from_fp32(source: int, target: int, n: int, a: float, b: float, c: float) -> None:
        x, q = pointer(source, types.float32), pointer(target, types.uint8)
        inverse, zero, top = f4(a), f4(b), f4(c)
        for i in range(n):
            q[i] = rounded(x[i], inverse, zero, top)

    @jit
    def from_bf16(source: int, target: int, n: int, a: float, b: float, c: float) -> None:
        x, q = pointer(source, types.uint16), pointer(target, types.uint8)
        inverse, zero, top = f4(a), f4(b), f4(c)
        for i in range(n):
            q[i] = rounded(as_float(u4(x[i]) << u4(16)), inverse, zero, top)

    @jit
    def to_fp32(source: int, target: int, n: int, a: float, b: float, c: float) -> None:
        q, x = pointer(source, types.uint8), pointer(target, types.float32)
        scale, zero = f4(a), f4(b)
        for i in range(n):
            x[i] = (f4(q[i]) - zero) * scale

    @jit
    def to_bf16(source: int, target: int, n: int, a: float, b: float, c: float) -> None:
        q, x = pointer(source, types.uint8), pointer(target, types.uint16)
        scale, zero = f4(a), f4(b)
        for i in range(n):
            bits = as_bits((f4(q[i]) - zero) * scale)
            # To the nearest bf16, ties to even; the values are finite.
            x[i] = u2((bits + u4(0x7FFF) + ((bits >> u4(16)) & u4(1))) >> u4(16))

    @jit
    def count_fp32(source: int, target: int, n: int, a: float, b: float, c: float) -> Any:
        x, low, high = pointer(source, types.float32), f4(a), f4(b)
        count: Any = 0
        for i in range(n):
            count += (x[i] <= low) | (x[i] >= high)
        return count

    @jit
    def count_bf16(source: int, target: int, n: int, a: float, b: float, c: float) -> Any:
        x, low, high = pointer(source, types.uint16), f4(a), f4(b)
        count: Any = 0
        for i in range(n):
            value = as_float(u4(x[i]) << u4(16))
            count += (value <= low) | (value >= high)
        return count

    @jit
    def count_uint8(source: int, target: int, n: int, a: float, b: float, c: float) -> Any:
        x, low, high = pointer(source, types.uint8), f4(a), f4(b)
        count: Any = 0
        for i in range(n):
            value = f4(x[i])
            count += (value <= low) | (value >= high)
        return count

    loops = (from_fp32, from_bf16, to_fp32, to_bf16, count_fp32, count_bf16, count_uint8)
    buffer = torch.zeros(8, dtype=torch.float32)
    for loop in loops:
        loop(buffer.data_ptr(), buffer.data_ptr(), 0, 1.0, 0.0, 255.0)
    return loops
