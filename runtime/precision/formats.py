"""Formats of a tensor between two operators: floats, uint8 on a calibrated grid, or scaled fp8.

Each may lie in the memory of a GPU (`Placed`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from runtime.precision import device, quantise


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

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers that are kept."""
        return torch.uint8

    @property
    def ends(self) -> tuple[float, float]:
        """Numbers at and beyond which a value counts as clipped; infinite where none does.

        Rectified values lie at 0 by design.
        """
        low = 0.0 if self.zero_point > 0 else -math.inf
        return low, float(self.top) if self.zero_point < self.top else math.inf

    def storing(self) -> tuple[Any, tuple[Any, ...]]:
        """Return the function that stores values, and its arguments behind them."""
        return quantise.quantise, (1.0 / self.scale, float(self.zero_point), float(self.top))

    def reading(self, dtype: torch.dtype) -> tuple[Any, tuple[Any, ...]]:
        """Return the function that gives values of a type back, and its arguments behind them."""
        return quantise.dequantise, (self.scale, float(self.zero_point), dtype)

    def quantise(self, x: Tensor) -> Tensor:
        """Return the nearest numbers of `dtype` in the memory order of `x`."""
        function, arguments = self.storing()
        result: Tensor = function(x, *arguments)
        return result

    def dequantise(self, q: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the values of numbers, in the memory order of `q`."""
        function, arguments = self.reading(dtype)
        result: Tensor = function(q, *arguments)
        return result


FP8 = torch.float8_e4m3fn
_FP8_TOP = 448.0  # its largest number


@dataclass(frozen=True)
class ScaledFp8(Grid):
    """Numbers of 8 bits with an exponent (e4m3): value = number * scale; rounding is relative."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers that are kept."""
        return FP8

    @property
    def ends(self) -> tuple[float, float]:
        """Numbers at and beyond which a value counts as clipped."""
        return -_FP8_TOP, _FP8_TOP

    @property
    def low(self) -> float:
        """Smallest value."""
        return -_FP8_TOP * self.scale

    @property
    def high(self) -> float:
        """Largest value."""
        return _FP8_TOP * self.scale

    @classmethod
    def of_range(cls, low: float, high: float, bits: int = 8) -> ScaledFp8:
        """Return the numbers that cover a range; see `Grid.of_range`."""
        return cls(max(-low, high, 1e-9) / _FP8_TOP, 0, bits)

    def storing(self) -> tuple[Any, tuple[Any, ...]]:
        """Return the function that stores values, and its arguments behind them."""
        return quantise.to_fp8, (1.0 / self.scale,)

    def reading(self, dtype: torch.dtype) -> tuple[Any, tuple[Any, ...]]:
        """Return the function that gives values of a type back, and its arguments behind them."""
        return quantise.from_fp8, (self.scale, dtype)


@dataclass(frozen=True)
class Rounded:
    """fp32 values that lie on a grid: what emulated levels pass on."""

    grid: Grid


@dataclass(frozen=True)
class Placed:
    """A format in the memory of a GPU.

    Attributes:
        form: The format.
    """

    form: torch.dtype | Grid

    @property
    def dtype(self) -> torch.dtype:
        """Type of the numbers that are kept."""
        return self.form if isinstance(self.form, torch.dtype) else self.form.dtype

    @property
    def carried(self) -> torch.dtype | Grid:
        """The format in which values are carried from and to the processor.

        It turns values into integers itself, since fewer bytes are carried then; into other floats
        the GPU does.
        """
        return self.form if type(self.form) is Grid else torch.float32


LocalFormat = torch.dtype | Grid | Rounded
"""A type of floats, a Grid for numbers of 8 bits on it, or fp32 rounded to one."""

Format = LocalFormat | Placed
"""A local format on the processor, or on a GPU."""


def convert(x: Tensor, source: Format, target: Format) -> Tensor:
    """Return a tensor in another format, itself where nothing is to do."""
    if source == target:
        return x
    if isinstance(source, Placed):
        if isinstance(target, Placed):
            return convert(x, source.form, target.form)
        carried = source.carried
        return convert(convert(x, source.form, carried).cpu(), carried, target)
    if isinstance(target, Placed):
        carried = target.carried
        there = convert(x, source, carried).to(device.CUDA, non_blocking=True)
        return convert(there, carried, target.form)
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
    if isinstance(form, Placed):
        return f"{describe(form.form)}, on the GPU"
    if isinstance(form, ScaledFp8):
        return f"float8 e4m3, scale {form.scale:.6g}"
    grid = form if isinstance(form, Grid) else form.grid
    name = "uint8" if isinstance(form, Grid) else "float32 rounded"
    return f"{name}, {grid.bits} bits, scale {grid.scale:.6g}, zero point {grid.zero_point}"
