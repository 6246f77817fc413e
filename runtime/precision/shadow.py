"""Shadow checks: a label-free estimate of what lowered levels cost, off the critical path.

A sampled share of the requests is run again at the reference levels by a thread of its own. The
share of answers that differ, over a sliding window, with Wilson's interval, estimates the loss.
Checks run while the server waits for requests, see `ShadowCheck.server_is`, and at most a share of
the time, `MOST_DUTY`: requests that come meanwhile are served more slowly.
With a share of 0 there is no thread, and offering a batch costs a comparison.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.precision.machine import sqnr_db
from runtime.precision.snapshot import wilson_interval

Assignment = tuple[int, ...]
_logger = logging.getLogger(__name__)


class Probed(Protocol):
    """What is needed of a bank."""

    def probe(self, x: Tensor, assignment: Assignment) -> Any:
        """Return a result with `output` and, per stage, `stages`."""

    def run_stage(self, stage: int, level: int, border: Tensor) -> Tensor:
        """Return the result of one stage for what was handed over to it, all in fp32."""


class ShadowEstimate(NamedTuple):
    """What the checks of the window say.

    Attributes:
        checks: Requests checked in the window.
        disagreement: Share of them that the reference answers otherwise; 0 without checks.
        low: Lower end of Wilson's 95 % interval of that share.
        high: Upper end; 1 without checks.
        sqnr_db: float64 [S], signal over the noise that each stage by itself added to the reference
            in the last checked batch, decibels; 0 before the first.
    """

    checks: int
    disagreement: float
    low: float
    high: float
    sqnr_db: NDArray[np.float64]


class _Job(NamedTuple):
    x: Tensor
    answers: NDArray[np.int64]
    levels: Assignment


class ShadowCheck:
    """Checks a share of what is served.

    Use it as a context manager: leaving it ends the thread.

    Attributes:
        skipped: Batches whose checks were left out because too many were under way.
        failed: Batches whose check raised an error; the log has it.
    """

    def __init__(
        self,
        bank: Probed,
        n_stages: int,
        fraction: float,
        window: int = 128,
        waiting: int = 16,
        seed: int = 0,
    ) -> None:
        """Prepare; nothing runs before the first check.

        Args:
            bank: What is checked. Its first level is the reference.
            n_stages: Number of stages S.
            fraction: Share of the requests to check, in [0, 1].
            window: Checked requests that the estimate looks back on, at least 1.
            waiting: Batches whose checks may be under way; beyond it checks are skipped.
            seed: Chooses the requests.

        Raises:
            ValueError: A number is out of range.
        """
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"shadow fraction is {fraction}; expected a share in [0, 1]")
        if window < 1 or waiting < 1:
            raise ValueError(f"window is {window} and waiting {waiting}; expected at least 1")
        self.skipped = self.failed = 0
        self._bank, self._fraction = bank, fraction
        self._reference = (0,) * n_stages
        self._rng = np.random.default_rng(seed)
        self._window: deque[bool] = deque(maxlen=window)
        self._estimate = ShadowEstimate(0, 0.0, *wilson_interval(0, 0), np.zeros(n_stages))
        self._jobs: queue.Queue[_Job | None] = queue.Queue(maxsize=waiting)
        self._idle = threading.Event()
        self._idle.set()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    def offer(self, x: Tensor, answers: NDArray[np.int64], levels: Assignment) -> int:
        """Queue checks of some of the requests of a batch; returns at once.

        Args:
            x: The batch, float32 [n, ...]; not changed afterwards.
            answers: int64 [n], what was answered.
            levels: The levels it was answered at.

        Returns:
            How many requests will be checked.
        """
        if self._fraction == 0.0:
            return 0
        chosen = np.nonzero(self._rng.random(len(answers)) < self._fraction)[0]
        if len(chosen) == 0:
            return 0
        job = _Job(x[torch.from_numpy(chosen)], answers[chosen], levels)
        try:
            self._jobs.put_nowait(job)
        except queue.Full:
            self.skipped += 1
            return 0
        if self._thread is None:
            # oneDNN takes all cores in a thread that was not told otherwise, and its threads spin
            # for a while after each call: checks would take the server's core.
            own = (torch.get_num_threads(),)
            self._ending.clear()
            self._thread = threading.Thread(target=self._work, args=own, name="shadow", daemon=True)
            self._thread.start()
        return len(chosen)

    def server_is(self, *, idle: bool) -> None:
        """Say whether the server waits for requests: checks run then.

        They share memory, caches and the interpreter with the server. Run at once, checks of 2 % of
        the requests made half as long again what a small net's requests took in the median. Under
        full load a check waits `PATIENCE_S` and runs all the same, so that some are always made.

        Args:
            idle: Whether it waits; True before anybody says otherwise.
        """
        if idle:
            self._idle.set()
        else:
            self._idle.clear()

    def estimate(self) -> ShadowEstimate:
        """Return what is known by now.

        After a check that failed nothing is known, until one succeeds: shares and SQNRs are NaN,
        and guards take the monitor for a silent one.
        """
        return self._estimate

    def wait(self) -> None:
        """Wait until all queued checks are done."""
        self._jobs.join()

    def __enter__(self) -> ShadowCheck:
        """Return the check itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread, checks under way left out."""
        if self._thread is not None:
            self._ending.set()
            while True:
                try:
                    self._jobs.get_nowait()
                    self._jobs.task_done()
                except queue.Empty:
                    break
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _work(self, n_threads: int) -> None:
        torch.set_num_threads(n_threads)
        while (job := self._jobs.get()) is not None:
            before_s = time.thread_time()
            try:
                with torch.inference_mode():
                    self._check(job)
            except Exception:  # a failing check must not end the checking
                self.failed += 1
                self._window.clear()
                unknown = np.full(len(self._reference), math.nan)
                self._estimate = ShadowEstimate(0, math.nan, math.nan, math.nan, unknown)
                _logger.exception("a shadow check failed")
            finally:
                self._jobs.task_done()
            busy_s = time.thread_time() - before_s
            self._ending.wait(busy_s * (1.0 / MOST_DUTY - 1.0))
        self._jobs.task_done()

    def _check(self, job: _Job) -> None:
        latest_s = time.monotonic() + PATIENCE_S
        self._await_idle(latest_s)
        reference = self._bank.probe(job.x, self._reference)
        differs = reference.output.argmax(dim=1).numpy() != job.answers
        noise = self._noise(job, reference.stages, latest_s)
        self._window.extend(differs.tolist())
        checks, wrong = len(self._window), sum(self._window)
        # One assignment: a reader sees the old estimate or the new one, never half of each.
        self._estimate = ShadowEstimate(
            checks, wrong / checks, *wilson_interval(wrong, checks), noise
        )

    def _await_idle(self, latest_s: float) -> None:
        self._idle.wait(max(latest_s - time.monotonic(), 0.0))

    def _noise(
        self, job: _Job, reference: Sequence[Tensor], latest_s: float
    ) -> NDArray[np.float64]:
        """Return each stage's SQNR on the input that the reference gives it."""
        borders = [job.x, *reference[:-1]]
        result = []
        for stage, level in enumerate(job.levels):
            self._await_idle(latest_s)
            own = self._bank.run_stage(stage, level, borders[stage])
            # Finite whatever the input, a silent one included: guards take anything else for a
            # monitor that has failed.
            result.append(np.clip(sqnr_db(reference[stage], own), -MOST_DB, MOST_DB))
        return np.array(result)


PATIENCE_S = 0.25
"""How long a check waits for an idle server, seconds."""
MOST_DUTY = 0.1
"""Share of the time that checks work, at most.

Checks of 2 % of some 5,000 requests a second kept a core busy, and doubled the p99 latency of a
plan whose batches take 1 ms (4.2 ms, 1.9 without checks; with a tenth of the time 2.2). A tenth of
a core checks some 30 requests a second of a network that takes 3 ms for one.
"""
MOST_DB = 100.0
"""SQNR of results without any error, where the ratio is infinite; minus that of noise alone."""
