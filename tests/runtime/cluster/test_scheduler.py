"""Schedules small enough to be worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from runtime.application import Application, Job, Stage
from runtime.cluster.runs import Outcome
from runtime.cluster.scheduler import Scheduler
from runtime.cluster.source import Source
from runtime.plan import Plan, Policy, Pools

SINGLE_TASK = Stage("main", 1, max_tasks=1)
TASK_PER_RECORD = Stage("main", 1)


class Cluster:
    """A scheduler in virtual time, its tasks named `job.index@batch`."""

    def __init__(self, support: Any, app: Application, records: list[int], **options: Any) -> None:
        self.app = app
        slots, max_open = options.pop("slots"), options.pop("max_open_batches", 64)
        self.durations_s = options.pop("durations_s", {})
        self.failing = options.pop("failing", set())
        self.attempted = support.attempted
        plan = Plan(**{"batch_interval_s": 1.0, **options})
        scheduler = Scheduler(app, Source(np.array(records), 1.0), slots, plan, max_open)
        self.time = support.virtual_time(scheduler, self.attempt)

    def name(self, task: Any) -> str:
        return f"{self.app.jobs[task.job].name}{task.index}@{task.batch}"

    def attempt(self, task: Any) -> Any:
        duration_s = self.durations_s.get(self.app.jobs[task.job].name, 1.0)
        duration_s = self.durations_s.get(self.name(task), duration_s)
        fails = self.name(task) in self.failing
        return self.attempted(duration_s, attempts=2 if fails else 1, failed=fails)

    def starts(self, until_s: float) -> list[tuple[str, float]]:
        self.time.run(until_s)
        return [(self.name(task), task.start_s) for task in self.time.starts]


@pytest.fixture(scope="module")
def support(virtual_time: Any, attempted: Any) -> Any:
    class Support:
        pass

    Support.virtual_time, Support.attempted = virtual_time, attempted  # type: ignore[attr-defined]
    return Support


def two_jobs() -> Application:
    return Application("two", (Job("a", (TASK_PER_RECORD,)), Job("b", (TASK_PER_RECORD,))))


def chain_and_side(first: str) -> Application:
    """Root r before d, and a side job i of many tasks; `first` is declared first."""
    jobs = {"i": Job("i", (TASK_PER_RECORD,)), "r": Job("r", (SINGLE_TASK,))}
    second = "r" if first == "i" else "i"
    return Application(
        "chain", (jobs[first], jobs[second], Job("d", (TASK_PER_RECORD,))), (("r", "d"),)
    )


def test_fifo_gives_slots_to_the_job_admitted_first(support: Any) -> None:
    cluster = Cluster(support, two_jobs(), [2], slots=2, parallelism=2)
    assert cluster.starts(9.0) == [("a0@0", 1.0), ("a1@0", 1.0), ("b0@0", 2.0), ("b1@0", 2.0)]


def test_fair_gives_slots_to_the_stage_with_fewest_running_tasks(support: Any) -> None:
    cluster = Cluster(
        support, two_jobs(), [2], slots=2, parallelism=2, independent_policy=Policy.FAIR
    )
    assert cluster.starts(9.0) == [("a0@0", 1.0), ("b0@0", 1.0), ("a1@0", 2.0), ("b1@0", 2.0)]


def test_one_token_runs_one_job_at_a_time_in_order(support: Any) -> None:
    cluster = Cluster(support, two_jobs(), [1, 1], slots=4, parallelism=1)
    assert cluster.starts(9.0) == [("a0@0", 1.0), ("b0@0", 2.0), ("a0@1", 3.0), ("b0@1", 4.0)]


def test_tokens_go_to_the_oldest_batch_first(support: Any) -> None:
    """b@0 waits for a token while batch 1 is cut; both batches' jobs then compete."""
    cluster = Cluster(support, two_jobs(), [1, 1], slots=4, parallelism=1, durations_s={"a": 1.5})
    assert [name for name, _ in cluster.starts(9.0)] == ["a0@0", "b0@0", "a0@1", "b0@1"]


@pytest.mark.parametrize(
    ("first", "order"),
    [("i", ["i0@0", "r0@0", "d0@0"]), ("r", ["r0@0", "d0@0", "i0@0"])],
)
def test_in_a_batch_dependent_jobs_are_admitted_before_independent_ones(
    support: Any, first: str, order: list[str]
) -> None:
    cluster = Cluster(support, chain_and_side(first), [1], slots=4, parallelism=1)
    assert [name for name, _ in cluster.starts(9.0)] == order


def test_parallelism_per_pool_caps_each_class(support: Any) -> None:
    jobs = tuple(Job(name, (SINGLE_TASK,)) for name in "abcd")
    app = Application("app", jobs, (("a", "c"), ("a", "d")))
    cluster = Cluster(support, app, [1, 0], slots=4, parallelism=1, per_pool_parallelism=True)
    assert cluster.starts(9.0) == [("a0@0", 1.0), ("c0@0", 2.0), ("b0@0", 2.0), ("d0@0", 3.0)]


def test_a_stage_starts_after_all_its_parents(support: Any) -> None:
    stages = (
        Stage("left", 1, max_tasks=1),
        Stage("right", 1, max_tasks=1, parents=()),
        Stage("join", 1, max_tasks=1, parents=("left", "right")),
    )
    app = Application("app", (Job("a", stages),))
    cluster = Cluster(support, app, [1], slots=4)
    cluster.time.attempt = lambda task: cluster.attempted((1.0, 3.0, 1.0)[task.stage])
    cluster.time.run(9.0)
    assert [(t.stage, t.start_s) for t in cluster.time.starts] == [(0, 1.0), (1, 1.0), (2, 4.0)]


def test_shrinking_a_hard_pool_drains_it(support: Any) -> None:
    cluster = Cluster(
        support,
        chain_and_side("i"),
        [8],
        slots=4,
        parallelism=3,
        pools=Pools.HARD,
        share=0.75,
        durations_s={"i": 2.0},
    )
    cluster.time.run(1.5)
    cluster.time.apply(Plan(pools=Pools.HARD, share=0.25, parallelism=3, batch_interval_s=1.0))
    starts = cluster.starts(40.0)
    assert [s for name, s in starts if name[0] == "i"] == [1, 1, 1, 3, 5, 7, 9, 11]
    # The dependent pool has 3 slots by then; r runs in the one independent slot at 13.
    assert [s for name, s in starts if name[0] == "d"] == [14, 14, 14, 15, 15, 15, 16, 16]


def test_hard_pools_leave_slots_idle_rather_than_lend_them(support: Any) -> None:
    cluster = Cluster(
        support, chain_and_side("i"), [8], slots=4, parallelism=3, pools=Pools.HARD, share=0.5
    )
    assert [s for name, s in cluster.starts(40.0) if name[0] == "i"] == [1, 1, 2, 2, 3, 3, 4, 4]


def test_soft_pools_lend_and_return_by_weight(support: Any) -> None:
    cluster = Cluster(
        support,
        chain_and_side("r"),
        [10],
        slots=4,
        parallelism=3,
        pools=Pools.SOFT,
        share=0.75,
        durations_s={"i": 10.0},
    )
    starts = dict(cluster.starts(12.0))
    assert [starts[f"i{k}@0"] for k in range(3)] == [1.0, 1.0, 1.0]
    assert [starts[f"d{k}@0"] for k in range(9)] == [float(t) for t in range(2, 11)]
    # At 11 all four slots are free again: 3 : 1.
    assert [starts[f"i{k}@0"] for k in range(3, 6)] == [11.0, 11.0, 11.0]
    assert starts["d9@0"] == 11.0


@pytest.mark.parametrize(("share", "order"), [(0.0, "rdddiii"), (1.0, "riiiddd")])
def test_weight_zero_only_gets_what_nobody_else_wants(
    support: Any, share: float, order: str
) -> None:
    cluster = Cluster(
        support, chain_and_side("r"), [3], slots=1, parallelism=3, pools=Pools.SOFT, share=share
    )
    assert "".join(name[0] for name, _ in cluster.starts(40.0)) == order


def test_one_slot_is_shared_in_time_by_hard_pools(support: Any) -> None:
    cluster = Cluster(
        support, chain_and_side("r"), [2], slots=1, parallelism=3, pools=Pools.HARD, share=0.5
    )
    assert sorted(name for name, _ in cluster.starts(40.0)) == [
        *("d0@0", "d1@0", "i0@0", "i1@0", "r0@0")
    ]


def stateful_job() -> Application:
    return Application("app", (Job("s", (SINGLE_TASK,), stateful=True),))


def test_a_stateful_job_waits_for_its_previous_batch(support: Any) -> None:
    cluster = Cluster(
        support, stateful_job(), [1, 1, 1], slots=4, parallelism=4, durations_s={"s": 3.0}
    )
    assert cluster.starts(20.0) == [("s0@0", 1.0), ("s0@1", 4.0), ("s0@2", 7.0)]


def single_job() -> Application:
    return Application("app", (Job("a", (SINGLE_TASK,)),))


@pytest.mark.parametrize(
    ("idle_batches", "interval_s", "starts_s"),
    [
        (1, 0.2, [0.5, 1.7, 2.9]),  # the second cut waits for the end of the first batch
        (2, 0.2, [0.5, 1.5, 2.5]),  # a record may start a second batch at once
        (2, 1.3, [1.3, 2.6]),  # the gap counts from the start and from each cut
    ],
)
def test_an_idle_trigger_cuts_as_soon_as_it_may(
    support: Any, idle_batches: int, interval_s: float, starts_s: list[float]
) -> None:
    cluster = Cluster(
        support,
        single_job(),
        [1, 1, 1],
        slots=4,
        parallelism=4,
        idle_batches=idle_batches,
        batch_interval_s=interval_s,
        durations_s={"a": 1.2},
    )
    assert [s for _, s in cluster.starts(20.0)] == pytest.approx(starts_s)
    assert sum(r.records for r in cluster.time.reports) == 3


def cut_times(cluster: Cluster, until_s: float) -> list[float]:
    cluster.time.run(until_s)
    return [report.cut_s for report in cluster.time.reports]


def test_a_new_interval_applies_from_the_next_cut(support: Any) -> None:
    cluster = Cluster(support, single_job(), [4] * 6, slots=4, parallelism=9, batch_interval_s=2.0)
    cluster.time.run(2.5)
    cluster.time.apply(Plan(parallelism=9, batch_interval_s=0.5))
    assert cut_times(cluster, 6.4) == [2.0, 4.0, 4.5, 5.0]


def test_leaving_the_idle_trigger_resumes_the_clock_from_the_last_cut(support: Any) -> None:
    cluster = Cluster(support, single_job(), [1] * 6, slots=4, parallelism=9, idle_batches=4)
    cluster.time.run(3.0)  # cuts at 1.0 (gap), 2.0 and 3.0
    cluster.time.apply(Plan(parallelism=9, batch_interval_s=1.25))
    assert cut_times(cluster, 7.0) == [1.0, 2.0, 3.0, 4.25, 5.5]


def test_an_empty_interval_makes_no_batch(support: Any) -> None:
    cluster = Cluster(support, single_job(), [1, 0, 0, 1], slots=1)
    assert cut_times(cluster, 9.0) == [1.0, 4.0]


def test_beyond_the_open_batches_records_wait_for_the_next_due_cut(support: Any) -> None:
    cluster = Cluster(
        support, single_job(), [2] * 4, slots=1, max_open_batches=1, durations_s={"a": 2.5}
    )
    snapshot = cluster.time.run(3.2)
    assert (snapshot["records_uncut"], snapshot["records_pending"]) == (4.0, 2.0)
    cluster.time.run(9.0)
    assert [(r.cut_s, r.records) for r in cluster.time.reports] == [(1.0, 2), (4.0, 6)]


def failing_chain() -> Application:
    return Application(
        "chain",
        (Job("a", (TASK_PER_RECORD,)), Job("b", (SINGLE_TASK,), stateful=True)),
        (("a", "b"),),
    )


def test_a_failed_job_drops_drains_and_cancels(support: Any) -> None:
    cluster = Cluster(
        support,
        failing_chain(),
        [4],
        slots=2,
        parallelism=2,
        failing={"a0@0"},
        durations_s={"a1@0": 3.0},
    )
    starts = cluster.starts(20.0)
    assert starts == [("a0@0", 1.0), ("a1@0", 1.0)]  # a2 and a3 are dropped at 2
    (report,) = cluster.time.reports
    assert (report.end_s, report.failed_jobs, report.tasks) == (4.0, 2, 3)
    assert report.job_end_s[0] == 4.0
    assert math.isnan(report.job_end_s[1])
    assert [(s, e.outcome) for s, e in cluster.time.job_ends] == [
        (4.0, Outcome.FAILED),
        (4.0, Outcome.CANCELLED),
    ]
    snapshot = cluster.time.scheduler.snapshot(20.0)
    assert (snapshot["records_failed"], snapshot["records_out"]) == (4.0, 0.0)
    assert snapshot["queued_tasks_independent"] == 0.0


def test_a_cancelled_stateful_job_ends_when_all_it_waits_for_has_ended(support: Any) -> None:
    cluster = Cluster(
        support,
        failing_chain(),
        [1, 1, 1],
        slots=4,
        parallelism=4,
        failing={"a0@1"},
        durations_s={"b0@0": 10.0},
    )
    cluster.time.run(40.0)
    ends = {(e.batch, e.job): (s, e.outcome) for s, e in cluster.time.job_ends}
    assert ends[1, 0] == (3.0, Outcome.FAILED)
    assert ends[0, 1] == (12.0, Outcome.SUCCEEDED)
    assert ends[1, 1] == (12.0, Outcome.CANCELLED)
    assert ends[2, 1] == (13.0, Outcome.SUCCEEDED)


def test_signals_of_a_known_schedule(support: Any) -> None:
    """Two records at 0.5 and 1.5, cuts at 1 and 2, one task of 1.25 s each, one slot."""
    cluster = Cluster(support, single_job(), [1, 1], slots=1, durations_s={"a": 1.25})
    snapshot = cluster.time.run(2.0)
    expected = {
        "records_in": 2,
        "records_uncut": 0,
        "records_pending": 2,
        "batches_pending": 2,
        "oldest_age_s": 1.5,
        "ready_independent": 1,
        "running_independent": 1,
        "busy_slots_independent": 1,
        "busy_independent_s": 1.0,
        "system_record_s": 1.5 + 0.5,
        "reports": 0,
    }
    assert {name: snapshot[name] for name in expected} == expected
    snapshot = cluster.time.run(4.0)
    expected = {
        "records_out": 2,
        "batches_pending": 0,
        "oldest_age_s": 0,
        "reports": 2,
        "report_records": 2,
        "accumulation_record_s": 0.5 + 0.5,
        "queueing_record_s": 0.25,  # the second batch waits from 2.0 to 2.25
        "processing_record_s": 1.25 + 1.25,
        "busy_independent_s": 1.5,
        "tasks_ended": 2,
        "system_record_s": 0.25 + 1.5,
    }
    assert {name: snapshot[name] for name in expected} == expected


def test_a_task_ends_once(support: Any) -> None:
    cluster = Cluster(support, single_job(), [1], slots=1)
    cluster.time.run(5.0)
    with pytest.raises(ValueError, match="task 0 is not running"):
        cluster.time.scheduler.task_ended(cluster.time.starts[0], 6.0)


@pytest.mark.parametrize(("slots", "max_open"), [(0, 1), (1, 0)])
def test_a_scheduler_needs_slots_and_room(slots: int, max_open: int) -> None:
    with pytest.raises(ValueError, match="is 0; expected at least 1"):
        Scheduler(single_job(), Source(np.array([1]), 1.0), slots, Plan(), max_open)
