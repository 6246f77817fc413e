from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from runtime.precision import quantise
from runtime.precision.formats import Grid
from runtime.precision.kernels import max_pool_uint8

FINITE = st.floats(-1e6, 1e6, width=32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(
    values=st.lists(st.floats(width=32), min_size=1, max_size=70),
    scale=st.floats(1e-4, 100.0),
    zero=st.integers(0, 255),
    top=st.sampled_from([15, 63, 255]),
)
def test_compiled_and_eager_give_the_same_bits(
    dtype: torch.dtype, values: list[float], scale: float, zero: int, top: int
) -> None:
    x = torch.tensor(values, dtype=torch.float32).to(dtype)
    arguments = (1.0 / scale, float(min(zero, top)), float(top))
    q = quantise.quantise(x, *arguments)
    assert torch.equal(q, quantise.quantise_eager(x, *arguments))
    back = quantise.dequantise(q, scale, float(zero), dtype)
    assert back.dtype == dtype
    assert torch.equal(back, quantise.dequantise_eager(q, scale, float(zero), dtype))


def test_ties_go_to_the_even_integer_and_nan_to_zero() -> None:
    x = torch.tensor([0.5, 1.5, 2.5, -3.0, 300.0, float("nan"), float("inf")])
    assert quantise.quantise(x, 1.0, 0.0).tolist() == [0, 2, 2, 0, 255, 0, 255]
    assert quantise.quantise(x, 1.0, 128.0).tolist() == [128, 130, 130, 125, 255, 0, 255]


@given(low=FINITE, high=FINITE, bits=st.integers(2, 8))
def test_a_grid_covers_its_range_and_holds_zero(low: float, high: float, bits: int) -> None:
    low, high = min(low, high), max(low, high)
    grid = Grid.of_range(low, high, bits)
    x = torch.tensor([low, 0.0, high], dtype=torch.float32)
    back = grid.dequantise(grid.quantise(x))
    assert back[1] == 0.0
    # Half a step of rounding, another half of moving the grid onto zero.
    assert float((back - x).abs().max()) <= 1.001 * grid.scale + 1e-6 * max(abs(low), abs(high))


@pytest.mark.parametrize("shape", [(2, 8, 5, 7), (3, 4), (1, 1, 1, 1)])
def test_memory_order_is_kept(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    q = quantise.quantise(x, 10.0, 128.0)
    assert q.stride() == x.stride()
    assert torch.equal(q, quantise.quantise_eager(x, 10.0, 128.0))
    gaps = torch.randn(6, 10)[:, ::3]
    assert torch.equal(quantise.quantise(gaps, 9.0, 3.0), quantise.quantise_eager(gaps, 9.0, 3.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_values_past_two_limits_are_counted(dtype: torch.dtype) -> None:
    x = (torch.rand(1000, generator=torch.Generator().manual_seed(1)) * 100).to(dtype)
    expected = int(((x <= 10) | (x >= 90)).sum())
    assert quantise.count_outside(x, 10.0, 90.0) == expected
    assert quantise.count_outside(x, -np.inf, np.inf) == 0


@given(
    st.integers(0, 9000),
    st.sampled_from([-np.inf, 0.0, 3.0, 254.0, 255.0]),
    st.sampled_from([np.inf, 255.0, 254.0, 4.0, 3.0, 0.0]),
)
def test_integers_at_both_ends_are_counted(n: int, low: float, high: float) -> None:
    values = np.random.default_rng(n).integers(0, 256, n, dtype=np.uint8)
    expected = int(((values <= low) | (values >= high)).sum())
    assert quantise.count_outside(torch.from_numpy(values), low, high) == expected


def test_without_numba_the_results_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(333)
    compiled = quantise.quantise(x, 20.0, 100.0), quantise.count_outside(x, -1.0, 1.0)
    monkeypatch.setattr(quantise, "_loops", lambda: None)
    assert torch.equal(quantise.quantise(x, 20.0, 100.0), compiled[0])
    assert quantise.count_outside(x, -1.0, 1.0) == compiled[1]


@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1), (3, 1, 1), (3, 3, 0), (2, 3, 1)])
def test_uint8_pooling_is_max_pooling(window: tuple[int, int, int]) -> None:
    size, step, around = window
    x = torch.randint(0, 256, (2, 8, 13, 12), dtype=torch.uint8)
    x = x.contiguous(memory_format=torch.channels_last)
    pooled = max_pool_uint8(x, (size, size), (step, step), (around, around))
    assert torch.equal(pooled.float(), functional.max_pool2d(x.float(), size, step, around))
