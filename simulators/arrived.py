"""Arrivals as compiled engines read them: what arrived before each tick of every environment.

The n records of a tick are spread evenly over it: at (i + 0.5)/n of the tick.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from simulators.compiled import inner, jit

BEFORE = np.dtype([("records", np.int64), ("arrival_sum", np.float64)], align=True)


class Arrived(NamedTuple):
    """Arrivals of all environments, or of one without the first axis.

    Attributes:
        before: BEFORE [N, n_ticks + 1], what arrived before each tick.
        tick_s: Length of a tick, seconds.
    """

    before: Any
    tick_s: float


def allocate_arrivals(n_envs: int, n_ticks: int, tick_s: float) -> Arrived:
    """Allocate the arrivals of N environments, none yet."""
    return Arrived(np.zeros((n_envs, n_ticks + 1), dtype=BEFORE), tick_s)


def check_counts(keys: NDArray[np.uint64], counts: NDArray[np.int64], tick_s: float, n: int) -> int:
    """Refuse arrivals that do not fit n environments; return the number of ticks.

    Args:
        keys: uint64 [n].
        counts: int64 [n, n_ticks], records that arrive in each tick.
        tick_s: Length of a tick, seconds.
        n: Number of environments that are reset.

    Raises:
        ValueError: Shapes that do not match, no tick, or negative counts.
    """
    if counts.ndim != 2 or len(counts) != n or len(keys) != n:
        raise ValueError(f"keys {keys.shape} and counts {counts.shape} do not fit {n} environments")
    n_ticks = int(counts.shape[1])
    if n_ticks == 0 or not 0.0 < tick_s < math.inf:
        raise ValueError(
            f"counts has {n_ticks} ticks of {tick_s} s; expected at least one tick of finite "
            "seconds above 0"
        )
    if counts.size and counts.min() < 0:
        raise ValueError("counts holds a negative number of records")
    return n_ticks


@jit
def load_arrivals(envs: NDArray[np.int64], counts: NDArray[np.int64], arrived: Arrived) -> None:
    """Write the counts (int64 [M, n_ticks]) of some environments (int64 [M])."""
    for i in range(len(envs)):
        rows = arrived.before[envs[i]]
        records, arrival_sum = 0, 0.0
        for tick in range(len(rows)):
            rows[tick].records = records
            rows[tick].arrival_sum = arrival_sum
            if tick < counts.shape[1]:
                n = counts[i, tick]
                records += n
                arrival_sum += n * ((tick + 0.5) * arrived.tick_s)


@inner
def unsigned(index: int) -> Any:
    """Return an index as what it is: numba would wrap a signed one around at every access."""
    return nb.uint32(index)


@inner
def arrived_until(time_s: float, arrived: Arrived) -> tuple[int, float]:
    """Return how many records have arrived by a time, and the sum of their arrival times."""
    tick_s = arrived.tick_s
    tick = min(int(time_s / tick_s), len(arrived.before) - 2)
    before = arrived.before[unsigned(tick)]
    in_tick = arrived.before[unsigned(tick + 1)].records - before.records
    share = time_s / tick_s - tick
    here = min(int(in_tick * share + 0.5), in_tick)
    time_sum = before.arrival_sum
    if here > 0:
        time_sum += here * (tick * tick_s) + tick_s * (here * here) / (2.0 * in_tick)
    return before.records + here, time_sum


@inner
def arrival_time(record: int, tick: int, arrived: Arrived) -> tuple[float, int]:
    """Return when a record arrives and its tick, searching from a tick at or before it."""
    last = len(arrived.before) - 2
    while tick <= last and arrived.before[unsigned(tick + 1)].records <= record:
        tick += 1
    if tick > last:
        return math.inf, last
    before = arrived.before[unsigned(tick)].records
    in_tick = arrived.before[unsigned(tick + 1)].records - before
    return (tick + (record - before + 0.5) / in_tick) * arrived.tick_s, tick
