"""When the records of a stream arrive, from their counts per tick."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


class Source:
    """A stream of records given as counts per tick.

    The n records of a tick arrive evenly, at (i + 0.5) / n of the tick. A record's arrival time
    is this scheduled time, however late anybody looks.

    Attributes:
        tick_s: Length of a tick, seconds.
        records: Number of records that the stream will have brought at its end.
    """

    def __init__(self, counts: NDArray[np.int64], tick_s: float) -> None:
        """Lay out the arrivals.

        Args:
            counts: int64 [n_ticks], records per tick, none negative.
            tick_s: Length of a tick, seconds > 0.

        Raises:
            ValueError: Counts of another shape or type, a negative count, or an impossible tick.
        """
        counts = np.asarray(counts)
        if counts.ndim != 1 or not np.issubdtype(counts.dtype, np.integer):
            raise ValueError(
                f"counts have shape {counts.shape} and dtype {counts.dtype}; expected whole "
                "numbers of shape [n_ticks]"
            )
        if len(counts) and counts.min() < 0:
            tick = int(counts.argmin())
            raise ValueError(f"tick {tick} has {counts[tick]} records; expected at least 0")
        if not (math.isfinite(tick_s) and tick_s > 0.0):
            raise ValueError(f"tick_s is {tick_s}; expected finite seconds > 0")
        self.tick_s = tick_s
        counts = counts.astype(np.int64)
        middles = (np.arange(len(counts)) + 0.5) * tick_s
        self._before = np.concatenate([[0], np.cumsum(counts)])
        self._sum_before = np.concatenate([[0.0], np.cumsum(counts * middles)])
        self.records = int(self._before[-1])

    @property
    def horizon_s(self) -> float:
        """End of the last tick, seconds."""
        return (len(self._before) - 1) * self.tick_s

    def arrived(self, time_s: float) -> int:
        """Return how many records have arrived by a time."""
        if time_s >= self.horizon_s:
            return self.records
        tick = int(time_s / self.tick_s)
        before = int(self._before[tick])
        in_tick = int(self._before[tick + 1]) - before
        share = time_s / self.tick_s - tick
        count = before + min(int(in_tick * share + 0.5), in_tick)
        if count < before + in_tick and self._in_tick_s(tick, count) <= time_s:
            count += 1  # rounding placed a record that arrives at this very time after it
        return min(count, self.records)

    def arrival_s(self, record: int) -> float:
        """Return when a record arrives, seconds; infinity past the end of the stream."""
        if record >= self.records:
            return math.inf
        return self._in_tick_s(int(np.searchsorted(self._before, record, side="right")) - 1, record)

    def _in_tick_s(self, tick: int, record: int) -> float:
        """Return when a record of a known tick arrives."""
        before = int(self._before[tick])
        in_tick = int(self._before[tick + 1]) - before
        return (tick + (record - before + 0.5) / in_tick) * self.tick_s

    def arrival_sum_s(self, records: int) -> float:
        """Return the sum of the arrival times of the first `records` records, seconds."""
        if records >= int(self._before[-1]):
            return float(self._sum_before[-1])
        tick = int(np.searchsorted(self._before, records, side="right")) - 1
        here = records - int(self._before[tick])
        in_tick = int(self._before[tick + 1]) - int(self._before[tick])
        partial = here * (tick * self.tick_s) + self.tick_s * here * here / (2.0 * in_tick)
        return float(self._sum_before[tick]) + partial

    def end_at(self, time_s: float) -> None:
        """Let nothing arrive after a time; what has arrived by then stays."""
        self.records = self.arrived(time_s)
