"""The compiled engine and the plain-Python oracle give the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.precision.plan import PrecisionPlan
from runtime.precision.serving import Serving
from simulators.precision.engine import PrecisionEngine
from simulators.precision.reference import ReferenceServer
from simulators.precision.synthetic import synthetic_profile
from simulators.precision.workload import Segments, Stream, stream_workload
from tests.simulators.precision.banks import plans, profiles, servings, stretches

TICK_S = 0.1
N_SEGMENTS = 6


class Pair:
    """An engine of two environments and one oracle for each."""

    def __init__(self, engine: PrecisionEngine) -> None:
        self.engine = engine
        self.oracles = [ReferenceServer(engine.profile, engine.serving) for _ in range(2)]

    def reset(
        self,
        envs: list[int],
        key: int,
        counts: np.ndarray,
        segments: list[tuple[float, int]],
        plan: PrecisionPlan,
    ) -> None:
        keys = np.array([(key + e) % 2**64 for e in envs], dtype=np.uint64)
        rows = np.array([segments] * len(envs))
        self.engine.reset(
            keys,
            counts[envs],
            TICK_S,
            Segments(rows[..., 0], rows[..., 1].astype(np.int64)),
            plan,
            np.array(envs),
        )
        for e, own_key in zip(envs, keys, strict=True):
            self.oracles[e].reset(int(own_key), counts[e], TICK_S, segments, plan)
        self.compare()

    def step(self, plans_now: list[PrecisionPlan]) -> None:
        self.engine.step(np.stack([plan.to_row() for plan in plans_now]))
        for oracle, plan in zip(self.oracles, plans_now, strict=True):
            oracle.step(plan)
        self.compare()

    def compare(self) -> None:
        for e, oracle in enumerate(self.oracles):
            np.testing.assert_array_equal(self.engine.signals[e], oracle.snapshot().signals)
            np.testing.assert_array_equal(self.engine.reports[e], oracle.report_row())


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_engine_equals_reference(data: st.DataObject) -> None:
    profile = data.draw(profiles())
    pair = Pair(PrecisionEngine(profile, data.draw(servings(profile)), 2, n_segments=N_SEGMENTS))
    rates = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=20))
    counts = np.array([rates, rates[::-1]])
    key = data.draw(st.integers(0, 2**64 - 1))
    segments = data.draw(stretches(profile))
    choice = data.draw(st.lists(plans(profile), min_size=2, max_size=5))
    again = data.draw(st.integers(0, 20))
    pair.reset([0, 1], key, counts, segments, choice[0])
    for k in range(30):  # most streams end before
        if k == again:
            pair.reset([1], key + 5, counts, data.draw(stretches(profile)), choice[1])
        pair.step([choice[k % len(choice)], choice[k // 2 % len(choice)]])


@pytest.mark.parametrize("stream", Stream)
def test_whole_episodes_of_the_synthetic_bank_are_equal(stream: Stream) -> None:
    profile = synthetic_profile()
    workload = stream_workload(stream, 600.0, len(profile.conditions), TICK_S)
    horizon_s = 8.0
    keys = np.array([3, 2**63 + 5], dtype=np.uint64)
    counts = workload.arrivals.counts(keys, np.zeros(2, np.int64), round(horizon_s / TICK_S))
    n_segments = workload.conditions.n_segments(horizon_s)
    segments = workload.conditions.segments(keys, horizon_s)
    engine = PrecisionEngine(profile, Serving(0.1, 16), 2, n_segments=n_segments)
    plan = PrecisionPlan((2, 3, 3, 2), 0.3, (0, 0, 0, 0))
    engine.reset(keys, counts, TICK_S, segments, plan)
    oracles = [ReferenceServer(profile, engine.serving) for _ in range(2)]
    for e, oracle in enumerate(oracles):
        own = list(zip(segments.start_s[e], segments.condition[e], strict=True))
        oracle.reset(int(keys[e]), counts[e], TICK_S, own, plan)
    rng = np.random.default_rng(1)
    for _ in range(150):
        levels = [tuple(rng.integers(0, 4, 4).tolist()) for _ in oracles]
        choice = [PrecisionPlan(own, rng.choice([0.0, 0.4]), (0, 0, 0, 0)) for own in levels]
        engine.step(np.stack([p.to_row() for p in choice]))
        for e, oracle in enumerate(oracles):
            np.testing.assert_array_equal(oracle.step(choice[e]).signals, engine.signals[e])
            np.testing.assert_array_equal(oracle.report_row(), engine.reports[e])
