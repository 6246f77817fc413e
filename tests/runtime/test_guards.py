from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.guards import Cause, GuardLimits, Guards
from runtime.plan import PLAN_COLUMNS, Plan, Policy, Pools, hard_slots
from runtime.snapshot import SIGNAL_INDEX, SIGNALS, Snapshot

LIMITS = GuardLimits(
    parallelism=12, interval_s=(0.25, 8.0), share=(0.1, 0.9), idle_batches=3, degradation=math.inf
)
SAFE = Plan(parallelism=4, batch_interval_s=2.0)
SHARE, PARALLELISM, INTERVAL = (
    PLAN_COLUMNS.index(name) for name in ("share", "parallelism", "batch_interval_s")
)


def _signals(time_s: float, n: int = 1, **values: float) -> NDArray[np.float64]:
    rows = np.zeros((n, len(SIGNALS)))
    rows[:, 0] = time_s
    for name, value in values.items():
        rows[:, SIGNAL_INDEX[name]] = value
    return rows


def _rough_rows(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Return what a broken agent may propose: any size, fractions, negatives, no numbers."""
    scale = 10.0 ** rng.uniform(-3, 9, (n, 1))
    rows = np.where(rng.random((n, 1)) < 0.5, rng.normal(size=(n, 8)) * scale, rng.random((n, 8)))
    rows[rng.random((n, 8)) < 0.3] = 0.0
    for value in (np.nan, np.inf, -np.inf, 1e308, 0.5, 1.5, 2.5):
        rows[rng.random((n, 8)) < 0.01] = value
    return np.asarray(rows)


def _assert_legal(rows: NDArray[np.float64], limits: GuardLimits) -> None:
    column = dict(zip(PLAN_COLUMNS, rows.T, strict=True))
    ranges = {
        "pools": (0, 2),
        "share": limits.share,
        "independent_policy": (0, 1),
        "dependent_policy": (0, 1),
        "parallelism": (1, limits.parallelism),
        "batch_interval_s": limits.interval_s,
        "idle_batches": (0, limits.idle_batches),
        "per_pool_parallelism": (0, 1),
    }
    for name, (low, high) in ranges.items():
        assert np.all((column[name] >= low) & (column[name] <= high)), name
        if name not in ("share", "batch_interval_s"):
            assert np.all(column[name] % 1.0 == 0.0), name
    single = column["pools"] == Pools.SINGLE
    assert not column["per_pool_parallelism"][single].any()
    assert np.all((column["dependent_policy"] == column["independent_policy"])[single])
    for row in rows[:10]:
        plan = Plan.from_row(row)
        np.testing.assert_array_equal(plan.to_row(), row)
        assert min(hard_slots(plan.share, 8, 3, 2)) >= 1


@pytest.mark.parametrize("watching", [False, True])
def test_no_illegal_plan_gets_through(watching: bool) -> None:
    limits = replace(LIMITS, dwell_s=3.0, degradation=1.5 if watching else math.inf)
    rng = np.random.default_rng(3)
    n, steps = 1000, 100
    guards = Guards(limits, SAFE, n)
    seen = 0
    for step in range(steps):
        signals = rng.exponential(size=(n, len(SIGNALS))) * 10.0 ** rng.integers(-2, 6)
        signals[:, :2] = np.array([2.0, 1000.0]) * step
        proposed = _rough_rows(rng, n)
        rows, causes = guards.apply_rows(proposed, signals)
        _assert_legal(rows, limits)
        broken = ~np.isfinite(proposed).all(axis=1)
        assert ((causes & Cause.NON_FINITE) > 0).tolist() == broken.tolist()
        # Whoever is changed beyond what pools make meaningless is told a cause.
        inside = (causes == 0) & (rows[:, 0] != Pools.SINGLE)
        np.testing.assert_array_equal(rows[inside], proposed[inside])
        seen |= int(np.bitwise_or.reduce(causes))
    assert seen == Cause.NON_FINITE | Cause.BOUNDS | Cause.DWELL | (Cause.DEGRADED * watching)


def test_a_legal_plan_passes_unchanged() -> None:
    guards = Guards(LIMITS, SAFE)
    plan = Plan(
        Pools.SOFT, 0.3, Policy.FAIR, Policy.FIFO, 5, 0.75, 2, per_pool_parallelism=True, version=9
    )
    snapshot = Snapshot(_signals(2.0)[0])
    assert guards.apply(plan, snapshot) == (plan, ())


def test_numbers_beyond_the_limits_are_cut_to_them() -> None:
    guards = Guards(LIMITS, SAFE)
    plan = Plan(Pools.HARD, 1.0, parallelism=99, batch_interval_s=60.0, idle_batches=7)
    applied, causes = guards.apply(plan, Snapshot(_signals(2.0)[0]))
    assert causes == ("bounds",)
    assert applied == replace(plan, share=0.9, parallelism=12, batch_interval_s=8.0, idle_batches=3)


def test_what_is_no_plan_is_replaced_by_the_safe_one() -> None:
    safe = replace(SAFE, parallelism=99)
    guards = Guards(LIMITS, safe, 3)
    proposed = np.tile(Plan(Pools.HARD, parallelism=2).to_row(), (3, 1))
    proposed[1, SHARE], proposed[2, PARALLELISM] = np.nan, np.inf
    rows, causes = guards.apply_rows(proposed, _signals(2.0, 3))
    assert [Cause(int(c)) for c in causes[1:]] == [Cause.NON_FINITE] * 2
    assert causes[0] == 0
    for row in rows[1:]:
        # The safe plan obeys the limits too.
        assert Plan.from_row(row) == replace(safe, parallelism=12)


def test_a_single_pool_keeps_the_share_it_does_not_use() -> None:
    guards = Guards(LIMITS, SAFE)
    rows, causes = guards.apply_rows(
        np.stack([Plan(share=0.8, dependent_policy=Policy.FAIR).to_row()]), _signals(2.0)
    )
    assert causes.tolist() == [0]
    assert Plan.from_row(rows[0]) == Plan(share=SAFE.share)


def test_dwell_undoes_a_reversal_and_nothing_else() -> None:
    guards = Guards(replace(LIMITS, dwell_s=10.0), Plan(Pools.SOFT, parallelism=4))

    def step(time_s: float, parallelism: int, interval_s: float = 2.0) -> tuple[float, float, int]:
        plan = Plan(Pools.SOFT, parallelism=parallelism, batch_interval_s=interval_s)
        rows, causes = guards.apply_rows(plan.to_row()[None], _signals(time_s))
        return rows[0, PARALLELISM], rows[0, INTERVAL], int(causes[0])

    assert step(0.0, 5) == (5, 2.0, 0)
    assert step(2.0, 6) == (6, 2.0, 0)  # on in the same direction
    assert step(4.0, 5) == (6, 2.0, Cause.DWELL)  # back after 2 s
    assert step(6.0, 6, 3.0) == (6, 3.0, 0)  # another field is free to move
    assert step(8.0, 4, 4.0) == (6, 4.0, Cause.DWELL)  # each field has its own clock
    assert step(11.9, 5, 4.0) == (6, 4.0, Cause.DWELL)
    assert step(12.0, 5, 4.0) == (5, 4.0, 0)  # 10 s after the move of 2 s
    assert step(14.0, 6, 4.0) == (5, 4.0, Cause.DWELL)  # and now the other way


def _report(latency_s: float, records: float = 100.0, batches: float = 1.0) -> dict[str, float]:
    return {
        "reports": batches,
        "report_records": records,
        "accumulation_record_s": 0.2 * latency_s * records,
        "processing_record_s": 0.8 * latency_s * records,
    }


class _Run:
    """Feeds one cluster's guards with periods of 2 s."""

    def __init__(self, limits: GuardLimits) -> None:
        self.guards = Guards(limits, SAFE)
        self.time_s = self.records_in = 0.0

    def __call__(self, plan: Plan, latency_s: float, rate: float = 50.0) -> tuple[Plan, int]:
        self.time_s += 2.0
        self.records_in += 2.0 * rate
        report = _report(latency_s) if latency_s else {}
        signals = _signals(self.time_s, records_in=self.records_in, **report)
        rows, causes = self.guards.apply_rows(plan.to_row()[None], signals)
        return Plan.from_row(rows[0]), int(causes[0])


GOOD = Plan(Pools.SOFT, parallelism=8, batch_interval_s=1.0)
BAD = Plan(Pools.SOFT, parallelism=1, batch_interval_s=8.0)
WATCHING = replace(LIMITS, degradation=2.0, degraded_batches=3, hold_s=20.0)


def test_three_degraded_batches_bring_the_last_good_plan_back_for_a_while() -> None:
    run = _Run(WATCHING)
    for _ in range(10):
        assert run(GOOD, 1.0) == (GOOD, 0)
    assert run(BAD, 1.0) == (BAD, 0)  # the batches that end now are still good ones
    assert run(BAD, 2.5) == (BAD, 0)
    assert run(BAD, 2.5) == (BAD, 0)
    applied = [run(BAD, latency_s) for latency_s in (2.5, 1.0, 1.0)]
    assert applied == [(GOOD, Cause.DEGRADED)] * 3
    rest = [run(BAD, 1.0) for _ in range(10)]
    # Held from 30 s on (the fourteenth period ends at 28 s) for 20 s.
    assert [plan for plan, _ in rest].count(GOOD) == 7
    assert rest[-1] == (BAD, 0)


def test_a_degraded_latency_needs_batches_in_a_row() -> None:
    run = _Run(WATCHING)
    for _ in range(10):
        run(GOOD, 1.0)
    for latency_s in (2.5, 2.5, 1.0, 2.5, 2.5, 1.0):
        assert run(BAD, latency_s) == (BAD, 0)
    # Periods without a batch neither add to a row nor end it.
    for latency_s in (2.5, 0.0, 2.5, 0.0):
        assert run(BAD, latency_s) == (BAD, 0)
    assert run(BAD, 2.5)[1] == Cause.DEGRADED


def test_growing_load_excuses_a_growing_latency() -> None:
    run = _Run(WATCHING)
    for _ in range(10):
        run(GOOD, 1.0)
    for _ in range(10):
        assert run(BAD, 5.0, rate=100.0) == (BAD, 0)


def test_going_back_is_not_held_up_by_dwell() -> None:
    run = _Run(replace(WATCHING, dwell_s=1000.0))
    for _ in range(10):
        run(GOOD, 1.0)
    for latency_s in (1.0, 2.5, 2.5):
        run(BAD, latency_s)
    assert run(BAD, 2.5) == (GOOD, Cause.DEGRADED)


def test_reset_forgets_one_cluster_and_leaves_the_others() -> None:
    limits = replace(WATCHING, dwell_s=5.0)
    guards, fresh = Guards(limits, SAFE, 2), Guards(limits, SAFE, 1)
    rng = np.random.default_rng(1)
    plans = [
        Plan(Pools.SOFT, float(s), parallelism=int(p)).to_row()
        for s, p in zip(rng.uniform(0.1, 0.9, 30), rng.integers(1, 12, 30), strict=True)
    ]
    for k, row in enumerate(plans[:20]):
        signals = _signals(2.0 * k, 2, records_in=100.0 * k, **_report(rng.uniform(0.5, 3.0)))
        guards.apply_rows(np.stack([row, row]), signals)
    guards.reset(np.array([1]))
    for k, row in enumerate(plans[20:]):
        signals = _signals(2.0 * k, 2, records_in=100.0 * k, **_report(rng.uniform(0.5, 3.0)))
        rows, causes = guards.apply_rows(np.stack([row, row]), signals)
        alone = fresh.apply_rows(row[None], signals[1:])
        np.testing.assert_array_equal(rows[1:], alone[0])
        np.testing.assert_array_equal(causes[1:], alone[1])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_clusters_do_not_disturb_each_other(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    limits = replace(WATCHING, dwell_s=5.0)
    together, alone = Guards(limits, SAFE, n), [Guards(limits, SAFE) for _ in range(n)]
    for step in range(12):
        signals = rng.exponential(size=(n, len(SIGNALS))) * 5.0
        signals[:, 0], signals[:, 1] = 2.0 * step, 100.0 * step
        proposed = _rough_rows(rng, n)
        rows, causes = together.apply_rows(proposed, signals)
        for k, guards in enumerate(alone):
            own, cause = guards.apply_rows(proposed[k : k + 1], signals[k : k + 1])
            np.testing.assert_array_equal(own[0], rows[k])
            assert cause[0] == causes[k]


@pytest.mark.parametrize("limits", [LIMITS, WATCHING, GuardLimits(dwell_s=3.0)])
def test_limits_survive_json(limits: GuardLimits) -> None:
    text = json.dumps(limits.to_mapping(), allow_nan=False)
    assert GuardLimits.from_mapping(json.loads(text)) == limits


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"interval_s": [0.0, 1.0]}, "expected 0 < low <= high"),
        ({"interval_s": [2.0, 1.0]}, "expected 0 < low <= high"),
        ({"share": [0.5, 1.5]}, "expected 0 <= low <= high <= 1"),
        ({"parallelism": 0}, "must be at least 1"),
        ({"degraded_batches": 0}, "must be at least 1"),
        ({"degradation": 1.0}, "degradation must be above 1"),
        ({"dwell_s": -1.0}, "dwell_s not negative"),
        ({"dwel_s": 1.0}, "not guard limits: .*dwel_s"),
    ],
)
def test_impossible_limits_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GuardLimits.from_mapping(GuardLimits().to_mapping() | wrong)
