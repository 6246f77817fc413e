from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agents.precision.static_mix import cheapest_mix

Array = NDArray[np.float64]


def _total(cost: Array, change: Array, assignment: tuple[int, ...]) -> float:
    stages = sum(cost[k, level] for k, level in enumerate(assignment))
    pairs = itertools.pairwise(assignment)
    return float(stages + sum(change[k, p, q] for k, (p, q) in enumerate(pairs)))


@given(
    n_stages=st.integers(1, 4),
    n_levels=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    budget=st.floats(0.0, 2.0),
)
def test_equals_trying_every_assignment(
    n_stages: int, n_levels: int, seed: int, budget: float
) -> None:
    rng = np.random.default_rng(seed)
    cost = rng.random((n_stages, n_levels))
    cost[rng.random(cost.shape) < 0.2] = np.inf
    cost[:, 0] = 2.0
    change = rng.random((n_stages - 1, n_levels, n_levels))
    loss = rng.random((n_stages, n_levels))
    loss[:, 0] = 0.0
    every = itertools.product(range(n_levels), repeat=n_stages)
    within = [a for a in every if sum(loss[k, p] for k, p in enumerate(a)) <= budget]
    best = min(_total(cost, change, a) for a in within)
    found = cheapest_mix(cost, change, loss, budget)
    assert found in within
    assert _total(cost, change, found) == pytest.approx(best)


def test_a_transition_can_be_dearer_than_what_it_saves() -> None:
    cost = np.array([[2.0, 1.0], [2.0, 1.9], [2.0, 1.0]])
    loss = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    free, dear = np.zeros((2, 2, 2)), np.array([[[0.0, 0.8], [0.8, 0.0]]] * 2)
    assert cheapest_mix(cost, free, loss, budget=0.0) == (1, 0, 1)
    assert cheapest_mix(cost, dear, loss, budget=1.0) == (1, 1, 1)
    # two changes cost 1.6 and the lowered ends save 2
    assert cheapest_mix(cost, dear, loss, budget=0.0) == (1, 0, 1)
    assert cheapest_mix(cost, 1.5 * dear, loss, budget=0.0) in {(0, 0, 0)}


def test_no_assignment_within_the_budget() -> None:
    assert cheapest_mix([[1.0]], [], [[0.5]], budget=0.4) is None


def test_a_budget_met_exactly_is_met() -> None:
    loss = [[0.0, 0.1], [0.0, 0.2]]  # 0.1 + 0.2 > 0.3 in binary
    assert cheapest_mix([[1.0, 0.0]] * 2, np.zeros((1, 2, 2)), loss, budget=0.3) == (1, 1)


@pytest.mark.parametrize(
    ("cost", "change", "loss", "message"),
    [
        ([1.0], [], [[0.0]], r"stage_cost has shape \(1,\)"),
        ([[1.0, 1.0]], [], [[0.0]], r"loss has shape \(1, 1\); expected \(1, 2\)"),
        ([[1.0], [1.0]], [], [[0.0], [0.0]], r"transition_cost has shape \(0, 1, 1\)"),
        ([[np.inf]], [], [[0.0]], "can run at no level"),
        ([[1.0]], [], [[np.nan]], "loss holds a number that is not finite"),
    ],
)
def test_what_does_not_fit_is_refused(
    cost: list[float], change: list[float], loss: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cheapest_mix(cost, change, loss, budget=1.0)
