"""Random profiles, plans and streams for property tests, profiles whose figures are known; runs."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.precision.plan import PrecisionPlan
from runtime.precision.serving import Drop, Serving
from runtime.precision.snapshot import REPORT_INDEX
from simulators.precision.engine import PrecisionEngine
from simulators.precision.profile import (
    MARGIN_STEPS,
    RESIDUAL_CELLS,
    PrecisionProfile,
    lognormal_residual,
)
from simulators.precision.workload import ListedConditions


def random_profile(
    seed: int,
    *,
    stages: int = 3,
    levels: int = 3,
    samples: int = 20,
    buckets: tuple[int, ...] = (1, 2, 4, 8),
    conditions: int = 3,
    **changes: Any,
) -> PrecisionProfile:
    """Return a profile of noise: nothing in it is regular."""
    rng = np.random.default_rng(seed)
    a, b, c, f = levels**stages, len(buckets), conditions, 2
    values: dict[str, Any] = {
        "network": "noise",
        "stages": tuple(f"s{k}" for k in range(stages)),
        "levels": tuple(f"l{k}" for k in range(levels)),
        "emulated": (False,) * levels,
        "buckets": buckets,
        "conditions": tuple(f"c{k}" for k in range(conditions)),
        "property_names": ("light", "dark"),
        "fixed_s": rng.uniform(0.001, 0.02, b),
        "decision_s": np.random.default_rng(seed + 1).choice([0.0, 0.003, 0.005], b),
        "switch_s": np.random.default_rng(seed + 2).choice([0.0, 0.002, 0.004], b),
        "latency_s": rng.uniform(0.0, 0.02, (b, stages, levels)),
        "transition_s": rng.uniform(0.0, 0.005, (b, stages - 1, levels, levels)),
        "residual": lognormal_residual(rng.uniform(0.0, 0.5, b)),
        "bytes": rng.integers(1, 1000, (stages, levels)),
        "truth": rng.integers(0, 3, samples).astype(np.uint8),
        "label": rng.integers(0, 3, (c, a, samples)).astype(np.uint8),
        "margin": rng.integers(0, MARGIN_STEPS + 1, (c, a, samples)).astype(np.uint8),
        "properties": rng.normal(size=(c, samples, f)).astype(np.float32),
        "clip_rate": rng.uniform(0, 1, (c, stages, levels)).astype(np.float32),
        "sqnr_db": rng.normal(20, 10, (c, stages, levels)).astype(np.float32),
        "power_active_w": 20.0,
        "power_idle_w": 5.0,
        "origin": "noise",
    }
    return PrecisionProfile(**(values | changes))


def plain_profile(service_s: float, *, buckets: tuple[int, ...] = (1,)) -> PrecisionProfile:
    """Return a bank of one stage and one level that always takes the same time."""
    b = len(buckets)
    return random_profile(
        0,
        stages=1,
        levels=1,
        buckets=buckets,
        conditions=1,
        fixed_s=np.full(b, service_s),
        decision_s=np.zeros(b),
        switch_s=np.zeros(b),
        latency_s=np.zeros((b, 1, 1)),
        transition_s=np.zeros((b, 0, 1, 1)),
        residual=np.ones((b, RESIDUAL_CELLS)),
    )


@st.composite
def profiles(draw: st.DrawFn) -> PrecisionProfile:
    buckets = draw(st.sampled_from([(1,), (1, 2, 4, 8), (3, 8), (64,)]))
    return random_profile(
        draw(st.integers(0, 2**32 - 1)),
        stages=draw(st.integers(1, 4)),
        levels=draw(st.integers(1, 3)),
        samples=draw(st.sampled_from([1, 7, 20])),
        buckets=buckets,
        conditions=draw(st.integers(1, 3)),
    )


@st.composite
def servings(draw: st.DrawFn, profile: PrecisionProfile) -> Serving:
    return Serving(
        deadline_s=draw(st.sampled_from([0.03, 0.1, 0.5])),
        max_batch=draw(st.integers(1, profile.buckets[-1])),
        drop=draw(st.sampled_from(Drop)),
        shadow_fraction=draw(st.sampled_from([0.0, 0.3, 1.0])),
        shadow_delay_s=draw(st.sampled_from([0.0, 0.05, 0.3])),
        shadow_window=draw(st.sampled_from([1, 5, 40])),
        shadow_queue=draw(st.sampled_from([1, 3, 16])),
    )


@st.composite
def plans(draw: st.DrawFn, profile: PrecisionProfile) -> PrecisionPlan:
    level = st.integers(0, len(profile.levels) - 1)
    levels = st.lists(level, min_size=len(profile.stages), max_size=len(profile.stages))
    below = draw(st.sampled_from([0.0, 0.0, 0.3, 0.6, 1.0]))
    return PrecisionPlan(tuple(draw(levels)), below, tuple(draw(levels)))


@st.composite
def stretches(draw: st.DrawFn, profile: PrecisionProfile) -> list[tuple[float, int]]:
    gaps = draw(st.lists(st.sampled_from([0.01, 0.2, 1.0]), max_size=5))
    starts: NDArray[np.float64] = np.cumsum([0.0, *gaps])
    condition = st.integers(0, len(profile.conditions) - 1)
    return [(float(start), draw(condition)) for start in starts]


def run(
    profile: PrecisionProfile,
    serving: Serving,
    counts: NDArray[np.int64],
    tick_s: float,
    plan: PrecisionPlan,
    conditions: ListedConditions | None = None,
) -> tuple[PrecisionEngine, NDArray[np.float64]]:
    """Serve streams (counts int64 [N, n_ticks]) to their end; return reports [steps, N, .]."""
    n = len(counts)
    segments = (conditions or ListedConditions()).segments(np.arange(n, dtype=np.uint64), 1.0)
    engine = PrecisionEngine(profile, serving, n, n_segments=segments.start_s.shape[1])
    engine.reset(np.arange(n, dtype=np.uint64), counts, tick_s, segments, plan)
    rows, reports = np.tile(plan.to_row(), (n, 1)), []
    while not engine.finished.all():
        engine.step(rows)
        reports.append(engine.reports.copy())
    return engine, np.array(reports)


def own(reports: NDArray[np.float64], env: int) -> NDArray[np.float64]:
    rows = reports[:, env]
    return rows[rows[:, REPORT_INDEX["requests"]] > 0]
