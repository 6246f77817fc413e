"""A plain-Python simulator of one precision server: the oracle of the compiled engine.

Written for reading, with objects, lists and searches where the engine has rings and kept places;
tests demand the same bits from both. It reads the profile itself, not the engine's tables, and
keeps what the engine has no use for: the log of all requests.

Order within a step: the plan is taken over; the batch is served; its checks are queued; requests
that come too late are dropped; an idle server jumps to the next arrival; the next batch is formed;
the checks that are known by then enter the window; the signals are written.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from runtime.precision.plan import PrecisionPlan, assignment_index
from runtime.precision.serving import Drop, Serving
from runtime.precision.snapshot import (
    LOW_MARGIN,
    REPORT_COLUMNS,
    PrecisionSnapshot,
    SignalLayout,
    bucket_of,
    wilson_interval,
)
from simulators.noise import uniform_reference
from simulators.precision.model import SAMPLE_STREAM, SERVICE_STREAM
from simulators.precision.profile import MARGIN_STEPS, PrecisionProfile
from simulators.reference_arrivals import ReferenceArrivals


@dataclass
class Request:
    """One request as it was served, dropped or waits."""

    number: int
    arrival_s: float
    condition: int
    sample: int
    checked: bool
    fate: str = "waiting"  # then served, dropped
    end_s: float = math.nan
    levels: tuple[int, ...] = ()
    correct: bool = False


@dataclass(frozen=True)
class Check:
    """The shadow checks of one batch, under way."""

    ready_s: float
    disagrees: list[bool]
    condition: int
    levels: tuple[int, ...]


class ReferenceServer:
    """One simulated server, step by step as the rules are written.

    Attributes:
        signals: What the controller sees now, by name.
        report: What the last step served, by name; empty if nothing.
        log: All requests that were served or dropped, in order of arrival.
    """

    def __init__(self, profile: PrecisionProfile, serving: Serving) -> None:
        """Describe the server; `reset` must be called before `step`."""
        self.profile, self.serving = profile, serving
        self.layout = SignalLayout(len(profile.stages), profile.property_names)

    def reset(
        self,
        key: int,
        counts: NDArray[np.int64],
        tick_s: float,
        segments: list[tuple[float, int]],
        plan: PrecisionPlan,
    ) -> None:
        """Give the server a stream.

        Args:
            key: Random key.
            counts: int64 [n_ticks], requests per tick.
            tick_s: Length of a tick, seconds.
            segments: Start and condition of each stretch.
            plan: The plan in force from time 0.
        """
        self.key, self.segments = key, segments
        self.arrivals = ReferenceArrivals(counts, tick_s)
        self.now_s = self.busy_s = 0.0
        self.plan, self.version = plan, 0
        self._ran = plan.levels  # in the last pass
        self.batches = self.served = self.late = self.dropped = self.head = 0
        self.batch: list[Request] = []
        self.log: list[Request] = []
        self.checks: deque[Check] = deque()
        self.window: deque[bool] = deque(maxlen=self.serving.shadow_window)
        self.signals = dict.fromkeys(self.layout.names, 0.0)
        self.signals["shadow_high"] = 1.0
        self.report: dict[str, float] = {}
        self._write_plan()
        self._form_batch()

    # Arrivals ---------------------------------------------------------------------------------

    def request(self, number: int) -> Request:
        """Return a request as it arrives."""
        arrival_s = self.arrivals.time_s(number)
        condition = [c for start_s, c in self.segments if start_s <= arrival_s][-1]
        place = uniform_reference(self.key, SAMPLE_STREAM, number, 0) * self.profile.n_samples
        checked = place - int(place) < self.serving.shadow_fraction
        return Request(number, arrival_s, condition, int(place), checked)

    # Serving ----------------------------------------------------------------------------------

    def margin(self, request: Request, levels: tuple[int, ...]) -> int:
        """Return the output margin of a request, in steps."""
        index = assignment_index(levels, len(self.profile.levels))
        return int(self.profile.margin[request.condition, index, request.sample])

    def label(self, request: Request, levels: tuple[int, ...]) -> int:
        """Return the answer to a request."""
        index = assignment_index(levels, len(self.profile.levels))
        return int(self.profile.label[request.condition, index, request.sample])

    def _pass_s(self, levels: tuple[int, ...], requests: int, draw: int) -> float:
        bucket = bucket_of(requests, self.profile.buckets)
        cells = self.profile.residual[bucket]
        place = uniform_reference(self.key, SERVICE_STREAM, self.batches, draw) * len(cells)
        time_s = self.profile.predict_latency_s(levels, requests) * float(cells[int(place)])
        if levels != self._ran:
            time_s += float(self.profile.switch_s[bucket])
        self._ran = levels
        return time_s

    def step(self, plan: PrecisionPlan) -> PrecisionSnapshot:
        """Serve the batch under a plan and return what the controller sees then."""
        if not self.batch:
            self.report = {}
            return self.snapshot()
        switched = self._take_plan(plan)
        report = self._serve(switched)
        dropped_before = self.dropped
        self._form_batch()
        self._collect_checks()
        self.report = report | {"dropped": self.dropped - dropped_before}
        return self.snapshot()

    def _take_plan(self, plan: PrecisionPlan) -> int:
        switched = sum(a != b for a, b in zip(plan.levels, self.plan.levels, strict=True))
        if not np.array_equal(plan.to_row(), self.plan.to_row()):
            self.version += 1
            self.plan = plan
            self._write_plan()
        return switched

    def _write_plan(self) -> None:
        names = self.layout.names[self.layout.plan_columns]
        self.signals.update(zip(names, self.plan.to_row().tolist(), strict=True))

    def _serve(self, switched: int) -> dict[str, float]:
        batch, plan, n = self.batch, self.plan, len(self.batch)
        threshold = plan.escalate_below * MARGIN_STEPS
        margins = [self.margin(request, plan.levels) for request in batch]
        again = [plan.escalate_levels != plan.levels and margin < threshold for margin in margins]
        service_s = float(self.profile.decision_s[bucket_of(n, self.profile.buckets)])
        service_s += self._pass_s(plan.levels, n, 0)
        if any(again):
            service_s += self._pass_s(plan.escalate_levels, sum(again), 1)
        start_s = self.now_s
        end_s = start_s + service_s
        for request, second in zip(batch, again, strict=True):
            request.fate, request.end_s = "served", end_s
            request.levels = plan.escalate_levels if second else plan.levels
            truth = int(self.profile.truth[request.sample])
            request.correct = self.label(request, request.levels) == truth
        self._queue_checks(end_s)
        late = [end_s - request.arrival_s > self.serving.deadline_s for request in batch]
        in_time = sum(r.correct and not over for r, over in zip(batch, late, strict=True))
        self.signals["last_service_s"] = service_s
        self.signals["last_batch"] = n
        self.signals["last_margin"] = sum(margins) / (n * MARGIN_STEPS)
        low = sum(margin < LOW_MARGIN * MARGIN_STEPS for margin in margins)
        self.signals["last_low_margin_share"] = low / n
        self.signals["last_escalated_share"] = sum(again) / n
        self._write_clip_rates()
        report: dict[str, float] = {
            "batch": self.batches,
            "plan_version": self.version,
            "requests": n,
            "first_request": self.head,
            "first_arrival_s": batch[0].arrival_s,
            "mean_arrival_s": sum(request.arrival_s for request in batch) / n,
            "last_arrival_s": batch[-1].arrival_s,
            "start_s": start_s,
            "end_s": end_s,
            "escalated": sum(again),
            "late": sum(late),
            "switched": switched,
            "correct": sum(request.correct for request in batch),
            "correct_in_time": in_time,
            "condition": batch[0].condition,
        }
        self.now_s = end_s
        self.busy_s += service_s
        self.batches += 1
        self.head += n
        self.served += n
        self.late += sum(late)
        self.log += batch
        return report

    def _write_clip_rates(self) -> None:
        n = len(self.batch)
        runs = [(c, len(list(run))) for c, run in groupby(self.batch, lambda r: r.condition)]
        for stage, level in enumerate(self.plan.levels):
            rate = 0.0
            for condition, length in runs:
                rate += length / n * float(self.profile.clip_rate[condition, stage, level])
            self.signals[f"clip_rate_{stage}"] = rate

    # Between two batches ----------------------------------------------------------------------

    def _form_batch(self) -> None:
        deadline_s = self.serving.deadline_s
        while self._comes_too_late():
            hopeless = self.request(self.head)
            hopeless.fate = "dropped"
            self.log.append(hopeless)
            self.head += 1
            self.dropped += 1
        arrival_s = self.arrivals.time_s(self.head)
        if math.isinf(arrival_s):
            self.now_s = max(self.now_s, self.arrivals.end_s)
            self.batch, waiting, slack_s = [], 0, deadline_s
        else:
            self.now_s = max(self.now_s, arrival_s)
            waiting = max(self.arrivals.until(self.now_s)[0] - self.head, 1)
            size = min(waiting, self.serving.max_batch)
            self.batch = [self.request(self.head + i) for i in range(size)]
            slack_s = deadline_s - (self.now_s - arrival_s)
            self._write_properties()
        self.signals |= {
            "time_s": self.now_s,
            "requests_in": self.head + waiting,
            "requests_served": self.served,
            "requests_late": self.late,
            "requests_dropped": self.dropped,
            "busy_s": self.busy_s,
            "waiting": waiting,
            "batch": len(self.batch),
            "head_slack_s": slack_s,
        }

    def _comes_too_late(self) -> bool:
        """Return whether the first request waits and is to leave unserved."""
        drop, arrival_s = self.serving.drop, self.arrivals.time_s(self.head)
        if drop is Drop.NEVER or arrival_s >= self.now_s:
            return False
        left_s = self.serving.deadline_s - (self.now_s - arrival_s)
        waiting = max(self.arrivals.until(self.now_s)[0] - self.head, 1)
        planned_s = self._planned_s(min(waiting, self.serving.max_batch))
        return left_s <= 0.0 or (drop is Drop.LATE and left_s < planned_s)

    def _planned_s(self, requests: int) -> float:
        """Return the mean time of a batch under the plan in force; as many again as lately."""
        plan = self.plan
        time_s = self.profile.predict_latency_s(plan.levels, requests)
        again = int(self.signals["last_escalated_share"] * requests + 0.5)
        if plan.escalate_below > 0.0 and plan.escalate_levels != plan.levels and again:
            time_s += self.profile.predict_latency_s(plan.escalate_levels, again)
        return time_s

    def _write_properties(self) -> None:
        for f, name in enumerate(self.profile.property_names):
            total = 0.0
            for request in self.batch:
                total += float(self.profile.properties[request.condition, request.sample, f])
            self.signals[f"property_{name}"] = total / len(self.batch)

    # Shadow checks ----------------------------------------------------------------------------

    def _queue_checks(self, end_s: float) -> None:
        checked = [request for request in self.batch if request.checked]
        if not checked or len(self.checks) == self.serving.shadow_queue:
            return
        reference = (0,) * self.layout.n_stages
        disagrees = [self.label(r, r.levels) != self.label(r, reference) for r in checked]
        ready_s = end_s + self.serving.shadow_delay_s
        self.checks.append(Check(ready_s, disagrees, checked[-1].condition, self.plan.levels))

    def _collect_checks(self) -> None:
        while self.checks and self.checks[0].ready_s <= self.now_s:
            check = self.checks.popleft()
            self.window.extend(check.disagrees)
            for stage, level in enumerate(check.levels):
                sqnr_db = float(self.profile.sqnr_db[check.condition, stage, level])
                self.signals[f"sqnr_db_{stage}"] = sqnr_db
        n = len(self.window)
        if n:
            low, high = wilson_interval(sum(self.window), n)
            self.signals |= {
                "shadow_checks": n,
                "shadow_disagreement": sum(self.window) / n,
                "shadow_low": low,
                "shadow_high": high,
            }

    # What is seen -----------------------------------------------------------------------------

    def report_row(self) -> NDArray[np.float64]:
        """Return the report of the last step, float64 [len(REPORT_COLUMNS)]."""
        return np.array([float(self.report.get(name, 0.0)) for name in REPORT_COLUMNS])

    def snapshot(self) -> PrecisionSnapshot:
        """Return what the controller sees now."""
        row = np.array([float(self.signals[name]) for name in self.layout.names])
        return PrecisionSnapshot(self.layout, row, self.plan)
