"""The batched cluster engine: many simulated clusters advanced by compiled code.

Total order of events in one cluster: by time; at equal times ends of tasks (in the order of their
starts), then the cut of a batch, then the decision; jobs that end at the same instant end in the
order in which that became known. `simulators.cluster.reference` follows the same order and gives
the same bits. Speed and the cost of each feature: `python -m benchmarks engine`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from runtime.application import Application
from runtime.plan import PLAN_COLUMNS, Plan
from runtime.snapshot import REPORT_COLUMNS, SIGNALS, Report, Snapshot
from simulators.arrived import (
    Arrived,
    allocate_arrivals,
    arrival_time,
    arrived_until,
    check_counts,
    load_arrivals,
)
from simulators.cluster import state as st
from simulators.cluster.events import apply_plan, run_until
from simulators.cluster.model import Model, build_model
from simulators.cluster.profile import Profile
from simulators.cluster.scheduling import PLACE_MASK
from simulators.cluster.state import State, allocate_state
from simulators.compiled import bind, inner, jit

_N_OWN_SIGNALS = len(SIGNALS) - len(PLAN_COLUMNS)
assert SIGNALS[_N_OWN_SIGNALS - 1] == "system_record_s"  # _write_signals numbers the columns
assert len(REPORT_COLUMNS) == 14  # so does write_report


class ClusterEngine:
    """Advances N independent clusters that run the same application.

    Every environment has its own key, arrivals, plan and clock; what happens in one depends on
    these alone, never on N.
    """

    def __init__(
        self,
        application: Application,
        profile: Profile,
        slots: int,
        n_envs: int = 1,
        *,
        max_open: int = 32,
        report_rows: int = 256,
    ) -> None:
        """Allocate the clusters; `reset` must be called before `advance`.

        Args:
            application: The jobs of every batch.
            profile: Costs of all its stages.
            slots: Slots of each cluster, at least 1.
            n_envs: Number of clusters N.
            max_open: Batches that may be cut and not ended; beyond it records wait uncut.
            report_rows: Reports that one period may bring; more is an error.

        Raises:
            ValueError: A size below 1, too many stages, or a stage without costs.
        """
        for name, value in (("n_envs", n_envs), ("max_open", max_open)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        self.application, self.profile, self.slots = application, profile, slots
        self.n_envs, self.max_open = n_envs, max_open
        self.model = build_model(application, profile, slots)
        if max_open << self.model.stage_bits > PLACE_MASK:
            raise ValueError(
                f"max_open {max_open} times {len(self.model.stage)} stages exceeds {PLACE_MASK}"
            )
        self.state = allocate_state(n_envs, self.model, max_open, report_rows)
        self.signals = self.state.signals
        """float64 [N, len(SIGNALS)]; rewritten in place by `reset` and `advance`."""
        self._plans = np.zeros((n_envs, len(PLAN_COLUMNS)))
        self._until_s = np.zeros(n_envs)
        self._receive(allocate_arrivals(n_envs, 1, 1.0))

    def _receive(self, arrived: Arrived) -> None:
        """Take over the arrays that hold the arrivals."""
        self.arrived = arrived
        self._advance = bind(_advance, self._plans, self._until_s, arrived, self.model, self.state)

    def reset(
        self,
        keys: NDArray[np.uint64],
        counts: NDArray[np.int64],
        tick_s: float,
        plan: Plan,
        envs: NDArray[np.int64] | None = None,
    ) -> None:
        """Empty some clusters and give them new arrivals.

        Args:
            keys: uint64 [M], the random key of each environment.
            counts: int64 [M, n_ticks], records that arrive in each tick, spread evenly over it.
            tick_s: Length of a tick, seconds; the same for all environments.
            plan: The plan in force from time 0.
            envs: int64 [M], which environments; None means all.

        Raises:
            ValueError: Shapes that do not match, negative counts, or another tick length while
                other environments keep theirs.
        """
        chosen = np.arange(self.n_envs) if envs is None else envs
        n_ticks = check_counts(keys, counts, tick_s, len(chosen))
        if self.arrived.before.shape[1] != n_ticks + 1 or self.arrived.tick_s != tick_s:
            if len(chosen) != self.n_envs:
                raise ValueError(
                    f"arrivals of {n_ticks} ticks of {tick_s} s differ from the other "
                    "environments'; reset them all together"
                )
            self._receive(allocate_arrivals(self.n_envs, n_ticks, tick_s))
        for table in (self.state.cluster, self.state.pool):
            table[chosen] = np.zeros((), dtype=table.dtype)
        load_arrivals(chosen, counts, self.arrived)
        _reset(chosen, keys, plan.to_row(), self.arrived, self.model, self.state)

    def advance(self, plans: NDArray[np.float64], until_s: NDArray[np.float64]) -> None:
        """Apply plans and simulate every environment up to a time.

        A row equal to the plan in force is no new version. Rows are not checked: they come from
        `Plan.to_row` or from guards.

        Args:
            plans: float64 [N, len(PLAN_COLUMNS)].
            until_s: float64 [N], end of the period, seconds; not before the present time.

        Raises:
            ValueError: Shapes that do not match, or a time before the present one.
            RuntimeError: More batches ended in a period than `report_rows` can hold.
        """
        if plans.shape != self._plans.shape or until_s.shape != self._until_s.shape:
            raise ValueError(
                f"plans {plans.shape} and until_s {until_s.shape} do not fit; expected "
                f"{self._plans.shape} and {self._until_s.shape}"
            )
        self._plans[:] = plans
        self._until_s[:] = until_s
        lost = self._advance()
        if lost < 0:
            env = -1 - lost
            now_s = self.state.cluster["now_s"][env, 0]
            raise ValueError(
                f"until_s[{env}] is {until_s[env]}; expected finite seconds, not before {now_s}"
            )
        if lost:
            raise RuntimeError(
                f"{lost} reports of one period did not fit; raise report_rows "
                f"(now {self.state.report.shape[1]}) or decide more often"
            )

    def report_rows(self, env: int) -> NDArray[np.float64]:
        """Return the reports of the last period, float64 [n, len(REPORT_COLUMNS)], as a copy."""
        return self.state.report[env, : self.state.cluster["reports"][env, 0]].copy()

    def snapshot(self, env: int = 0) -> Snapshot:
        """Return what the controller of one environment sees now."""
        return Snapshot(
            signals=self.signals[env].copy(),
            reports=tuple(Report.from_row(row) for row in self.report_rows(env)),
            plan=Plan.from_row(
                self.state.plan[env], version=int(self.state.cluster["version"][env, 0])
            ),
        )


@inner
def _view(e: int, state: State) -> State:
    """Return the views of one environment."""
    return State(
        state.cluster[e],
        state.pool[e],
        state.batch[e],
        state.job[e],
        state.stage[e],
        state.ready[e],
        state.task_set[e],
        state.task[e],
        state.unused[e],
        state.ending[e],
        state.report[e],
        state.plan[e],
        state.signals[e],
    )


@inner
def _own_arrivals(e: int, arrived: Arrived) -> Arrived:
    return Arrived(arrived.before[e], arrived.tick_s)


@jit
def _reset(
    envs: NDArray[np.int64],
    keys: NDArray[np.uint64],
    plan: NDArray[np.float64],
    arrived: Arrived,
    model: Model,
    state: State,
) -> None:
    for i in range(len(envs)):
        s = _view(envs[i], state)
        cluster = s.cluster[0]
        cluster.key = keys[i]
        cluster.head = st.NONE
        cluster.tail = st.NONE
        cluster.version = -1
        cluster.idle_batches = 1  # makes apply_plan set the first cut in either mode
        cluster.unused = len(s.batch)
        for place in range(len(s.batch)):
            s.unused[place] = len(s.batch) - 1 - place
        apply_plan(plan, _own_arrivals(envs[i], arrived), model, s)
        s.signals[:] = 0.0
        _take_over(plan, s)


@jit
def _advance(
    plans: NDArray[np.float64],
    until_s: NDArray[np.float64],
    arrived: Arrived,
    model: Model,
    state: State,
) -> int:
    """Advance all environments; return how many reports were lost for lack of room.

    -1 - e means that the time of environment e is wrong.
    """
    lost = 0
    for e in range(len(until_s)):
        s, own = _view(e, state), _own_arrivals(e, arrived)
        if not 0.0 <= until_s[e] - s.cluster[0].now_s < math.inf:
            return -1 - e
        if _take_over(plans[e], s):
            apply_plan(plans[e], own, model, s)
        start_s, left = s.cluster[0].now_s, s.cluster[0].out_records + s.cluster[0].failed_records
        _start_period(until_s[e], s)
        run_until(own, model, s)
        _write_signals(start_s, left, own, s)
        lost += s.cluster[0].reports_lost
    return lost


@inner
def _take_over(plan: NDArray[np.float64], s: State) -> bool:
    """Store a plan row as the one in force and return whether it is another one."""
    changed = False
    for column in range(len(plan)):
        changed |= plan[column] != s.plan[column]
        s.plan[column] = plan[column]
        s.signals[_N_OWN_SIGNALS + column] = plan[column]
    return changed


@inner
def _start_period(until_s: float, s: State) -> None:
    """Set what counts from decision to decision to 0."""
    cluster = s.cluster[0]
    cluster.period_end_s = until_s
    cluster.tasks_ended = 0
    cluster.reports = 0
    cluster.reports_lost = 0
    cluster.out_area = 0.0
    cluster.report_records = 0.0
    cluster.accumulation = 0.0
    cluster.queueing = 0.0
    cluster.processing = 0.0
    s.pool[0].busy_s = 0.0
    s.pool[1].busy_s = 0.0


@inner
def _write_signals(start_s: float, left: int, arrived: Arrived, s: State) -> None:
    """Write the signals of a period (columns: SIGNALS up to the plan)."""
    cluster, out = s.cluster[0], s.signals
    now_s = cluster.now_s
    count_0, sum_0 = cluster.seen_records, cluster.seen_arrival_sum
    count, time_sum = arrived_until(now_s, arrived)
    cluster.seen_records, cluster.seen_arrival_sum = count, time_sum
    count = max(count, cluster.cut_records)
    oldest_s = now_s
    if cluster.head != st.NONE:
        oldest_s = s.batch[cluster.head].first_arrival_s
    elif count > cluster.cut_records:
        oldest_s, cluster.tick = arrival_time(cluster.cut_records, cluster.tick, arrived)
    out[0] = now_s
    out[1] = count
    out[2] = cluster.out_records
    out[3] = cluster.failed_records
    out[4] = count - cluster.cut_records
    out[5] = cluster.pending_records
    out[6] = cluster.open
    out[7] = max(now_s - oldest_s, 0.0)
    for klass in range(2):
        pool = s.pool[klass]
        out[8 + klass] = pool.ready
        out[10 + klass] = pool.running
        out[12 + klass] = pool.queued
        out[14 + klass] = pool.busy
        out[21 + klass] = pool.busy_s
    out[16] = cluster.reports
    out[17] = cluster.report_records
    out[18] = cluster.accumulation
    out[19] = cluster.queueing
    out[20] = cluster.processing
    out[23] = cluster.tasks_ended
    inside = (count_0 - left) * (now_s - start_s)
    arrived_area = (count - count_0) * now_s - (time_sum - sum_0)
    out[24] = inside + arrived_area - cluster.out_area
