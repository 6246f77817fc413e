from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from runtime.precision.guard_tables import BankTables, PrecisionLimits
from runtime.precision.guards import PrecisionGuards
from runtime.precision.plan import PrecisionPlan
from runtime.precision.server import (
    PAUSE_BATCHES,
    SLOW_ANSWERS,
    PrecisionServer,
)
from runtime.precision.serving import Drop, Serving
from runtime.precision.shadow import ShadowCheck
from runtime.precision.snapshot import REPORT_INDEX, PrecisionSnapshot, SignalLayout
from runtime.precision.streams import NO_ANSWER, RequestStream, Served

LAYOUT = SignalLayout(2, ("brightness",))
SAFE = PrecisionPlan((1, 1))
CLASSES = 4


class Bank:
    """Answers exactly at level 0; coarser levels are faster and confuse class 3 with class 0."""

    def __init__(self, pass_s: float) -> None:
        self.pass_s = pass_s
        self.passes: list[tuple[int, tuple[int, ...]]] = []

    def run(self, x: Tensor, assignment: tuple[int, ...]) -> Tensor:
        self.passes.append((len(x), assignment))
        time.sleep(self.pass_s / (1 + sum(assignment)))
        output = 4.0 * torch.nn.functional.one_hot(x[:, 0].long(), CLASSES).float()
        if sum(assignment):
            output[x[:, 0] == 3] = torch.tensor([0.1, 0.0, 0.0, 0.0])
        return output

    def observe(self, x: Tensor, assignment: tuple[int, ...]) -> SimpleNamespace:
        rates = np.full(2, 0.25, dtype=np.float32)
        return SimpleNamespace(output=self.run(x, assignment), clip_rates=rates)

    def probe(self, x: Tensor, assignment: tuple[int, ...]) -> SimpleNamespace:
        raise AssertionError("no shadow checks in these tests")

    def run_stage(self, stage: int, level: int, border: Tensor) -> Tensor:
        raise AssertionError("no shadow checks in these tests")


class Agent:
    """Decides by a function and remembers what it saw."""

    def __init__(self, rule: Callable[[PrecisionSnapshot], object]) -> None:
        self.rule, self.seen = rule, []  # type: ignore[var-annotated]

    def decide(self, snapshot: PrecisionSnapshot) -> PrecisionPlan:
        self.seen.append(snapshot)
        return self.rule(snapshot)  # type: ignore[return-value]


def _guards(pass_s: float = 1e-3) -> PrecisionGuards:
    tables = BankTables(2, 2, (1, 8), np.ones(4), np.full((4, 2), pass_s))
    return PrecisionGuards(PrecisionLimits(), tables, SAFE, LAYOUT)


def _stream(arrival_s: np.ndarray) -> RequestStream:
    truth = np.arange(len(arrival_s)) % CLASSES
    x = torch.from_numpy(truth[:, None].astype(np.float32))
    return RequestStream(arrival_s, lambda first, last: x[first:last], truth, truth * 0)


def _serve(
    bank: Bank, agent: Agent, arrival_s: np.ndarray, serving: Serving | None = None
) -> Served:
    server = PrecisionServer(
        bank,
        agent,
        _guards(),
        serving or Serving(deadline_s=10.0, max_batch=8),
        ShadowCheck(bank, 2, 0.0),
        lambda x: np.array([float(x.mean())]),
    )
    return server.serve(_stream(arrival_s), LAYOUT)


def test_every_request_is_served_once_in_order_and_not_before_it_arrives() -> None:
    arrival_s = np.sort(np.random.default_rng(0).uniform(0.0, 0.5, 200))
    agent = Agent(lambda s: PrecisionPlan((0, 0)))
    served = _serve(Bank(0.004), agent, arrival_s)
    reports = served.reports
    requests = reports[:, REPORT_INDEX["requests"]]
    assert requests.sum() == 200
    assert 1 <= requests.min() <= requests.max() <= 8
    np.testing.assert_array_equal(served.answers, np.arange(200) % CLASSES)
    first = reports[:, REPORT_INDEX["first_request"]]
    np.testing.assert_array_equal(first, np.cumsum(requests) - requests)
    start, end = reports[:, REPORT_INDEX["start_s"]], reports[:, REPORT_INDEX["end_s"]]
    assert (start >= reports[:, REPORT_INDEX["last_arrival_s"]]).all()
    assert (start[1:] >= end[:-1]).all()
    assert (served.latency_s >= 0.004).all()
    assert reports[:, REPORT_INDEX["correct"]].sum() == 200
    assert (served.decision_s > 0.0).all()


def test_what_the_agent_sees_is_what_happened() -> None:
    arrival_s = np.repeat(np.arange(0.0, 0.3, 0.1), 4)  # three bursts of four
    agent = Agent(lambda s: PrecisionPlan((0, 1)))
    _serve(Bank(0.01), agent, arrival_s)
    first, second, third = agent.seen
    assert (first["batch"], first["waiting"], first["requests_in"]) == (4, 4, 4)
    assert (first["last_batch"], first["busy_s"]) == (0, 0.0)
    assert first["property_brightness"] == 1.5  # mean of classes 0 to 3
    assert second["requests_served"] == 4
    assert second["last_service_s"] == pytest.approx(second["busy_s"])
    assert second["clip_rate_0"] == 0.25
    assert second["last_low_margin_share"] == 0.25  # class 3 is unsure at the lower level
    assert second.plan.levels == (0, 1)
    assert third["head_slack_s"] == pytest.approx(10.0, abs=0.05)
    assert third["shadow_high"] == 1.0


def test_unsure_samples_run_again_at_the_higher_levels() -> None:
    bank = Bank(0.001)
    cascade = PrecisionPlan((1, 1), 0.5, (0, 0))
    served = _serve(bank, Agent(lambda s: cascade), np.zeros(8))
    assert bank.passes == [(8, (1, 1)), (2, (0, 0))]
    np.testing.assert_array_equal(served.answers, np.arange(8) % CLASSES)
    assert served.reports[0, REPORT_INDEX["escalated"]] == 2
    plain = _serve(Bank(0.001), Agent(lambda s: PrecisionPlan((1, 1))), np.zeros(8))
    assert plain.reports[0, REPORT_INDEX["correct"]] == 6


def test_a_request_that_is_not_finite_gets_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    truth = np.array([1, 3, 2, 1])
    x = torch.from_numpy(truth[:, None].astype(np.float32)).repeat(1, 2)
    x[1, 1], x[2, 1] = torch.inf, torch.nan
    bank = Bank(0.001)
    server = PrecisionServer(
        bank,
        Agent(lambda s: PrecisionPlan((1, 1), 0.5, (0, 0))),
        _guards(),
        Serving(deadline_s=10.0, max_batch=8),
        ShadowCheck(bank, 2, 0.0),
        lambda x: np.array([0.0]),
    )
    served = server.serve(
        RequestStream(np.zeros(4), lambda first, last: x[first:last], truth), LAYOUT
    )
    np.testing.assert_array_equal(served.answers, [1, NO_ANSWER, NO_ANSWER, 1])
    assert np.isfinite(served.latency_s).all()  # they were served, and are wrong
    correct = served.reports[:, REPORT_INDEX["correct"]]
    assert (served.reports[:, REPORT_INDEX["requests"]].sum(), correct.sum()) == (4, 2)
    assert len(bank.passes) == 1  # an unsure class 3 would run again
    assert "requests [1, 2] hold infinite or missing values" in caplog.text


def test_a_stream_can_be_played_faster_or_slower() -> None:
    bank, wall_s = Bank(0.01), time.perf_counter()
    server = PrecisionServer(
        bank,
        Agent(lambda s: PrecisionPlan((0, 0))),
        _guards(),
        Serving(deadline_s=0.05, max_batch=8),
        ShadowCheck(bank, 2, 0.0),
        lambda x: np.array([0.0]),
    )
    stream = _stream(np.array([0.0, 0.8]))
    served = server.serve(stream, LAYOUT, second_s=0.25)
    wall_s = time.perf_counter() - wall_s
    start, end = (served.reports[:, REPORT_INDEX[name]] for name in ("start_s", "end_s"))
    assert start[1] == pytest.approx(0.8, abs=0.1)
    assert 0.2 < wall_s < 0.5  # 0.8 s at four times the speed
    # A pass of 10 ms lasts 40 ms of the stream, just in time; the cost is that of the clock.
    assert (end - start > 0.04).all()
    assert served.busy_s == pytest.approx(0.25 * (end - start).sum())
    np.testing.assert_allclose(served.latency_s, end - [0.0, 0.8])
    with pytest.raises(ValueError, match=r"second_s is 0\.0"):
        server.serve(stream, LAYOUT, second_s=0.0)


def test_expired_requests_leave_unserved_and_late_ones_count() -> None:
    # Each batch of one takes 20 ms and may take 50: of 12 at once some expire.
    serving = Serving(deadline_s=0.05, max_batch=1)
    served = _serve(Bank(0.02), Agent(lambda s: PrecisionPlan((0, 0))), np.zeros(12), serving)
    n = len(served.reports)
    dropped = served.reports[:, REPORT_INDEX["dropped"]].sum()
    assert 2 <= n <= 4
    assert n + dropped == 12
    assert np.isnan(served.latency_s).sum() == (served.answers == -1).sum() == dropped
    late = served.reports[:, REPORT_INDEX["late"]].sum()
    assert late == (served.latency_s[:n] > 0.05).sum()
    right = served.reports[:, REPORT_INDEX["correct_in_time"]].sum()
    assert right == n - late
    patient = Serving(deadline_s=0.05, max_batch=1, drop=Drop.NEVER)
    served = _serve(Bank(0.02), Agent(lambda s: PrecisionPlan((0, 0))), np.zeros(6), patient)
    assert len(served.reports) == 6


def test_requests_that_no_plan_answers_in_time_leave_unserved() -> None:
    # Of 40 at once, one every 20 ms, with a deadline of 200 ms; 60 ms are thought to be needed.
    bank = Bank(0.02)
    server = PrecisionServer(
        bank,
        Agent(lambda s: PrecisionPlan((0, 0))),
        _guards(pass_s=0.06),
        Serving(deadline_s=0.2, max_batch=1),
        ShadowCheck(bank, 2, 0.0),
        lambda x: np.array([0.0]),
    )
    served = server.serve(_stream(np.zeros(40)), LAYOUT)
    reports = served.reports
    assert reports[:, REPORT_INDEX["late"]].sum() == 0
    assert 3 <= len(reports) <= 8
    assert len(reports) + reports[:, REPORT_INDEX["dropped"]].sum() == 40
    assert served.latency_s[: len(reports)].max() < 0.2


def test_switches_are_explained() -> None:
    turns = itertools.cycle([(0, 0), (0, 1)])
    served = _serve(Bank(0.001), Agent(lambda s: PrecisionPlan(next(turns))), np.zeros(24))
    assert [s.after for s in served.switches] == [(0, 0), (0, 1), (0, 0)]
    assert [s.before for s in served.switches] == [(1, 1), (0, 0), (0, 1)]
    assert all(s.proposed == s.after and s.causes == () for s in served.switches)
    assert served.reports[:, REPORT_INDEX["switched"]].tolist() == [2, 1, 1]
    assert served.reports[:, REPORT_INDEX["plan_version"]].tolist() == [1, 2, 3]


def _raise(snapshot: PrecisionSnapshot) -> PrecisionPlan:
    raise RuntimeError("no idea")


@pytest.mark.parametrize(
    ("rule", "cause"),
    [
        (_raise, "agent_error"),
        (lambda s: "int8", "not_a_plan"),
        (lambda s: PrecisionPlan((0, 0, 0)), "not_a_plan"),  # of another chain
    ],
)
def test_whatever_the_agent_does_the_safe_plan_serves(
    rule: Callable[[PrecisionSnapshot], object], cause: str
) -> None:
    bank = Bank(0.001)
    served = _serve(bank, Agent(rule), np.zeros(16))
    assert [levels for _, levels in bank.passes] == [SAFE.levels] * 2
    assert served.causes == {cause: 2}
    assert (served.answers >= 0).all()


def test_an_agent_that_is_slow_again_and_again_is_not_asked_for_a_while() -> None:
    agent = Agent(lambda s: time.sleep(0.004) or PrecisionPlan((0, 0)))
    served = _serve(Bank(0.0002), agent, np.zeros(120), Serving(deadline_s=10.0, max_batch=1))
    # asked three times, left alone for a hundred batches, asked three times, left alone
    assert PAUSE_BATCHES == 100
    assert len(agent.seen) == 2 * SLOW_ANSWERS == 6
    assert served.causes == {"agent_slow": 114}


@pytest.mark.parametrize(
    ("times", "message"),
    [([0.2, 0.1], "no ascending row"), ([np.nan], "no ascending row"), ([-1.0], "begins at -1.0")],
)
def test_a_stream_that_does_not_flow_is_refused(times: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _stream(np.array(times))
