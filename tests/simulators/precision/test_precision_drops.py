"""Which waiting requests leave unserved, by hand-computed streams."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from runtime.precision.plan import PrecisionPlan
from runtime.precision.serving import Drop, Serving
from runtime.precision.snapshot import REPORT_INDEX
from simulators.precision.metrics import arrival_times_s, latencies_s
from simulators.precision.profile import RESIDUAL_CELLS
from tests.simulators.precision.banks import own, plain_profile, random_profile, run


def test_expired_requests_are_dropped_or_served_late() -> None:
    # Two requests a second, each takes 1 s, deadline 1.2 s.
    counts = np.full((1, 30), 2)
    for drop in (Drop.EXPIRED, Drop.NEVER):
        serving = Serving(1.2, 1, drop=drop)
        _, reports = run(plain_profile(1.0), serving, counts, 1.0, PrecisionPlan((0,)))
        rows = own(reports, 0)
        arrivals_s = arrival_times_s(counts[0], 1.0)
        latency = latencies_s(rows, arrivals_s)
        late, dropped = rows[:, REPORT_INDEX["late"]].sum(), rows[:, REPORT_INDEX["dropped"]].sum()
        assert late == (latency > 1.2).sum()
        assert dropped == 60 - len(latency)
        if drop is Drop.EXPIRED:
            assert dropped > 10
            assert latency.max() <= 2.2
        else:
            assert dropped == 0
            assert latency[-1] == pytest.approx(60 * 1.0 + 0.25 - arrivals_s[-1])


def test_what_would_be_late_makes_nothing_else_late() -> None:
    # Two requests a second, each takes 1 s, deadline 1.9 s: those that have not quite expired when
    # the server is free fill all of its time and are answered late, for ever.
    counts = np.full((1, 60), 2)
    plan, profile = PrecisionPlan((0,)), plain_profile(1.0)
    _, reports = run(profile, Serving(1.9, 1, drop=Drop.EXPIRED), counts, 1.0, plan)
    late = own(reports, 0)[:, REPORT_INDEX["late"]]
    assert late[2:].all()
    _, reports = run(profile, Serving(1.9, 1), counts, 1.0, plan)
    rows = own(reports, 0)
    assert not rows[:, REPORT_INDEX["late"]].any()
    assert rows[:, REPORT_INDEX["requests"]].sum() == pytest.approx(60, abs=2)  # its capacity
    assert rows[:, [REPORT_INDEX["requests"], REPORT_INDEX["dropped"]]].sum() == 120


def test_a_batch_is_as_long_as_the_requests_that_are_left_make_it() -> None:
    # Batches of 1 take 0.1 s, of 4 0.4 s.
    profile = replace(plain_profile(0.1, buckets=(1, 4)), fixed_s=np.array([0.1, 0.4]))
    counts = np.zeros((1, 20), dtype=np.int64)
    counts[0, 0], counts[0, 1] = 1, 4  # at 0.05 s; at 0.1125, 0.1375, 0.1625, 0.1875 s
    # The first ends at 0.15 s: two wait, which as a batch take 0.4 s, as long as the deadline. The
    # older one goes, and the other one alone is served in time; so it is when that one ends.
    _, reports = run(profile, Serving(0.4, 4), counts, 0.1, PrecisionPlan((0,)))
    rows = own(reports, 0)
    assert rows[:, REPORT_INDEX["requests"]].tolist() == [1, 1, 1]
    assert rows[:, REPORT_INDEX["dropped"]].tolist() == [1, 1, 0]
    assert rows[:, REPORT_INDEX["first_request"]].tolist() == [0, 2, 4]
    assert not rows[:, REPORT_INDEX["late"]].any()


def test_the_plan_in_force_says_what_would_be_late() -> None:
    # Level 0 takes 1 s and level 1 none to speak of.
    profile = replace(
        random_profile(0, stages=1, levels=2, buckets=(1,), conditions=1),
        fixed_s=np.array([1e-3]),
        decision_s=np.zeros(1),
        switch_s=np.zeros(1),
        latency_s=np.array([[[1.0, 0.0]]]),
        residual=np.ones((1, RESIDUAL_CELLS)),
    )
    counts, serving = np.full((1, 60), 2), Serving(1.9, 1)
    totals = {}
    for level in (0, 1):
        _, reports = run(profile, serving, counts, 1.0, PrecisionPlan((level,)))
        rows = own(reports, 0)
        totals[level] = rows[:, [REPORT_INDEX["late"], REPORT_INDEX["dropped"]]].sum(axis=0)
    assert totals[0].tolist() == [0, pytest.approx(60, abs=2)]  # half of the load is beyond it
    assert totals[1].tolist() == [0, 0]
    # Level 1 for all and level 0 again for those with a small margin, here for all: as slow.
    twice = PrecisionPlan((1,), 1.0, (0,))
    unsure = replace(profile, margin=np.zeros_like(profile.margin))
    _, reports = run(unsure, serving, counts, 1.0, twice)
    rows = own(reports, 0)
    assert rows[:, REPORT_INDEX["escalated"]].all()
    assert rows[:, REPORT_INDEX["late"]].sum() == 0
    assert rows[:, REPORT_INDEX["dropped"]].sum() == pytest.approx(60, abs=2)


def test_a_server_that_waits_serves_even_what_nothing_answers_in_time() -> None:
    # Every request takes longer than the deadline: the reports still hold all of them.
    for drop in Drop:
        serving = Serving(0.5, 1, drop=drop)
        _, reports = run(plain_profile(1.0), serving, np.full((1, 30), 2), 1.0, PrecisionPlan((0,)))
        rows = own(reports, 0)
        assert rows[:, [REPORT_INDEX["requests"], REPORT_INDEX["dropped"]]].sum() == 60
        assert rows[:, REPORT_INDEX["late"]].sum() == rows[:, REPORT_INDEX["requests"]].sum()
