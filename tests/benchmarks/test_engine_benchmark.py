from __future__ import annotations

import pytest
from rich.console import Console

from benchmarks.__main__ import build_table, main
from benchmarks.engine import Drain, Run, Workload, measure_throughput
from benchmarks.rows import measure
from runtime.snapshot import SIGNAL_INDEX


def test_the_engine_is_far_faster_than_its_oracle() -> None:
    rows = {row.name: row for row in measure_throughput(repetitions=5)}
    steps, tasks = rows["env-steps, CPU time"], rows["tasks, CPU time"]
    assert 55 < tasks.value / steps.value < 70  # about 60 tasks a step, as the budget says
    assert steps.ratio is not None
    assert steps.ratio > 50  # the budget; a busy machine slows both alike
    console = Console(width=200, record=True)
    console.print(build_table("engine", list(rows.values())))
    assert f"{steps.value:,.0f}" in console.export_text()


def test_the_budgets_workload_is_stable() -> None:
    run = Run(Workload(n_envs=16))
    run.restart()
    run.advance()
    assert (
        run.engine.signals[:, SIGNAL_INDEX["batches_pending"]].max() <= 4
    )  # batches pending after 20 periods


def test_cost_of_a_task_from_10_to_10000_slots() -> None:
    small, large = Drain(10, 1_000), Drain(10_000, 10_000)
    before, after = measure(small.work, large.work, runs=5)
    # The budget is 3; a shared machine gets some more.
    assert (after.cpu_s / large.tasks).min() < 5 * (before.cpu_s / small.tasks).min()


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["engin"])
    assert "did you mean 'engine'?" in capsys.readouterr().err
