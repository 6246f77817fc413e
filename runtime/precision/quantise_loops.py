"""The compiled loops of `quantise`, kept by numba on disk between processes.

numba's vectoriser uses whatever the processor has. Loops take addresses: wrapping tensors as arrays
would cost more than the loop itself on a small tensor. All take (address of the source, address of
the result, elements, three numbers) and run without the interpreter's lock.
"""

from __future__ import annotations

import importlib
from typing import Any

import numba
import numpy as np
from numba import extending

_types: Any = numba.types
_ir: Any = importlib.import_module("llvmlite.ir")
_intrinsic: Any = extending.intrinsic
_njit: Any = numba.njit

_f4, _u1, _u2, _u4 = np.float32, np.uint8, np.uint16, np.uint32
_MOST, _BLOCK = 255.0, 4096


@_intrinsic
def _pointer(typing: Any, address: Any, kind: Any) -> Any:
    result = _types.CPointer(kind.instance_type)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(result))

    return result(_types.int64, kind), generate


@_intrinsic
def _as_float(typing: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], _ir.FloatType())

    return _types.float32(_types.uint32), generate


@_intrinsic
def _as_bits(typing: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], _ir.IntType(32))

    return _types.uint32(_types.float32), generate


_fp32, _bf16, _uint8 = _types.float32, _types.uint16, _types.uint8
_ARGUMENTS = (*(_types.int64,) * 3, *(_types.float64,) * 3)


def _jit(result: Any) -> Any:
    options = {"nogil": True, "error_model": "numpy", "_nrt": False, "cache": True}
    return _njit(result(*_ARGUMENTS), **options)


@_njit(error_model="numpy", _nrt=False, inline="always")
def _rounded(value: Any, inverse: Any, zero: Any, top: Any) -> Any:
    # Comparisons that are false for NaN, which so becomes 0.
    t = value * inverse + zero
    t = t if t > _f4(0) else _f4(0)
    t = t if t < top else top
    return _u1(np.int32(np.rint(t)))


@_jit(_types.void)
def from_fp32(source: int, target: int, n: int, a: float, b: float, c: float) -> None:
    """Quantise fp32; numbers: inverse, zero point, top."""
    x, q = _pointer(source, _fp32), _pointer(target, _uint8)
    inverse, zero, top = _f4(a), _f4(b), _f4(c)
    for i in range(n):
        q[i] = _rounded(x[i], inverse, zero, top)


@_jit(_types.void)
def from_bf16(source: int, target: int, n: int, a: float, b: float, c: float) -> None:
    """Quantise bf16; numbers: inverse, zero point, top."""
    x, q = _pointer(source, _bf16), _pointer(target, _uint8)
    inverse, zero, top = _f4(a), _f4(b), _f4(c)
    for i in range(n):
        q[i] = _rounded(_as_float(_u4(x[i]) << _u4(16)), inverse, zero, top)


@_jit(_types.void)
def to_fp32(source: int, target: int, n: int, a: float, b: float, c: float) -> None:
    """Dequantise to fp32; numbers: scale, zero point, nothing."""
    q, x = _pointer(source, _uint8), _pointer(target, _fp32)
    scale, zero = _f4(a), _f4(b)
    for i in range(n):
        x[i] = (_f4(q[i]) - zero) * scale


@_jit(_types.void)
def to_bf16(source: int, target: int, n: int, a: float, b: float, c: float) -> None:
    """Dequantise to bf16; numbers: scale, zero point, nothing."""
    q, x = _pointer(source, _uint8), _pointer(target, _bf16)
    scale, zero = _f4(a), _f4(b)
    for i in range(n):
        bits = _as_bits((_f4(q[i]) - zero) * scale)
        # To the nearest bf16, ties to even; the values are finite.
        x[i] = _u2((bits + _u4(0x7FFF) + ((bits >> _u4(16)) & _u4(1))) >> _u4(16))


@_jit(_types.int64)
def count_fp32(source: int, target: int, n: int, a: float, b: float, c: float) -> Any:
    """Count fp32 values at most `a` or at least `b`."""
    x, low, high = _pointer(source, _fp32), _f4(a), _f4(b)
    count: Any = 0
    for i in range(n):
        count += (x[i] <= low) | (x[i] >= high)
    return count


@_jit(_types.int64)
def count_bf16(source: int, target: int, n: int, a: float, b: float, c: float) -> Any:
    """Count bf16 values at most `a` or at least `b`."""
    x, low, high = _pointer(source, _bf16), _f4(a), _f4(b)
    count: Any = 0
    for i in range(n):
        value = _as_float(_u4(x[i]) << _u4(16))
        count += (value <= low) | (value >= high)
    return count


@_jit(_types.int64)
def count_uint8(source: int, target: int, n: int, a: float, b: float, c: float) -> Any:
    """Count integers at most `a` or at least `b`."""
    x = _pointer(source, _uint8)
    first = max(np.floor(a), -1.0) + 1.0  # the first one inside, and how many there are
    inside = min(np.ceil(b), 256.0) - first
    count: Any = 0
    if inside > _MOST:
        return count
    if inside <= 0.0:
        return n
    lowest, width = _u1(first), _u1(inside)
    for start in range(0, n, _BLOCK):
        # Narrow sums of a block: 64-bit ones would take an eighth of the registers' lanes.
        part = _u2(0)
        for i in range(start, min(start + _BLOCK, n)):
            part += _u2(_u1(x[i] - lowest) >= width)
        count += np.int64(part)
    return count


LOOPS = (from_fp32, from_bf16, to_fp32, to_bf16, count_fp32, count_bf16, count_uint8)
"""In the order in which `quantise` picks them."""
