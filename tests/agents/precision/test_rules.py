"""Every rule against cases worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.precision.heuristics.chance import EqualDuty, equal_duty
from agents.precision.heuristics.combined import SlackCascade
from agents.precision.heuristics.feedback import Alert, ShadowFeedback
from agents.precision.heuristics.inputs import Difficulty
from agents.precision.heuristics.load import ModelSwitching, SlackFit, StageShedding
from agents.precision.heuristics.static import Cascade, cascade_grid, uniforms
from agents.precision.known import Known


def signals(known: Known, n: int = 1, **values: Any) -> NDArray[np.float64]:
    """Return signals of N servers: zeros but for the named ones."""
    rows = np.zeros((n, known.layout.size))
    for name, value in values.items():
        rows[:, known.column(name)] = value
    return rows


def levels(rows: NDArray[np.float64]) -> list[list[float]]:
    return rows[:, :2].tolist()


def test_the_frontier_holds_what_nothing_beats(known: Known) -> None:
    # By hand: (stage 0, stage 1) -> ms, accuracy. (1, 1) 4 ms .75 is beaten by nothing, (0, 1)
    # takes 6 ms and loses .05; (2, 2) takes as long as (2, 1) and loses more.
    kept = known.levels[known.frontiers[0].assignment].tolist()
    assert kept == [[2, 1], [1, 1], [0, 1], [0, 0]]
    assert known.frontiers[0].latency_s.tolist() == pytest.approx([0.002, 0.004, 0.006, 0.008])


@pytest.mark.parametrize(
    ("slack_s", "batch", "expected"),
    [
        (0.0079, 1, [0, 1]),
        (0.0081, 1, [0, 0]),
        (0.005, 1, [1, 1]),  # 4 ms fits, 6 ms does not
        (0.001, 1, [2, 1]),  # nothing fits: the fastest
        (-0.1, 1, [2, 1]),
        (np.inf, 1, [0, 0]),
        (0.0081, 2, [1, 1]),  # a batch of two takes 16, 12, 8, 4 ms
    ],
)
def test_slack_fit_takes_the_most_accurate_that_fits(
    known: Known, slack_s: float, batch: int, expected: list[int]
) -> None:
    now = signals(known, head_slack_s=slack_s, batch=batch)
    assert levels(SlackFit(known, 1.0).rows(now)) == [expected]
    half = signals(known, head_slack_s=2.0 * slack_s, batch=batch)
    assert levels(SlackFit(known, 0.5).rows(half)) == [expected]


@pytest.mark.parametrize(
    ("most_loss", "expected"), [(1.0, [2, 1]), (0.3, [1, 1]), (0.06, [0, 1]), (0.0, [0, 0])]
)
def test_slack_fit_runs_nothing_that_loses_too_much(
    known: Known, most_loss: float, expected: list[int]
) -> None:
    now = signals(known, head_slack_s=0.001, batch=1)
    assert levels(SlackFit(known, 1.0, most_loss).rows(now)) == [expected]


def test_model_switching_follows_the_rate_over_each_tables_capacity(known: Known) -> None:
    # Capacities of the frontier's tables: 125, 167, 250 and 500 requests/s.
    def served(most_loss: float) -> list[list[float]]:
        rule = ModelSwitching(known, share=0.8, window_s=0.1, most_loss=most_loss)
        rule.forget(1)
        result: list[list[float]] = []
        arrived = 0.0
        for k, rate in enumerate((90.0, 120.0, 150.0, 350.0, 1000.0, 50.0)):
            arrived += 10.0 * rate  # ten seconds: the rate is known
            now = signals(known, time_s=10.0 * (k + 1), requests_in=arrived)
            result += levels(rule.rows(now))
        return result

    assert served(1.0) == [[0, 0], [0, 1], [1, 1], [2, 1], [2, 1], [0, 0]]
    assert served(0.2) == [[0, 0], [0, 1], [1, 1], [1, 1], [1, 1], [0, 0]]


def test_model_switching_forgets_slowly(known: Known) -> None:
    rule = ModelSwitching(known, share=1.0, window_s=10.0)
    rule.forget(1)
    rule.rows(signals(known, time_s=100.0, requests_in=10_000.0))  # 100/s
    # one second at 400/s: 100 + (1 - exp(-0.1)) * 300 = 128.5 > 125
    after = rule.rows(signals(known, time_s=101.0, requests_in=10_400.0))
    assert levels(after) == [[0, 1]]
    rule.forget(1)
    rule.rows(signals(known, time_s=100.0, requests_in=10_000.0))
    # at 300/s: 119 < 125
    after = rule.rows(signals(known, time_s=101.0, requests_in=10_300.0))
    assert levels(after) == [[0, 0]]


def test_stage_shedding_lowers_the_least_sensitive_stages_first(known: Known) -> None:
    # Lowered alone to level 2, stage 0 loses 0.3 and stage 1 only 0.08.
    rule = StageShedding(known, high=0, low=2, start=1.0, step=0.5)
    now = signals(known, 5, waiting=[0.0, 2.0, 3.0, 3.1, 99.0])  # 0, 1, 1.5, 1.55 batches
    assert levels(rule.rows(now)) == [[0, 0], [0, 0], [0, 2], [2, 2], [2, 2]]


def test_difficulty_looks_up_the_table_between_thresholds(known: Known) -> None:
    tables = ((2, 2), (1, 1), (0, 0))
    rule = Difficulty(known, "property_noise", (0.2, 0.6), tables)
    now = signals(known, 4, property_noise=[0.1, 0.2, 0.3, 0.7])
    assert levels(rule.rows(now)) == [[2, 2], [2, 2], [1, 1], [0, 0]]
    with pytest.raises(ValueError, match="2 tables are given; expected one more than 2"):
        Difficulty(known, "property_noise", (0.2, 0.6), tables[:2])
    with pytest.raises(ValueError, match="expected ascending"):
        Difficulty(known, "property_noise", (0.6, 0.2), tables)
    with pytest.raises(ValueError, match="unknown signal 'property_colour'"):
        Difficulty(known, "property_colour", (0.2, 0.6), tables)


def test_the_cascade_is_a_plan_with_a_second_pass(known: Known) -> None:
    rows = Cascade(known, low=2, high=1, below=0.4).rows(signals(known, 2))
    assert rows.tolist() == [[2.0, 2.0, 0.4, 1.0, 1.0]] * 2
    grid = cascade_grid(known)
    assert all(rule.high < rule.low for rule in grid)
    assert len({(r.low, r.high, r.below) for r in grid}) == len(grid) == 3 * 8


def test_uniform_tables_are_named_after_their_levels(known: Known) -> None:
    rules = uniforms(known, ("fp32", "bf16", "int8"))
    assert [rule.name for rule in rules] == ["static_fp32", "static_bf16", "static_int8"]
    assert [levels(rule.rows(signals(known)))[0] for rule in rules] == [[0, 0], [1, 1], [2, 2]]


def test_shadow_feedback_moves_a_rung_when_the_interval_clears_the_target(known: Known) -> None:
    rule = ShadowFeedback(known, target=0.05, pause_s=2.0, start=2)
    rule.forget(1)

    def at(time_s: float, low: float, high: float, checks: int = 50) -> list[float]:
        now = signals(known, time_s=time_s, shadow_low=low, shadow_high=high, shadow_checks=checks)
        return levels(rule.rows(now))[0]

    assert at(0.0, 0.0, 1.0, checks=0) == [2, 2]
    assert at(1.0, 0.04, 0.2) == [2, 2]  # the target is inside
    assert at(2.0, 0.06, 0.3) == [1, 1]  # too often
    assert at(3.9, 0.06, 0.3) == [1, 1]  # old checks may still be in the window
    assert at(4.0, 0.06, 0.3) == [0, 0]
    assert at(7.0, 0.06, 0.3) == [0, 0]  # the top of the ladder
    assert at(8.0, 0.0, 0.04) == [1, 1]
    assert at(9.0, 0.0, 0.04, checks=0) == [1, 1]
    assert at(10.0, 0.0, 0.04) == [2, 2]


def _after_batch(known: Known, k: int, service_s: float) -> NDArray[np.float64]:
    """Return what is seen after batch k of one request at levels (0, 0), with 12 ms left."""
    return signals(
        known,
        busy_s=0.1 * (k + 1),
        last_batch=1,
        last_service_s=service_s,
        batch=1,
        head_slack_s=0.012,
    )


def test_alert_reacts_to_a_slowdown_and_recovers(known: Known) -> None:
    rule = Alert(known, process_noise=1e-3, factor=1.0)
    rule.forget(1)
    for k in range(20):
        chosen = rule.rows(_after_batch(known, k, 0.008))  # as predicted
    assert rule.ratio[0] == pytest.approx(1.0)
    assert levels(chosen) == [[0, 0]]
    for k in range(20, 30):
        chosen = rule.rows(_after_batch(known, k, 0.024))  # three times as long
    assert rule.ratio[0] == pytest.approx(3.0, abs=0.05)
    # 8 ms are 24 now, 6 are 18, 4 are 12: as likely late as not; 2 ms take 6
    assert levels(chosen) == [[2, 1]]
    for k in range(30, 60):
        chosen = rule.rows(_after_batch(known, k, 0.008))
    assert levels(chosen) == [[0, 0]]


def test_alert_takes_a_second_pass_into_account_and_no_batch_twice(known: Known) -> None:
    rule = Alert(known, process_noise=1e-3, factor=1.0)
    rule.forget(1)
    now = _after_batch(known, 0, 0.012)
    now[0, known.column("last_batch")] = 2
    now[0, known.column("last_escalated_share")] = 0.5
    now[0, known.layout.plan_columns] = [2.0, 2.0, 0.5, 0.0, 0.0]
    rule.rows(now)  # two requests at 2 + 2 ms, one of them again at 8 ms: 12 ms, as measured
    assert rule.ratio[0] == pytest.approx(1.0)
    now[0, known.column("last_service_s")] = 1.0
    rule.rows(now)  # the same batch
    assert rule.ratio[0] == pytest.approx(1.0)
    now[0, known.column("busy_s")] = 7.0
    rule.rows(now)
    assert rule.ratio[0] > 10.0


@pytest.mark.parametrize(
    ("slack_s", "expected"),
    [
        (0.0161, [0, 0, 0.0, 0, 0]),  # 16 ms at high levels fit
        (0.0121, [2, 2, 0.3, 0, 0]),  # 4 ms at low levels and 8 ms for half of them again fit
        (0.0119, [1, 1, 0.0, 1, 1]),  # only single passes of up to 8 ms do
        (0.0, [2, 1, 0.0, 2, 1]),
    ],
)
def test_slack_cascade_spends_the_time_there_is(
    known: Known, slack_s: float, expected: list[float]
) -> None:
    rule = SlackCascade(known, high=0, low=2, below=0.3, factor=1.0)
    rule.forget(1)
    now = signals(known, batch=2, head_slack_s=slack_s)
    assert rule.rows(now).tolist() == [expected]


def test_slack_cascade_learns_how_many_are_run_again(known: Known) -> None:
    rule = SlackCascade(known, high=0, low=2, below=0.3, factor=1.0)
    rule.forget(1)
    now = signals(known, batch=2, head_slack_s=0.0121)
    now[0, known.layout.plan_columns] = [2.0, 2.0, 0.3, 0.0, 0.0]
    now[0, known.column("last_escalated_share")] = 1.0
    now[0, known.column("busy_s")] = 1.0
    # 0.8 * 0.5 + 0.2: more than one request of two is expected again, 4 + 16 ms do not fit
    assert rule.rows(now)[0, 2] == 0.0
    assert rule.share[0] == pytest.approx(0.6)
    now[0, known.column("busy_s")] = 2.0
    now[0, known.layout.plan_columns] = [1.0, 1.0, 0.0, 1.0, 1.0]
    rule.rows(now)  # another plan's batch tells nothing
    assert rule.share[0] == pytest.approx(0.6)


def test_equal_duty_draws_plans_as_often_as_another_agent_used_them(known: Known) -> None:
    low, high = known.rows[8], known.rows[0]
    other = [np.stack([low, low, high]), np.stack([low])]
    rule = equal_duty(other, seed=3)
    assert rule.duty.tolist() == [0.25, 0.75]
    rule.forget(4)
    drawn = np.stack([rule.rows(signals(known, 4)) for _ in range(2000)])
    share = (drawn == low).all(axis=2).mean(axis=0)
    np.testing.assert_allclose(share, 0.75, atol=5 * np.sqrt(0.75 * 0.25 / 2000))
    assert not np.array_equal(drawn[:, 0], drawn[:, 1])
    with pytest.raises(ValueError, match="expected 2 shares that add up to 1"):
        EqualDuty(np.stack([low, high]), np.array([0.5, 0.6]))


def test_accuracy_decides_between_equally_fast_assignments(known: Known) -> None:
    tables = known.tables
    same = replace(known, tables=replace(tables, latency_s=np.full((9, 2), 0.001)))
    assert same.frontiers[0].assignment.tolist() == [0]
