"""The real server's rule for requests that come too late is the simulated one's."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.precision.dropping import Dropping
from runtime.precision.guard_tables import BankTables
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
    simulated = ReferenceServer(profile, serving)
    dropping = Dropping(serving, tables)
    rng = np.random.default_rng(seed)
    counts = rng.poisson(20, 40)
    arrival_s = arrival_times_s(counts, TICK_S)
    simulated.reset(seed, counts, TICK_S, [(0.0, 0)], _some_plan(rng))
    served = dropped = 0
    while simulated.batch:
        plan = _some_plan(rng)
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
