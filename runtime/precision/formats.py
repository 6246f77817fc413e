"""Formats of a tensor between two operators: fp32, bf16, or uint8 on a calibrated grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.precision import quantise


@dataclass(frozen=True)
class Grid:
    """Where the integers of a quantised tensor lie: value = (integer - zero_point) * scale.

    Attributes:
        scale: Distance between two neighbours.
        zero_point: Integer that stands for 0, 0 to `top`.
        bits: Bits of an integer, 2 to 8.
    """

    scale: float
    zero_point: int
    bits: int = 8

    @property
    def top(self) -> int:
        """Largest integer."""
        return (1 << self.bits) - 1

    @property
    def low(self) -> float:
        """Smallest value on the grid."""
        return -self.zero_point * self.scale

    @property
    def high(self) -> float:
        """Largest value on the grid."""
        return (self.top - self.zero_point) * self.scale

    @classmethod
    def of_range(cls, low: float, high: float, bits: int = 8) -> Grid:
        """Return the grid that covers a range and holds 0 exactly.

        Args:
            low: Smallest value; 0 is taken if it is above 0.
            high: Largest value; 0 is taken if it is below 0.
            bits: Bits of an integer.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        top = (1 << bits) - 1
        # A tensor that was always 0 still needs a scale that can be divided by.
        scale = max((high - low) / top, 1e-12)
        return cls(scale, min(max(round(-low / scale), 0), top), bits)

    @classmethod
    def of_tensor(cls, x: Tensor) -> Grid:
        """Return the grid that covers all values of a tensor."""
        return cls.of_range(float(x.min()), float(x.max()))

    def quantise(self, x: Tensor) -> Tensor:
        """Return the nearest integers, uint8 in the memory order of `x`."""
        return quantise.quantise(x, 1.0 / self.scale, float(self.zero_point), float(self.top))

    def dequantise(self, q: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the values of integers, in the memory order of `q`."""
        return quantise.dequantise(q, self.scale, float(self.zero_point), dtype)


@dataclass(frozen=True)
class Rounded:
    """fp32 values that lie on a grid: what emulated levels pass on."""

    grid: Grid


Format = torch.dtype | Grid | Rounded
"""torch.float32, torch.bfloat16, a Grid for uint8 integers on it, or fp32 rounded to one."""


def convert(x: Tensor, source: Format, target: Format) -> Tensor:
    """Return a tensor in another format, itself where nothing is to do."""
    if source == target:
        return x
    if isinstance(source, Grid):
        dtype = target if isinstance(target, torch.dtype) else torch.float32
        return convert(source.dequantise(x, dtype), dtype, target)
    if isinstance(target, Grid):
        return target.quantise(x)
    if isinstance(target, Rounded):
        grid = target.grid
        return quantise.fake_quantise(
            x.float(), grid.scale, float(grid.zero_point), float(grid.top)
        )
    return x.to(target)


def describe(form: Format) -> str:
    """Return a format in words."""
    if isinstance(form, torch.dtype):
        return str(form).removeprefix("torch.")
    grid = form if isinstance(form, Grid) else form.grid
    name = "uint8" if isinstance(form, Grid) else "float32 rounded"
    return f"{name}, {grid.bits} bits, scale {grid.scale:.6g}, zero point {grid.zero_point}"
