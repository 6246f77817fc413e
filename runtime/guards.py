"""Guards: what stands between any agent and the cluster, simulated or real.

Batched over N clusters, so that an environment and a controller (N = 1) run the same code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from runtime.limits import Limits
from runtime.plan import PLAN_COLUMNS, Plan, Pools
from runtime.snapshot import SIGNAL_INDEX, Snapshot

_POOLS, _SHARE, _INDEPENDENT, _DEPENDENT, _PARALLELISM, _INTERVAL, _IDLE, _PER_POOL = range(8)
_MOVING = (_SHARE, _PARALLELISM, _INTERVAL)
_WHOLE = np.array([column not in (_SHARE, _INTERVAL) for column in range(len(PLAN_COLUMNS))])
_REPORTS = SIGNAL_INDEX["reports"]
_RECORDS = SIGNAL_INDEX["report_records"]
_PARTS = slice(SIGNAL_INDEX["accumulation_record_s"], SIGNAL_INDEX["processing_record_s"] + 1)


class Cause(IntFlag):
    """Why a guard changed a plan."""

    NON_FINITE = 1
    BOUNDS = 2
    DWELL = 4
    DEGRADED = 8


@dataclass(frozen=True)
class GuardLimits(Limits):
    """What guards enforce; part of every policy bundle.

    Attributes:
        parallelism: Largest parallelism.
        interval_s: Smallest and largest batch interval, seconds.
        share: Smallest and largest share.
        idle_batches: Largest idle trigger.
        dwell_s: Minimum time between opposite moves of share, parallelism or interval, seconds.
        degradation: Latency over its mean that counts as degraded.
        degraded_batches: Degraded batches in a row after which the last good plan returns.
        growth: Arrival rate over its mean (of the good time) up to which load does not excuse
            a degraded latency.
        hold_s: How long the last good plan is then kept, seconds.
    """

    parallelism: int = 16
    interval_s: tuple[float, float] = (0.1, 10.0)
    share: tuple[float, float] = (0.0, 1.0)
    idle_batches: int = 4
    dwell_s: float = 0.0
    degradation: float = 2.0
    degraded_batches: int = 3
    growth: float = 1.25
    hold_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse limits that leave no plan.

        Raises:
            ValueError: An empty range or a limit outside its own range.
        """
        object.__setattr__(self, "interval_s", tuple(self.interval_s))
        object.__setattr__(self, "share", tuple(self.share))
        low, high = self.interval_s
        if not 0.0 < low <= high:
            raise ValueError(f"guard interval_s is {self.interval_s}; expected 0 < low <= high")
        if not 0.0 <= self.share[0] <= self.share[1] <= 1.0:
            raise ValueError(f"guard share is {self.share}; expected 0 <= low <= high <= 1")
        if self.parallelism < 1 or self.idle_batches < 0 or self.degraded_batches < 1:
            raise ValueError(
                "guard parallelism and degraded_batches must be at least 1 and idle_batches at "
                f"least 0; got {self.parallelism}, {self.degraded_batches}, {self.idle_batches}"
            )
        if not (self.degradation > 1.0 and self.growth > 0.0 and self.dwell_s >= 0.0):
            raise ValueError(
                "guard degradation must be above 1, growth above 0, dwell_s not negative; got "
                f"{self.degradation}, {self.growth}, {self.dwell_s}"
            )


class Guards:
    """Projects proposed plans of N clusters onto what may be applied now."""

    def __init__(self, limits: GuardLimits, safe: Plan, n: int = 1) -> None:
        """Start with the safe plan as the last good one.

        Args:
            limits: What to enforce.
            safe: The plan that replaces a proposal that is no plan.
            n: Number of clusters N.
        """
        self.limits, self.safe = limits, safe
        low = np.array([0, limits.share[0], 0, 0, 1, limits.interval_s[0], 0, 0])
        high = np.array([2, limits.share[1], 1, 1, limits.parallelism, limits.interval_s[1], 0, 1])
        high[_IDLE] = limits.idle_batches
        self._low, self._high = low, high
        self._safe_row = np.clip(safe.to_row(), low, high)
        width = len(_MOVING)
        self._current = np.zeros((n, len(PLAN_COLUMNS)))
        self._direction = np.zeros((n, width))
        self._moved_s = np.zeros((n, width))
        self._good = np.zeros((n, len(PLAN_COLUMNS)))
        self._latency_s = np.zeros(n)  # mean over the good time; 0 before the first batch
        self._rate = np.zeros(n)  # mean arrivals per second over the good time
        self._degraded = np.zeros(n)
        self._hold_until_s = np.zeros(n)
        self._previous = np.zeros((n, 2))  # time, records in
        self.reset()

    def reset(self, which: NDArray[np.int64] | slice = slice(None)) -> None:
        """Forget the past of some clusters; the safe plan is in force."""
        self._current[which] = self._safe_row
        self._good[which] = self._safe_row
        for memory in (self._direction, self._latency_s, self._rate, self._degraded):
            memory[which] = 0.0
        self._moved_s[which] = -np.inf
        self._hold_until_s[which] = -np.inf
        self._previous[which] = 0.0

    def apply_rows(
        self, proposed: NDArray[np.float64], signals: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the plans to apply and why they differ from the proposals.

        Args:
            proposed: float64 [N, len(PLAN_COLUMNS)].
            signals: float64 [N, len(SIGNALS)], what the decisions were based on.

        Returns:
            Plan rows float64 [N, len(PLAN_COLUMNS)] and causes int64 [N] (bits of `Cause`).
        """
        time_s = signals[:, 0]
        finite = np.isfinite(proposed)
        if finite.all():
            wanted, causes = proposed, np.zeros(len(proposed), dtype=np.int64)
        else:
            usable = np.asarray(finite.all(axis=1))
            wanted = np.where(usable[:, None], proposed, self._safe_row)
            causes = np.where(usable, 0, int(Cause.NON_FINITE))
        rows = wanted.copy()
        np.rint(rows, out=rows, where=_WHOLE)
        np.maximum(rows, self._low, out=rows)
        np.minimum(rows, self._high, out=rows)
        moved = np.asarray(rows != wanted).any(axis=1)
        causes |= np.where(moved, int(Cause.BOUNDS), 0)
        single = np.asarray(rows[:, _POOLS] == Pools.SINGLE)
        if single.any():
            rows[single, _DEPENDENT] = rows[single, _INDEPENDENT]
            rows[single, _PER_POOL] = 0.0
            rows[single, _SHARE] = self._current[single, _SHARE]
        if math.isfinite(self.limits.degradation):
            self._watch(signals)
            held = time_s < self._hold_until_s
            rows[held] = self._good[held]
            causes |= np.where(held, int(Cause.DEGRADED), 0)
        if self.limits.dwell_s > 0.0:
            causes |= self._dwell(rows, time_s, (causes & int(Cause.DEGRADED)) == 0)
        self._current[:] = rows
        return rows, causes

    def _dwell(
        self, rows: NDArray[np.float64], time_s: NDArray[np.float64], bound: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """Undo moves that reverse a recent one, in place; return the causes."""
        moving = list(_MOVING)
        step = np.sign(rows[:, moving] - self._current[:, moving])
        recent = time_s[:, None] - self._moved_s < self.limits.dwell_s
        undone = (step * self._direction < 0.0) & recent & bound[:, None]
        rows[:, moving] = np.where(undone, self._current[:, moving], rows[:, moving])
        moved = (step != 0.0) & ~undone
        self._direction = np.where(moved, step, self._direction)
        self._moved_s = np.where(moved, time_s[:, None], self._moved_s)
        return np.where(undone.any(axis=1), int(Cause.DWELL), 0)

    def _watch(self, signals: NDArray[np.float64]) -> None:
        """Follow latency; after degraded batches in a row hold the last good plan."""
        limits = self.limits
        passed = signals[:, :2] - self._previous
        self._previous[:] = signals[:, :2]
        rate = passed[:, 1] / np.maximum(passed[:, 0], 1e-9)
        batches, records = signals[:, _REPORTS], signals[:, _RECORDS]
        seen = records > 0.0
        latency_s = signals[:, _PARTS].sum(axis=1) / np.maximum(records, 1.0)
        first = seen & (self._latency_s == 0.0)
        self._latency_s[first], self._rate[first] = latency_s[first], rate[first]
        bad = seen & (latency_s > limits.degradation * self._latency_s)
        bad &= rate <= limits.growth * self._rate
        good = seen & ~bad
        weight = np.where(good, -np.expm1(-batches / 30.0), 0.0)
        self._latency_s += weight * (latency_s - self._latency_s)
        self._rate += weight * (rate - self._rate)
        calm = good & (latency_s <= self._latency_s)
        self._good[calm] = self._current[calm]
        self._degraded = np.where(
            seen, np.where(bad, self._degraded + batches, 0.0), self._degraded
        )
        tripped = self._degraded >= limits.degraded_batches
        self._hold_until_s[tripped] = signals[tripped, 0] + limits.hold_s
        self._degraded[tripped] = 0.0

    def apply(self, proposed: Plan, snapshot: Snapshot) -> tuple[Plan, tuple[str, ...]]:
        """Return the plan to apply for one cluster and the names of the causes (needs N = 1)."""
        rows, causes = self.apply_rows(proposed.to_row()[None], snapshot.signals[None])
        names = tuple(cause.name.lower() for cause in Cause(int(causes[0])) if cause.name)
        return Plan.from_row(rows[0], version=proposed.version), names
