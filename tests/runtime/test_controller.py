from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runtime.application import Application, Job, Stage
from runtime.cluster.executor import LocalExecutor
from runtime.cluster.source import Source
from runtime.cluster.stream_jobs import StageCode, StreamJobs
from runtime.controller import Controller
from runtime.guards import GuardLimits, Guards
from runtime.plan import Plan
from runtime.snapshot import SIGNAL_INDEX, SIGNALS, Snapshot

SAFE = Plan(parallelism=2, batch_interval_s=1.0)
START = Plan(parallelism=1, batch_interval_s=2.0)


class Agent:
    """Answers with what a function returns for the number of the question."""

    def __init__(self, answer: Callable[[int], Any]) -> None:
        self.answer = answer
        self.asked = 0

    def decide(self, snapshot: Snapshot) -> Plan:
        self.asked += 1
        return self.answer(self.asked)


class Cluster:
    """An executor without work: it only keeps the plan."""

    def __init__(self) -> None:
        self.plan = START
        self.applied: list[Plan] = []
        self.signals = np.zeros(len(SIGNALS))
        self.time_s = 0.0

    def snapshot(self) -> Snapshot:
        self.time_s += 1.0
        self.signals[SIGNAL_INDEX["time_s"]] = self.time_s
        return Snapshot(self.signals.copy(), (), self.plan)

    def apply(self, plan: Plan) -> None:
        self.plan = plan
        self.applied.append(plan)


def control(
    answer: Callable[[int], Any],
    cluster: Cluster,
    period_s: float = 1.0,
    deadline_s: float | None = None,
    passive: bool = False,
) -> Controller:
    guards = Guards(GuardLimits(parallelism=8), SAFE)
    return Controller(Agent(answer), cluster, guards, period_s, deadline_s or period_s, passive)


def test_a_proposal_is_put_in_force_under_a_new_version() -> None:
    cluster = Cluster()
    controller = control(lambda k: Plan(parallelism=min(k + 2, 4)), cluster)
    decisions = [controller.step() for _ in range(4)]
    assert [d.applied.parallelism for d in decisions] == [3, 4, 4, 4]
    assert [d.applied.version for d in decisions] == [1, 2, 2, 2]
    assert [d.changed for d in decisions] == [True, True, False, False]
    assert cluster.applied == [d.applied for d in decisions if d.changed]
    assert all(d.causes == () and 0.0 <= d.decision_s < 1.0 for d in decisions)
    assert [d.time_s for d in decisions] == [1.0, 2.0, 3.0, 4.0]
    assert controller.decisions == decisions


def test_guards_stand_between_and_name_their_causes() -> None:
    cluster = Cluster()
    decision = control(lambda k: Plan(parallelism=99), cluster).step()
    assert decision.proposed is not None
    assert decision.proposed.parallelism == 99
    assert cluster.plan.parallelism == 8
    assert decision.causes == ("bounds",)


def fail(k: int) -> Plan:
    raise ValueError("no idea")


def non_finite(k: int) -> Plan:
    return Plan(share=float("nan"))


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (fail, "agent_error"),
        (non_finite, "agent_error"),
        (lambda k: None, "not_a_plan"),
        (lambda k: {"parallelism": 3}, "not_a_plan"),
    ],
)
def test_an_answer_that_is_no_plan_leads_to_the_safe_one(
    answer: Callable[[int], Any], cause: str
) -> None:
    cluster = Cluster()
    decision = control(answer, cluster).step()
    assert decision.proposed is None
    assert decision.causes == (cause,)
    assert dataclasses.replace(cluster.plan, version=0) == SAFE
    assert cluster.plan.version == 1


def test_an_agent_recovers_from_an_error() -> None:
    cluster = Cluster()
    controller = control(lambda k: fail(k) if k == 1 else Plan(parallelism=5), cluster)
    assert [controller.step().causes for _ in range(2)] == [("agent_error",), ()]
    assert cluster.plan.parallelism == 5


def test_a_snapshot_with_a_non_finite_signal_is_not_shown() -> None:
    cluster = Cluster()
    cluster.signals[SIGNAL_INDEX["oldest_age_s"]] = np.inf
    controller = control(lambda k: Plan(parallelism=5), cluster)
    decision = controller.step()
    assert decision.causes == ("non_finite_snapshot",)
    assert cluster.plan.parallelism == SAFE.parallelism


def test_a_missed_deadline_leads_to_the_safe_plan_and_delays_nothing() -> None:
    cluster, release = Cluster(), threading.Event()

    def answer(k: int) -> Plan:
        if k == 1:
            release.wait()
        return Plan(parallelism=4 + k)

    controller = control(answer, cluster, deadline_s=0.05)
    start_s = time.monotonic()
    missed = controller.step()
    assert time.monotonic() - start_s < 0.5
    assert (missed.causes, missed.decision_s) == (("deadline",), 0.05)
    assert cluster.plan.parallelism == SAFE.parallelism
    assert controller.step().causes == ("agent_busy",)  # it still hangs
    release.set()
    time.sleep(0.05)
    decision = controller.step()  # the late answer is thrown away, the next question answered
    assert decision.causes == ()
    assert cluster.plan.parallelism == 6


def test_passive_mode_computes_and_logs_but_does_not_act(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cluster = Cluster()
    controller = control(lambda k: Plan(parallelism=2 + k % 2), cluster, passive=True)
    with caplog.at_level("INFO", logger="runtime.controller"):
        decisions = [controller.step() for _ in range(3)]
    assert cluster.applied == []
    assert all(d.snapshot.plan == START for d in decisions)  # rule 16: the version is constant
    assert [d.applied.parallelism for d in decisions] == [3, 2, 3]
    assert [d.changed for d in decisions] == [True, True, True]
    assert [record.message.split("plan")[0] for record in caplog.records] == [
        f"{t:.3f} s: would apply " for t in (1.0, 2.0, 3.0)
    ]


def test_every_change_is_logged_with_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster()
    controller = control(lambda k: Plan(parallelism=3) if k < 3 else fail(k), cluster)
    with caplog.at_level("INFO", logger="runtime.controller"):
        for _ in range(3):
            controller.step()
    lines = [r.message for r in caplog.records if r.levelname in ("INFO", "WARNING")]
    assert len(lines) == 2  # the second decision changed nothing
    assert "'parallelism': 3" in lines[0]
    assert lines[0].endswith("causes: none)")
    assert lines[1].endswith("causes: agent_error)")


def test_decisions_keep_their_period() -> None:
    controller = control(lambda k: SAFE, Cluster(), period_s=0.1)
    times: list[float] = []
    start_s = time.monotonic()
    decisions = controller.run(0.55, lambda decision: times.append(time.monotonic() - start_s))
    assert len(decisions) == 5
    np.testing.assert_allclose(times, [0.1, 0.2, 0.3, 0.4, 0.5], atol=0.09)


def test_a_late_turn_is_left_out() -> None:
    controller = control(lambda k: SAFE, Cluster(), period_s=0.1)
    start_s = time.monotonic()
    times: list[float] = []

    def slow_observer(decision: object) -> None:
        times.append(time.monotonic() - start_s)
        if len(times) == 1:
            time.sleep(0.25)  # from 0.1 to 0.35: the turns at 0.2 and 0.3 are gone

    controller.run(0.55, slow_observer)
    np.testing.assert_allclose(times, [0.1, 0.4, 0.5], atol=0.09)


def test_a_run_can_be_stopped() -> None:
    controller = control(lambda k: SAFE, Cluster())
    threading.Timer(0.1, controller.stop).start()
    start_s = time.monotonic()
    assert controller.run(30.0) == ()
    assert time.monotonic() - start_s < 5.0


@pytest.mark.parametrize(("period_s", "deadline_s"), [(1.0, 0.0), (1.0, 2.0), (np.inf, 1.0)])
def test_impossible_times_are_refused(period_s: float, deadline_s: float) -> None:
    guards = Guards(GuardLimits(), SAFE)
    with pytest.raises(ValueError, match="expected 0 < deadline_s <= decision_period_s"):
        Controller(Agent(lambda k: SAFE), Cluster(), guards, period_s, deadline_s)


def test_a_real_executor_is_steered() -> None:
    """The agent shortens the interval; batches cut afterwards name its version."""
    application = Application("app", (Job("a", (Stage("main"),)),))
    jobs = StreamJobs(application, {("a", "main"): StageCode(lambda task: None, 0.005)})
    source = Source(np.full(30, 5), 0.05)
    plan = Plan(parallelism=2, batch_interval_s=0.45)
    guards = Guards(GuardLimits(), plan)
    with LocalExecutor(jobs, source, plan, slots=2) as executor:
        agent = Agent(lambda k: Plan(parallelism=2, batch_interval_s=0.1))
        controller = Controller(agent, executor, guards, 0.25, 0.1)
        decisions = controller.run(0.8)
        assert executor.wait(10.0)
    assert [d.changed for d in decisions] == [True, False, False]
    assert sum(r.records for d in decisions for r in d.snapshot.reports) > 0
    assert executor.reports[0].plan_version == 1  # cut at 0.45, decided at 0.25
    assert sum(r.records for r in executor.reports) == 150
    assert executor.reports[-1].cut_s - executor.reports[-2].cut_s == pytest.approx(0.1)
