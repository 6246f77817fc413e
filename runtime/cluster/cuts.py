"""When the waiting records are cut into a batch."""

from __future__ import annotations

import math

from runtime.cluster.runs import BatchRun
from runtime.cluster.source import Source
from runtime.plan import Plan


class Cutter:
    """Decides when to cut, and cuts.

    By the clock, a cut follows the last one after the interval that was in force when it was
    scheduled; with nothing waiting, or no room for another open batch, only the timer goes on.
    With an idle trigger the cut is due as soon as a record waits, few enough batches are pending
    and the minimum gap has passed.

    Attributes:
        next_cut_s: When the next cut is due; infinity if only the end of a batch can make it so.
        records: Records cut so far.
        batches: Batches cut so far.
    """

    def __init__(self, source: Source, plan: Plan, max_open_batches: int, start_s: float) -> None:
        """Schedule the first cut.

        Args:
            source: The stream.
            plan: The plan in force.
            max_open_batches: Batches that may be pending at once, at least 1.
            start_s: When the stream starts; counts as a cut.
        """
        self._source = source
        self._max_open = max_open_batches
        self._last_cut_s = start_s
        self.records = 0
        self.batches = 0
        self.next_cut_s = start_s + plan.batch_interval_s
        if plan.idle_batches > 0:
            self.schedule_idle(plan, 0, start_s)

    def schedule_idle(self, plan: Plan, open_batches: int, time_s: float) -> None:
        """Set the next cut of a plan with an idle trigger."""
        if open_batches >= min(plan.idle_batches, self._max_open):
            self.next_cut_s = math.inf
            return
        due_s = max(self._last_cut_s + plan.batch_interval_s, self._source.arrival_s(self.records))
        self.next_cut_s = max(due_s, time_s)

    def apply(self, plan: Plan, before: Plan, open_batches: int, time_s: float) -> None:
        """Take over a new plan; a new interval applies from the next cut."""
        if plan.idle_batches > 0:
            self.schedule_idle(plan, open_batches, time_s)
        elif before.idle_batches > 0:
            self.next_cut_s = max(time_s, self._last_cut_s + plan.batch_interval_s)

    def cut(self, plan: Plan, open_batches: int) -> BatchRun | None:
        """Make the cut that is due, as of its due time, and schedule the next one.

        Returns:
            The batch; None without records, or without room for another batch.
        """
        time_s = self.next_cut_s
        self._last_cut_s = time_s
        arrived = self._source.arrived(time_s)
        batch = None
        if arrived > self.records and open_batches < self._max_open:
            batch = self._create_batch(plan, arrived, time_s)
        if plan.idle_batches > 0:
            self.schedule_idle(plan, open_batches + (batch is not None), time_s)
        else:
            self.next_cut_s = time_s + plan.batch_interval_s
        return batch

    def _create_batch(self, plan: Plan, arrived: int, time_s: float) -> BatchRun:
        source, first = self._source, self.records
        arrival_sum_s = source.arrival_sum_s(arrived) - source.arrival_sum_s(first)
        batch = BatchRun(
            number=self.batches,
            plan_version=plan.version,
            records=arrived - first,
            first_record=first,
            first_arrival_s=source.arrival_s(first),
            mean_arrival_s=arrival_sum_s / (arrived - first),
            last_arrival_s=source.arrival_s(arrived - 1),
            cut_s=time_s,
        )
        self.records = arrived
        self.batches += 1
        return batch
