"""The real server's rule for requests that come too late is the simulated one's."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.precision.dropping import Dropping
from runtime.precision.guard_tables import BankTables, PrecisionLimits
from runtime.precision.guards import PrecisionGuards
from runtime.precision.plan import PrecisionPlan
from runtime.precision.serving import Drop, Serving
from simulators.precision.metrics import arrival_times_s
from simulators.precision.reference import ReferenceServer
from tests.simulators.precision.banks import random_profile

TICK_S = 0.1


@pytest.mark.parametrize("drop", Drop)
@pytest.mark.parametrize("seed", range(4))
def test_real_and_simulated_servers_drop_the_same_requests(drop: Drop, seed: int) -> None:
    profile = random_profile(seed, stages=2)
    tables = BankTables(2, 3, profile.buckets, profile.accuracy()[0], profile.latency_table_s())
    serving = Serving(0.1, 8, drop=drop)
    slowest = int(tables.latency_s[:, -1].argmax())
    limits = PrecisionLimits(coarsest=profile.levels_of(slowest))
    simulated = ReferenceServer(profile, serving)
    guards = PrecisionGuards(limits, tables, PrecisionPlan((0, 0)), simulated.layout)
    simulated = ReferenceServer(profile, serving, guards.tables.fastest_s)
    dropping = Dropping(serving, guards)
    rng = np.random.default_rng(seed)
    counts = rng.poisson(20, 40)
    arrival_s = arrival_times_s(counts, TICK_S)
    first = PrecisionPlan(profile.levels_of(slowest), 0.5, (0, 0))
    simulated.reset(seed, counts, TICK_S, [(0.0, 0)], first)
    served = dropped = 0
    while simulated.batch:
        plan = first if drop is Drop.LATE_AS_PLANNED else _some_plan(rng)
        simulated.step(plan)
        report = simulated.report
        head = int(report["first_request"] + report["requests"])
        dropping.plan_is(plan, simulated.signals["last_escalated_share"])
        assert dropping.count(arrival_s, head, report["end_s"]) == report["dropped"]
        served += int(report["requests"])
        dropped += int(report["dropped"])
    assert served + dropped == len(arrival_s)
    assert (dropped > 50) == (drop is not Drop.NEVER)


def _some_plan(rng: np.random.Generator) -> PrecisionPlan:
    levels = rng.integers(0, 3, (2, 2)).tolist()
    return PrecisionPlan(tuple(levels[0]), float(rng.choice([0.0, 0.6])), tuple(levels[1]))


def test_only_what_guards_allow_counts_as_the_best() -> None:
    latency_s = np.array([[0.3], [0.1]])
    tables = BankTables(1, 2, (4,), np.array([0.9, 0.5]), latency_s)
    layout = ReferenceServer(random_profile(0), Serving(1.0, 1)).layout
    arrival_s = np.array([0.0, 0.25])
    # At 0.5 s half a second is left of the first request's second, and 0.75 s of the other one's.
    for floor, deadline_s, gone in ((0.0, 0.7, 0), (0.6, 0.7, 1), (0.6, 0.85, 0)):
        guards = PrecisionGuards(
            PrecisionLimits(accuracy_floor=floor), tables, PrecisionPlan((0,)), layout
        )
        dropping = Dropping(Serving(deadline_s, 4), guards)
        assert dropping.count(arrival_s, 0, 0.5) == gone
