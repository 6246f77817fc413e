"""The run-time mode: a request stream served in real time, levels chosen batch by batch.

One worker, first in first out, as `simulators.precision` simulates it: when the worker is idle and
requests wait, those that come too late leave, the next batch is formed, its properties are
measured, an agent is asked, guards stand between its answer and the bank, the batch runs (unsure
samples a second time where the plan says so), and shadow checks are queued. Whatever the agent
does, a batch is served: an exception, an answer that is no plan, or too many slow answers lead to
the safe plan.
"""

from __future__ import annotations

import logging
import math
import operator
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.precision.answers import Outcome, answers_of, not_finite, tally, warm_up
from runtime.precision.dropping import Dropping
from runtime.precision.guards import PrecisionGuards
from runtime.precision.plan import PrecisionPlan
from runtime.precision.properties import input_properties
from runtime.precision.serving import Serving
from runtime.precision.shadow import ShadowCheck
from runtime.precision.snapshot import (
    REPORT_COLUMNS,
    REPORT_INDEX,
    PrecisionSnapshot,
    SignalLayout,
)
from runtime.precision.streams import NO_ANSWER, RequestStream, Served, Switch

_logger = logging.getLogger(__name__)

AGENT_ERROR, NOT_A_PLAN, AGENT_SLOW = "agent_error", "not_a_plan", "agent_slow"
SLOW_ANSWERS, PAUSE_BATCHES = 3, 100
"""After so many slow answers in a row the agent is not asked for so many batches."""


class PrecisionDecider(Protocol):
    """What the server needs of an agent."""

    def decide(self, snapshot: PrecisionSnapshot) -> PrecisionPlan:
        """Return the plan for the batch that is about to be dispatched."""


class ServedBank(Protocol):
    """What the server needs of a bank."""

    def run(self, x: Tensor, assignment: tuple[int, ...]) -> Tensor:
        """Return the outputs of a batch."""

    def observe(self, x: Tensor, assignment: tuple[int, ...]) -> Any:
        """Return a result with `output` and `clip_rates`."""


def batch_properties(x: Tensor) -> NDArray[np.float64]:
    """Return the input properties of a batch float32 [n, ...], means over it, float64 [F]."""
    mean: NDArray[np.float64] = input_properties(x.numpy()).mean(axis=0, dtype=np.float64)
    return mean


class PrecisionServer:
    """Serves one stream."""

    def __init__(
        self,
        bank: ServedBank,
        agent: PrecisionDecider,
        guards: PrecisionGuards,
        serving: Serving,
        shadow: ShadowCheck,
        properties: Callable[[Tensor], NDArray[np.float64]] = batch_properties,
    ) -> None:
        """Connect the parts.

        Args:
            bank: Runs batches; prepared for `serving.max_batch`.
            agent: Chooses levels.
            guards: Stand between agent and bank; their safe plan replaces a missing answer.
            serving: Deadline and batching.
            shadow: Checks a share of what is served.
            properties: Returns the input properties of a batch, float64 [F], means over it.
        """
        warm_up()
        self._bank, self._agent, self._guards = bank, agent, guards
        self._serving, self._properties, self._shadow = serving, properties, shadow

    def serve(
        self,
        stream: RequestStream,
        layout: SignalLayout,
        answer_within_s: float = 0.002,
        second_s: float = 1.0,
    ) -> Served:
        """Serve a stream to its end, in real time.

        Args:
            stream: The requests.
            layout: Columns of the signals.
            answer_within_s: Answers that take longer count as slow, seconds.
            second_s: How long a second of the stream lasts, seconds: 0.8 plays it at 1.25 times its
                speed, deadline included, on a machine that is so much faster than another one.

        Returns:
            What became of it; the same record of an interrupted stream is in no file yet, so
            nothing half-written is left behind by Ctrl-C.

        Raises:
            ValueError: `second_s` is no number above 0.
        """
        if not 0.0 < second_s < math.inf:
            raise ValueError(f"second_s is {second_s}; expected finite seconds > 0")
        run = _Run(self, stream, layout, answer_within_s, second_s)
        self._shadow.server_is(idle=False)
        try:
            with torch.inference_mode():
                while run.form_batch():
                    run.serve_batch()
        finally:
            self._shadow.server_is(idle=True)
        return run.result()


class _Run:
    """State of a stream that is being served."""

    def __init__(
        self,
        server: PrecisionServer,
        stream: RequestStream,
        layout: SignalLayout,
        answer_within_s: float,
        second_s: float,
    ) -> None:
        n = len(stream.arrival_s)
        self._parts, self._stream, self._layout = server, stream, layout
        self._answer_within_s, self._second_s = answer_within_s, second_s
        self._plan = server._guards.safe
        self._taken, self._row = self._plan, self._plan.to_row()
        self._dropping = Dropping(server._serving, server._guards.bank)
        self._dropping.plan_is(self._plan, 0.0)
        self._first, self._size, self._head = 0, 0, 0
        self._served = self._late = self._dropped = 0
        self._unreported = 0  # dropped, and no report says so yet
        self._busy_s, self._slow, self._paused = 0.0, 0, 0
        self._reports: list[NDArray[np.float64]] = []
        self._rows: list[NDArray[np.float64]] = []
        self._times: list[tuple[float, float]] = []
        self._switches: list[Switch] = []
        self._causes: Counter[str] = Counter()
        self._answers = np.full(n, -1, dtype=np.int64)
        self._latency_s = np.full(n, math.nan)
        self._signals = np.zeros(layout.size)
        self._last = (0.0, 0.0, 0.0, 0.0, 0.0)  # the signals whose names begin with last_
        self._clip = np.zeros(layout.n_stages)
        self._start, self._start_cpu_s = time.perf_counter(), time.thread_time()

    def _now_s(self) -> float:
        return (time.perf_counter() - self._start) / self._second_s

    # Forming a batch

    def form_batch(self) -> bool:
        """Wait for a request and take the next batch; return whether there is one."""
        arrival_s, serving = self._stream.arrival_s, self._parts._serving
        free_s = now_s = self._now_s()
        gone = self._dropping.count(arrival_s, self._head, now_s)
        self._dropped += gone
        self._head += gone
        self._unreported += gone
        if self._reports:
            self._reports[-1][REPORT_INDEX["dropped"]] = self._unreported
            self._unreported = 0
        if self._head >= len(arrival_s):
            return False
        possible_s = max(free_s, float(arrival_s[self._head]))
        now_s = self._wait_until(float(arrival_s[self._head]))
        waiting = int(np.searchsorted(arrival_s, now_s, side="right")) - self._head
        self._first, self._size = self._head, min(waiting, serving.max_batch)
        self._late_start_s, self._dispatch_s, self._waiting = now_s - possible_s, now_s, waiting
        return True

    def _wait_until(self, time_s: float) -> float:
        """Sleep until a time, shadow checks meanwhile; return when it really is."""
        now_s, shadow = self._now_s(), self._parts._shadow
        if now_s < time_s:
            shadow.server_is(idle=True)
            while now_s < time_s:
                time.sleep(max(time_s - now_s, 0.0) * self._second_s)
                now_s = self._now_s()
            shadow.server_is(idle=False)
        return now_s

    # Deciding

    def _write_signals(self, x: Tensor) -> None:
        """Write what the controller may see, in the order of `PRECISION_SIGNALS`."""
        layout, signals = self._layout, self._signals
        estimate = self._parts._shadow.estimate()
        head_s = self._dispatch_s - float(self._stream.arrival_s[self._first])
        signals[: layout.property_columns.start] = (
            self._dispatch_s,
            self._head + self._waiting,
            self._served,
            self._late,
            self._dropped,
            self._busy_s,
            self._waiting,
            self._size,
            self._parts._serving.deadline_s - head_s,
            *self._last,
            estimate.checks,
            estimate.disagreement,
            estimate.low,
            estimate.high,
        )
        signals[layout.property_columns] = self._measure_properties(x)
        signals[layout.clip_columns] = self._clip
        signals[layout.sqnr_columns] = estimate.sqnr_db
        signals[layout.plan_columns] = self._row

    def _measure_properties(self, x: Tensor) -> NDArray[np.float64] | float:
        try:
            return self._parts._properties(x)
        except Exception:  # a broken monitor is a silent one: guards see NaN
            _logger.exception("the input properties could not be measured")
            return math.nan

    def _decide(self) -> tuple[PrecisionPlan, PrecisionPlan | None, tuple[str, ...]]:
        """Return the plan to run, what was proposed, and why they differ."""
        guards = self._parts._guards
        snapshot = PrecisionSnapshot(self._layout, self._signals.copy(), self._plan)
        proposed, causes = self._ask(snapshot)
        guarded, why = guards.apply(proposed or guards.safe, snapshot)
        return guarded, proposed, (*causes, *why)

    def _ask(self, snapshot: PrecisionSnapshot) -> tuple[PrecisionPlan | None, tuple[str, ...]]:
        if self._paused > 0:
            self._paused -= 1
            return None, (AGENT_SLOW,)
        start = time.perf_counter()
        try:
            answer: Any = self._parts._agent.decide(snapshot)
        except Exception:  # whatever an agent raises must not end the serving
            _logger.exception("the agent failed")
            return None, (AGENT_ERROR,)
        if time.perf_counter() - start > self._answer_within_s:
            self._slow += 1
            if self._slow >= SLOW_ANSWERS:
                self._slow, self._paused = 0, PAUSE_BATCHES
        else:
            self._slow = 0
        stages = self._layout.n_stages
        if not isinstance(answer, PrecisionPlan) or len(answer.levels) != stages:
            _logger.error("the agent answered %r; expected a plan of %d stages", answer, stages)
            return None, (NOT_A_PLAN,)
        return answer, ()

    # Serving

    def serve_batch(self) -> None:
        """Decide for the batch, run it and report it."""
        x = self._stream.inputs(self._first, self._first + self._size)
        self._write_signals(x)
        plan, proposed, causes = self._decide()
        before = self._plan
        if plan is not self._taken:  # most agents give the same object again and again
            self._take(plan)
        self._times.append((self._now_s() - self._dispatch_s, self._late_start_s))
        self._causes.update(causes)
        if plan.levels != before.levels:
            asked = None if proposed is None else proposed.levels
            self._switches.append(
                Switch(
                    self._dispatch_s, len(self._reports), before.levels, plan.levels, asked, causes
                )
            )
        outcome = self._run(x, plan)
        end_s = self._now_s()
        self._offer_checks(x, outcome.answers, plan)
        self._report(before.levels, outcome, end_s)

    def _take(self, plan: PrecisionPlan) -> None:
        """Put a plan in force; one with the same row is no new version."""
        self._taken, row = plan, plan.to_row()
        if not np.array_equal(row, self._row):
            self._plan, self._row = replace(plan, version=self._plan.version + 1), row

    def _run(self, x: Tensor, plan: PrecisionPlan) -> Outcome:
        """Return answers, margins of the first pass, and which samples were run again."""
        observed = self._parts._bank.observe(x, plan.levels)
        self._clip = observed.clip_rates.astype(np.float64)
        answers, margins = answers_of(observed.output)
        broken = not_finite(x)
        if broken.any():
            answers[broken], margins[broken] = NO_ANSWER, 1.0  # sure of it: not run again
        again = np.zeros(len(answers), dtype=bool)
        if plan.escalate_below > 0.0 and plan.escalate_levels != plan.levels:
            again = margins < plan.escalate_below
            if again.any():
                output = self._parts._bank.run(x[torch.from_numpy(again)], plan.escalate_levels)
                answers[again] = answers_of(output)[0]
        return Outcome(answers, margins, again)

    def _offer_checks(self, x: Tensor, answers: NDArray[np.int64], plan: PrecisionPlan) -> None:
        """Offer the requests that have an answer to shadow checks; log those that have none."""
        given = answers != NO_ANSWER
        if not given.all():
            numbers = (self._first + np.nonzero(~given)[0]).tolist()
            _logger.error("requests %s hold infinite or missing values: no answer", numbers)
            x, answers = x[torch.from_numpy(given)], answers[given]
        self._parts._shadow.offer(x, answers, plan.levels)

    def _report(self, before: tuple[int, ...], outcome: Outcome, end_s: float) -> None:
        n, batch = self._size, slice(self._first, self._first + self._size)
        stream, deadline_s = self._stream, self._parts._serving.deadline_s
        arrival_s = stream.arrival_s[batch]
        truth = None if stream.truth is None else stream.truth[batch]
        figures = tally(outcome, arrival_s, truth, end_s, deadline_s)
        self._answers[batch] = outcome.answers
        self._latency_s[batch] = end_s - arrival_s
        values = {
            "batch": len(self._reports),
            "plan_version": self._plan.version,
            "requests": n,
            "first_request": self._first,
            "first_arrival_s": arrival_s[0],
            "mean_arrival_s": figures.arrival_s,
            "last_arrival_s": arrival_s[-1],
            "start_s": self._dispatch_s,
            "end_s": end_s,
            "escalated": figures.escalated,
            "late": figures.late,
            "dropped": 0,
            "switched": sum(map(operator.ne, before, self._plan.levels)),
            "correct": figures.correct,
            "correct_in_time": figures.in_time,
            "condition": -1 if stream.condition is None else stream.condition[self._first],
        }
        self._reports.append(np.array([values[name] for name in REPORT_COLUMNS], np.float64))
        self._rows.append(self._row)
        service_s, again = end_s - self._dispatch_s, figures.escalated / n
        self._last = (service_s, float(n), figures.margin, figures.low_margin, again)
        self._dropping.plan_is(self._plan, again)
        self._busy_s += service_s
        self._head += n
        self._served += n
        self._late += figures.late

    def result(self) -> Served:
        """Return what became of the stream."""
        empty = np.zeros((0, len(REPORT_COLUMNS)))
        times = self._second_s * np.array(self._times).reshape(-1, 2)
        return Served(
            reports=np.stack(self._reports) if self._reports else empty,
            plans=np.array(self._rows).reshape(-1, len(self._row)),
            answers=self._answers,
            latency_s=self._latency_s,
            switches=self._switches,
            causes=self._causes,
            decision_s=times[:, 0],
            late_start_s=times[:, 1],
            busy_s=self._second_s * self._busy_s,
            cpu_s=time.thread_time() - self._start_cpu_s,
        )
