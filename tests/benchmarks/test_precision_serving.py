from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from benchmarks import precision_serving as serving
from benchmarks.record import BUDGETS
from runtime.precision.snapshot import REPORT_INDEX


@pytest.fixture(scope="module")
def bench() -> Iterator[serving.Bench]:
    before = torch.get_num_threads()
    yield serving.make_bench()
    torch.set_num_threads(before)


def test_every_budget_of_serving_has_its_row(
    bench: serving.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "REPETITIONS", 1)
    rows = [
        *serving.measure_decisions(bench, batches=12),
        *serving.measure_dispatch(bench, rounds=2, batches=4),
        *serving.measure_switches(bench, rounds=1),
        *serving.measure_shadow(bench, seconds=0.1),
    ]
    names = {row.name for row in rows}
    budgets = {budget.row for budget in BUDGETS if budget.row.startswith("serving")}
    assert budgets
    assert budgets <= names
    each = {row.name: row.value for row in rows}
    assert 0.0 < each["serving: decisions per request"] * serving.BATCH
    assert each["serving: a decision, batch of 16"] > 0.0


def test_everything_that_arrives_is_served_in_full_batches(bench: serving.Bench) -> None:
    agent = serving.policy_of(bench)
    served = serving.serve(bench, agent, np.zeros(5 * serving.BATCH))
    np.testing.assert_array_equal(served.reports[:, REPORT_INDEX["requests"]], serving.BATCH)
    assert len(served.decision_s) == 5
    assert (served.answers >= 0).all()


def test_shadow_checks_are_compared_with_none(
    bench: serving.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "REPETITIONS", 2)
    rows = serving.measure_shadow(bench, seconds=0.2)
    assert [row.name for row in rows] == [
        f"serving: p99 latency, {share} % shadow-checked" for share in ("0", "2", "10")
    ]
    assert rows[0].ratio == 1.0
    assert all(row.value > 0.0 and row.ratio is not None for row in rows)
