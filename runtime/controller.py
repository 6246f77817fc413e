"""The control loop: ask an agent at a fixed period, guard its answer, put the plan in force.

Whatever the agent does, a plan is in force: an exception, an answer that is no plan, a missed
deadline or a snapshot with a non-finite signal leads to the safe plan. Every decision is kept
with its causes.
"""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from runtime.plan import Plan
from runtime.snapshot import Snapshot

_logger = logging.getLogger(__name__)

AGENT_ERROR = "agent_error"
AGENT_BUSY = "agent_busy"
DEADLINE = "deadline"
NOT_A_PLAN = "not_a_plan"
NON_FINITE_SNAPSHOT = "non_finite_snapshot"


class Decider(Protocol):
    """What the controller needs of an agent."""

    def decide(self, snapshot: Snapshot) -> Plan:
        """Return the plan to put in force."""


class Steered(Protocol):
    """What the controller needs of an executor."""

    def snapshot(self) -> Snapshot:
        """Return what has happened since the last snapshot and what the state is now."""

    def apply(self, plan: Plan) -> None:
        """Put a plan in force."""


class PlanGuards(Protocol):
    """What the controller needs of guards."""

    safe: Plan

    def apply(self, proposed: Plan, snapshot: Snapshot) -> tuple[Plan, tuple[str, ...]]:
        """Return the plan that may be applied now and why it differs from the proposal."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One turn of the control loop.

    Attributes:
        time_s: Time of the snapshot, seconds since the start of the executor.
        proposed: What the agent answered; None if it gave no plan in time.
        applied: The plan in force from then on; in passive mode the one that would be.
        changed: Whether it differs from the plan before.
        causes: Why `applied` is not what the agent proposed; empty if it is.
        decision_s: How long the agent took, or how long it was waited for, seconds.
        snapshot: What the agent was shown.
    """

    time_s: float
    proposed: Plan | None
    applied: Plan
    changed: bool
    causes: tuple[str, ...]
    decision_s: float
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class _Answer:
    """What became of one question to the agent."""

    proposed: Plan | None
    causes: tuple[str, ...]
    decision_s: float


class Controller:
    """Asks an agent for plans at a fixed period and applies them.

    The agent runs in a thread of its own, so that one that hangs delays nothing.

    Attributes:
        decisions: All decisions so far.
    """

    def __init__(
        self,
        agent: Decider,
        executor: Steered,
        guards: PlanGuards,
        decision_period_s: float,
        deadline_s: float,
        passive: bool = False,
    ) -> None:
        """Connect agent and executor.

        Args:
            agent: Decides.
            executor: Is observed and steered.
            guards: Stand between them; their safe plan replaces a missing answer.
            decision_period_s: Time between two decisions, seconds > 0.
            deadline_s: How long an answer is waited for, seconds in (0, decision_period_s].
            passive: Whether to compute and log only. The plan in force then never changes.

        Raises:
            ValueError: A time is outside its range.
        """
        if not 0.0 < deadline_s <= decision_period_s < float("inf"):
            raise ValueError(
                f"deadline_s is {deadline_s} and decision_period_s is {decision_period_s}; "
                "expected 0 < deadline_s <= decision_period_s, both finite"
            )
        self.decisions: list[Decision] = []
        self._executor = executor
        self._guards = guards
        self._period_s = decision_period_s
        self._passive = passive
        self._agent = _AgentThread(agent, deadline_s)
        self._would_be: Plan | None = None
        self._stop = threading.Event()

    def step(self) -> Decision:
        """Make one decision now."""
        snapshot = self._executor.snapshot()
        answer = self._agent.ask(snapshot)
        before = snapshot.plan if self._would_be is None else self._would_be
        guarded, causes = self._guards.apply(answer.proposed or self._guards.safe, snapshot)
        same = dataclasses.replace(guarded, version=before.version) == before
        applied = before if same else dataclasses.replace(guarded, version=before.version + 1)
        if self._passive:
            self._would_be = applied
        elif not same:
            self._executor.apply(applied)
        decision = Decision(
            time_s=snapshot["time_s"],
            proposed=answer.proposed,
            applied=applied,
            changed=not same,
            causes=answer.causes + causes,
            decision_s=answer.decision_s,
            snapshot=snapshot,
        )
        self.decisions.append(decision)
        _log(decision, self._passive)
        return decision

    def run(
        self, duration_s: float, on_decision: Callable[[Decision], None] | None = None
    ) -> tuple[Decision, ...]:
        """Decide every period until the time is over or `stop` is called.

        A turn that would begin late is left out; the next ones keep their times.

        Args:
            duration_s: How long to go on, seconds; the first decision comes after one period.
            on_decision: Called with every decision.

        Returns:
            The decisions of this run.
        """
        first = len(self.decisions)
        start_s = time.monotonic()
        turn = 1
        while turn * self._period_s <= duration_s:
            if self._stop.wait(max(start_s + turn * self._period_s - time.monotonic(), 0.0)):
                break
            decision = self.step()
            if on_decision is not None:
                on_decision(decision)
            passed_s = time.monotonic() - start_s
            turn = max(turn, int(passed_s / self._period_s)) + 1
        return tuple(self.decisions[first:])

    def stop(self) -> None:
        """Make `run` return before its next decision; may be called from any thread."""
        self._stop.set()


def _log(decision: Decision, passive: bool) -> None:
    """Log a change of the plan, or an answer that was not followed, with the causes."""
    if not (decision.changed or decision.causes):
        return
    _logger.log(
        logging.WARNING if decision.causes else logging.INFO,
        "%.3f s: %s plan %s (proposed %s; causes: %s)",
        decision.time_s,
        "would apply" if passive else "applied" if decision.changed else "kept",
        decision.applied.to_mapping(),
        None if decision.proposed is None else decision.proposed.to_mapping(),
        ", ".join(decision.causes) or "none",
    )


class _AgentThread:
    """Puts questions to an agent in a daemon thread and waits no longer than a deadline."""

    def __init__(self, agent: Decider, deadline_s: float) -> None:
        self._agent = agent
        self._deadline_s = deadline_s
        self._questions: queue.SimpleQueue[tuple[int, Snapshot]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[int, _Answer]] = queue.SimpleQueue()
        self._asked = 0
        self._answered = 0
        self._thread: threading.Thread | None = None

    def ask(self, snapshot: Snapshot) -> _Answer:
        """Return the agent's answer, or why there is none."""
        if not np.isfinite(snapshot.signals).all():
            return _Answer(None, (NON_FINITE_SNAPSHOT,), 0.0)
        while not self._answers.empty():  # answers that came too late
            self._answered = self._answers.get()[0]
        if self._answered < self._asked:
            return _Answer(None, (AGENT_BUSY,), 0.0)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="agent", daemon=True)
            self._thread.start()
        self._asked += 1
        self._questions.put((self._asked, snapshot))
        try:
            self._answered, answer = self._answers.get(timeout=self._deadline_s)
        except queue.Empty:
            return _Answer(None, (DEADLINE,), self._deadline_s)
        return answer

    def _work(self) -> None:
        while True:
            number, snapshot = self._questions.get()
            start_s = time.perf_counter()
            plan: Plan | None = None
            causes: tuple[str, ...] = ()
            try:
                answer: Any = self._agent.decide(snapshot)
            except BaseException:  # whatever an agent raises must not end the control loop
                _logger.exception("the agent failed")
                causes = (AGENT_ERROR,)
            else:
                if isinstance(answer, Plan):
                    plan = answer
                else:
                    _logger.error("the agent answered %r; expected a Plan", answer)
                    causes = (NOT_A_PLAN,)
            self._answers.put((number, _Answer(plan, causes, time.perf_counter() - start_s)))
