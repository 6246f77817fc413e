"""Real runs: real threads, real time, real tasks."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.application import Application, Job, Stage
from runtime.cluster.executor import LocalExecutor
from runtime.cluster.jobs import security_jobs
from runtime.cluster.source import Source
from runtime.cluster.stream_jobs import StageCode, StateUpdate, StreamJobs, TaskInput
from runtime.plan import Plan
from runtime.snapshot import Snapshot

REPOSITORY = Path(__file__).resolve().parents[3]
FAST = Plan(parallelism=8, batch_interval_s=0.05)


def summing_jobs(
    body: Callable[[TaskInput], None] = lambda task: None, wait_s: float = 0.0
) -> StreamJobs:
    """Square the numbers of all records in small tasks and add them up over all batches."""

    def square(task: TaskInput) -> list[int]:
        body(task)
        return [r * r for r in range(task.start, task.start + task.records)]

    def total(task: TaskInput) -> StateUpdate:
        squares = [s for part in task.upstream["square"] for s in part]
        assert len(squares) == task.batch_records
        return StateUpdate(len(squares), task.state + sum(squares))

    application = Application(
        "summing",
        (Job("square", (Stage("main", 3),)), Job("total", (Stage("main", 1, 1),), stateful=True)),
        (("square", "total"),),
    )
    code = {("square", "main"): StageCode(square, wait_s), ("total", "main"): StageCode(total)}
    return StreamJobs(application, code, {"total": 0})


def stream(records_per_tick: int = 10, ticks: int = 6, tick_s: float = 0.05) -> Source:
    return Source(np.full(ticks, records_per_tick), tick_s)


def check_counts(snapshot: Snapshot) -> None:
    parts = ("out", "failed", "pending", "uncut")
    assert snapshot["records_in"] == sum(snapshot[f"records_{part}"] for part in parts)


def squares(records: range) -> int:
    return sum(r * r for r in records)


def test_results_flow_along_the_edges_and_state_is_carried_over() -> None:
    with LocalExecutor(summing_jobs(), stream(), FAST, slots=3) as executor:
        assert executor.wait(timeout_s=10.0)
        snapshot = executor.snapshot()
    assert executor.committed_state("total") == squares(range(60))
    assert (snapshot["records_in"], snapshot["records_out"]) == (60, 60)
    # Cuts keep to the clock however late a thread wakes up.
    assert [r.cut_s for r in executor.reports] == pytest.approx(
        [0.05 * k for k in range(1, 7)], abs=1e-12
    )
    assert all(r.cut_s <= r.start_s <= r.end_s for r in executor.reports)


def test_a_task_that_fails_once_is_repeated() -> None:
    def body(task: TaskInput) -> None:
        if task.batch == 2 and task.index == 1 and task.attempt == 0:
            raise OSError("store away")

    with LocalExecutor(summing_jobs(body), stream(), FAST, slots=3) as executor:
        assert executor.wait(timeout_s=10.0)
    assert executor.committed_state("total") == squares(range(60))
    (failure,) = executor.failures
    assert (failure.job, failure.batch, failure.index, failure.attempt) == ("square", 2, 1, 0)
    assert isinstance(failure.error, OSError)
    assert [r.tasks for r in executor.reports] == [5, 5, 6, 5, 5, 5]
    assert not any(r.failed for r in executor.reports)


def test_a_task_that_fails_twice_fails_its_batch_and_nothing_else() -> None:
    def body(task: TaskInput) -> None:
        if task.batch == 2 and task.index == 1:
            raise OSError("store away")

    with LocalExecutor(summing_jobs(body), stream(), FAST, slots=3) as executor:
        assert executor.wait(timeout_s=10.0)
        snapshot = executor.snapshot()
    assert executor.committed_state("total") == squares(range(20)) + squares(range(30, 60))
    assert (snapshot["records_out"], snapshot["records_failed"]) == (50, 10)
    assert [r.failed_jobs for r in sorted(executor.reports, key=lambda r: r.batch)] == [
        *(0, 0, 2, 0, 0, 0)
    ]
    assert [failure.attempt for failure in executor.failures] == [0, 1]


def test_a_task_that_exits_the_interpreter_has_failed() -> None:
    def body(task: TaskInput) -> None:
        if task.batch == 0 and task.index == 0:
            sys.exit(3)

    with LocalExecutor(summing_jobs(body), stream(), FAST, slots=2) as executor:
        assert executor.wait(timeout_s=10.0)
        assert executor.snapshot()["records_failed"] == 10


def test_a_state_from_the_wrong_task_fails_it() -> None:
    application = Application("app", (Job("a", (Stage("main"),)),))
    jobs = StreamJobs(application, {("a", "main"): StageCode(lambda task: StateUpdate(1, 2))})
    with LocalExecutor(jobs, stream(ticks=1), FAST, slots=2) as executor:
        assert executor.wait(timeout_s=10.0)
        assert executor.snapshot()["records_failed"] == 10
    assert "only the single task of the last stage" in str(executor.failures[0].error)


def test_slots_run_at_the_same_time_and_no_more_than_there_are() -> None:
    lock = threading.Lock()
    now, most = [0], [0]

    def body(task: TaskInput) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1

    source = stream(records_per_tick=36, ticks=1)  # 12 tasks
    executor = LocalExecutor(summing_jobs(body), source, FAST, slots=4)
    executor.start(log_tasks=True)
    with executor:
        assert executor.wait(timeout_s=10.0)
    assert most == [4]
    (report,) = executor.reports
    assert report.busy_independent_s > 12 * 0.05
    assert report.processing_s < 12 * 0.05  # one after the other would take longer
    log = executor.task_log()
    assert len(log) == 13
    assert set(log["job"]) == {"square", "total"}
    assert log["busy"].max() == 4
    assert log[log["job"] == "square"]["records"].tolist() == [3] * 12
    assert (log[log["job"] == "square"]["duration_s"] >= 0.05).all()


def test_a_declared_wait_is_waited() -> None:
    source = stream(records_per_tick=3, ticks=1)
    with LocalExecutor(summing_jobs(wait_s=0.1), source, FAST, slots=1) as executor:
        assert executor.wait(timeout_s=10.0)
    assert 0.1 <= executor.reports[0].busy_independent_s < 0.5


def test_an_idle_trigger_wakes_up_for_every_record() -> None:
    plan = Plan(parallelism=2, batch_interval_s=0.01, idle_batches=1)
    source = stream(records_per_tick=1, ticks=6)
    with LocalExecutor(summing_jobs(), source, plan, slots=2) as executor:
        assert executor.wait(timeout_s=10.0)
    # Each batch ended long before the next record came, 0.05 s later.
    assert [r.cut_s for r in executor.reports] == pytest.approx(
        [0.025 + 0.05 * k for k in range(6)]
    )
    # A cut counts as of its due time, so a timer that overslept would show here.
    assert np.median([r.queueing_s for r in executor.reports]) < 0.04


def test_a_shorter_interval_wakes_up_the_timer() -> None:
    slow = Plan(parallelism=2, batch_interval_s=100.0)
    with LocalExecutor(summing_jobs(), stream(ticks=2), slow, slots=2) as executor:
        executor.apply(Plan(parallelism=2, batch_interval_s=0.01, idle_batches=1, version=1))
        assert executor.wait(timeout_s=10.0)
    assert executor.reports[0].cut_s < 0.1


def test_a_new_plan_names_the_batches_cut_under_it() -> None:
    with LocalExecutor(summing_jobs(), stream(ticks=12), FAST, slots=2) as executor:
        time.sleep(0.27)
        executor.apply(Plan(parallelism=2, batch_interval_s=0.1, version=1))
        assert executor.snapshot().plan.version == 1
        assert executor.wait(timeout_s=10.0)
    versions = [(r.plan_version, r.records) for r in executor.reports]
    assert versions[:3] == [(0, 10)] * 3
    assert versions[-1] == (1, 20)
    assert sum(records for _, records in versions) == 120


def test_stopping_lets_running_tasks_end_and_loses_nothing() -> None:
    ended: list[int] = []

    def body(task: TaskInput) -> None:
        time.sleep(0.15)
        ended.append(task.index)

    source = stream(records_per_tick=30, ticks=40)
    with LocalExecutor(summing_jobs(body), source, FAST, slots=3) as executor:
        time.sleep(0.3)
    done = len(ended)
    snapshot = executor.snapshot()
    check_counts(snapshot)
    assert snapshot["records_pending"] > 0
    assert snapshot["busy_slots_independent"] == 0
    assert snapshot["tasks_ended"] == done >= 3
    assert snapshot["time_s"] == executor.time_s < 1.0
    time.sleep(0.2)
    assert len(ended) == done
    executor.stop()  # again: nothing to do


def test_a_task_that_hangs_is_reported() -> None:
    release = threading.Event()
    source = stream(ticks=1)
    executor = LocalExecutor(summing_jobs(lambda task: bool(release.wait())), source, FAST, slots=1)
    executor.start()
    time.sleep(0.1)
    with pytest.raises(TimeoutError, match="1 tasks were still running"):
        executor.stop(timeout_s=0.1)
    release.set()


def test_draining_ends_the_stream_and_empties_the_system() -> None:
    source = stream(ticks=1000)
    with LocalExecutor(summing_jobs(), source, FAST, slots=2) as executor:
        time.sleep(0.22)
        assert executor.drain(timeout_s=10.0)
        snapshot = executor.snapshot()
    assert 30 <= snapshot["records_in"] == snapshot["records_out"] < 200


def test_waiting_has_a_limit() -> None:
    with LocalExecutor(summing_jobs(), stream(ticks=1000), FAST, slots=2) as executor:
        assert not executor.wait(timeout_s=0.1)


def test_a_worker_that_cannot_be_prepared_stops_the_start() -> None:
    def prepare() -> None:
        raise OSError("no device")

    base = summing_jobs()
    code = {("square", "main"): base.code(0, 0), ("total", "main"): base.code(1, 0)}
    jobs = StreamJobs(base.application, code, {"total": 0}, prepare)
    executor = LocalExecutor(jobs, stream(), FAST, slots=2)
    with pytest.raises(RuntimeError, match="broke down") as caught:
        executor.start()
    assert isinstance(caught.value.__cause__, OSError)


def test_misuse_is_refused() -> None:
    executor = LocalExecutor(summing_jobs(), stream(ticks=1), FAST, slots=1)
    with pytest.raises(RuntimeError, match="not been started"):
        executor.snapshot()
    with executor:
        with pytest.raises(RuntimeError, match="started before"):
            executor.start()
        with pytest.raises(RuntimeError, match="log_tasks=True"):
            executor.task_log()
        with pytest.raises(KeyError, match="no stateful job 'square'"):
            executor.committed_state("square")


INTERRUPTED = """
    import os, signal, threading, time
    import numpy as np
    from runtime.application import Application, Job, Stage
    from runtime.cluster.executor import LocalExecutor
    from runtime.cluster.source import Source
    from runtime.cluster.stream_jobs import StageCode, StreamJobs
    from runtime.plan import Plan

    ended = []
    def body(task):
        time.sleep(0.2)
        ended.append(task.index)

    application = Application("app", (Job("a", (Stage("main", 1),)),))
    jobs = StreamJobs(application, {("a", "main"): StageCode(body)})
    source = Source(np.full(1000, 5), 0.05)
    executor = LocalExecutor(jobs, source, Plan(batch_interval_s=0.05), 2)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with executor:
            executor.wait(60.0)
    except KeyboardInterrupt:
        s = executor.snapshot()
        parts = [s["records_" + p] for p in ("in", "out", "failed", "pending", "uncut")]
        print(*parts, s["busy_slots_independent"], s["tasks_ended"] == len(ended))
"""


def test_ctrl_c_stops_cleanly() -> None:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(INTERRUPTED)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    arrived, out, failed, pending, uncut, busy, all_ended = result.stdout.split()
    assert float(arrived) == float(out) + float(failed) + float(pending) + float(uncut) > 20
    assert (float(busy), all_ended) == (0.0, "True")


@pytest.fixture(scope="module")
def security() -> Any:
    return security_jobs()


def test_security_events_run_for_real(security: Any) -> None:
    source = Source(np.full(10, 20), 0.1)
    plan = Plan(parallelism=8, batch_interval_s=0.5)
    with LocalExecutor(security, source, plan, slots=8) as executor:
        assert executor.wait(timeout_s=20.0)
    assert [r.records for r in executor.reports] == [100, 100]
    assert not executor.failures
    start, end = security.initial_state["alert"], executor.committed_state("alert")
    assert not start.mean.equal(end.mean)
    assert bool((end.variance > 0.0).all())
