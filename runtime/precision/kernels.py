"""Convolutions and linear layers on oneDNN's prepacked operators: fp32, bf16 and int8.

What was found out about these private operators (torch 2.13):

- `qconv_pointwise` takes uint8 activations only; signed ones need a zero point near 128.
- A binary `sum` overwrites the tensor that is added. With an integer result it may be uint8 on
  its own grid, with a float result it must be float of the same type.
- `qlinear_pointwise` with `add` reads a uint8 tensor wrongly without an error: give it floats.
- Prepacked weights can be neither copied nor pickled; they are rebuilt from plain tensors.
- A weight packed for one batch size serves all of them at the same speed (measured at 1, 16, 64).
- Without VNNI, sums of products saturate in 16 bits (see `machine.int8_weight_bits`).
- On AVX2, an int8 convolution of 1x1 with strides gives wrong values now and then at the first
  output of an image (seen in 2 % of calls from new threads; oneDNN's `jit_uni_int8_1x1:avx2`): it
  is given an input that lacks the other rows and columns, see `thin`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from runtime.precision.formats import FP8, Grid, LocalFormat

_mkldnn: Any = torch.ops.mkldnn
_onednn: Any = torch.ops.onednn

ACTIVATIONS: dict[str, tuple[str, str, Callable[[Tensor], Tensor]]] = {
    "none": ("none", "", lambda x: x),
    "relu": ("relu", "", functional.relu),
    "gelu": ("gelu", "none", functional.gelu),
    "gelu_tanh": ("gelu", "tanh", lambda x: functional.gelu(x, approximate="tanh")),
    "silu": ("swish", "", functional.silu),
    "tanh": ("tanh", "", torch.tanh),
}
"""What can follow a layer inside its kernel: oneDNN's name and algorithm, and the function."""


@dataclass(frozen=True)
class ConvWeights:
    """A 2-D convolution.

    Attributes:
        weight: fp32 [out, in / groups, height, width].
        bias: fp32 [out] or None.
        stride: Of height and width.
        padding: Of height and width, zeros on both sides.
        dilation: Of height and width.
        groups: Number of groups of channels.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True)
class LinearWeights:
    """A linear layer.

    Attributes:
        weight: fp32 [out, in].
        bias: fp32 [out] or None.
    """

    weight: Tensor
    bias: Tensor | None


Weights = ConvWeights | LinearWeights

_THINS_STRIDED = torch.backends.cpu.get_cpu_capability() == "AVX2"


@dataclass(frozen=True)
class Int8Weights:
    """A layer with weights as integers, one scale per output channel, symmetric.

    Attributes:
        layer: The layer in fp32.
        integers: int8, shape of the weight; or fp8 numbers in their place.
        scales: fp32 [out].
        bits: Bits of an integer.
    """

    layer: Weights
    integers: Tensor
    scales: Tensor
    bits: int = 8

    def dequantised(self) -> Tensor:
        """Return the weight that the integers stand for, fp32."""
        shape = (-1, *(1 for _ in range(self.integers.dim() - 1)))
        return self.integers.float() * self.scales.view(shape)


def quantise_weights(layer: Weights, bits: int = 8) -> Int8Weights:
    """Round weights to integers in -(2^(bits-1) - 1) to 2^(bits-1) - 1, per output channel.

    Args:
        layer: The layer in fp32.
        bits: 2 to 8.
    """
    largest = float((1 << (bits - 1)) - 1)
    weight = layer.weight
    # A channel of zeros still needs a scale that can be divided by.
    scales = weight.abs().flatten(1).amax(1).clamp_min(1e-12) / largest
    shape = (-1, *(1 for _ in range(weight.dim() - 1)))
    integers = (weight / scales.view(shape)).round().clamp(-largest, largest).to(torch.int8)
    return Int8Weights(layer, integers, scales, bits)


def weights_in_fp8(layer: Weights) -> Int8Weights:
    """Round weights to numbers of fp8 (e4m3), the largest of each output channel to its largest."""
    weight = layer.weight
    largest = torch.finfo(FP8).max
    scales = weight.abs().flatten(1).amax(1).clamp_min(1e-12) / largest
    shape = (-1, *(1 for _ in range(weight.dim() - 1)))
    return Int8Weights(layer, (weight / scales.view(shape)).to(FP8), scales)


def conv(  # noqa: PLR0913 (one operator with what aten::conv2d has)
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    other: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
) -> Tensor:
    """Return activation(conv(x) + other): what one kernel computes, in plain torch."""
    y = functional.conv2d(x, weight, bias, stride, padding, dilation, groups)
    return ACTIVATIONS[activation][2](y if other is None else y + other)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor | None, activation: str
) -> Tensor:
    """Return activation(linear(x) + other): what one kernel computes, in plain torch."""
    y = functional.linear(x, weight, bias)
    return ACTIVATIONS[activation][2](y if other is None else y + other)


Call = tuple[Any, tuple[Any, ...]]
"""An operator and its arguments, tensors or nodes of a graph."""


class Added(NamedTuple):
    """What a layer adds to its result before the activation.

    Attributes:
        value: Tensor or node.
        grid: On which a uint8 value lies, None for floats.
    """

    value: Any
    grid: Grid | None = None


@dataclass(frozen=True)
class Packed:
    """A layer prepacked for one level.

    Attributes:
        layer: Its shape parameters; the weight in fp32.
        tensors: What the kernel reads, by name.
        grid: Of the input if it is int8, else None.
        strides: Of `thin`, which the input must go through first; ones leave it as it is.
    """

    layer: Weights
    tensors: dict[str, Tensor]
    grid: Grid | None = None
    strides: tuple[int, int] = (1, 1)

    def call(
        self, get: Callable[[str], Any], x: Any, other: Added | None, out: LocalFormat, act: str
    ) -> Call:
        """Return operator and arguments.

        Args:
            get: From a name in `tensors` to the tensor or to a node that holds it.
            x: Input.
            other: Added to the result. An int8 convolution overwrites it, and wants uint8 for a
                uint8 result, else floats of the result's type; an int8 linear layer wants floats.
            out: LocalFormat of the result.
            act: One of `ACTIVATIONS`.
        """
        if self.grid is None:
            return self._float_call(get, x, None if other is None else other.value, act)
        scale, zero, dtype = (1.0, 0, out)
        if isinstance(out, Grid):
            scale, zero, dtype = out.scale, out.zero_point, torch.uint8
        return self._int8_call(get, (x, other), (scale, zero, dtype), act)

    def _float_call(self, get: Callable[[str], Any], x: Any, other: Any, act: str) -> Call:
        name, algorithm, _ = ACTIVATIONS[act]
        weight, bias = get("weight"), get("bias") if "bias" in self.tensors else None
        if isinstance(self.layer, LinearWeights):
            if other is None:
                operator = _mkldnn._linear_pointwise.default
                return operator, (x, weight, bias, name, [], algorithm)
            return _mkldnn._linear_pointwise.binary, (x, other, weight, bias, "add")
        shape = (_list(self.layer.padding), _list(self.layer.stride), _list(self.layer.dilation))
        head: tuple[Any, ...] = (weight, bias, *shape, self.layer.groups)
        if other is None:
            operator = _mkldnn._convolution_pointwise.default
            return operator, (x, *head, name, [], algorithm)
        after = None if act == "none" else name
        operator = _mkldnn._convolution_pointwise.binary
        return operator, (x, other, *head, "add", 1.0, after, [], None)

    def _int8_call(
        self,
        get: Callable[[str], Any],
        inputs: tuple[Any, Added | None],
        out: tuple[Any, ...],
        act: str,
    ) -> Call:
        (x, other), grid = inputs, self.grid
        name, algorithm, _ = ACTIVATIONS[act]
        assert grid is not None
        weight = (get("weight"), get("scales"), get("zeros"))
        bias = get("bias") if "bias" in self.tensors else None
        head = (x, grid.scale, grid.zero_point, *weight)
        if isinstance(self.layer, LinearWeights):
            if other is None:
                operator = _onednn.qlinear_pointwise.default
                return operator, (*head, bias, *out, name, [], algorithm)
            operator = _onednn.qlinear_pointwise.binary
            added: tuple[Any, ...] = (1.0, 0, "add", 1.0, name, [], algorithm)
            return operator, (*head, other.value, bias, *out, *added)
        shape = (_list(self.layer.stride), _list(self.layer.padding), _list(self.layer.dilation))
        geometry = (*shape, self.layer.groups)
        if other is None:
            operator = _onednn.qconv_pointwise.default
            return operator, (*head, bias, *geometry, *out, name, [], algorithm)
        operator = _onednn.qconv2d_pointwise.binary
        on = other.grid or Grid(1.0, 0)
        added = (on.scale, on.zero_point, "sum", 1.0, name, [], algorithm)
        return operator, (*head, other.value, bias, *geometry, *out, *added)

    def run(
        self,
        x: Tensor,
        other: Added | None = None,
        out: LocalFormat = torch.float32,
        act: str = "none",
    ) -> Tensor:
        """Compute; see `call`. The input is thinned here."""
        x = x if self.strides == (1, 1) else thin(x, *self.strides)
        operator, arguments = self.call(self.tensors.__getitem__, x, other, out, act)
        result: Tensor = operator(*arguments)
        return result


def _list(pair: tuple[int, int]) -> list[int]:
    return [pair[0], pair[1]]


def prepack_float(layer: Weights, dtype: torch.dtype, shape: Sequence[int]) -> Packed:
    """Prepack a layer in fp32 or bf16.

    Args:
        layer: The layer.
        dtype: torch.float32 or torch.bfloat16.
        shape: Of a typical input.
    """
    weight = layer.weight.to(dtype).contiguous()
    if isinstance(layer, ConvWeights):
        geometry = (layer.padding, layer.stride, layer.dilation, layer.groups, list(shape))
        packed = _mkldnn._reorder_convolution_weight(weight, *geometry)
    else:
        rows = max(1, torch.Size(shape[:-1]).numel())
        packed = _mkldnn._reorder_linear_weight(weight, rows)
    return Packed(layer, with_bias(layer, packed, dtype))


def with_bias(layer: Weights, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of a layer of floats by name: its weight, and its bias if it has one."""
    tensors = {"weight": weight}
    if layer.bias is not None:
        tensors["bias"] = layer.bias.to(dtype)
    return tensors


def prepack_int8(weights: Int8Weights, grid: Grid, shape: Sequence[int]) -> Packed:
    """Prepack a layer in int8.

    Args:
        weights: Integers and scales, 8 bits.
        grid: Of the layer's input.
        shape: Of a typical input.
    """
    layer, scales = weights.layer, weights.scales
    strides = (1, 1)
    if _THINS_STRIDED and isinstance(layer, ConvWeights) and _is_strided_pointwise(layer):
        strides, layer = layer.stride, replace(layer, stride=(1, 1))
        height, width = shape[2:]
        shape = (*shape[:2], -(-height // strides[0]), -(-width // strides[1]))
    if isinstance(layer, ConvWeights):
        geometry = [_list(layer.stride), _list(layer.padding), _list(layer.dilation)]
        packed = _onednn.qconv_prepack(
            weights.integers,
            scales,
            grid.scale,
            grid.zero_point,
            *geometry,
            layer.groups,
            list(shape),
        )
    else:
        packed = _onednn.qlinear_prepack(weights.integers, None)
    zeros = torch.zeros(len(scales), dtype=torch.int32)
    tensors = {"weight": packed, "scales": scales, "zeros": zeros}
    if layer.bias is not None:
        tensors["bias"] = layer.bias
    return Packed(layer, tensors, grid, strides)


def _is_strided_pointwise(layer: ConvWeights) -> bool:
    return layer.weight.shape[2:] == (1, 1) and layer.stride != (1, 1) and not any(layer.padding)


def thin(x: Tensor, rows: int, columns: int) -> Tensor:
    """Return every so manieth row and column of [n, c, h, w], channels last."""
    return x[:, :, ::rows, ::columns].contiguous(memory_format=torch.channels_last)


def max_pool_uint8(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Return the maxima of windows of uint8 [n, c, h, w]; torch's own pooling refuses uint8.

    Args:
        x: The integers.
        kernel: Height and width of a window.
        stride: Between windows.
        padding: On both sides; at most half a window. It counts as the smallest integer.
    """
    if any(padding):
        # 0 is the least uint8, so it never wins over an element of the same window.
        x = functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
        x = x.contiguous(memory_format=torch.channels_last)
    for dim in (2, 3):
        size, step = kernel[dim - 2], stride[dim - 2]
        count = (x.shape[dim] - size) // step + 1
        if size == 1 and step == 1:
            continue
        windows = [_strided(x, dim, start, count, step) for start in range(size)]
        y = windows[0]
        for window in windows[1:]:
            y = torch.maximum(y, window)
        x = y
    return x


def _strided(x: Tensor, dim: int, start: int, count: int, step: int) -> Tensor:
    stop = start + (count - 1) * step + 1
    return x[:, :, start:stop:step] if dim == 2 else x[:, :, :, start:stop:step]


def nbytes(tensor: Tensor) -> int:
    """Return the memory that a tensor takes, prepacked or not, bytes."""
    if tensor.layout == torch._mkldnn:  # type: ignore[attr-defined]
        return int(_mkldnn._nbytes(tensor))
    return tensor.numel() * tensor.element_size()
