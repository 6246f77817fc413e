"""Layers on 8-bit numbers on a GPU, written in Triton: convolutions and linear layers alike.

PyTorch has no int8 or fp8 convolutions on GPUs, and its matrix products of 8-bit numbers
(`torch._int_mm`, `torch._scaled_mm`) want shapes that few layers have. Here a convolution is a
product of matrices whose left one is never written: rows are places of the result, columns are taps
and channels of its window (implicit GEMM, as in cuDNN: Chetlur et al., arXiv:1410.0759, section 3).
Scales, zero points, bias, an added tensor, activation and the format of the result are part of the
same kernel.

Images have channels last, weights are [outputs, taps, channels]: tensor cores of compute capability
9.0 read 8-bit operands along the summed dimension alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_MULTIPROCESSORS = 132
"""Of an H100; smaller blocks are taken where large ones would leave some of them idle."""
_LEAST_SIDE = 16  # of a block that tensor cores multiply
_LEAST_SUM = 32  # 8-bit numbers that they add up in one step

FLOATS, INTEGERS, FP8 = 0, 1, 2
_NOTHING = 3
"""What is added, or what the result is stored as; nothing can only be added."""
_ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4, "tanh": 5}


class Geometry(NamedTuple):
    """Windows of a convolution: height and width of each, in plain numbers."""

    taps: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@triton.jit
def _activated(value, ACTIVATION: tl.constexpr):
    if ACTIVATION == 1:
        value = tl.maximum(value, 0.0)
    elif ACTIVATION == 2:
        value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    elif ACTIVATION == 3:
        inner = 0.7978845608028654 * (value + 0.044715 * value * value * value)
        value = value * tl.sigmoid(2.0 * inner)
    elif ACTIVATION == 4:
        value = value * tl.sigmoid(value)
    elif ACTIVATION == 5:
        value = 2.0 * tl.sigmoid(2.0 * value) - 1.0
    return value


@triton.jit
def _stored(value, inverse, zero, FORM: tl.constexpr):
    """Round fp32 to what is kept, as `quantise` does: NaN to 0, ties to even."""
    value = value * inverse + zero
    value = tl.where(value == value, value, 0.0)
    if FORM == 1:
        value = tl.minimum(tl.maximum(value, 0.0), 255.0)
        value = (value + 12582912.0) - 12582912.0  # 1.5 * 2**23: no fraction is left behind it
        result = value.to(tl.int32).to(tl.uint8)
    else:
        result = tl.minimum(tl.maximum(value, -448.0), 448.0).to(tl.float8e4nv)
    return result


def _kernel_name(specialization: Any) -> str:
    kinds = {1: "int8", 2: "fp8"}
    return f"layer_{kinds[specialization.constants['KIND']]}"


# Numbers that do not decide how memory is read: a kernel for each of their values would be built.
_PLAIN = [
    *("rows", "height", "width", "out_height", "out_width", "taps", "taps_w", "entry_zero"),
    *(f"{what}_{side}" for what in ("stride", "padding", "dilation") for side in "hw"),
]


@triton.jit(repr=_kernel_name, do_not_specialize=_PLAIN)
def _layer_kernel(
    x,
    weight,
    scales,
    offsets,
    bias,
    other,
    y,
    rows,
    height,
    width,
    channels,
    depth,
    out_height,
    out_width,
    outputs,
    group_outputs,
    taps,
    taps_w,
    stride_h,
    stride_w,
    padding_h,
    padding_w,
    dilation_h,
    dilation_w,
    entry_zero,
    other_scale,
    other_zero,
    out_inverse,
    out_zero,
    KIND: tl.constexpr,
    ADDED: tl.constexpr,
    FORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    MIXED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Compute one block of the result; MIXED: a step of the sum may reach over several taps."""
    group = tl.program_id(2)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place = row % (out_height * out_width)
    image = row // (out_height * out_width)
    top = (place // out_width) * stride_h - padding_h
    left = (place % out_width) * stride_w - padding_w
    exists, wanted = row < rows, column < group_outputs
    output = group * group_outputs + column
    inner = tl.arange(0, DEPTH)
    total = taps * depth
    if KIND == 1:
        sums = tl.zeros((ROWS, COLUMNS), dtype=tl.int32)
    else:
        sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for step in range(0, tl.cdiv(total, DEPTH)):
        at = step * DEPTH + inner
        if MIXED:
            tap = at // depth
            down = top[:, None] + ((tap // taps_w) * dilation_h)[None, :]
            across = left[:, None] + ((tap % taps_w) * dilation_w)[None, :]
            inside = exists[:, None] & (at < total)[None, :]
            inside = inside & (down >= 0) & (down < height) & (across >= 0) & (across < width)
            from_ = ((image[:, None] * height + down) * width + across) * channels
            from_ = from_ + (group * depth + at % depth)[None, :]
        else:
            tap = (step * DEPTH) // depth
            down = top + (tap // taps_w) * dilation_h
            across = left + (tap % taps_w) * dilation_w
            lies = exists & (down >= 0) & (down < height) & (across >= 0) & (across < width)
            inside = lies[:, None] & (inner < DEPTH)[None, :]
            from_ = ((image * height + down) * width + across) * channels + group * depth
            from_ = from_[:, None] + ((step * DEPTH) % depth + inner)[None, :]
        known = wanted[None, :] & (at < total)[:, None]
        weights = weight + output[None, :] * total + at[:, None]
        if KIND == 1:
            b = tl.load(weights, mask=known, other=0)
            a = tl.load(x + from_, mask=inside, other=entry_zero)
            a = (a.to(tl.int16) - 128).to(tl.int8)
            sums = tl.dot(a, b, sums, out_dtype=tl.int32)
        else:
            b = tl.load(weights, mask=known, other=0.0)
            a = tl.load(x + from_, mask=inside, other=0.0)
            sums = tl.dot(a, b, sums)
    if KIND == 1:
        sums = sums + tl.load(offsets + output, mask=wanted, other=0)[None, :]
    value = sums.to(tl.float32) * tl.load(scales + output, mask=wanted, other=0.0)[None, :]
    if HAS_BIAS:
        value = value + tl.load(bias + output, mask=wanted, other=0.0)[None, :]
    to = row[:, None] * outputs + output[None, :]
    written = exists[:, None] & wanted[None, :]
    if ADDED == 1:
        more = tl.load(other + to, mask=written, other=0).to(tl.float32)
        value = value + (more - other_zero) * other_scale
    elif ADDED != 3:
        more = tl.load(other + to, mask=written, other=0.0).to(tl.float32)
        value = value + more * other_scale
    value = _activated(value, ACTIVATION)
    if FORM == 0:
        tl.store(y + to, value.to(y.dtype.element_ty), mask=written)
    else:
        tl.store(y + to, _stored(value, out_inverse, out_zero, FORM), mask=written)


@triton.jit
def _store_kernel(x, y, count, inverse, zero, FORM: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < count, other=0.0).to(tl.float32)
    tl.store(y + at, _stored(value, inverse, zero, FORM), mask=at < count)


@triton.jit
def _read_kernel(x, y, count, scale, zero, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < count).to(tl.float32)
    tl.store(y + at, ((value - zero) * scale).to(y.dtype.element_ty), mask=at < count)


def layer(
    x: Tensor,
    weight: Tensor,
    scales: Tensor,
    offsets: Tensor | None,
    bias: Tensor | None,
    other: Tensor | None,
    geometry: tuple[Any, ...] | None,
    zero_point: int,
    added: tuple[float, float],
    out: tuple[float, float, torch.dtype],
    activation: str,
) -> Tensor:
    """Return activation(layer(x) + other) of numbers of 8 bits.

    Args:
        x: uint8, or fp8, [n, c, h, w] or [..., c].
        weight: int8 or fp8 [outputs, taps, channels of a group].
        scales: fp32 [outputs], value of one unit of the sums.
        offsets: int32 [outputs], added to sums of integers: (128 - zero point) * sum of weights.
        bias: fp32 [outputs] or None.
        other: Added, of the result's shape: floats, or numbers of which `added` tells the value.
        geometry: Of a convolution as `Geometry` holds it; None: a linear layer.
        zero_point: Integer of x that stands for 0.
        added: Scale and zero point of `other`; 1 and 0 for floats.
        out: 1 / scale and zero point of the result, and its type: uint8, fp8 or floats.
        activation: One of `kernels.ACTIVATIONS`.

    Returns:
        [n, outputs, h, w] with channels last, or [..., outputs].
    """
    shape = _Shape(x, weight, geometry)
    x = shape.dense(x)
    y = torch.empty(shape.result, dtype=out[2], device=x.device, memory_format=shape.order)
    form = _form(out[2])
    what = _NOTHING if other is None else _form(other.dtype)
    outputs = len(scales) // shape.geometry.groups
    blocks = _blocks(shape.rows, outputs, weight.shape[2], weight.shape[1])
    grid = (-(-shape.rows // blocks[0]), -(-outputs // blocks[1]), shape.geometry.groups)
    _layer_kernel[grid](
        x,
        weight,
        scales,
        offsets,
        bias,
        None if other is None else shape.dense(other),
        y,
        shape.rows,
        *shape.images,
        weight.shape[2],
        *shape.places,
        len(scales),
        outputs,
        weight.shape[1],
        shape.geometry.taps[1],
        *shape.geometry.stride,
        *shape.geometry.padding,
        *shape.geometry.dilation,
        zero_point,
        *added,
        out[0],
        out[1],
        KIND=INTEGERS if weight.dtype == torch.int8 else FP8,
        ADDED=what,
        FORM=form,
        HAS_BIAS=bias is not None,
        ACTIVATION=_ACTIVATIONS[activation],
        MIXED=weight.shape[2] % blocks[2] != 0,
        ROWS=blocks[0],
        COLUMNS=blocks[1],
        DEPTH=blocks[2],
        num_warps=8 if blocks[0] * blocks[1] > 64 * 64 else 4,
    )
    return y


class _Shape:
    """Sizes of a layer as the kernel counts them: a linear layer is a convolution of single places.

    Attributes:
        geometry: Windows.
        rows: Places of the result, of all images.
        images: Height, width and channels of x.
        places: Height and width of the result.
        result: Shape of the result.
        order: How it lies in memory.
    """

    def __init__(self, x: Tensor, weight: Tensor, geometry: tuple[Any, ...] | None) -> None:
        outputs, one = weight.shape[0], (1, 1)
        if geometry is None:
            self.geometry = Geometry(one, one, (0, 0), one, 1)
            self.images, self.places = (1, 1, x.shape[-1]), one
            self.rows = x.numel() // x.shape[-1]
            self.result: tuple[int, ...] = (*x.shape[:-1], outputs)
            self.order = torch.contiguous_format
            return
        self.geometry = g = Geometry(*geometry)
        n, channels, *sides = x.shape
        self.images = (sides[0], sides[1], channels)
        reach = [g.dilation[k] * (g.taps[k] - 1) + 1 for k in range(2)]
        down, across = (
            (sides[k] + 2 * g.padding[k] - reach[k]) // g.stride[k] + 1 for k in range(2)
        )
        self.places = (down, across)
        self.rows = n * self.places[0] * self.places[1]
        self.result = (n, outputs, *self.places)
        self.order = torch.channels_last

    def dense(self, x: Tensor) -> Tensor:
        """Return a tensor as it lies in memory for the kernel, itself if it does."""
        return x.contiguous(memory_format=self.order)


def _form(dtype: torch.dtype) -> int:
    return {torch.uint8: INTEGERS, torch.float8_e4m3fn: FP8}.get(dtype, FLOATS)


def _blocks(rows: int, outputs: int, depth: int, taps: int) -> tuple[int, int, int]:
    """Return rows, columns and summed numbers of a block."""
    columns = min(max(int(triton.next_power_of_2(outputs)), _LEAST_SIDE), 128)
    block = (128, columns)
    for side in (
        (64, columns),
        (64, min(columns, 64)),
        (64, min(columns, 32)),
        (16, min(columns, 32)),
    ):
        if -(-rows // block[0]) * -(-outputs // block[1]) >= _MULTIPROCESSORS:
            break
        block = side
    whole = [size for size in (128, 64, 32) if depth % size == 0]
    mixed = min(max(triton.next_power_of_2(depth * taps), _LEAST_SUM), 64)
    return (*block, whole[0] if whole else mixed)


def store(x: Tensor, inverse: float, zero_point: float, dtype: torch.dtype) -> Tensor:
    """Return x * inverse + zero_point as uint8 or fp8, in the memory order of x, see `quantise`."""
    x = x if _is_dense(x) else x.contiguous()
    y = torch.empty_like(x, dtype=dtype)
    grid = (-(-x.numel() // _BLOCK),)
    _store_kernel[grid](x, y, x.numel(), inverse, zero_point, FORM=_form(dtype), BLOCK=_BLOCK)
    return y


def read(q: Tensor, scale: float, zero_point: float, dtype: torch.dtype) -> Tensor:
    """Return (q - zero_point) * scale of uint8 or fp8 as floats, in the memory order of q."""
    q = q if _is_dense(q) else q.contiguous()
    x = torch.empty_like(q, dtype=dtype)
    _read_kernel[(-(-q.numel() // _BLOCK),)](q, x, q.numel(), scale, zero_point, BLOCK=_BLOCK)
    return x


_BLOCK = 1024


def _is_dense(x: Tensor) -> bool:
    in_order = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return x.is_contiguous() or in_order
