from __future__ import annotations

import os
import sys
import threading
import time
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from runtime.precision import shadow
from runtime.precision.shadow import MOST_DB, ShadowCheck
from runtime.precision.snapshot import wilson_interval


class TwoStages:
    """Doubles, then adds one; level 1 of a stage adds a tenth of its result's energy in noise."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.broken = False

    def run_stage(self, stage: int, level: int, border: Tensor) -> Tensor:
        if self.broken:
            raise RuntimeError("broken")
        exact = border * 2.0 if stage == 0 else border + 1.0
        return exact * (1.0 + (0.1**0.5 if level else 0.0))

    def probe(self, x: Tensor, assignment: tuple[int, ...]) -> SimpleNamespace:
        self.gate.wait()
        first = self.run_stage(0, assignment[0], x)
        second = self.run_stage(1, assignment[1], first)
        return SimpleNamespace(output=second, stages=(first, second))


def _answers(x: Tensor) -> np.ndarray:
    return x.argmax(dim=1).numpy()


def test_disagreement_and_noise_are_what_they_are() -> None:
    torch.manual_seed(0)
    x = torch.rand(100, 4)
    answers = _answers(x)
    answers[:7] = (answers[:7] + 1) % 4
    with ShadowCheck(TwoStages(), 2, fraction=1.0) as check:
        assert check.offer(x, answers, (1, 0)) == 100
        check.wait()
        found = check.estimate()
    assert (found.checks, found.disagreement) == (100, 0.07)
    assert (found.low, found.high) == wilson_interval(7, 100)
    # each stage by itself: the noise of the first does not count against the second
    np.testing.assert_allclose(found.sqnr_db, [10.0, MOST_DB], rtol=1e-4)


def test_a_silent_request_is_no_silent_monitor() -> None:
    silent = torch.zeros(4, 4)  # its first stage puts out nothing, at whatever level
    with ShadowCheck(TwoStages(), 2, fraction=1.0) as check:
        check.offer(silent, _answers(silent), (1, 1))
        check.wait()
        np.testing.assert_allclose(check.estimate().sqnr_db, [MOST_DB, 10.0], rtol=1e-4)


def test_noise_in_silence_is_a_finite_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = torch.zeros(4, 4)
    bank = TwoStages()
    monkeypatch.setattr(
        bank, "run_stage", lambda stage, level, border: border * 0.0 + (0.1 if level else 0.0)
    )
    with ShadowCheck(bank, 2, fraction=1.0) as check:
        check.offer(silent, _answers(silent), (1, 1))
        check.wait()
        np.testing.assert_array_equal(check.estimate().sqnr_db, [-MOST_DB, -MOST_DB])


def test_the_window_forgets() -> None:
    x = torch.rand(8, 4)
    wrong = (_answers(x) + 1) % 4
    with ShadowCheck(TwoStages(), 2, fraction=1.0, window=8) as check:
        check.offer(x, wrong, (0, 0))
        check.wait()
        assert check.estimate().disagreement == 1.0
        check.offer(x, _answers(x), (0, 0))
        check.wait()
        assert check.estimate()[:2] == (8, 0.0)


def test_about_the_stated_share_is_checked() -> None:
    x = torch.rand(64, 4)
    with ShadowCheck(TwoStages(), 2, fraction=0.1, window=10_000, waiting=10_000) as check:
        chosen = sum(check.offer(x, _answers(x), (0, 0)) for _ in range(200))
        check.wait()
        assert check.estimate().checks == chosen
    assert abs(chosen / 12_800 - 0.1) < 0.015  # five standard deviations


def test_nothing_runs_at_a_share_of_zero() -> None:
    check = ShadowCheck(TwoStages(), 2, fraction=0.0)
    before = threading.active_count()
    x = torch.rand(8, 4)
    assert check.offer(x, _answers(x), (1, 1)) == 0
    assert threading.active_count() == before
    assert check.estimate()[:4] == (0, 0.0, 0.0, 1.0)


def test_offering_never_waits() -> None:
    bank, x = TwoStages(), torch.rand(4, 4)
    bank.gate.clear()  # the checking thread is stuck
    with ShadowCheck(bank, 2, fraction=1.0, waiting=2) as check:
        accepted = [check.offer(x, _answers(x), (0, 0)) for _ in range(10)]
        assert accepted.count(4) in (2, 3)  # two wait, one may be under way
        assert check.skipped == accepted.count(0)
        bank.gate.set()


def test_a_check_that_fails_does_not_end_the_checking() -> None:
    bank, x = TwoStages(), torch.rand(4, 4)
    with ShadowCheck(bank, 2, fraction=1.0) as check:
        bank.broken = True
        check.offer(x, _answers(x), (0, 0))
        check.wait()
        bank.broken = False
        check.offer(x, _answers(x), (0, 0))
        check.wait()
        assert (check.failed, check.estimate().checks) == (1, 4)


@pytest.mark.parametrize(
    ("fraction", "window", "message"),
    [(-0.1, 8, "fraction is -0.1"), (1.5, 8, "fraction is 1.5"), (0.5, 0, "window is 0")],
)
def test_impossible_settings_are_refused(fraction: float, window: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShadowCheck(TwoStages(), 2, fraction, window)


def test_checks_wait_for_an_idle_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "PATIENCE_S", 60.0)
    x = torch.rand(8, 4)
    with ShadowCheck(TwoStages(), 2, fraction=1.0) as check:
        check.server_is(idle=False)
        check.offer(x, _answers(x), (0, 0))
        time.sleep(0.05)
        assert check.estimate().checks == 0
        check.server_is(idle=True)
        check.wait()
        assert check.estimate().checks == 8


def test_checks_rest_in_proportion_to_their_work(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = count()
    monkeypatch.setattr(shadow.time, "thread_time", lambda: float(next(ticks)))
    rests: list[float] = []
    with ShadowCheck(TwoStages(), 2, fraction=1.0) as check:
        monkeypatch.setattr(check._ending, "wait", rests.append)
        for _ in range(3):
            check.offer(torch.ones(2, 4), np.zeros(2, np.int64), (1, 1))
            check.wait()
    assert rests == pytest.approx([9.0, 9.0, 9.0])  # a tenth of the time, where a check takes one


def test_a_rest_ends_with_the_checking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "MOST_DUTY", 1e-9)  # weeks
    with ShadowCheck(TwoStages(), 2, fraction=1.0) as check:
        check.offer(torch.ones(2, 4), np.zeros(2, np.int64), (1, 1))
        check.wait()
        assert check.estimate().checks == 2


def test_checks_are_made_under_full_load_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "PATIENCE_S", 0.02)
    x = torch.rand(8, 4)
    with ShadowCheck(TwoStages(), 2, fraction=1.0) as check:
        check.server_is(idle=False)
        check.offer(x, _answers(x), (0, 0))
        check.wait()
        assert check.estimate().checks == 8


class Convolving(TwoStages):
    """Runs a convolution that all cores could share, and counts the threads of the process."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.rand(64, 64, 3, 3)
        self.new_threads: int | None = None

    def probe(self, x: Tensor, assignment: tuple[int, ...]) -> SimpleNamespace:
        before = _threads()
        torch.nn.functional.conv2d(torch.rand(16, 64, 28, 28), self.weight)
        self.new_threads = _threads() - before
        return super().probe(x, assignment)


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(sys.platform != "linux" or os.cpu_count() == 1, reason="counts Linux threads")
def test_checks_take_no_more_threads_than_the_server() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        bank = Convolving()
        with ShadowCheck(bank, 2, fraction=1.0) as check:
            check.offer(torch.rand(4, 4), np.zeros(4, dtype=np.int64), (0, 0))
            check.wait()
        assert bank.new_threads == 0
    finally:
        torch.set_num_threads(before)
