"""The batched precision engine: many simulated servers advanced by compiled code.

One server is one bank of variants that serves one stream of requests, first come, first served.
One step serves one batch; simulated time jumps over idle stretches, so a step always has a batch
until the stream is over. `simulators.precision.events` states the order within a step, and
`simulators.precision.reference` follows it and gives the same bits. Speed:
`python -m benchmarks precision`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.precision.plan import PrecisionPlan
from runtime.precision.serving import Serving
from runtime.precision.snapshot import (
    PRECISION_SIGNALS,
    REPORT_COLUMNS,
    PrecisionSnapshot,
    SignalLayout,
)
from simulators.arrived import (
    Arrived,
    allocate_arrivals,
    check_counts,
    load_arrivals,
    own_arrivals,
    room_for_arrivals,
    unsigned,
)
from simulators.compiled import bind, inner, jit
from simulators.precision.events import assignment_of, collect_checks, form_batch, serve
from simulators.precision.model import Model, build_model
from simulators.precision.profile import PrecisionProfile
from simulators.precision.state import State, allocate_state
from simulators.precision.workload import Segments

# The compiled code numbers the columns.
assert len(PRECISION_SIGNALS) == 18
assert PRECISION_SIGNALS.index("last_service_s") == 9
assert PRECISION_SIGNALS.index("shadow_checks") == 14
assert len(REPORT_COLUMNS) == 16
assert REPORT_COLUMNS.index("dropped") == 11


class PrecisionEngine:
    """Advances N independent servers with the same profile.

    Every environment has its own key, arrivals, conditions, plan and clock; what happens in one
    depends on these alone, never on N.

    Attributes:
        signals: float64 [N, layout.size]; rewritten in place by `reset` and `step`.
        reports: float64 [N, len(REPORT_COLUMNS)], the batch that each server served in the last
            step; likewise.
    """

    def __init__(
        self, profile: PrecisionProfile, serving: Serving, n_envs: int = 1, *, n_segments: int = 1
    ) -> None:
        """Allocate the servers; `reset` must be called before `step`.

        Args:
            profile: Costs and answers of the bank.
            serving: Rules of serving.
            n_envs: Number of servers N.
            n_segments: Most stretches that a condition schedule may have.

        Raises:
            ValueError: A size below 1, or batches beyond the profile's.
        """
        for name, value in (("n_envs", n_envs), ("n_segments", n_segments)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        self.profile, self.serving, self.n_envs = profile, serving, n_envs
        self.layout = SignalLayout(len(profile.stages), profile.property_names)
        self.model = build_model(profile, serving)
        self.state = allocate_state(n_envs, self.layout, serving, n_segments)
        self.signals, self.reports = self.state.signals, self.state.report
        self._plans = np.zeros_like(self.state.plan)
        self._receive(allocate_arrivals(n_envs, 1, 1.0))

    def _receive(self, arrived: Arrived) -> None:
        """Take over the arrays that hold the arrivals."""
        self.arrived = arrived
        self._step = bind(_step, self._plans, arrived, self.model, self.state)

    def reset(
        self,
        keys: NDArray[np.uint64],
        counts: NDArray[np.int64],
        tick_s: float,
        segments: Segments,
        plan: PrecisionPlan,
        envs: NDArray[np.int64] | None = None,
    ) -> None:
        """Give some servers a new stream, and form their first batches.

        Args:
            keys: uint64 [M], the random key of each environment.
            counts: int64 [M, n_ticks], requests that arrive in each tick, spread evenly over it.
                The stream ends with the last tick.
            tick_s: Length of a tick, seconds; the same for all environments.
            segments: Conditions over time, of M environments.
            plan: The plan in force from time 0.
            envs: int64 [M], which environments; None means all.

        Raises:
            ValueError: Shapes that do not match, negative counts, unknown conditions, a plan that
                the bank cannot run, or another tick length while other environments keep theirs.
        """
        chosen = np.arange(self.n_envs) if envs is None else envs
        n_ticks = check_counts(keys, counts, tick_s, len(chosen))
        self._check(segments, plan, len(chosen))
        room = room_for_arrivals(self.arrived, len(chosen), n_ticks, tick_s)
        if room is not self.arrived:
            self._receive(room)
        state = self.state
        for table in (state.server, state.pending, state.window, state.signals, state.report):
            table[chosen] = np.zeros((), dtype=table.dtype)
        width = segments.start_s.shape[1]
        state.segment_s[chosen] = np.inf
        state.segment_s[chosen, :width] = segments.start_s
        state.segment_condition[chosen, :width] = segments.condition
        load_arrivals(chosen, counts, self.arrived)
        _reset(chosen, keys, plan.to_row(), self.arrived, self.model, state)

    def _check(self, segments: Segments, plan: PrecisionPlan, n: int) -> None:
        """Refuse what compiled code could not handle."""
        shape, most = segments.start_s.shape, self.state.segment_s.shape[1]
        if shape != segments.condition.shape or shape[0] != n or not 1 <= shape[1] <= most:
            raise ValueError(
                f"segments have shapes {shape} and {segments.condition.shape}; expected "
                f"[{n}, 1 to {most}] for both"
            )
        highest = len(self.profile.conditions)
        if segments.condition.min() < 0 or segments.condition.max() >= highest:
            raise ValueError(
                f"segments name condition {segments.condition.max()}; the profile has {highest}"
            )
        levels = plan.levels + plan.escalate_levels
        if len(plan.levels) != self.layout.n_stages or max(levels) >= self.model.n_levels:
            raise ValueError(
                f"plan has levels {plan.levels} and {plan.escalate_levels}; the bank has "
                f"{self.layout.n_stages} stages of {self.model.n_levels} levels"
            )

    def step(self, plans: NDArray[np.float64]) -> None:
        """Serve the batch of every environment under its plan, and form the next ones.

        A row equal to the plan in force is no new version. An environment whose stream is over
        (`batch` is 0) stays as it is; its report is all zeros.

        Args:
            plans: float64 [N, 2 * S + 1].

        Raises:
            ValueError: Shapes that do not match, or a level that the bank does not have; nothing
                has been served then.
        """
        if plans.shape != self._plans.shape:
            raise ValueError(f"plans {plans.shape} do not fit; expected {self._plans.shape}")
        self._plans[:] = plans
        wrong = self._step()
        if wrong >= 0:
            raise ValueError(
                f"plan of environment {wrong} is {plans[wrong].tolist()}; expected levels 0 to "
                f"{self.model.n_levels - 1} and a margin in [0, 1]"
            )

    @property
    def finished(self) -> NDArray[np.bool_]:
        """Whether the stream of each environment is over, bool [N]."""
        return np.asarray(self.state.server["batch"][:, 0] == 0)

    def snapshot(self, env: int = 0) -> PrecisionSnapshot:
        """Return what the controller of one environment sees now."""
        plan = PrecisionPlan.from_row(
            self.state.plan[env], version=int(self.state.server["version"][env, 0])
        )
        return PrecisionSnapshot(self.layout, self.signals[env].copy(), plan)


@inner
def _view(e: int, state: State) -> State:
    """Return the views of one environment."""
    return State(
        state.server[e],
        state.request[e],
        state.pending[e],
        state.window[e],
        state.segment_s[e],
        state.segment_condition[e],
        state.plan[e],
        state.signals[e],
        state.report[e],
    )


@jit
def _reset(
    envs: NDArray[np.int64],
    keys: NDArray[np.uint64],
    plan: NDArray[np.float64],
    arrived: Arrived,
    m: Model,
    state: State,
) -> None:
    for i in range(len(envs)):
        s = _view(envs[i], state)
        s.server[0].key = keys[i]
        s.signals[17] = 1.0  # without checks the interval is [0, 1]
        _set_plan(plan, s)
        s.server[0].ran = assignment_of(0, m, s)
        form_batch(own_arrivals(envs[i], arrived), m, s)


@jit
def _step(plans: NDArray[np.float64], arrived: Arrived, m: Model, state: State) -> int:
    """Advance all environments by one batch; return the first with an impossible plan, or -1."""
    for e in range(len(plans)):
        if not _is_possible(plans[e], m):
            return e
    for e in range(len(plans)):
        s = _view(e, state)
        if s.server[0].batch == 0:
            for column in range(len(s.report)):
                s.report[unsigned(column)] = 0.0
            continue
        switched = _take_over(plans[e], m, s)
        serve(switched, m, s)
        dropped = form_batch(own_arrivals(e, arrived), m, s)
        s.report[11] = dropped
        collect_checks(m, s)
    return -1


@inner
def _is_possible(plan: NDArray[np.float64], m: Model) -> bool:
    possible = True
    n_stages = m.levels.shape[1]
    for column in range(len(plan)):
        last = 1.0 if column == n_stages else m.n_levels - 1.0
        possible &= (plan[column] >= 0.0) & (plan[column] <= last)
    return possible


@inner
def _take_over(plan: NDArray[np.float64], m: Model, s: State) -> int:
    """Store a plan row as the one in force; return how many stages change their level."""
    changed = False
    switched = 0
    for column in range(len(plan)):
        differs = plan[column] != s.plan[column]
        changed |= differs
        switched += differs & (column < m.levels.shape[1])
    if changed:
        s.server[0].version += 1
        _set_plan(plan, s)
    return switched


@inner
def _set_plan(plan: NDArray[np.float64], s: State) -> None:
    first = len(s.signals) - len(plan)
    for column in range(len(plan)):
        s.plan[unsigned(column)] = plan[unsigned(column)]
        s.signals[unsigned(first + column)] = plan[unsigned(column)]
