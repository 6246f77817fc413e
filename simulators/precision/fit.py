"""The additive latency model of a chain: what each stage costs at each level, and each change.

Costs are fitted to times of whole runs of mixed assignments, not measured stage by stage: a stage
that is run alone in a loop keeps its weights in the cache and is up to a third faster than inside
the chain.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

_PENALTIES = (1e-6, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Of costs of changes, over a stage's mean time; the first leaves them as they were measured."""
_ALONE = 1e-6
"""An observation that next to nothing else tells about has no say in the choice of a penalty."""
_LEAST_SHARE = 0.5
"""Of the shortest measured latency: fits that predict less for an assignment are not believed."""


@dataclass(frozen=True, eq=False)
class LatencyFit:
    """Costs that add up to the latency of any assignment at one batch size.

    Attributes:
        stage_s: float64 [S, P], seconds of stage k at level p.
        transition_s: float64 [S - 1, P, P], seconds more where stage k has level p and stage k + 1
            level q; 0 for equal levels and for pairs that were never measured.
        error: float64 [n], (predicted - measured) / measured of the assignments fitted to.
    """

    stage_s: NDArray[np.float64]
    transition_s: NDArray[np.float64]
    error: NDArray[np.float64]

    def predict_s(self, assignments: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the latency of assignments int64 [n, S], float64 [n], seconds."""
        stage = np.arange(self.stage_s.shape[0])
        total = self.stage_s[stage, assignments].sum(axis=1)
        changes = self.transition_s[stage[:-1], assignments[:, :-1], assignments[:, 1:]]
        result: NDArray[np.float64] = total + changes.sum(axis=1)
        return result

    def shortest_s(self) -> float:
        """Return the least latency of all assignments, seconds, stage by stage."""
        least: NDArray[np.float64] = self.stage_s[0]
        for own_s, change_s in zip(self.stage_s[1:], self.transition_s, strict=True):
            least = (least[:, None] + change_s).min(axis=0) + own_s
        return float(least.min())


def fit_latency(
    assignments: NDArray[np.int64],
    seconds: NDArray[np.float64],
    n_levels: int,
    first_share: NDArray[np.float64] | None = None,
) -> LatencyFit:
    """Fit costs to measured latencies by least squares of relative errors.

    Changes of levels have many costs, each seen in few runs, and most are next to nothing: they are
    shrunk towards 0 (ridge regression) as far as predictions of observations left out get better.
    On a residual net of five stages at four levels that halved the mean error of assignments that
    were not fitted to, at batch sizes of 4 to 64 (3.5 to 1.8 % at 64).

    Whole runs do not tell how a chain's time divides among its stages: a constant could be added to
    one stage at all levels and taken from another. `first_share` decides it, as far as no stage
    comes out below 0 at some level; predictions and differences between the levels of a stage do
    not depend on it. A fit to few and noisy latencies may leave some assignment next to no time;
    then no change of levels saves more than a bit less than half of either stage beside it.

    Args:
        assignments: int64 [n, S], level of every stage; every level of every stage occurs.
        seconds: float64 [n], measured latencies, above 0.
        n_levels: Number of levels P.
        first_share: float64 [S], share of each stage in the time of a run with all stages at level
            0, summing to 1; None: equal shares.

    Raises:
        ValueError: Shapes that do not fit, a latency that is not above 0, a level out of range, or
            a stage that was never measured at some level.
    """
    _check(assignments, seconds, n_levels)
    n_stages = assignments.shape[1]
    design = _design(assignments, n_levels) / seconds[:, None]
    n_nodes = n_stages * n_levels
    costs = _shrunk_costs(design, n_nodes, float(np.median(seconds)) / n_stages)
    stage_s = costs[:n_nodes].reshape(n_stages, n_levels)
    share = np.full(n_stages, 1.0 / n_stages) if first_share is None else first_share
    stage_s += (stage_s[:, 0].sum() * share - stage_s[:, 0])[:, None]
    stage_s += _without_negative(stage_s.min(axis=1))[:, None]
    transition_s = costs[n_nodes:].reshape(n_stages - 1, n_levels, n_levels)
    fit = LatencyFit(np.maximum(stage_s, 0.0), transition_s, np.zeros(len(seconds)))
    if fit.shortest_s() < _LEAST_SHARE * seconds.min():
        before, after = fit.stage_s[:-1, :, None], fit.stage_s[1:, None, :]
        most_saved = 0.45 * np.minimum(before, after)
        fit = replace(fit, transition_s=np.maximum(transition_s, -most_saved))
    return replace(fit, error=fit.predict_s(assignments) / seconds - 1.0)


def _shrunk_costs(design: NDArray[np.float64], n_nodes: int, scale_s: float) -> NDArray[np.float64]:
    """Return the costs that make `design @ costs` 1, those of changes shrunk, float64 [m], seconds.

    Which of `_PENALTIES` is best shows in the mean absolute error of each observation when it is
    left out, which the fit to all of them gives: its error over 1 less its leverage.

    Args:
        design: float64 [n, m].
        n_nodes: Number of costs that come first and are not shrunk.
        scale_s: What costs of changes are small against, seconds.
    """
    fits = [_ridge(design, n_nodes, penalty / scale_s) for penalty in _PENALTIES]
    voting = fits[0][1] > _ALONE
    if not voting.any():
        return fits[0][0]

    def left_out(fit: tuple[NDArray[np.float64], NDArray[np.float64]]) -> float:
        costs, free = fit
        return float((np.abs(1.0 - design @ costs)[voting] / free[voting]).mean())

    return min(fits, key=left_out)[0]


def _ridge(
    design: NDArray[np.float64], n_nodes: int, penalty: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return costs float64 [m], and 1 less the leverage of each observation, float64 [n]."""
    n, m = design.shape
    prior = penalty * np.eye(m)[n_nodes:]
    inverse = np.linalg.pinv(np.concatenate([design, prior]), rcond=1e-12)[:, :n]
    return inverse.sum(axis=1), 1.0 - np.einsum("nm,mn->n", design, inverse)


def _without_negative(least: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what to add to each stage, 0 in sum, so that its least cost is not negative.

    What stages lack is taken from the others in proportion to their least costs; where these are
    too small altogether, it cannot be helped and nothing is moved.

    Args:
        least: float64 [S], the least cost of each stage, seconds.
    """
    total, positive = least.sum(), np.maximum(least, 0.0)
    if total < 0.0 or least.min() >= 0.0:
        return np.zeros_like(least)
    moved: NDArray[np.float64] = positive * (total / positive.sum()) - least
    return moved


def held_out_error(
    assignments: NDArray[np.int64],
    seconds: NDArray[np.float64],
    n_levels: int,
    n_fitted: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Fit to some of the assignments and return the relative errors of the others.

    Args:
        assignments: See `fit_latency`; the first P show every level of every stage (the uniform
            ones do) and are always fitted to.
        seconds: See `fit_latency`.
        n_levels: Number of levels P.
        n_fitted: How many are fitted to, the others of them at random; the rest is held out.
        rng: Chooses them.

    Returns:
        float64 [n - n_fitted], (predicted - measured) / measured.

    Raises:
        ValueError: Nothing is held out, or see `fit_latency`.
    """
    n = len(seconds)
    if not n_levels <= n_fitted < n:
        raise ValueError(f"{n_fitted} of {n} assignments to fit to; expected {n_levels} to {n - 1}")
    order = np.concatenate([np.arange(n_levels), rng.permutation(np.arange(n_levels, n))])
    fitted, rest = order[:n_fitted], order[n_fitted:]
    fit = fit_latency(assignments[fitted], seconds[fitted], n_levels)
    result: NDArray[np.float64] = fit.predict_s(assignments[rest]) / seconds[rest] - 1.0
    return result


def _design(assignments: NDArray[np.int64], n_levels: int) -> NDArray[np.float64]:
    """Return which costs each assignment pays, float64 [n, S * P + (S - 1) * P * P]."""
    n, n_stages = assignments.shape
    design = np.zeros((n, n_stages * n_levels + (n_stages - 1) * n_levels**2))
    rows = np.arange(n)
    for k in range(n_stages):
        design[rows, k * n_levels + assignments[:, k]] = 1.0
    for k in range(n_stages - 1):
        first = n_stages * n_levels + k * n_levels**2
        before, after = assignments[:, k], assignments[:, k + 1]
        changed = before != after
        design[rows[changed], first + (before * n_levels + after)[changed]] = 1.0
    return design


def _check(assignments: NDArray[np.int64], seconds: NDArray[np.float64], n_levels: int) -> None:
    if assignments.ndim != 2 or seconds.shape != assignments.shape[:1] or assignments.size == 0:
        raise ValueError(
            f"assignments have shape {assignments.shape} and seconds {seconds.shape}; expected "
            "(n, stages) and (n,)"
        )
    if not (np.isfinite(seconds).all() and (seconds > 0.0).all()):
        raise ValueError("a measured latency is not a number above 0")
    if assignments.min() < 0 or assignments.max() >= n_levels:
        raise ValueError(
            f"assignments hold levels {assignments.min()} to {assignments.max()}; expected 0 to "
            f"{n_levels - 1}"
        )
    for k, levels in enumerate(assignments.T):
        missing = sorted(set(range(n_levels)) - set(levels.tolist()))
        if missing:
            raise ValueError(f"stage {k} was never measured at level {missing[0]}")
