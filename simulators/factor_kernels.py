"""Compiled loops of the rate factors.

All change `rates` (float64 [N, n_ticks]) in place. Row i belongs to `keys[i]` (uint64 [N]) and its
first column to tick `start_ticks[i]` (int64 [N]). What each means stands at its class in
`simulators.rate_factors`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from simulators.compiled import jit
from simulators.noise import uniform
from simulators.sampling import poisson, unit_gamma

FLASH_BLOCKS = 16
"""A crowd is forgotten 16 to 17 decay times after its onset, when e**-16 = 1e-7 of it is left."""


@jit
def multiply_gamma(
    rates: NDArray[np.float64],
    keys: NDArray[np.uint64],
    start_ticks: NDArray[np.int64],
    block_ticks: int,
    shape: float,
    stream: int,
) -> None:
    """Multiply by a Gamma number of mean 1 and the given shape, drawn for each block of ticks."""
    n_rows, n_ticks = rates.shape
    for i in range(n_rows):
        j = 0
        while j < n_ticks:
            block = (start_ticks[i] + j) // block_ticks
            factor = unit_gamma(shape, keys[i], stream, block)
            end = min((block + 1) * block_ticks - start_ticks[i], n_ticks)
            while j < end:
                rates[i, j] *= factor
                j += 1


@jit
def multiply_sine(
    rates: NDArray[np.float64],
    keys: NDArray[np.uint64],
    start_ticks: NDArray[np.int64],
    cycles_per_tick: float,
    form: tuple[float, float],
    stream: int,
) -> None:
    """Multiply by the sine; `form` is (amplitude, phase), a phase of NaN is drawn per key."""
    amplitude, phase = form
    n_rows, n_ticks = rates.shape
    for i in range(n_rows):
        turn = phase / (2.0 * math.pi)
        if math.isnan(phase):
            turn = uniform(keys[i], stream, 0, 0)
        for j in range(n_ticks):
            cycle = (start_ticks[i] + j + 0.5) * cycles_per_tick + turn
            rates[i, j] *= 1.0 + amplitude * math.sin(2.0 * math.pi * (cycle - math.floor(cycle)))


@jit
def multiply_steps(
    rates: NDArray[np.float64],
    start_ticks: NDArray[np.int64],
    ends: NDArray[np.int64],
    levels: NDArray[np.float64],
) -> None:
    """Multiply by the level of each tick; `ends` are the ends of the levels within a cycle."""
    n_rows, n_ticks = rates.shape
    for i in range(n_rows):
        position = start_ticks[i] % ends[-1]
        k = 0
        while position >= ends[k]:
            k += 1
        for j in range(n_ticks):
            rates[i, j] *= levels[k]
            position += 1
            if position == ends[k]:
                k += 1
                if k == len(ends):
                    k = 0
                    position = 0


@jit
def _markov_state(key: int, step: int, redraw: NDArray[np.float64], stream: int) -> int:
    """Return the chain's state during a step, from the last step that forgot the past."""
    n = len(redraw)
    surest = redraw[0]
    for k in range(1, n):
        surest = min(surest, redraw[k])
    back = step
    while uniform(key, stream, back, 0) >= surest:
        back -= 1
    state = int(uniform(key, stream, back, 1) * n)
    for t in range(back + 1, step + 1):
        if uniform(key, stream, t, 0) < redraw[state]:
            state = int(uniform(key, stream, t, 1) * n)
    return state


@jit
def multiply_markov(
    rates: NDArray[np.float64],
    keys: NDArray[np.uint64],
    start_ticks: NDArray[np.int64],
    step_ticks: int,
    chain: tuple[NDArray[np.float64], NDArray[np.float64]],
    stream: int,
) -> None:
    """Multiply by the chain's level; `chain` is (levels, probability of a redraw per step)."""
    levels, redraw = chain
    n = len(levels)
    n_rows, n_ticks = rates.shape
    for i in range(n_rows):
        if n_ticks == 0:
            continue
        step = start_ticks[i] // step_ticks
        state = _markov_state(keys[i], step, redraw, stream)
        for j in range(n_ticks):
            now = (start_ticks[i] + j) // step_ticks
            if now != step:
                step = now
                if uniform(keys[i], stream, step, 0) < redraw[state]:
                    state = int(uniform(keys[i], stream, step, 1) * n)
            rates[i, j] *= levels[state]


@jit
def _flash_onsets(
    key: int,
    block: int,
    block_ticks: int,
    mean: float,
    streams: tuple[int, NDArray[np.int64]],
) -> int:
    """Find the onsets in a block and the `FLASH_BLOCKS` before it, in the order drawn.

    The number in a block is Poisson; given it, each onset takes any tick equally likely.
    `streams` is (first stream, ticks of the onsets: filled).

    Returns:
        Their number.
    """
    stream, onsets = streams
    found = 0
    for b in range(block - FLASH_BLOCKS, block + 1):
        for m in range(poisson(mean, key, stream, b)):
            if found < len(onsets):
                place = int(uniform(key, stream + 1, b, m) * block_ticks)
                onsets[found] = b * block_ticks + place
                found += 1
    return found


@jit
def multiply_flash(
    rates: NDArray[np.float64],
    keys: NDArray[np.uint64],
    start_ticks: NDArray[np.int64],
    block_ticks: int,
    shape: tuple[float, float, float, float],
    streams: tuple[int, NDArray[np.int64]],
) -> None:
    """Multiply by the crowds.

    `shape` is (onsets per block, decay per tick, peak factor - 1, 1 / mean of the sum) and
    `streams` is (first stream, room for the onsets of `FLASH_BLOCKS` + 1 blocks).
    """
    onsets = streams[1]
    mean, decay, extra, normaliser = shape
    n_rows, n_ticks = rates.shape
    for i in range(n_rows):
        j = 0
        while j < n_ticks:
            block = (start_ticks[i] + j) // block_ticks
            found = _flash_onsets(keys[i], block, block_ticks, mean, streams)
            end = min((block + 1) * block_ticks - start_ticks[i], n_ticks)
            while j < end:
                tick = start_ticks[i] + j
                excess = 0.0
                for m in range(found):
                    if onsets[m] <= tick:
                        excess += math.exp(-decay * (tick - onsets[m]))
                rates[i, j] *= (1.0 + extra * excess) * normaliser
                j += 1
