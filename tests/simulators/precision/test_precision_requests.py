from __future__ import annotations

from dataclasses import replace

import numpy as np

from envs.precision.config import default_config
from runtime.precision.serving import Drop
from runtime.precision.snapshot import REPORT_INDEX
from simulators.precision.engine import PrecisionEngine
from simulators.precision.requests import requests_of


def test_requests_are_those_that_the_engine_serves() -> None:
    base = default_config()
    config = replace(base, serving=replace(base.serving, max_batch=1, drop=Drop.NEVER))
    key, n_ticks = np.array([2**63 + 11], dtype=np.uint64), 400
    counts = config.workload.arrivals.counts(key, np.array([70]), n_ticks)
    segments = config.workload.conditions.segments(key, 0.05 * n_ticks)
    engine = PrecisionEngine(config.profile, config.serving, n_segments=segments.start_s.shape[1])
    engine.reset(key, counts, 0.05, segments, config.safe_plan)
    requests = requests_of(key[0], counts[0], 0.05, segments, config.profile.n_samples)
    assert len(requests.arrival_s) == counts.sum() > 100
    assert len(set(requests.condition)) > 1
    row = config.safe_plan.to_row()[None]
    first = engine.layout.property_columns.start
    for k, (arrival_s, sample, condition) in enumerate(zip(*requests, strict=True)):
        assert engine.state.request[0, 0]["sample"] == sample
        seen = engine.signals[0, first]
        assert seen == config.profile.properties[condition, sample, 0]
        engine.step(row)
        report = engine.reports[0]
        assert report[REPORT_INDEX["first_request"]] == k
        assert report[REPORT_INDEX["first_arrival_s"]] == arrival_s
        assert report[REPORT_INDEX["condition"]] == condition
    assert engine.finished.all()
