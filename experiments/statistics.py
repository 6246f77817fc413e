"""Estimates with intervals, from scores of several seeds on several workloads.

Axis letters in names: B bootstrap resamples, R runs (seeds), S samples of all strata pooled.
The interval is the percentile bootstrap's. With fewer than about ten runs in a stratum it is too
narrow, and with one run in each stratum there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]

# Resampled scores held at once, to bound memory at 32 MB.
_CHUNK_SCORES = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A statistic and its bootstrap interval.

    Attributes:
        value: The statistic of the scores themselves.
        low: Lower end of the interval; NaN where every stratum has a single run.
        high: Upper end of the interval; NaN where every stratum has a single run.
    """

    value: float
    low: float
    high: float


def mean(scores: Floats) -> Floats:
    """Return the mean over the last axis."""
    return np.asarray(np.mean(scores, axis=-1), dtype=np.float64)


def interquartile_mean(scores: Floats) -> Floats:
    """Return the mean of the middle half over the last axis.

    As in Agarwal et al., "Deep RL at the Edge of the Statistical Precipice" (2021): the lowest and
    the highest floor(n/4) of n scores are left out.

    Args:
        scores: Shape (..., n), n >= 1.

    Returns:
        Shape (...).
    """
    return np.asarray(stats.trim_mean(scores, 0.25, axis=-1), dtype=np.float64)


def stratified_bootstrap(
    strata: Sequence[ArrayLike],
    statistic: Statistic,
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Estimate a statistic of pooled scores, resampling runs within each stratum.

    Args:
        strata: One array of scores for each workload (or task), each of shape (R,); the number of
            runs may differ.
        statistic: Function of shape (..., S) to (...) over the scores of all strata, such as
            `mean` or `interquartile_mean`.
        rng: Source of the resamples.
        resamples: Number of resamples, at least 100.
        level: Coverage that the interval aims at, in (0, 1).

    Returns:
        The estimate.

    Raises:
        ValueError: If there are no scores, one is not finite, or a setting is out of range.
    """
    scores_r = _checked(strata, "strata")
    _check_settings(resamples, level)
    value = float(statistic(np.concatenate(scores_r)))
    if all(len(stratum) == 1 for stratum in scores_r):
        return Estimate(value, math.nan, math.nan)
    pooled = sum(len(stratum) for stratum in scores_r)

    def resampled(count: int) -> Floats:
        drawn = [stratum[_indices(rng, count, len(stratum))] for stratum in scores_r]
        return statistic(np.concatenate(drawn, axis=1))

    return _interval(value, resampled, pooled, resamples, level)


def paired_change(
    baseline: Sequence[ArrayLike],
    candidate: Sequence[ArrayLike],
    rng: np.random.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Estimate the change of the mean from a baseline to a candidate on the same seeds.

    In each stratum the change is 100 * (mean(candidate) / mean(baseline) - 1) per cent; the result
    is the mean over strata. Seeds are resampled in pairs, which cancels what the seeds share.

    Args:
        baseline: One array of positive scores for each workload, each of shape (R,).
        candidate: The same shapes; entry k of a stratum comes from the seed of the baseline's k.
        rng: Source of the resamples.
        resamples: Number of resamples, at least 100.
        level: Coverage that the interval aims at, in (0, 1).

    Returns:
        The estimate in per cent; negative means that the candidate's mean is lower.

    Raises:
        ValueError: If shapes differ, a score is not finite, or a baseline's score is not positive.
    """
    baseline_r, candidate_r = _checked(baseline, "baseline"), _checked(candidate, "candidate")
    shapes = [[len(stratum) for stratum in side] for side in (baseline_r, candidate_r)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"baseline has {shapes[0]} runs in its strata, candidate {shapes[1]}; paired changes "
            "need the same seeds in both"
        )
    if any(np.any(stratum <= 0) for stratum in baseline_r):
        raise ValueError("a baseline score is <= 0; a change in per cent needs positive ones")
    pairs = list(zip(baseline_r, candidate_r, strict=True))
    _check_settings(resamples, level)

    def change(before: Floats, after: Floats) -> Floats:
        return np.asarray(100.0 * (after.mean(axis=-1) / before.mean(axis=-1) - 1.0))

    value = float(np.mean([change(before, after) for before, after in pairs]))
    if all(len(before) == 1 for before in baseline_r):
        return Estimate(value, math.nan, math.nan)

    def resampled(count: int) -> Floats:
        changes = []
        for before, after in pairs:
            index = _indices(rng, count, len(before))
            changes.append(change(before[index], after[index]))
        return mean(np.stack(changes, axis=-1))

    return _interval(value, resampled, sum(shapes[0]), resamples, level)


def _indices(rng: np.random.Generator, resamples: int, runs: int) -> NDArray[np.int64]:
    """Draw runs with replacement; shape (B, R)."""
    return rng.integers(runs, size=(resamples, runs))


def _interval(
    value: float, resampled: Callable[[int], Floats], pooled: int, resamples: int, level: float
) -> Estimate:
    chunk = max(1, _CHUNK_SCORES // pooled)
    counts = [min(chunk, resamples - start) for start in range(0, resamples, chunk)]
    statistics_b = np.concatenate([resampled(count) for count in counts])
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(statistics_b, [tail, 1.0 - tail])
    return Estimate(value, float(low), float(high))


def _checked(strata: Sequence[ArrayLike], name: str) -> list[Floats]:
    """Return the strata as float64 arrays of shape (R,), R >= 1, all finite."""
    arrays = [np.asarray(stratum, dtype=np.float64) for stratum in strata]
    if not arrays:
        raise ValueError(f"{name} is empty; expected at least one array of scores")
    for index, stratum in enumerate(arrays):
        if stratum.ndim != 1 or stratum.size == 0:
            raise ValueError(
                f"{name}[{index}] has shape {stratum.shape}; expected (runs,) with at least one run"
            )
        if not np.all(np.isfinite(stratum)):
            raise ValueError(f"{name}[{index}] holds a score that is not finite")
    return arrays


def _check_settings(resamples: int, level: float) -> None:
    if resamples < 100:
        raise ValueError(f"resamples is {resamples}; expected at least 100")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level}; expected a number between 0 and 1, both excluded")
