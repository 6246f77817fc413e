"""The compiled engine and the plain-Python oracle give the same bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.plan import Plan
from simulators.cluster.engine import ClusterEngine
from simulators.cluster.reference import ReferenceCluster
from tests.simulators.cluster.clusters import Cluster, clusters, plans, tied_clusters

N_ENVS = 2
TICK_S = 0.5


class Pair:
    """An engine and one oracle per environment."""

    def __init__(self, cluster: Cluster, max_open: int, counts: np.ndarray, seed: int) -> None:
        self.counts, self.seed = counts, seed
        self.engine = ClusterEngine(*cluster, N_ENVS, max_open=max_open, report_rows=2000)
        self.oracles = [ReferenceCluster(*cluster, max_open=max_open) for _ in range(N_ENVS)]
        self.until_s = np.zeros(N_ENVS)

    def reset(self, envs: list[int], plan: Plan) -> None:
        keys = np.array([(self.seed + e) % 2**64 for e in envs], dtype=np.uint64)
        self.engine.reset(keys, self.counts[envs], TICK_S, plan, np.array(envs))
        for e, key in zip(envs, keys, strict=True):
            self.oracles[e].reset(int(key), self.counts[e], TICK_S, plan)
        self.until_s[envs] = 0.0

    def advance(self, plans_now: list[Plan], period_s: float) -> None:
        self.until_s += period_s
        self.engine.advance(np.stack([plan.to_row() for plan in plans_now]), self.until_s)
        for e, oracle in enumerate(self.oracles):
            expected = oracle.advance(plans_now[e], float(self.until_s[e]))
            np.testing.assert_array_equal(self.engine.signals[e], expected.signals)
            reports = np.array([report.to_row() for report in expected.reports])
            np.testing.assert_array_equal(self.engine.report_rows(e), reports.reshape(-1, 14))


@dataclass(frozen=True)
class Scenario:
    """What happens to a pair of environments."""

    plan_rows: list[tuple[Plan, Plan]]
    periods_s: list[float]
    rates: list[int]
    max_open: int
    seed: int
    again: int  # period before which the second environment starts anew


scenarios = st.builds(
    Scenario,
    plan_rows=st.lists(st.tuples(plans, plans), min_size=2, max_size=8),
    periods_s=st.lists(st.sampled_from([0.0, 0.3, 1.5, 4.0]), min_size=8, max_size=8),
    rates=st.lists(st.integers(0, 60), min_size=1, max_size=12),
    max_open=st.integers(1, 4),
    seed=st.integers(0, 2**64 - 1),
    again=st.integers(0, 7),
)


@settings(max_examples=150, deadline=None)
@given(cluster=st.one_of(clusters(), tied_clusters()), scenario=scenarios)
def test_engine_equals_reference(cluster: Cluster, scenario: Scenario) -> None:
    rates = scenario.rates
    # The last periods have no arrivals left and see the backlog drain.
    n_ticks = int(sum(scenario.periods_s) / TICK_S) // 2 + 1
    counts = np.array([[rates[(e + k) % len(rates)] for k in range(n_ticks)] for e in range(2)])
    pair = Pair(cluster, scenario.max_open, counts, scenario.seed)
    pair.reset([0, 1], scenario.plan_rows[0][0])
    for k, plans_now in enumerate(scenario.plan_rows):
        if k == scenario.again:
            pair.reset([1], scenario.plan_rows[0][1])
        pair.advance(list(plans_now), scenario.periods_s[k])
