"""Which waiting requests of a real server leave unserved; `Drop` states the rules.

Times are the guards' measured ones, so a simulated server with the same profile drops the same
requests.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.precision.guard_tables import BankTables
from runtime.precision.plan import PrecisionPlan, assignment_index
from runtime.precision.serving import Drop, Serving


class Dropping:
    """Counts the requests at the head of a queue that cannot be answered in time."""

    def __init__(self, serving: Serving, bank: BankTables) -> None:
        """Look up what batches take.

        Args:
            serving: With the rule, the deadline and the largest batch.
            bank: With the times of all assignments.
        """
        self._rule, self._deadline_s = serving.drop, serving.deadline_s
        self._max_batch, self._n_levels = serving.max_batch, bank.n_levels
        place = np.searchsorted(bank.buckets, np.arange(serving.max_batch + 1))
        # Batches beyond the largest bucket are looked up in it, as guards do.
        self._times_s = bank.latency_s[:, np.minimum(place, len(bank.buckets) - 1)]
        self._planned_s = [0.0] * (serving.max_batch + 1)

    def plan_is(self, plan: PrecisionPlan, escalated_share: float) -> None:
        """Tell which plan is in force, and what share of the last batch was run again.

        Args:
            plan: The plan.
            escalated_share: In [0, 1].
        """
        if self._rule is not Drop.LATE:
            return
        self._planned_s = self._of(plan.levels)
        if plan.escalate_below > 0.0 and plan.escalate_levels != plan.levels:
            twice_s = self._of(plan.escalate_levels)
            again = [int(escalated_share * n + 0.5) for n in range(len(twice_s))]
            pairs = zip(self._planned_s, again, strict=True)
            self._planned_s = [once + twice_s[n] * (n > 0) for once, n in pairs]

    def _of(self, levels: tuple[int, ...]) -> list[float]:
        """Return the mean time of one pass by batch size."""
        times_s: list[float] = self._times_s[assignment_index(levels, self._n_levels)].tolist()
        return times_s

    def count(self, arrival_s: NDArray[np.float64], head: int, now_s: float) -> int:
        """Return how many requests from the first one that waits on leave unserved.

        Args:
            arrival_s: float64 [n], when each request arrives, ascending, seconds.
            head: The first one that waits.
            now_s: The time, seconds.
        """
        if self._rule is Drop.NEVER:
            return 0
        first = head
        count = int(np.searchsorted(arrival_s, now_s, side="left"))
        while head < count:
            left_s = self._deadline_s - (now_s - float(arrival_s[head]))
            planned_s = self._planned_s[min(count - head, self._max_batch)]
            if left_s > 0.0 and left_s >= planned_s:
                break
            head += 1
        return head - first
