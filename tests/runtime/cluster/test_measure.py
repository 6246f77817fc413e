from __future__ import annotations

import numpy as np
import pytest

from runtime.application import Application, Job, Stage
from runtime.cluster.measure import (
    declared_waits,
    measure_run,
    measure_runs,
    measure_stages,
    sample_tasks,
    varied_settings,
)
from runtime.cluster.stream_jobs import StageCode, StateUpdate, StreamJobs
from runtime.plan import Plan

WAIT_S = 0.01


@pytest.fixture(scope="module")
def jobs() -> StreamJobs:
    application = Application(
        "app",
        (Job("a", (Stage("main", 20),)), Job("b", (Stage("main", 1, 1),), stateful=True)),
        (("a", "b"),),
    )
    code = {
        ("a", "main"): StageCode(lambda task: task.records, WAIT_S),
        ("b", "main"): StageCode(
            lambda task: StateUpdate(None, task.state + sum(task.upstream["a"]))
        ),
    }
    return StreamJobs(application, code, {"b": 0})


def test_samples_carry_real_inputs(jobs: StreamJobs) -> None:
    a, b = sample_tasks(jobs, batch_records=50)
    assert (a.job, a.task.records) == ("a", 17)  # 50 records in 3 tasks
    assert (b.job, b.task.records, b.task.upstream) == ("b", 50, {"a": (17, 17, 16)})


def test_stages_are_measured_in_all_sizes_with_all_numbers_of_busy_slots(jobs: StreamJobs) -> None:
    told: list[float] = []
    table = measure_stages(
        jobs, slots=3, budget_s=0.9, progress=lambda fraction, what: told.append(fraction)
    )
    assert sorted(set(table["busy"])) == [1, 2, 3]
    # Batches of 16, 64, 256 and 1024: every task of them is measured once per size.
    assert sorted(set(table[table["job"] == "a"]["records"])) == [16, 20]
    assert sorted(set(table[table["job"] == "b"]["records"])) == [16, 64, 256, 1024]
    assert (table[table["job"] == "a"]["duration_s"] >= WAIT_S).all()
    assert (table[table["job"] == "b"]["duration_s"] < WAIT_S).mean() > 0.9
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_too_small_a_budget_is_refused(jobs: StreamJobs) -> None:
    with pytest.raises(ValueError, match=r"with 8 slots expected at least 2\.5"):
        measure_stages(jobs, slots=8, budget_s=1.0)


def test_a_run_logs_every_task(jobs: StreamJobs) -> None:
    counts = np.full(10, 8)
    run = measure_run(jobs, 4, Plan(parallelism=4, batch_interval_s=0.2), counts, tick_s=0.05)
    assert sum(r.records for r in run.reports) == 80
    table = run.task_times
    assert len(table) == sum(r.tasks for r in run.reports)
    assert table[table["job"] == "a"]["records"].sum() == 80
    busy_s = sum(r.busy_independent_s + r.busy_dependent_s for r in run.reports)
    assert table["duration_s"].sum() == pytest.approx(busy_s)
    assert run.last["records_out"] == 80


def test_a_run_that_cannot_keep_up_says_so(jobs: StreamJobs) -> None:
    plan = Plan(parallelism=1, batch_interval_s=0.1)
    with pytest.raises(TimeoutError, match=r"records were left 0\.05 s after the last arrival"):
        measure_run(jobs, 1, plan, np.full(4, 500), tick_s=0.05, patience_s=0.05)


def test_settings_give_different_sizes(jobs: StreamJobs) -> None:
    settings = varied_settings(rate_per_s=300.0, slots=4)
    assert all(rate < 300.0 and plan.parallelism <= 4 for plan, rate in settings)
    runs = measure_runs(jobs, 4, settings[:3], seconds=0.5, seed=3)
    again = [
        np.random.default_rng([3, i]).poisson(rate * 0.05, 10)
        for i, (_, rate) in enumerate(settings[:3])
    ]
    for run, counts in zip(runs, again, strict=True):
        assert run.counts.tolist() == counts.tolist()


def test_waits_are_read_from_the_code(jobs: StreamJobs) -> None:
    assert declared_waits(jobs) == {("a", "main"): WAIT_S, ("b", "main"): 0.0}
