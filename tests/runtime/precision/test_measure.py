from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from runtime.precision.measure import (
    LatencyRounds,
    covering_assignments,
    interleaved,
    measure_latencies,
)


def _calls(n: int, log: list[int], pause_s: float) -> list[Callable[[Tensor], object]]:
    """Calls that sleep longer the higher their number, and longer after another call."""

    def call(k: int, x: Tensor) -> Tensor:
        first = not log or log[-1] != k
        log.append(k)
        time.sleep(pause_s * (1 + k) + (2.0 * pause_s if first else 0.0))
        return x

    return [partial(call, k) for k in range(n)]


def test_latencies_are_those_of_the_calls() -> None:
    log: list[int] = []
    calls = _calls(3, log, 0.002)
    found = measure_latencies(calls, torch.zeros(1), 5, np.random.default_rng(0))
    # sleeping takes at least as long as asked for, and machines are shared
    assert (found.steady_s >= [0.002, 0.004, 0.006]).all()
    assert (found.switch_s >= found.steady_s + 0.002).all()
    assert (found.cpu_s < 0.5 * found.steady_s).all()
    assert np.argsort(found.steady_s).tolist() == [0, 1, 2]
    assert ((found.sigma > 0.0) & (found.sigma < 0.5)).all()  # sleeps vary, a little
    assert all(log[3:].count(k) == 5 * 4 for k in range(3))


def test_the_order_changes_from_round_to_round() -> None:
    log: list[int] = []
    measure_latencies(_calls(6, log, 0.0), torch.zeros(1), 4, np.random.default_rng(1))
    order = log[6::4]
    rounds = {tuple(order[6 * r : 6 * r + 6]) for r in range(4)}
    assert len(rounds) == 4
    assert all(sorted(r) == list(range(6)) for r in rounds)


def test_rounds_of_all_measurements_spread_over_the_whole_time() -> None:
    turns = interleaved([8, 2, 4])
    assert [turns.count(k) for k in range(3)] == [8, 2, 4]
    for k, n in enumerate((8, 2, 4)):
        places = np.nonzero(np.array(turns) == k)[0]
        # One round in each n-th of the time.
        assert (places * n // len(turns)).tolist() == list(range(n))
    assert interleaved([1]) == [0]


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="0 rounds were measured"):
        LatencyRounds([lambda x: x], torch.zeros(1), np.random.default_rng(0)).latencies()
    with pytest.raises(ValueError, match="0 calls to measure"):
        measure_latencies([], torch.zeros(1), 3, np.random.default_rng(0))


@pytest.mark.parametrize(("n_stages", "n_levels", "n"), [(4, 3, 30), (6, 4, 64), (5, 5, 40)])
def test_some_assignments_show_all_levels_alike(n_stages: int, n_levels: int, n: int) -> None:
    chosen = covering_assignments(n_stages, n_levels, n, np.random.default_rng(0))
    assert len(chosen) == len(set(chosen)) == n
    assert chosen[:n_levels] == [(level,) * n_stages for level in range(n_levels)]
    counts = np.stack([np.bincount(column, minlength=n_levels) for column in np.array(chosen).T])
    assert counts.min() >= n // n_levels - 4


def test_few_assignments_are_all_taken() -> None:
    chosen = covering_assignments(3, 2, 8, np.random.default_rng(0))
    assert len(set(chosen)) == 8
    assert chosen[:2] == [(0, 0, 0), (1, 1, 1)]
    with pytest.raises(ValueError, match="2 assignments cannot show 3 levels"):
        covering_assignments(3, 3, 2, np.random.default_rng(0))
