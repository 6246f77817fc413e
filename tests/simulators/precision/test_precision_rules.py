"""Closed forms and conservation: what any correct server must do."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from runtime.precision.plan import PrecisionPlan, assignment_index
from runtime.precision.serving import Serving
from runtime.precision.snapshot import REPORT_INDEX
from simulators.precision.engine import PrecisionEngine
from simulators.precision.metrics import arrival_times_s, latencies_s, summarise
from simulators.precision.profile import MARGIN_STEPS, RESIDUAL_CELLS, PrecisionProfile
from simulators.precision.reference import ReferenceServer
from simulators.precision.synthetic import SyntheticParameters, synthetic_profile
from simulators.precision.workload import ListedConditions, Segments
from tests.simulators.precision.banks import (
    own,
    plain_profile,
    plans,
    profiles,
    random_profile,
    run,
    servings,
    stretches,
)

PATIENT = Serving(deadline_s=1e6, max_batch=1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_request_is_served_dropped_or_waits_exactly_once(data: st.DataObject) -> None:
    profile = data.draw(profiles())
    serving = data.draw(servings(profile))
    oracle = ReferenceServer(profile, serving)
    counts = np.array(data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=15)))
    plan = data.draw(plans(profile))
    oracle.reset(data.draw(st.integers(0, 2**64 - 1)), counts, 0.1, [(0.0, 0)], plan)
    for _ in range(data.draw(st.integers(0, 200))):
        oracle.step(plan)
        s = oracle.signals
        assert s["requests_in"] == s["requests_served"] + s["requests_dropped"] + s["waiting"]
        assert [request.number for request in oracle.log] == list(range(oracle.head))
        fates = [request.fate for request in oracle.log]
        assert fates.count("served") == s["requests_served"]
        assert fates.count("dropped") == s["requests_dropped"]
        assert s["batch"] == min(s["waiting"], serving.max_batch)
        assert [request.number for request in oracle.batch] == list(
            range(oracle.head, oracle.head + int(s["batch"]))
        )
    if not oracle.batch:
        assert oracle.head == counts.sum()


def test_d_d_1_waits_for_nothing_below_capacity_and_grows_linearly_above() -> None:
    # 10 requests a second, evenly; service takes 0.08 s, then 0.125 s.
    counts = np.full((1, 20), 10)
    for service_s in (0.08, 0.125):
        _, reports = run(plain_profile(service_s), PATIENT, counts, 1.0, PrecisionPlan((0,)))
        arrivals_s = arrival_times_s(counts[0], 1.0)
        latency = latencies_s(own(reports, 0), arrivals_s)
        wait = np.maximum(service_s - 0.1, 0.0) * np.arange(200)
        np.testing.assert_allclose(latency, service_s + wait, rtol=1e-9)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_m_d_1_waits_as_pollaczek_and_khinchine_say(load: float) -> None:
    # Poisson counts in ticks of a hundredth of a service: the even spread inside a tick is then
    # lost in the interval.
    n, service_s, tick_s = 64, 1.0, 0.01
    rng = np.random.default_rng(7)
    counts = rng.poisson(load * tick_s, (n, 300_000))
    _, reports = run(plain_profile(service_s), PATIENT, counts, tick_s, PrecisionPlan((0,)))
    waits = []
    for env in range(n):
        latency = latencies_s(own(reports, env), arrival_times_s(counts[env], tick_s))
        waits.append(latency[len(latency) // 10 :].mean() - service_s)
    expected = load / (2.0 * (1.0 - load)) * service_s
    half = stats.t.ppf(0.9995, n - 1) * stats.sem(waits)
    assert half < 0.1 * expected  # otherwise the check could not fail
    assert abs(np.mean(waits) - expected) < half + 2 * tick_s


@pytest.mark.parametrize("bucket", [1, 4, 16])
def test_saturated_throughput_is_bucket_over_service_time(bucket: int) -> None:
    profile = synthetic_profile(SyntheticParameters(sigma=0.0, samples=16))
    levels = profile.assignment("int8")
    serving = Serving(1e6, bucket)
    counts = np.full((1, 100), 200)
    _, reports = run(profile, serving, counts, 0.01, PrecisionPlan(levels))
    rows = own(reports, 0)[10:-1]
    assert (rows[:, REPORT_INDEX["requests"]] == bucket).all()
    duration_s = rows[-1, REPORT_INDEX["end_s"]] - rows[0, REPORT_INDEX["start_s"]]
    expected = bucket / profile.predict_latency_s(levels, bucket)
    assert bucket * len(rows) / duration_s == pytest.approx(expected, rel=1e-9)
    assert expected <= profile.capacity_per_s(levels, bucket) * (1 + 1e-12)


def test_residual_has_mean_one_and_the_declared_spread() -> None:
    profile = synthetic_profile(SyntheticParameters(sigma=0.2, samples=16))
    assert profile.residual.mean(axis=1) == pytest.approx(np.ones(5), abs=1e-12)
    _, reports = run(profile, Serving(1.0, 1), np.full((1, 500), 20), 10.0, PrecisionPlan((0,) * 4))
    rows = own(reports, 0)
    service_s = rows[:, REPORT_INDEX["end_s"]] - rows[:, REPORT_INDEX["start_s"]]
    logs = np.log(service_s / profile.predict_latency_s((0,) * 4, 1))
    assert len(logs) == 10_000
    assert logs.std() == pytest.approx(0.2, rel=0.03)
    assert np.exp(logs).mean() == pytest.approx(1.0, abs=4 * 0.2 / 100)


@pytest.mark.parametrize("level", ["fp32", "int8", "int8_half"])
@pytest.mark.parametrize("condition", [0, 3])
def test_effective_accuracy_without_load_is_the_tables(level: str, condition: int) -> None:
    profile = synthetic_profile(SyntheticParameters(samples=256))
    levels = profile.assignment(level)
    counts = np.full((1, 20_000), 1)
    engine, reports = run(
        profile,
        Serving(1.0, 16),
        counts,
        1.0,
        PrecisionPlan(levels),
        ListedConditions(((0.0, condition),)),
    )
    summary = summarise(own(reports, 0), arrival_times_s(counts[0], 1.0), profile.energy)
    expected = profile.accuracy()[condition, assignment_index(levels, 4)]
    assert summary.requests == 20_000
    assert summary.missed_share == summary.dropped_share == 0.0
    half = 4.0 * math.sqrt(max(expected * (1 - expected), 1e-3) / 20_000)
    assert half < 0.02
    assert summary.effective_accuracy == pytest.approx(expected, abs=half)
    assert summary.effective_accuracy == summary.accuracy
    # At rest the server draws idle power, and active power for its own time.
    busy_s = engine.signals[0, 5]
    power = profile.power_idle_w * summary.duration_s + profile.power_active_w * busy_s
    assert summary.energy_per_request_j == pytest.approx(power / 20_000)


def by_hand() -> PrecisionProfile:
    """One stage, two levels, four samples; the coarse level errs on two of them, unsure on one."""
    profile = synthetic_profile(SyntheticParameters(samples=4, severities=()))
    return replace(
        profile,
        stages=("only",),
        levels=("fine", "coarse"),
        emulated=(False, False),
        buckets=(1, 2, 4),
        fixed_s=np.array([0.01, 0.02, 0.03]),
        decision_s=np.zeros(3),
        switch_s=np.zeros(3),
        latency_s=np.array([[[0.10, 0.01]], [[0.15, 0.02]], [[0.25, 0.04]]]),
        transition_s=np.zeros((3, 0, 2, 2)),
        residual=np.ones((3, RESIDUAL_CELLS)),
        bytes=np.ones((1, 2), dtype=np.int64),
        truth=np.array([0, 1, 2, 3], dtype=np.uint8),
        label=np.array([[[0, 1, 2, 0], [0, 1, 9, 9]]], dtype=np.uint8),
        margin=np.array([[[200] * 4, [200, 90, 100, 200]]], dtype=np.uint8),
        clip_rate=np.zeros((1, 1, 2), np.float32),
        sqnr_db=np.zeros((1, 1, 2), np.float32),
    )


def test_cascade_costs_and_answers_by_hand() -> None:
    profile = by_hand()
    # Far apart, so each is a batch of its own; which samples they hold the oracle says.
    serving = Serving(1.0, 4)
    oracle = ReferenceServer(profile, serving)
    plan = PrecisionPlan((1,), escalate_below=0.4, escalate_levels=(0,))  # 0.4 * 255 = 102
    oracle.reset(11, np.array([4] * 40), 10.0, [(0.0, 0)], plan)
    seen: set[int] = set()
    while oracle.batch:
        (request,) = oracle.batch
        unsure = request.sample in (1, 2)
        start_s = oracle.now_s
        oracle.step(plan)
        took_s = oracle.report["end_s"] - start_s
        assert took_s == pytest.approx(0.02 + (0.11 if unsure else 0.0))
        assert oracle.report["escalated"] == unsure
        # Sample 2 is mended by the second pass; sample 3 is wrong and sure of it.
        assert request.correct == (request.sample != 3)
        seen.add(request.sample)
    assert seen == {0, 1, 2, 3}


def test_the_second_pass_has_a_bucket_of_its_own() -> None:
    profile = by_hand()
    plan = PrecisionPlan((1,), escalate_below=0.4, escalate_levels=(0,))
    oracle = ReferenceServer(profile, Serving(100.0, 4))
    oracle.reset(5, np.array([400]), 0.01, [(0.0, 0)], plan)
    sizes = set()
    while oracle.batch:
        batch, start_s = oracle.batch, oracle.now_s
        oracle.step(plan)
        unsure = sum(request.sample in (1, 2) for request in batch)
        first = profile.predict_latency_s((1,), len(batch))
        second = profile.predict_latency_s((0,), unsure) if unsure else 0.0
        assert oracle.report["end_s"] - start_s == pytest.approx(first + second)
        sizes.add(unsure)
    assert sizes >= {0, 1, 2, 3}  # three unsure ones fill the bucket of four


def test_a_cascade_to_the_same_levels_runs_nothing_again() -> None:
    profile = by_hand()
    _, reports = run(
        profile, Serving(1.0, 4), np.full((1, 50), 7), 0.1, PrecisionPlan((1,), 1.0, (1,))
    )
    assert own(reports, 0)[:, REPORT_INDEX["escalated"]].sum() == 0


def test_shadow_checks_estimate_the_disagreement() -> None:
    profile = synthetic_profile()
    levels = profile.assignment("int8_half")
    true_share = 1.0 - profile.agreement()[0, assignment_index(levels, 4)]
    serving = Serving(1.0, 4, shadow_fraction=0.25, shadow_window=200, shadow_delay_s=0.5)
    counts = np.full((400, 300), 1)
    engine, _ = run(profile, serving, counts, 0.1, PrecisionPlan(levels))
    column = engine.layout.index
    signals = engine.signals
    checks = signals[:, column["shadow_checks"]]
    assert checks.min() > 30  # about 75 of 300 are checked
    assert checks.mean() == pytest.approx(0.25 * 300, rel=0.05)
    estimate = signals[:, column["shadow_disagreement"]]
    assert estimate.mean() == pytest.approx(true_share, abs=0.01)
    low, high = signals[:, column["shadow_low"]], signals[:, column["shadow_high"]]
    covered = float(((low <= true_share) & (true_share <= high)).mean())
    assert 0.91 < covered < 0.99


def test_nothing_is_checked_at_fraction_zero_and_it_costs_nothing() -> None:
    profile = synthetic_profile()
    counts = np.full((1, 100), 5)
    ends = []
    for fraction in (0.0, 1.0):
        serving = Serving(1.0, 4, shadow_fraction=fraction)
        engine, reports = run(profile, serving, counts, 0.1, PrecisionPlan((3,) * 4))
        assert (engine.signals[0, engine.layout.index["shadow_checks"]] > 0) == (fraction > 0)
        ends.append(own(reports, 0)[:, REPORT_INDEX["end_s"]])
    np.testing.assert_array_equal(*ends)


def test_results_of_checks_arrive_after_their_delay() -> None:
    profile = plain_profile(0.1)
    serving = Serving(10.0, 1, shadow_fraction=1.0, shadow_delay_s=2.0, shadow_window=100)
    engine = PrecisionEngine(profile, serving, 1)
    plan = PrecisionPlan((0,))
    segments = ListedConditions().segments(np.zeros(1, np.uint64), 1.0)
    engine.reset(np.zeros(1, np.uint64), np.full((1, 10), 1), 1.0, segments, plan)
    known = []
    for _ in range(10):
        engine.step(plan.to_row()[None])
        known.append(engine.signals[0, engine.layout.index["shadow_checks"]])
    # A batch ends at k + 0.6 s, its check is known at k + 2.6 s, the decisions are at k + 0.5 s.
    assert known == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_a_pass_at_other_levels_than_the_last_one_takes_longer() -> None:
    profile = replace(
        random_profile(0, stages=1, levels=2, buckets=(1,), conditions=1),
        fixed_s=np.array([0.1]),
        decision_s=np.zeros(1),
        switch_s=np.array([0.02]),
        latency_s=np.array([[[0.04, 0.0]]]),
        residual=np.ones((1, RESIDUAL_CELLS)),
    )
    sure = replace(profile, margin=np.full_like(profile.margin, MARGIN_STEPS))
    unsure = replace(profile, margin=np.zeros_like(profile.margin))
    fine, coarse = PrecisionPlan((0,)), PrecisionPlan((1,))
    cascade = PrecisionPlan((1,), 0.5, (0,))
    for bank, plans_of, expected_s in (
        (sure, [fine, fine, coarse, coarse, fine], [0.14, 0.14, 0.12, 0.1, 0.16]),
        # A second pass is always at other levels, and so is the first one after it.
        (unsure, [coarse, cascade, cascade, coarse], [0.12, 0.26, 0.28, 0.12]),
        (sure, [cascade, cascade, fine], [0.12, 0.1, 0.16]),
    ):
        engine = PrecisionEngine(bank, Serving(10.0, 1), 1)
        segments = ListedConditions().segments(np.zeros(1, np.uint64), 1.0)
        engine.reset(np.zeros(1, np.uint64), np.full((1, 1), 9), 1e-3, segments, fine)
        for plan, time_s in zip(plans_of, expected_s, strict=True):
            engine.step(plan.to_row()[None])
            report = engine.reports[0]
            took_s = report[REPORT_INDEX["end_s"]] - report[REPORT_INDEX["start_s"]]
            assert took_s == pytest.approx(time_s)


def test_conditions_follow_the_arrival_not_the_dispatch() -> None:
    profile = synthetic_profile(SyntheticParameters(samples=64))
    schedule = ListedConditions(((0.0, 0), (5.0, 2), (7.0, 1)))
    oracle = ReferenceServer(profile, Serving(100.0, 2))
    plan = PrecisionPlan((0,) * 4)
    oracle.reset(1, np.full(10, 200), 1.0, list(schedule.stretches), plan)
    while oracle.batch:
        oracle.step(plan)
    for request in oracle.log:
        expected = 0 if request.arrival_s < 5.0 else 2 if request.arrival_s < 7.0 else 1
        assert request.condition == expected
    assert oracle.now_s > 10.5  # a backlog was there


def test_an_environment_does_not_depend_on_the_number_of_others() -> None:
    profile = synthetic_profile()
    rng = np.random.default_rng(3)
    counts = rng.poisson(30, (7, 40))
    keys = rng.integers(2**63, size=7).astype(np.uint64)
    start_s = np.tile([0.0, 1.0], (7, 1))
    condition = rng.integers(0, 4, (7, 2))
    plan = PrecisionPlan((2, 2, 3, 2), 0.3, (0,) * 4)
    rows = np.tile(plan.to_row(), (7, 1))
    together = PrecisionEngine(profile, Serving(0.2, 16), 7, n_segments=2)
    together.reset(keys, counts, 0.05, Segments(start_s, condition), plan)
    alone = []
    for k in range(7):
        engine = PrecisionEngine(profile, Serving(0.2, 16), 1, n_segments=2)
        one = slice(k, k + 1)
        engine.reset(keys[one], counts[one], 0.05, Segments(start_s[one], condition[one]), plan)
        alone.append(engine)
    for _ in range(60):
        together.step(rows)
        for k, engine in enumerate(alone):
            engine.step(rows[:1])
            np.testing.assert_array_equal(engine.signals[0], together.signals[k])
            np.testing.assert_array_equal(engine.reports[0], together.reports[k])


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_signals_know_neither_answers_nor_conditions(data: st.DataObject) -> None:
    """Other truths and other names of conditions change no signal."""
    profile = data.draw(profiles())
    serving = data.draw(servings(profile))
    other = replace(profile, truth=(profile.truth + 1) % 3)
    counts = np.array([data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=9))])
    plan = data.draw(plans(profile))
    listed = ListedConditions(tuple(data.draw(stretches(profile))))
    signals = []
    for bank in (profile, other):
        segments = listed.segments(np.zeros(1, np.uint64), 1.0)
        engine = PrecisionEngine(bank, serving, 1, n_segments=segments.start_s.shape[1])
        engine.reset(np.zeros(1, np.uint64), counts, 0.1, segments, plan)
        rows = []
        for _ in range(20):
            engine.step(plan.to_row()[None])
            rows.append(engine.signals.copy())
        signals.append(rows)
    np.testing.assert_array_equal(*signals)


def test_bad_input_is_refused_before_anything_happens() -> None:
    profile = synthetic_profile(SyntheticParameters(samples=8))
    with pytest.raises(ValueError, match="max_batch is 17; the profile's largest bucket is 16"):
        PrecisionEngine(profile, Serving(1.0, 17))
    engine = PrecisionEngine(profile, Serving(1.0, 4), 2)
    keys, counts = np.arange(2, dtype=np.uint64), np.full((2, 10), 3)
    good = ListedConditions().segments(keys, 1.0)
    plan = PrecisionPlan((0,) * 4)
    for segments, wrong, message in (
        (Segments(np.zeros((2, 2)), np.zeros((2, 2), int)), plan, r"expected \[2, 1 to 1\]"),
        (Segments(np.zeros((2, 1)), np.full((2, 1), 4)), plan, "condition 4; the profile has 4"),
        (good, PrecisionPlan((0, 0, 4, 0)), "4 stages of 4 levels"),
        (good, PrecisionPlan((0,) * 3), "4 stages of 4 levels"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.reset(keys, counts, 0.1, segments, wrong)
    engine.reset(keys, counts, 0.1, good, plan)
    before = engine.signals.copy()
    for column, value in ((0, 4.0), (3, -1.0), (4, 1.5), (5, np.nan)):
        rows = np.tile(plan.to_row(), (2, 1))
        rows[1, column] = value
        with pytest.raises(ValueError, match="plan of environment 1"):
            engine.step(rows)
        np.testing.assert_array_equal(engine.signals, before)
    with pytest.raises(ValueError, match="do not fit"):
        engine.step(np.zeros((3, 9)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"deadline_s": 0.0}, "deadline_s is 0.0"),
        ({"max_batch": 0}, "max_batch is 0"),
        ({"shadow_fraction": 1.5}, "shadow_fraction is 1.5"),
        ({"shadow_delay_s": -1.0}, "shadow_delay_s is -1.0"),
        ({"shadow_window": 0}, "shadow_window is 0"),
    ],
)
def test_impossible_rules_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Serving(1.0, 1), **wrong)
