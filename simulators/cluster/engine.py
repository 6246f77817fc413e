"""The batched cluster engine: many simulated clusters advanced by compiled code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.application import Application
from runtime.plan import PLAN_COLUMNS, Plan, Pools, hard_slots
from runtime.snapshot import REPORT_COLUMNS, SIGNALS, Report, Snapshot
from simulators.cluster import state as st
from simulators.cluster.events import apply_plan, run_until
from simulators.cluster.model import build_model
from simulators.cluster.profile import Profile
from simulators.cluster.scheduling import PLACE_MASK, arrival_time, arrived_until
from simulators.cluster.state import Arrived, State, allocate_state
from simulators.compiled import jit

_SHARE = PLAN_COLUMNS.index("share")


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
        self.signals: NDArray[np.float64] = np.zeros((n_envs, len(SIGNALS)))
        """float64 [N, len(SIGNALS)]; rewritten in place by `reset` and `advance`."""
        self.tick_s = 1.0
        self.arrived = Arrived(np.zeros((n_envs, 2), dtype=np.int64), np.zeros((n_envs, 2)))
        self._plans = np.zeros((n_envs, len(PLAN_COLUMNS)))
        self._targets = np.zeros((n_envs, 2), dtype=np.int64)

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
        if counts.ndim != 2 or len(counts) != len(chosen) or len(keys) != len(chosen):
            raise ValueError(
                f"keys {keys.shape} and counts {counts.shape} do not fit {len(chosen)} environments"
            )
        if counts.size and counts.min() < 0:
            raise ValueError("counts holds a negative number of records")
        n_ticks = counts.shape[1]
        if self.arrived.count.shape[1] != n_ticks + 1 or self.tick_s != tick_s:
            if len(chosen) != self.n_envs:
                raise ValueError(
                    f"arrivals of {n_ticks} ticks of {tick_s} s differ from the other "
                    "environments'; reset them all together"
                )
            shape = (self.n_envs, n_ticks + 1)
            self.arrived = Arrived(np.zeros(shape, dtype=np.int64), np.zeros(shape))
            self.tick_s = tick_s
        row = plan.to_row()
        self._plans[chosen] = row
        self._targets[chosen] = self.hard_targets(row[None])[0]
        _reset(chosen, keys.view(np.int64), self.state)
        _load_arrivals(chosen, counts, tick_s, self.arrived)
        _apply_plans(chosen, self._plans, self._targets, tick_s, self.arrived, self.state)
        self.signals[chosen] = 0.0
        self.signals[chosen, len(SIGNALS) - len(PLAN_COLUMNS) :] = row

    def advance(self, plans: NDArray[np.float64], until_s: NDArray[np.float64]) -> None:
        """Apply plans and simulate every environment up to a time.

        A row equal to the plan in force is no new version. Rows are not checked: they come from
        `Plan.to_row` or from guards.

        Args:
            plans: float64 [N, len(PLAN_COLUMNS)].
            until_s: float64 [N], end of the period, seconds; not before the present time.

        Raises:
            RuntimeError: More batches ended in a period than `report_rows` can hold.
        """
        changed = np.nonzero((plans != self._plans).any(axis=1))[0]
        if len(changed):
            self._plans[changed] = plans[changed]
            self._targets[changed] = self.hard_targets(plans[changed])
            _apply_plans(changed, self._plans, self._targets, self.tick_s, self.arrived, self.state)
        lost = _advance(
            until_s,
            self.slots,
            self.tick_s,
            self.arrived,
            self.model,
            self.state,
            self._plans,
            self.signals,
        )
        if lost:
            raise RuntimeError(
                f"{lost} reports of one period did not fit; raise report_rows "
                f"(now {self.state.report.shape[1]}) or decide more often"
            )

    def hard_targets(self, plans: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the slots of both hard pools, int64 [M, 2], for plan rows [M, ...]."""
        n_independent, n_dependent = self.application.class_counts
        if n_independent == 0 or n_dependent == 0 or self.slots == 1:
            return np.tile(hard_slots(0.5, self.slots, n_independent, n_dependent), (len(plans), 1))
        share = np.floor(plans[:, _SHARE] * self.slots + 0.5).astype(np.int64)
        independent = np.clip(share, 1, self.slots - 1)
        return np.stack([independent, self.slots - independent], axis=1)

    def report_rows(self, env: int) -> NDArray[np.float64]:
        """Return the reports of the last period, float64 [n, len(REPORT_COLUMNS)], as a copy."""
        return self.state.report[env, : self.state.whole[env, st.REPORTS]].copy()

    def snapshot(self, env: int = 0) -> Snapshot:
        """Return what the controller of one environment sees now."""
        return Snapshot(
            signals=self.signals[env].copy(),
            reports=tuple(Report.from_row(row) for row in self.report_rows(env)),
            plan=Plan.from_row(self._plans[env], version=int(self.state.whole[env, st.VERSION])),
        )


@jit
def _view(e: int, state: State) -> State:
    """Return the views of one environment."""
    return State(
        state.whole[e],
        state.real[e],
        state.batch[e],
        state.batch_real[e],
        state.job[e],
        state.stage[e],
        state.ready[e],
        state.task_set[e],
        state.heap_s[e],
        state.heap_key[e],
        state.unused[e],
        state.ending[e],
        state.report[e],
    )


@jit
def _reset(envs: NDArray[np.int64], keys: NDArray[np.int64], state: State) -> None:
    for i in range(len(envs)):
        s = _view(envs[i], state)
        s.whole[:] = 0
        s.real[:] = 0.0
        s.whole[st.KEY] = keys[i]
        s.whole[st.HEAD] = -1
        s.whole[st.TAIL] = -1
        s.whole[st.VERSION] = -1
        s.whole[st.IDLE_BATCHES] = 1  # makes apply_plan set the first cut in either mode
        s.whole[st.UNUSED] = len(s.batch)
        for place in range(len(s.batch)):
            s.unused[place] = len(s.batch) - 1 - place


@jit
def _load_arrivals(
    envs: NDArray[np.int64], counts: NDArray[np.int64], tick_s: float, arrived: Arrived
) -> None:
    for i in range(len(envs)):
        count, time_sum = arrived.count[envs[i]], arrived.time_sum[envs[i]]
        count[0] = 0
        time_sum[0] = 0.0
        for tick in range(counts.shape[1]):
            n = counts[i, tick]
            count[tick + 1] = count[tick] + n
            time_sum[tick + 1] = time_sum[tick] + n * ((tick + 0.5) * tick_s)


@jit
def _apply_plans(
    envs: NDArray[np.int64],
    plans: NDArray[np.float64],
    targets: NDArray[np.int64],
    tick_s: float,
    arrived: Arrived,
    state: State,
) -> None:
    for e in envs:
        own = Arrived(arrived.count[e], arrived.time_sum[e])
        apply_plan(plans[e], targets[e], tick_s, own, _view(e, state))


@jit
def _advance(
    until_s: NDArray[np.float64],
    slots: int,
    tick_s: float,
    arrived: Arrived,
    model: object,
    state: State,
    plans: NDArray[np.float64],
    signals: NDArray[np.float64],
) -> int:
    """Advance all environments; return how many reports were lost for lack of room."""
    lost = 0
    for e in range(len(until_s)):
        s = _view(e, state)
        own = Arrived(arrived.count[e], arrived.time_sum[e])
        s.whole[st.REPORTS] = 0
        s.whole[st.TASKS_ENDED] = 0
        for column in range(st.OUT_AREA, st.REAL_COLUMNS):
            s.real[column] = 0.0
        start_s = s.real[st.NOW]
        left = s.whole[st.OUT_RECORDS] + s.whole[st.FAILED_RECORDS]
        s.real[st.PERIOD_END] = until_s[e]
        run_until(slots, tick_s, own, model, s)
        _write_signals(start_s, left, tick_s, own, s, signals[e])
        for column in range(plans.shape[1]):
            signals[e, signals.shape[1] - plans.shape[1] + column] = plans[e, column]
        lost += s.whole[st.REPORTS_LOST]
        s.whole[st.REPORTS_LOST] = 0
    return lost


@jit
def _write_signals(
    start_s: float, left: int, tick_s: float, arrived: Arrived, s: State, out: NDArray[np.float64]
) -> None:
    """Write the signals of a period (columns: SIGNALS up to the plan)."""
    whole, real = s.whole, s.real
    now = real[st.NOW]
    count_0, sum_0 = arrived_until(start_s, tick_s, arrived)
    count, time_sum = arrived_until(now, tick_s, arrived)
    count = max(count, whole[st.CUT_RECORDS])
    oldest_s = now
    if whole[st.HEAD] >= 0:
        oldest_s = s.batch_real[whole[st.HEAD], st.B_FIRST_ARRIVAL]
    elif count > whole[st.CUT_RECORDS]:
        oldest_s, whole[st.TICK] = arrival_time(
            whole[st.CUT_RECORDS], whole[st.TICK], tick_s, arrived
        )
    out[0] = now
    out[1] = count
    out[2] = whole[st.OUT_RECORDS]
    out[3] = whole[st.FAILED_RECORDS]
    out[4] = count - whole[st.CUT_RECORDS]
    out[5] = whole[st.PENDING_RECORDS]
    out[6] = whole[st.OPEN]
    out[7] = max(now - oldest_s, 0.0)
    for klass in range(2):
        out[8 + klass] = whole[st.READY + klass]
        out[10 + klass] = whole[st.RUNNING + klass]
        out[12 + klass] = whole[st.QUEUED + klass]
        out[14 + klass] = whole[st.BUSY + klass]
        out[21 + klass] = real[st.BUSY_S + klass]
    out[16] = whole[st.REPORTS]
    out[17] = real[st.REPORT_RECORDS]
    out[18] = real[st.ACCUMULATION]
    out[19] = real[st.QUEUEING]
    out[20] = real[st.PROCESSING]
    out[23] = whole[st.TASKS_ENDED]
    inside = (count_0 - left) * (now - start_s)
    arrived_area = (count - count_0) * now - (time_sum - sum_0)
    out[24] = inside + arrived_area - real[st.OUT_AREA]


assert len(REPORT_COLUMNS) == 14  # write_report and _write_signals number the columns
assert SIGNALS[24] == "system_record_s"
assert Pools.SINGLE == 0
