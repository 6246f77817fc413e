"""What a rule may know before it serves: the bank's calibrated tables and the deadline.

No correctness, no true condition and no future: an operator has all of this after calibration.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from envs.precision.config import StagedPrecisionConfig
from runtime.precision.guard_tables import BankTables
from runtime.precision.plan import PrecisionPlan, all_assignments
from runtime.precision.snapshot import SignalLayout


class Frontier(NamedTuple):
    """The assignments of one batch bucket that are worth running.

    Attributes:
        assignment: int64 [K], from the fastest to the most accurate.
        latency_s: float64 [K], their mean service times, ascending.
        accuracy: float64 [K], strictly ascending.
    """

    assignment: NDArray[np.int64]
    latency_s: NDArray[np.float64]
    accuracy: NDArray[np.float64]


class FrontierTable(NamedTuple):
    """The frontiers of B buckets side by side, the longest of K assignments.

    Attributes:
        assignment: int64 [B, K]; 0 past the end of a frontier.
        latency_s: float64 [B, K]; NaN, which fits nothing, past the end.
        accuracy: float64 [B, K]; likewise.
    """

    assignment: NDArray[np.int64]
    latency_s: NDArray[np.float64]
    accuracy: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Known:
    """What every rule starts from. S stages, P levels, A assignments, B buckets.

    Attributes:
        layout: Columns of the signals.
        tables: Accuracy (on calibration data) and latency of every assignment.
        max_batch: Largest batch.
        property_low: Low end of each input property on calibration data.
        property_high: High end of each.
        most_loss: Frontiers hold no assignment that is less accurate by more than this than the
            most accurate one, in [0, 1].
    """

    layout: SignalLayout
    tables: BankTables
    max_batch: int
    property_low: tuple[float, ...] = ()
    property_high: tuple[float, ...] = ()
    most_loss: float = 1.0

    @cached_property
    def levels(self) -> NDArray[np.int64]:
        """Levels of every assignment, int64 [A, S]."""
        return all_assignments(self.tables.n_stages, self.tables.n_levels)

    @cached_property
    def rows(self) -> NDArray[np.float64]:
        """Plan rows of every assignment, without a second pass, float64 [A, 2 * S + 1]."""
        return np.stack([PrecisionPlan(tuple(levels)).to_row() for levels in self.levels.tolist()])

    @cached_property
    def frontiers(self) -> tuple[Frontier, ...]:
        """The frontier of every bucket."""
        return tuple(self._frontier(b) for b in range(len(self.tables.buckets)))

    @cached_property
    def frontier_table(self) -> FrontierTable:
        """The frontiers of all buckets, as compiled code reads them."""
        every = self.frontiers
        shape = (len(every), max(len(frontier.assignment) for frontier in every))
        latency_s, accuracy = np.full((2, *shape), np.nan)
        assignment = np.zeros(shape, dtype=np.int64)
        for b, frontier in enumerate(every):
            own = slice(len(frontier.assignment))
            assignment[b, own], latency_s[b, own], accuracy[b, own] = frontier
        return FrontierTable(assignment, latency_s, accuracy)

    @cached_property
    def capacity_per_s(self) -> NDArray[np.float64]:
        """Highest rate at which each assignment keeps up, float64 [A], requests per second."""
        sizes = np.minimum(self.tables.buckets, self.max_batch)
        return np.asarray((sizes / self.tables.latency_s).max(axis=1))

    @cached_property
    def _radix(self) -> NDArray[np.int64]:
        return self.tables.n_levels ** np.arange(self.tables.n_stages - 1, -1, -1)

    @cached_property
    def _buckets(self) -> NDArray[np.int64]:
        return np.array(self.tables.buckets)

    def _frontier(self, bucket: int) -> Frontier:
        latency_s, accuracy = self.tables.latency_s[:, bucket], self.tables.accuracy
        order = np.lexsort((-accuracy, latency_s))
        best = np.maximum.accumulate(accuracy[order])
        better = np.concatenate([[True], best[1:] > best[:-1]])
        kept = order[better]
        kept = kept[accuracy[kept] >= accuracy.max() - self.most_loss]
        return Frontier(kept, latency_s[kept], accuracy[kept])

    def column(self, name: str) -> int:
        """Return the column of a signal.

        Raises:
            ValueError: There is no such signal.
        """
        if name not in self.layout.index:
            raise ValueError(f"unknown signal {name!r}; expected one of {list(self.layout.names)}")
        return self.layout.index[name]

    def uniform(self, level: int) -> tuple[int, ...]:
        """Return the assignment that has the same level everywhere."""
        return (level,) * self.tables.n_stages

    def assignments(self, levels: NDArray[np.float64] | tuple[int, ...]) -> NDArray[np.int64]:
        """Return assignments as integers, int64 [...], from levels [..., S]."""
        return (np.asarray(levels) @ self._radix).astype(np.int64)

    def bucket(self, requests: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the bucket of each batch size, int64 [N]; the largest if beyond it or NaN."""
        place = np.searchsorted(self._buckets, requests)
        return np.minimum(place, len(self._buckets) - 1)

    def latency_s(
        self, assignment: NDArray[np.int64], requests: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the predicted time of one pass, float64 [N], seconds; 0 for no requests."""
        one_pass = self.tables.latency_s[assignment, self.bucket(requests)]
        return np.where(requests > 0.0, one_pass, 0.0)

    def best_within(
        self, requests: NDArray[np.float64], budget_s: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Return the most accurate assignment whose predicted latency fits, int64 [N].

        The fastest one where none fits.

        Args:
            requests: float64 [N], batch sizes.
            budget_s: float64 [N], seconds.
        """
        result = np.empty(len(requests), dtype=np.int64)
        _fit(self.frontier_table, self.bucket(requests), budget_s, result)
        return result


@njit(cache=True)
def _fit(
    table: FrontierTable,
    bucket: NDArray[np.int64],
    budget_s: NDArray[np.float64],
    result: NDArray[np.int64],
) -> None:
    """Write the last assignment of each batch's frontier that fits, or else the first."""
    for i in range(len(result)):
        b, k = bucket[i], 0
        latency_s = table.latency_s[b]
        while k + 1 < len(latency_s) and latency_s[k + 1] <= budget_s[i]:
            k += 1
        result[i] = table.assignment[b, k]


def known_of(config: StagedPrecisionConfig) -> Known:
    """Return what rules know about a configuration: accuracy is the one on clean inputs."""
    scale = config.scale()
    return Known(
        layout=scale.signals,
        tables=config.bank_tables(),
        max_batch=config.serving.max_batch,
        property_low=scale.property_low,
        property_high=scale.property_high,
    )
