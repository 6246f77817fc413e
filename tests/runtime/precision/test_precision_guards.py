from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.precision.guard_tables import Allowed, BankTables, Conflict, PrecisionLimits
from runtime.precision.guards import PrecisionCause, PrecisionGuards
from runtime.precision.plan import PrecisionPlan, all_assignments, assignment_index
from runtime.precision.snapshot import PrecisionSnapshot, SignalLayout

S, P = 3, 3
LAYOUT = SignalLayout(S, ("noise",))
BUCKETS = (1, 4)
LEVELS = all_assignments(S, P)
SAFE = PrecisionPlan((1, 0, 1))


def bank(seed: int | None = None) -> BankTables:
    """Coarser is faster and worse: by hand, or with irregular steps."""
    if seed is None:
        accuracy = 0.99 - 0.01 * LEVELS.sum(axis=1)
        latency_s = np.outer(1.0 - 0.1 * LEVELS.sum(axis=1), [1.0, 2.0])
    else:
        rng = np.random.default_rng(seed)
        accuracy = rng.uniform(0.5, 1.0, len(LEVELS))
        latency_s = rng.uniform(0.1, 2.0, (len(LEVELS), 2))
    return BankTables(S, P, BUCKETS, accuracy, latency_s)


def signals(n: int = 1, **values: float | NDArray[np.float64]) -> NDArray[np.float64]:
    rows = np.zeros((n, LAYOUT.size))
    rows[:, LAYOUT.index["batch"]] = 1.0
    for name, value in values.items():
        rows[:, LAYOUT.index[name]] = value
    return rows


def apply(
    guards: PrecisionGuards, levels: tuple[int, ...], **values: float
) -> tuple[tuple[int, ...], PrecisionCause]:
    rows, causes = guards.apply_rows(PrecisionPlan(levels).to_row()[None], signals(**values))
    return PrecisionPlan.from_row(rows[0]).levels, PrecisionCause(int(causes[0]))


NONE = PrecisionCause(0)


def test_a_legal_plan_passes_unchanged() -> None:
    guards = PrecisionGuards(PrecisionLimits(), bank(), SAFE, LAYOUT)
    plan = PrecisionPlan((2, 0, 1), 0.25, (0, 0, 0), version=7)
    snapshot = PrecisionSnapshot(LAYOUT, signals()[0], SAFE)
    assert guards.apply(plan, snapshot) == (plan, ())


def test_levels_are_cut_to_floor_and_ceiling() -> None:
    limits = PrecisionLimits(finest=(1, 0, 0), coarsest=(2, 0, 1))
    guards = PrecisionGuards(limits, bank(), SAFE, LAYOUT)
    assert apply(guards, (0, 2, 2)) == ((1, 0, 1), PrecisionCause.BOUNDS)
    plan = PrecisionPlan((1, 0, 0), 0.5, (0, 1, 2))
    rows, causes = guards.apply_rows(plan.to_row()[None], signals())
    assert PrecisionPlan.from_row(rows[0]).escalate_levels == (1, 0, 1)
    assert causes[0] == PrecisionCause.BOUNDS


def test_the_accuracy_floor_replaces_by_the_nearest() -> None:
    limits = PrecisionLimits(accuracy_floor=0.965)  # at most two steps down in all
    guards = PrecisionGuards(limits, bank(), PrecisionPlan((0, 0, 0)), LAYOUT)
    assert apply(guards, (1, 1, 0)) == ((1, 1, 0), NONE)
    levels, cause = apply(guards, (2, 1, 0))
    assert cause == PrecisionCause.ACCURACY
    assert levels in {(1, 1, 0), (2, 0, 0)}  # one step away, not further


def test_the_latency_target_depends_on_the_bucket() -> None:
    limits = PrecisionLimits(latency_target_s=1.0)
    guards = PrecisionGuards(limits, bank(), PrecisionPlan((2, 2, 2)), LAYOUT)
    assert apply(guards, (0, 0, 0), batch=1) == ((0, 0, 0), NONE)
    # A batch of 2 is padded to 4 and takes twice as long: five steps down are needed.
    levels, cause = apply(guards, (0, 0, 0), batch=2)
    assert (sum(levels), cause) == (5, PrecisionCause.LATENCY)


@pytest.mark.parametrize("rule", Conflict)
def test_the_conflict_rule_goes_both_ways(rule: Conflict) -> None:
    # In the large bucket the target needs five steps down, the floor allows two.
    limits = PrecisionLimits(accuracy_floor=0.965, latency_target_s=1.0, conflict=rule)
    guards = PrecisionGuards(limits, bank(), PrecisionPlan((0, 0, 0)), LAYOUT)
    assert guards.tables.conflict.tolist() == [False, True]
    for wanted in LEVELS:
        levels, cause = apply(guards, tuple(wanted.tolist()), batch=4)
        if rule is Conflict.ACCURACY_FIRST:
            assert sum(levels) == 2  # the fastest that holds the floor
        else:
            assert sum(levels) == 5  # the most accurate that holds the target
        if levels != tuple(wanted.tolist()):
            assert cause & PrecisionCause.CONFLICT
            assert cause & (PrecisionCause.ACCURACY | PrecisionCause.LATENCY)
    # Without a conflict both hold.
    levels, _ = apply(guards, (2, 2, 2), batch=1)
    assert sum(levels) <= 2


@pytest.mark.parametrize("rule", Conflict)
def test_where_not_even_one_can_hold_the_nearest_to_it_runs(rule: Conflict) -> None:
    limits = PrecisionLimits((1, 1, 1), (2, 2, 2), 0.99, 0.01, rule)
    tables = Allowed(limits, bank())
    chosen = tables.allowed.argmax(axis=0)
    expected = (1, 1, 1) if rule is Conflict.ACCURACY_FIRST else (2, 2, 2)
    assert chosen.tolist() == [assignment_index(expected, P)] * 2


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 1.0), st.floats(0.1, 2.0), st.booleans())
def test_replacements_are_nearest_by_brute_force(
    seed: int, floor: float, target_s: float, accuracy_first: bool
) -> None:
    rule = Conflict.ACCURACY_FIRST if accuracy_first else Conflict.DEADLINE_FIRST
    own = bank(seed)
    tables = Allowed(PrecisionLimits((0, 1, 0), (2, 2, 1), floor, target_s, rule), own)
    for b, wanted in product(range(2), range(len(LEVELS))):
        allowed = np.flatnonzero(tables.allowed[:, b])
        assert len(allowed) >= 1

        def cost(candidate: int, b: int = b, wanted: int = wanted) -> tuple[float, ...]:
            distance = np.abs(LEVELS[candidate] - LEVELS[wanted]).sum()
            return (distance, -own.accuracy[candidate], own.latency_s[candidate, b])

        assert tables.replacement[wanted, b] == min(allowed, key=cost)
    inside = ((LEVELS >= [0, 1, 0]) & (LEVELS <= [2, 2, 1])).all(axis=1)
    assert not tables.allowed[~inside].any()
    both = inside[:, None] & (own.accuracy >= floor)[:, None] & (own.latency_s <= target_s)
    held = both.any(axis=0)
    assert (tables.conflict == ~held).all()
    np.testing.assert_array_equal(tables.allowed[:, held], both[:, held])


def test_missing_signals_and_broken_proposals_lead_to_the_safe_plan() -> None:
    guards = PrecisionGuards(PrecisionLimits(dwell_s=100.0), bank(), SAFE, LAYOUT, 4)
    proposed = np.tile(PrecisionPlan((2, 2, 2), 0.5, (0, 0, 0)).to_row(), (4, 1))
    own = signals(4, time_s=1.0)
    proposed[1, 0] = np.nan
    own[2, LAYOUT.index["property_noise"]] = np.nan
    own[3, LAYOUT.index["shadow_high"]] = np.inf
    rows, causes = guards.apply_rows(proposed, own)
    assert rows[0].tolist() == proposed[0].tolist()
    for row in rows[1:]:
        assert PrecisionPlan.from_row(row) == SAFE
    assert causes.tolist() == [
        0,
        PrecisionCause.NON_FINITE,
        PrecisionCause.MISSING_SIGNAL,
        PrecisionCause.MISSING_SIGNAL,
    ]
    # The monitor dies in a coarse plan: the table is back at once, whatever the dwell says.
    own = signals(4, time_s=2.0)
    own[0] = np.nan
    rows, causes = guards.apply_rows(proposed, own)
    assert PrecisionPlan.from_row(rows[0]) == SAFE
    assert causes[0] == PrecisionCause.MISSING_SIGNAL


def test_dwell_undoes_reversals_by_time_and_by_requests() -> None:
    limits = PrecisionLimits(dwell_s=10.0, dwell_requests=100)
    guards = PrecisionGuards(limits, bank(), PrecisionPlan((1, 1, 1)), LAYOUT)

    def step(levels: tuple[int, ...], time_s: float, served: float) -> tuple[int, ...]:
        return apply(guards, levels, time_s=time_s, requests_served=served)[0]

    assert step((2, 1, 1), 0.0, 0.0) == (2, 1, 1)
    assert step((1, 2, 1), 5.0, 500.0) == (2, 2, 1)  # back too early; another stage is free
    assert step((1, 2, 1), 12.0, 50.0) == (2, 2, 1)  # long enough, but too few requests
    assert step((1, 2, 1), 12.0, 150.0) == (1, 2, 1)
    assert step((1, 1, 1), 12.0, 1000.0) == (1, 2, 1)
    assert step((1, 1, 1), 15.0, 1000.0) == (1, 1, 1)
    guards.reset()
    assert step((0, 1, 1), 0.0, 0.0) == (0, 1, 1)


def test_floors_win_over_dwell_and_say_so() -> None:
    limits = PrecisionLimits(latency_target_s=1.0, dwell_s=100.0)
    guards = PrecisionGuards(limits, bank(), PrecisionPlan((2, 2, 2)), LAYOUT)
    fine, cause = apply(guards, (0, 0, 0), time_s=1.0, batch=1)
    assert (fine, cause) == ((0, 0, 0), NONE)
    levels, cause = apply(guards, (0, 0, 0), time_s=2.0, batch=4)
    assert sum(levels) == 5
    assert cause == PrecisionCause.LATENCY
    # Back to fine: a free choice, so it has to wait.
    assert apply(guards, (0, 0, 0), time_s=3.0, batch=1) == (levels, PrecisionCause.DWELL)


def test_a_second_pass_that_could_take_too_long_is_switched_off() -> None:
    limits = PrecisionLimits(latency_target_s=1.5)
    guards = PrecisionGuards(limits, bank(), PrecisionPlan((2, 2, 2)), LAYOUT)
    plan = PrecisionPlan((2, 2, 2), 0.5, (0, 0, 0))  # 0.4 s, then up to 1 s; twice that in the
    for batch, below in ((1, 0.5), (4, 0.0)):  # larger bucket
        rows, causes = guards.apply_rows(plan.to_row()[None], signals(batch=batch))
        assert PrecisionPlan.from_row(rows[0]) == replace(plan, escalate_below=below)
        assert causes[0] == (0 if below else PrecisionCause.LATENCY)


def _rough_rows(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Return what a broken agent may propose."""
    rows = rng.integers(0, P, (n, 2 * S + 1)).astype(np.float64)
    rows[:, S] = rng.uniform(0, 1, n)
    wild = rng.random((n, 1)) < 0.3
    rows = np.where(wild, rng.normal(size=rows.shape) * 10.0 ** rng.uniform(-2, 6), rows)
    for value in (np.nan, np.inf, -np.inf):
        rows[rng.random(rows.shape) < 0.002] = value
    return rows


@pytest.mark.parametrize("rule", Conflict)
@pytest.mark.parametrize("target_s", [math.inf, 0.9])
def test_hysteresis_and_floors_hold_in_a_hundred_thousand_fuzzed_steps(
    target_s: float, rule: Conflict
) -> None:
    floor = 0.96
    limits = PrecisionLimits((0, 0, 0), (2, 2, 1), floor, target_s, rule, 3.0, 40)
    n, steps = 500, 200
    rng = np.random.default_rng(5)
    own = bank(3)
    accuracy = 0.9 + 0.1 * own.accuracy  # in [0.95, 1]: the floor bites in the middle
    own = BankTables(S, P, BUCKETS, accuracy, own.latency_s)
    inside = np.flatnonzero(LEVELS[:, 2] <= 1)
    safe = PrecisionPlan(tuple(LEVELS[inside[accuracy[inside].argmax()]].tolist()))
    guards = PrecisionGuards(limits, own, safe, LAYOUT, n)
    layout = LAYOUT.index
    current = np.tile(safe.to_row(), (n, 1))
    moved_s, moved_served = np.full((n, S), -np.inf), np.full((n, S), -np.inf)
    direction = np.zeros((n, S))
    served = np.zeros(n)
    seen = 0
    for step in range(steps):
        served += rng.integers(1, 5, n)
        now_s = 0.2 * step
        snapshot = signals(n, time_s=now_s, requests_served=served)
        snapshot[:, layout["batch"]] = rng.integers(1, 5, n)
        snapshot[rng.random(n) < 0.01, layout["last_margin"]] = np.nan
        rows, causes = guards.apply_rows(_rough_rows(rng, n), snapshot)
        seen |= int(np.bitwise_or.reduce(causes))
        fallback = (causes & (PrecisionCause.NON_FINITE | PrecisionCause.MISSING_SIGNAL)) > 0
        np.testing.assert_array_equal(rows[fallback], np.tile(safe.to_row(), (fallback.sum(), 1)))
        levels = rows[:, :S].astype(int)
        assert ((levels >= [0, 0, 0]) & (levels <= [2, 2, 1])).all()
        assert ((rows[:, S] >= 0) & (rows[:, S] <= 1)).all()
        bucket = (snapshot[:, layout["batch"]] > 1).astype(int)
        index = levels @ [9, 3, 1]
        conflict = guards.tables.conflict[bucket]
        holds_floor, holds_target = (
            accuracy[index] >= floor,
            own.latency_s[index, bucket] <= target_s,
        )
        checked = ~fallback
        assert (holds_floor & holds_target)[checked & ~conflict].all()
        first = holds_floor if rule is Conflict.ACCURACY_FIRST else holds_target
        assert first[checked & conflict].all()
        move = np.sign(rows[:, :S] - current[:, :S])
        early = (now_s - moved_s < 3.0) | (served[:, None] - moved_served < 40)
        reversal = (move * direction < 0) & early & checked[:, None]
        stuck = ~guards.tables.allowed[current[:, :S].astype(int) @ [9, 3, 1], bucket]
        assert not reversal[~stuck].any()  # only where staying was not allowed
        if target_s == math.inf:
            assert not reversal.any()
        moves = (move != 0) & checked[:, None]
        direction = np.where(moves, move, direction)
        direction[fallback] = 0.0
        moved_s = np.where(moves, now_s, moved_s)
        moved_served = np.where(moves, served[:, None], moved_served)
        current = rows
    expected = set(PrecisionCause) - {PrecisionCause.LATENCY, PrecisionCause.CONFLICT}
    assert all(seen & cause for cause in expected)
    if target_s < math.inf:
        assert seen & PrecisionCause.LATENCY


def test_permits_says_what_would_pass() -> None:
    limits = PrecisionLimits((0, 0, 0), (2, 2, 1), 0.965, 1.0)
    guards = PrecisionGuards(limits, bank(), PrecisionPlan((0, 0, 0)), LAYOUT, 2)
    plans = np.stack([PrecisionPlan(tuple(levels.tolist())).to_row() for levels in LEVELS])
    snapshot = signals(2, batch=np.array([1.0, 4.0]))
    permitted = guards.permits(plans, snapshot)
    for m, row in enumerate(plans):
        rows, causes = guards.apply_rows(np.stack([row, row]), snapshot)
        for e in range(2):
            assert permitted[e, m] == (causes[e] == 0)
            assert permitted[e, m] == (rows[e] == row).all()
    # Where no listed plan passes, none is masked.
    assert guards.permits(plans[-1:], snapshot).tolist() == [[True], [True]]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_servers_do_not_disturb_each_other(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    limits = PrecisionLimits(accuracy_floor=0.96, latency_target_s=1.2, dwell_s=1.0)
    safe = PrecisionPlan((0, 0, 0))
    together = PrecisionGuards(limits, bank(), safe, LAYOUT, n)
    alone = [PrecisionGuards(limits, bank(), safe, LAYOUT) for _ in range(n)]
    for step in range(12):
        snapshot = signals(n, time_s=0.3 * step)
        snapshot[:, LAYOUT.index["batch"]] = rng.integers(1, 5, n)
        if step == 6:
            together.reset(np.array([0]))
            alone[0].reset()
        proposed = _rough_rows(rng, n)
        rows, causes = together.apply_rows(proposed, snapshot)
        for k, guards in enumerate(alone):
            own, cause = guards.apply_rows(proposed[k : k + 1], snapshot[k : k + 1])
            np.testing.assert_array_equal(own[0], rows[k])
            assert cause[0] == causes[k]


@pytest.mark.parametrize(
    "limits",
    [
        PrecisionLimits(),
        PrecisionLimits((0, 1), (1, 1), 0.9, 0.5, Conflict.DEADLINE_FIRST, 2.0, 10),
    ],
)
def test_limits_and_tables_survive_json(limits: PrecisionLimits) -> None:
    text = json.dumps(limits.to_mapping(), allow_nan=False)
    assert PrecisionLimits.from_mapping(json.loads(text)) == limits
    tables = BankTables.from_mapping(json.loads(json.dumps(bank(1).to_mapping())))
    np.testing.assert_array_equal(tables.latency_s, bank(1).latency_s)
    np.testing.assert_array_equal(tables.accuracy, bank(1).accuracy)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"finest": [1], "coarsest": [0]}, "finest <= coarsest"),
        ({"accuracy_floor": 1.5}, r"accuracy_floor is 1\.5"),
        ({"latency_target_s": 0.0}, r"latency_target_s is 0\.0"),
        ({"dwell_requests": -1}, "dwell_requests -1"),
        ({"conflict": "both"}, "'both' is not a valid Conflict"),
        ({"dwel": 1}, "not guard limits: .*dwel"),
    ],
)
def test_impossible_limits_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrecisionLimits.from_mapping(PrecisionLimits().to_mapping() | wrong)


def test_limits_that_do_not_fit_the_bank_are_refused() -> None:
    for limits, safe, message in (
        (PrecisionLimits(coarsest=(1, 1)), SAFE, "expected 3 levels from 0 to 2"),
        (PrecisionLimits(coarsest=(0, 0, 0)), SAFE, r"the guards allow \[0, 0, 0\]"),
        (PrecisionLimits(accuracy_floor=0.985), SAFE, r"accuracy 0\.9700, below the floor"),
        (PrecisionLimits(), PrecisionPlan((0, 0)), "2 stages; the bank 3"),
    ):
        with pytest.raises(ValueError, match=message):
            PrecisionGuards(limits, bank(), safe, LAYOUT)
    with pytest.raises(ValueError, match=r"accuracy has shape \(3,\); expected \(27,\)"):
        replace(bank(), accuracy=np.zeros(3))
