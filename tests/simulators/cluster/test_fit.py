from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.application import Application, Job, Stage
from runtime.cluster.task_log import task_time_table
from simulators.cluster.fit import fit_profile, isotonic
from simulators.cluster.profile import StageCost

APPLICATION = Application("app", (Job("a", (Stage("main"),)), Job("b", (Stage("main"),))))
WAITS_S = {("a", "main"): 0.02, ("b", "main"): 0.0}
SLOTS = 8
SLOWDOWN = np.array([1.0, 1.0, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2])


def true_cost(job: str) -> StageCost:
    residual = np.exp(np.random.default_rng(1).normal(0.0, 0.2, 64))
    return StageCost(
        wait_s=WAITS_S[job, "main"],
        fixed_s={"a": 0.002, "b": 0.001}[job],
        per_record_s={"a": 2e-5, "b": 1e-4}[job],
        residual=residual / residual.mean(),
        slowdown=SLOWDOWN,
    )


def draw_table(n: int, seed: int = 0, hiccups: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = []
    for job in ("a", "b"):
        cost = true_cost(job)
        for _ in range(n):
            records, busy = int(rng.integers(10, 200)), int(rng.integers(1, SLOTS + 1))
            compute_s = cost.fixed_s + cost.per_record_s * records
            compute_s *= rng.choice(cost.residual) * cost.slowdown[busy]
            if rng.random() < hiccups:
                compute_s += 0.2
            rows.append((job, "main", 0, records, busy, 1, False, 0.0, cost.wait_s + compute_s))
    return task_time_table(APPLICATION, rows)


def test_known_costs_are_recovered() -> None:
    found = fit_profile(APPLICATION, draw_table(4000), WAITS_S, SLOTS, cores=2, origin="test")
    for job in ("a", "b"):
        true, cost = true_cost(job), found.profile.costs[job, "main"]
        assert cost.wait_s == true.wait_s
        for records in (20, 100, 180):
            for busy in (1, 4, 8):
                expected = true.mean_task_s(records, busy)
                assert cost.mean_task_s(records, busy) == pytest.approx(expected, rel=0.04)
        assert np.std(cost.residual) == pytest.approx(np.std(true.residual), rel=0.1)
    assert found.profile.slots == SLOTS
    assert found.profile.cores == 2


def test_the_mean_is_kept_and_the_fit_says_how_good_it_is() -> None:
    table = draw_table(1000, seed=2)
    found = fit_profile(APPLICATION, table, WAITS_S, SLOTS, cores=2, origin="test")
    for stage in found.stages:
        chosen = table[table["job"] == stage.job]["duration_s"]
        assert stage.tasks == 1000
        assert stage.mean_s == pytest.approx(chosen.mean())
        assert abs(stage.mean_error) < 1e-6
        assert abs(stage.p95_error) < 0.05
        assert 0.3 < stage.explained < 1.0


def test_hiccups_end_up_in_the_residuals_not_in_the_line() -> None:
    table = draw_table(3000, hiccups=0.01)
    cost = fit_profile(APPLICATION, table, WAITS_S, SLOTS, 2, "test").profile.costs["b", "main"]
    true = true_cost("b")
    slope = cost.per_record_s / (cost.fixed_s + 100 * cost.per_record_s)
    expected = true.per_record_s / (true.fixed_s + 100 * true.per_record_s)
    assert slope == pytest.approx(expected, rel=0.05)
    assert cost.residual[-1] > 5.0


def test_unseen_numbers_of_busy_slots_lean_on_their_neighbours() -> None:
    table = draw_table(2000)
    table = table[(table["busy"] != 5) & (table["busy"] != 8)]
    slow = fit_profile(APPLICATION, table, WAITS_S, SLOTS, 2, "test").profile.costs["a", "main"]
    slowdown = slow.slowdown
    assert slowdown[4] <= slowdown[5] <= slowdown[6]
    assert slowdown[8] == pytest.approx(slowdown[7])
    assert slowdown[5] == pytest.approx(SLOWDOWN[5], rel=0.06)


def test_a_stage_with_few_tasks_takes_the_common_slowdown() -> None:
    table = draw_table(3000)
    rare = np.flatnonzero(table["job"] == "b")[12:]
    cost = fit_profile(APPLICATION, np.delete(table, rare), WAITS_S, SLOTS, 2, "test")
    slowdown = cost.profile.costs["b", "main"].slowdown
    assert np.all(np.diff(slowdown[1:]) >= 0.0)
    assert slowdown[8] == pytest.approx(SLOWDOWN[8], rel=0.35)


def test_repeated_and_failed_tasks_are_left_out() -> None:
    table = draw_table(500)
    spoilt = table[:50].copy()
    spoilt["attempts"], spoilt["duration_s"] = 2, 9.0
    both = np.concatenate([table, spoilt])
    first = fit_profile(APPLICATION, table, WAITS_S, SLOTS, 2, "test").profile.costs
    second = fit_profile(APPLICATION, both, WAITS_S, SLOTS, 2, "test").profile.costs
    for key, cost in first.items():
        assert second[key].fixed_s == cost.fixed_s
        assert second[key].residual.tolist() == cost.residual.tolist()


def test_one_size_is_all_fixed_cost() -> None:
    table = draw_table(500)
    table["records"] = 64
    cost = fit_profile(APPLICATION, table, WAITS_S, SLOTS, 2, "test").profile.costs["a", "main"]
    assert cost.per_record_s == 0.0
    assert cost.fixed_s > 0.0


@given(st.lists(st.tuples(st.floats(0.1, 10.0), st.floats(0.1, 10.0)), min_size=1, max_size=12))
def test_theisotonic_sequence_rises_and_keeps_the_mean(pairs: list[tuple[float, float]]) -> None:
    values, weight = np.array(pairs).T
    rising = isotonic(values, weight)
    assert np.all(np.diff(rising) >= -1e-12)
    assert np.average(rising, weights=weight) == pytest.approx(np.average(values, weights=weight))
    if np.all(np.diff(values) >= 0.0):
        np.testing.assert_array_equal(rising, values)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda table: table[["job", "stage", "records", "busy"]], r"lacks \['duration_s'\]"),
        (lambda table: table[table["job"] == "a"], "stage 'main' of job 'b' has 0 measured tasks"),
        (lambda table: with_field(table, "busy", 9), "busy from 9 to 9; expected 1 to 8"),
        (lambda table: with_field(table, "duration_s", np.nan), "non-finite duration_s"),
    ],
)
def test_unusable_tables_are_refused(spoil: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_profile(APPLICATION, spoil(draw_table(20)), WAITS_S, SLOTS, 2, "test")  # type: ignore[operator]


def with_field(table: np.ndarray, name: str, value: float) -> np.ndarray:
    changed = table.copy()
    changed[name] = value
    return changed
