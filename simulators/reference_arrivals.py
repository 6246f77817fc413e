"""Arrivals as the plain-Python oracles read them; `simulators.arrived` is the compiled form.

The n records of a tick are spread evenly over it: at (i + 0.5)/n of the tick.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


class ReferenceArrivals:
    """What arrives at one simulated system, and when."""

    def __init__(self, counts: NDArray[np.int64], tick_s: float) -> None:
        """Take int64 [n_ticks], records per tick of `tick_s` seconds."""
        self.counts, self.tick_s = [int(n) for n in counts], tick_s
        self.before = [0]
        self.time_sums = [0.0]
        for tick, n in enumerate(self.counts):
            self.before.append(self.before[-1] + n)
            self.time_sums.append(self.time_sums[-1] + n * ((tick + 0.5) * tick_s))

    @property
    def end_s(self) -> float:
        """When the last tick ends, seconds."""
        return len(self.counts) * self.tick_s

    def until(self, time_s: float) -> tuple[int, float]:
        """Return how many records have arrived by a time, and the sum of their arrival times."""
        tick = min(int(time_s / self.tick_s), len(self.counts) - 1)
        n = self.counts[tick]
        here = min(int(n * (time_s / self.tick_s - tick) + 0.5), n)
        total = self.time_sums[tick]
        if here:
            total += here * (tick * self.tick_s) + self.tick_s * (here * here) / (2.0 * n)
        return self.before[tick] + here, total

    def time_s(self, record: int) -> float:
        """Return when a record arrives (infinity after the last)."""
        for tick, n in enumerate(self.counts):
            if self.before[tick + 1] > record:
                return (tick + (record - self.before[tick] + 0.5) / n) * self.tick_s
        return math.inf
