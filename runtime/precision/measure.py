"""Latencies of assignments and of their rivals, measured inside the running chain.

All calls take turns in an order that changes from round to round, so that what changes on the
machine in the course of time meets all of them alike, and every first call comes after another one,
as in service.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from runtime.precision.training_mode import Assignment

Call = Callable[[Tensor], object]

_STEADY = 3
CALLS_PER_ROUND = _STEADY + 1
"""The first one comes after another call, the others count as steady."""


class Latencies(NamedTuple):
    """Medians over rounds.

    Attributes:
        steady_s: float64 [n], seconds of a call after the same call.
        switch_s: float64 [n], seconds of the first call after another one.
        cpu_s: float64 [n], processor seconds of a steady call; well below `steady_s` means that
            the measurement was disturbed (or that several threads were waited for).
        sigma: float64 [n], standard deviation of the logarithm of single steady calls, estimated
            from their median absolute deviation so that a few disturbed calls do not count.
    """

    steady_s: NDArray[np.float64]
    switch_s: NDArray[np.float64]
    cpu_s: NDArray[np.float64]
    sigma: NDArray[np.float64]


class LatencyRounds:
    """Rounds in which calls take turns; `interleaved` says how several such take turns themselves.

    Every round makes every call `CALLS_PER_ROUND` times in a row. A round that nobody counts goes
    first: it allocates memory and chooses kernels.
    """

    def __init__(self, calls: Sequence[Call], x: Tensor, rng: np.random.Generator) -> None:
        """Make every call once.

        Args:
            calls: What to measure, at least one; for instance `Bank.run` at different assignments.
            x: The batch.
            rng: Orders the rounds.

        Raises:
            ValueError: Nothing to measure.
        """
        if not calls:
            raise ValueError("0 calls to measure; expected at least one")
        self._calls, self._x, self._rng = calls, x, rng
        self._steady: list[NDArray[np.float64]] = []
        self._cpu: list[NDArray[np.float64]] = []
        self._switch: list[NDArray[np.float64]] = []
        for call in calls:
            call(x)

    def run(self) -> None:
        """Measure one round."""
        n, x = len(self._calls), self._x
        steady, cpu = np.zeros((2, n, _STEADY))
        switch = np.zeros(n)
        for k in self._rng.permutation(n):
            call = self._calls[k]
            start = time.perf_counter()
            call(x)
            switch[k] = time.perf_counter() - start
            for again in range(_STEADY):
                start, start_cpu = time.perf_counter(), time.process_time()
                call(x)
                cpu[k, again] = time.process_time() - start_cpu
                steady[k, again] = time.perf_counter() - start
        self._steady.append(steady)
        self._cpu.append(cpu)
        self._switch.append(switch)

    def latencies(self) -> Latencies:
        """Return the medians over the rounds so far.

        Raises:
            ValueError: There was none.
        """
        if not self._steady:
            raise ValueError("0 rounds were measured; expected at least one")
        steady = np.stack(self._steady)
        median_s = np.median(steady, axis=(0, 2))
        deviation = np.abs(np.log(steady / median_s[None, :, None]))
        return Latencies(
            steady_s=median_s,
            switch_s=np.median(self._switch, axis=0),
            cpu_s=np.median(np.stack(self._cpu), axis=(0, 2)),
            sigma=_NORMAL_PER_MAD * np.median(deviation, axis=(0, 2)),
        )


def interleaved(rounds: Sequence[int]) -> list[int]:
    """Return whose turn it is so that each measurement's rounds spread evenly over the whole time.

    What the machine does in the course of minutes then meets all of them alike. One after the
    other, batches of 8 came out 10 % too fast against batches of 16, and those of 4 12 % too slow.

    Args:
        rounds: How many rounds each measurement has, at least 1.

    Returns:
        Indices into `rounds`, each as often as it has rounds.
    """
    turns = [((r + 0.5) / n, k) for k, n in enumerate(rounds) for r in range(n)]
    return [k for _, k in sorted(turns)]


def measure_latencies(
    calls: Sequence[Call],
    x: Tensor,
    rounds: int,
    rng: np.random.Generator,
    progress: Callable[[int], None] = lambda done: None,
) -> Latencies:
    """Measure how long each call takes for one batch; see `LatencyRounds`.

    Args:
        calls: What to measure.
        x: The batch.
        rounds: Counted rounds, at least 1.
        rng: Orders the rounds.
        progress: Told how many rounds are done.

    Raises:
        ValueError: Nothing to measure.
    """
    measured = LatencyRounds(calls, x, rng)
    for r in range(rounds):
        measured.run()
        progress(r + 1)
    return measured.latencies()


_NORMAL_PER_MAD = 1.4826  # standard deviation of a normal over its median absolute deviation


def covering_assignments(
    n_stages: int, n_levels: int, n: int, rng: np.random.Generator
) -> list[Assignment]:
    """Return assignments that show every level of every stage, uniform ones first.

    All of them where there are no more than n; else random ones, distinct, every level equally
    often in every stage as far as n allows, so that an additive model can be fitted to them.

    Args:
        n_stages: Number of stages S.
        n_levels: Number of levels P.
        n: How many, at least P.
        rng: Chooses.

    Raises:
        ValueError: n below P.
    """
    if n < n_levels:
        raise ValueError(f"{n} assignments cannot show {n_levels} levels; expected at least those")
    chosen = dict.fromkeys((level,) * n_stages for level in range(n_levels))
    if n_levels**n_stages <= n:
        every = np.indices((n_levels,) * n_stages).reshape(n_stages, -1).T
        return list(chosen | dict.fromkeys(tuple(int(v) for v in row) for row in every))
    while len(chosen) < n:
        # A Latin hypercube: each block of P has every level once in every stage.
        block = np.stack([rng.permutation(n_levels) for _ in range(n_stages)], axis=1)
        chosen |= dict.fromkeys(tuple(int(v) for v in row) for row in block)
    return list(chosen)[:n]
