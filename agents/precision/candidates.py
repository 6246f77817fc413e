"""Which constant assignments are worth trying where there are too many to try all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agents.precision.known import Known
from envs.precision.config import StagedPrecisionConfig


def candidate_rows(config: StagedPrecisionConfig, known: Known, most: int) -> NDArray[np.float64]:
    """Return plan rows of constant assignments, float64 [M, 2 * S + 1], M <= max(most, P).

    All of them, if there are no more than `most`. Otherwise the uniform ones, then front after
    front of accuracy (mean over the conditions of the calibrated profile) against latency at the
    largest batch: what is dominated by many others is left out.

    Args:
        config: The simulated world.
        known: What rules know about it.
        most: Number of assignments.
    """
    n = len(known.rows)
    if n <= most:
        return known.rows
    last = int(known.bucket(np.array([float(known.max_batch)]))[0])
    latency_s = known.tables.latency_s[:, last]
    accuracy = config.known_profile.accuracy().mean(axis=0)
    chosen = [int(known.assignments(known.uniform(k))) for k in range(known.tables.n_levels)]
    left = np.setdiff1d(np.arange(n), chosen)
    while len(chosen) < most:
        front = _front(latency_s[left], accuracy[left])
        chosen += left[front][: most - len(chosen)].tolist()
        left = np.delete(left, front)
    return known.rows[np.sort(chosen)]


def _front(latency_s: NDArray[np.float64], accuracy: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the places that nothing is both faster and more accurate than, the best first."""
    order = np.lexsort((-accuracy, latency_s))
    best = np.maximum.accumulate(accuracy[order])
    better = np.concatenate([[True], best[1:] > best[:-1]])
    return np.asarray(order[better][::-1])
