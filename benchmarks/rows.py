"""What a benchmark hands over: rows that can be printed or recorded as claims."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class BenchmarkRow:
    """One measured figure.

    Attributes:
        name: What was measured.
        value: The figure, in `unit`.
        unit: Its unit.
        wall_s: Wall time of the measured work, seconds.
        cpu_s: Processor time of the measured work, seconds.
        ratio: Against what `note` says, measured in the same run; None without a peer.
        note: How it was measured, and what `ratio` compares with.
    """

    name: str
    value: float
    unit: str
    wall_s: float
    cpu_s: float
    ratio: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Timing:
    """Times of repeated runs of the same work.

    Attributes:
        wall_s: float64 [n_runs].
        cpu_s: float64 [n_runs], of the whole process.
    """

    wall_s: np.ndarray
    cpu_s: np.ndarray

    def row(
        self, name: str, value: float, unit: str, ratio: float | None = None, note: str = ""
    ) -> BenchmarkRow:
        """Return a figure of these runs with their times; see `BenchmarkRow`."""
        wall_s, cpu_s = float(self.wall_s.sum()), float(self.cpu_s.sum())
        return BenchmarkRow(name, value, unit, wall_s, cpu_s, ratio, note)

    def rate(self, name: str, amount: int, unit: str, note: str = "") -> BenchmarkRow:
        """Return a rate per second of processor time, the median; wall time in the note."""
        by_cpu, by_wall = (amount / float(np.median(t)) for t in (self.cpu_s, self.wall_s))
        words = [f"CPU time; {by_wall:,.0f} by wall time", *([note] if note else [])]
        return self.row(name, by_cpu, unit, note="; ".join(words))


def measure(
    *works: Callable[[], object],
    runs: int,
    before: Sequence[Callable[[], object]] = (),
) -> list[Timing]:
    """Time pieces of work in turn, so that a disturbance of the machine meets all of them.

    Args:
        *works: What to run.
        runs: How often to run each.
        before: What prepares each of them, run before it and not timed; nothing if empty.
    """
    wall_s, cpu_s = np.zeros((len(works), runs)), np.zeros((len(works), runs))
    for run in range(runs):
        for i, work in enumerate(works):
            if before:
                before[i]()
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            wall_s[i, run] = time.perf_counter() - wall
            cpu_s[i, run] = time.process_time() - cpu
    return [Timing(wall, cpu) for wall, cpu in zip(wall_s, cpu_s, strict=True)]
