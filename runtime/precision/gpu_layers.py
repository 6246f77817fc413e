"""Layers prepared for a GPU: floats on PyTorch's own kernels, 8-bit numbers on ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from runtime.precision import kernels
from runtime.precision.formats import Grid, LocalFormat
from runtime.precision.kernels import Added, Call, ConvWeights, Int8Weights, Packed, Weights


class GpuPacked(Packed):
    """A layer prepared for one level of a GPU; nothing is thinned before it."""

    def call(
        self, get: Callable[[str], Any], x: Any, other: Added | None, out: LocalFormat, act: str
    ) -> Call:
        """Return operator and arguments; see `Packed.call`. Nothing is overwritten."""
        bias = get("bias") if "bias" in self.tensors else None
        value = None if other is None else other.value
        if self.grid is None:
            head = (x, get("weight"), bias, value)
            if not isinstance(self.layer, ConvWeights):
                return kernels.linear, (*head, act)
            g = self.layer
            return kernels.conv, (*head, g.stride, g.padding, g.dilation, g.groups, act)
        # Here, not above: Triton need not be there where no level wants it.
        from runtime.precision import gpu_kernels

        offsets = get("offsets") if "offsets" in self.tensors else None
        on = None if other is None else other.grid
        added = (1.0, 0.0) if on is None else (on.scale, float(on.zero_point))
        tensors = (x, get("weight"), get("scales"), offsets, bias, value)
        numbers = (_geometry(self.layer), self.grid.zero_point, added, _stored_as(out), act)
        return gpu_kernels.layer, (*tensors, *numbers)

    def to(self, place: torch.device) -> GpuPacked:
        """Return the same with its tensors elsewhere."""
        tensors = {name: tensor.to(place) for name, tensor in self.tensors.items()}
        return GpuPacked(self.layer, tensors, self.grid)


def _geometry(layer: Weights) -> tuple[Any, ...] | None:
    if not isinstance(layer, ConvWeights):
        return None
    taps = tuple(layer.weight.shape[2:])
    return (taps, layer.stride, layer.padding, layer.dilation, layer.groups)


def _stored_as(out: LocalFormat) -> tuple[float, float, torch.dtype]:
    if isinstance(out, Grid):
        return 1.0 / out.scale, float(out.zero_point), out.dtype
    assert isinstance(out, torch.dtype)
    return 1.0, 0.0, out


def prepack_float(layer: Weights, dtype: torch.dtype, shape: Sequence[int]) -> GpuPacked:
    """Prepare a layer in fp32, fp16 or bf16; see `kernels.prepack_float`."""
    weight = layer.weight.to(dtype).contiguous()
    if weight.dim() == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    return GpuPacked(layer, kernels.with_bias(layer, weight, dtype))


def prepack_stored(weights: Int8Weights, grid: Grid, shape: Sequence[int]) -> GpuPacked:
    """Prepare a layer in int8 or fp8.

    Args:
        weights: int8 integers, or fp8 numbers, with their scales.
        grid: Of the layer's input.
        shape: Of a typical input.
    """
    numbers = weights.integers
    if numbers.dim() == 2:
        numbers = numbers[:, :, None, None]
    # Channels last: all channels of a tap, then the next tap.
    rows = numbers.permute(0, 2, 3, 1).contiguous()
    tensors = {"weight": rows.view(rows.shape[0], -1, rows.shape[3])}
    tensors["scales"] = weights.scales * grid.scale
    if numbers.dtype == torch.int8:
        sums = numbers.flatten(1).sum(1, dtype=torch.int32)
        tensors["offsets"] = (128 - grid.zero_point) * sums
    if weights.layer.bias is not None:
        tensors["bias"] = weights.layer.bias
    return GpuPacked(weights.layer, tensors, grid)
