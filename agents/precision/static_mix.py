"""The static mix of levels by integer programme: the strong rival of the training mode.

In the manner of HAWQ-V3 (Yao et al., ICML 2021): the cheapest assignment whose losses, taken as
additive over stages, stay within a budget. Costs are those measured inside the running chain, with
what changing the level between two stages costs. Exact: solved by HiGHS through scipy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import LinearConstraint, milp


def cheapest_mix(
    stage_cost: ArrayLike,
    transition_cost: ArrayLike,
    loss: ArrayLike,
    budget: float,
) -> tuple[int, ...] | None:
    """Return the cheapest assignment whose total loss is within a budget.

    Args:
        stage_cost: [S, P], cost of stage k at level p (seconds or joules); infinity where it
            cannot run.
        transition_cost: [S - 1, P, P], cost of handing over from level p of stage k to level q of
            stage k + 1.
        loss: [S, P], accuracy lost by lowering stage k alone to level p.
        budget: Largest sum of losses.

    Returns:
        One level per stage; None if no assignment is within the budget.

    Raises:
        ValueError: Shapes that do not fit, or numbers that are not finite.
    """
    cost, change, lost = _checked(stage_cost, transition_cost, loss)
    n_stages, n_levels = cost.shape
    runs = np.isfinite(cost)
    # One variable per stage and level, then one per transition: a path through the levels.
    prices = np.concatenate([np.where(runs, cost, 0.0).ravel(), change.ravel()])
    upper = np.concatenate([runs.ravel().astype(float), np.ones(change.size)])
    n_nodes = n_stages * n_levels
    budgeted = np.concatenate([lost.ravel(), np.zeros(change.size)])[None]
    # A hair of slack: sums that meet the budget exactly in decimals may miss it in binary.
    slack = 1e-9 * max(1.0, abs(budget))
    constraints = [
        LinearConstraint(budgeted, -np.inf, budget + slack),
        LinearConstraint(_one_level_each(n_stages, n_levels, change.size), 1.0, 1.0),
    ]
    if n_stages > 1:
        constraints.append(LinearConstraint(_path(n_stages, n_levels), 0.0, 0.0))
    # Transitions follow from levels, so only these need to be whole numbers.
    whole = np.concatenate([np.ones(n_nodes), np.zeros(change.size)])
    found = milp(
        prices,
        integrality=whole,
        bounds=(0.0, upper),
        constraints=constraints,
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None
    levels = found.x[:n_nodes].reshape(n_stages, n_levels).argmax(axis=1)
    return tuple(int(level) for level in levels)


def _one_level_each(n_stages: int, n_levels: int, n_transitions: int) -> NDArray[np.float64]:
    """Return the rows that pick one level per stage."""
    rows = np.kron(np.eye(n_stages), np.ones((1, n_levels)))
    return np.hstack([rows, np.zeros((n_stages, n_transitions))])


def _path(n_stages: int, n_levels: int) -> NDArray[np.float64]:
    """Return the rows that make transitions leave and enter the chosen levels."""
    n_nodes = n_stages * n_levels
    rows = []
    for k in range(n_stages - 1):
        first = n_nodes + k * n_levels**2
        edges = np.arange(n_levels**2).reshape(n_levels, n_levels) + first
        for level in range(n_levels):
            for node, used in ((k, edges[level]), (k + 1, edges[:, level])):
                row = np.zeros(n_nodes + (n_stages - 1) * n_levels**2)
                row[node * n_levels + level] = -1.0
                row[used] = 1.0
                rows.append(row)
    return np.array(rows)


def _checked(
    stage_cost: ArrayLike, transition_cost: ArrayLike, loss: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    cost, lost = np.asarray(stage_cost, dtype=np.float64), np.asarray(loss, dtype=np.float64)
    change = np.asarray(transition_cost, dtype=np.float64)
    if cost.ndim != 2 or cost.size == 0:
        raise ValueError(f"stage_cost has shape {cost.shape}; expected (stages, levels)")
    n_stages, n_levels = cost.shape
    change = change.reshape(0, n_levels, n_levels) if change.size == 0 else change
    for name, array, shape in (
        ("loss", lost, cost.shape),
        ("transition_cost", change, (n_stages - 1, n_levels, n_levels)),
    ):
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}; expected {shape}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds a number that is not finite")
    if np.isnan(cost).any() or not np.isfinite(cost).any(axis=1).all():
        raise ValueError("stage_cost holds NaN, or a stage that can run at no level")
    return cost, change, lost
