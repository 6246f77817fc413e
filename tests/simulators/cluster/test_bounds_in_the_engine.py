"""Bounds, arrivals and metrics against the compiled engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from runtime.application import Application
from runtime.plan import Plan
from runtime.snapshot import SIGNAL_INDEX
from simulators.arrivals import PoissonArrivals
from simulators.cluster.application_config import parse_application
from simulators.cluster.bounds import batch_work, capacity_per_s, makespan_bounds
from simulators.cluster.engine import ClusterEngine
from simulators.cluster.metrics import backlog_growth, busy_slot_s, is_stable, mean_latency_s
from simulators.cluster.profile import Profile

CONF = Path(__file__).parents[3] / "conf" / "application"
NAMES = ["deep_dependent", "security_events", "wide_independent"]


def _load(name: str, *, fixed_times: bool) -> tuple[Application, Profile]:
    application, profile = parse_application(yaml.safe_load((CONF / f"{name}.yaml").read_text()))
    if fixed_times:
        costs = {key: replace(cost, residual=np.ones(1)) for key, cost in profile.costs.items()}
        profile = replace(profile, costs=costs)
    return application, profile


def _run(
    cluster: tuple[Application, Profile], counts: NDArray[np.int64], plan: Plan, period_s: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return signals [n_periods, ...] and all reports of one cluster; ticks last 0.1 s."""
    engine = ClusterEngine(*cluster, slots=cluster[1].slots)
    engine.reset(np.array([7], dtype=np.uint64), counts, 0.1, plan)
    signals, reports = [], []
    for k in range(1, int(counts.shape[1] * 0.1 / period_s) + 1):
        engine.advance(plan.to_row()[None], np.array([k * period_s]))
        signals.append(engine.signals[0].copy())
        reports.append(engine.report_rows(0))
    return np.stack(signals), np.concatenate(reports)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("records", [1, 97, 1500])
def test_a_lone_batch_keeps_its_makespan_bounds_and_work(name: str, records: int) -> None:
    application, profile = _load(name, fixed_times=True)
    counts = np.zeros((1, 1000), dtype=np.int64)
    counts[0, 0] = records
    plan = Plan(parallelism=len(application.jobs), batch_interval_s=1.0)
    _, reports = _run((application, profile), counts, plan, 50.0)
    assert len(reports) == 1
    bounds = makespan_bounds(application, profile, records, profile.slots)
    makespan_s = mean_latency_s(reports) - 0.95  # all arrived by 0.1 s, cut at 1 s
    assert bounds.lower_s <= makespan_s + 1e-9
    assert makespan_s <= bounds.upper_s + 1e-9
    low = batch_work(application, profile, records).total
    high = batch_work(application, profile, records, profile.slots).total
    assert low - 1e-9 <= sum(busy_slot_s(reports)) <= high + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_capacity_separates_stable_from_unstable_loads(name: str) -> None:
    application, profile = _load(name, fixed_times=False)
    interval_s = 2.0
    capacity = capacity_per_s(application, profile, profile.slots, interval_s)
    plan = Plan(parallelism=4 * len(application.jobs), batch_interval_s=interval_s)
    growth = {}
    for load in (0.8, 1.15):
        arrivals = PoissonArrivals(0.1, load * capacity)
        counts = arrivals.counts([3], [0], 6000)
        signals, _ = _run((application, profile), counts, plan, 10.0)
        left = signals[:, SIGNAL_INDEX["records_out"]] + signals[:, SIGNAL_INDEX["records_failed"]]
        series = (
            signals[6:, SIGNAL_INDEX["time_s"]],
            signals[6:, SIGNAL_INDEX["records_in"]],
            left[6:],
        )
        growth[load] = backlog_growth(*series)
        assert is_stable(*series) is (load < 1.0), growth
