"""From measured task times to the costs that the simulator draws from.

The model of a task of n records that starts when k slots are busy is

    wait_s + (fixed_s + per_record_s * n) * residual * slowdown[k]

with the wait declared, not fitted. Mean task times are kept exactly: whatever the robust line
misses ends up in the scale, whatever scatters in the residuals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.application import Application
from simulators.cluster.profile import Profile, StageCost

FIELDS = ("job", "stage", "records", "busy", "duration_s")
QUANTILES = 64
LEAST_TASKS = 8
LEAST_TIME_S = 1e-6
ROUNDS = 12
HUBER = 1.5
PRIOR_TASKS = 10.0
"""A stage's own slowdown counts as much as that of all stages once it rests on so many tasks."""


@dataclass(frozen=True)
class StageFit:
    """How well the cost of one stage describes its measured tasks.

    Attributes:
        job: Name of the job.
        stage: Name of the stage.
        tasks: Tasks it was fitted to.
        mean_s: Their measured mean time, seconds.
        mean_error: Mean of the model at the same sizes and busy slots, relative to `mean_s`.
        p95_error: The same for the 95th percentile.
        explained: Share of the variance of task times that size and busy slots explain; negative
            where they mislead.
    """

    job: str
    stage: str
    tasks: int
    mean_s: float
    mean_error: float
    p95_error: float
    explained: float


@dataclass(frozen=True)
class ProfileFit:
    """A fitted profile and how good each of its costs is.

    Attributes:
        profile: The costs.
        stages: Goodness of fit of every stage, in the order of the application.
    """

    profile: Profile
    stages: tuple[StageFit, ...]


@dataclass(frozen=True)
class _Tasks:
    """Usable measurements of one stage: float64 [n] and int64 [n] arrays."""

    records: NDArray[np.float64]
    busy: NDArray[np.int64]
    compute_s: NDArray[np.float64]


def fit_profile(
    application: Application,
    table: NDArray[np.void],
    waits_s: Mapping[tuple[str, str], float],
    slots: int,
    cores: int,
    origin: str,
) -> ProfileFit:
    """Fit the costs of all stages.

    Args:
        application: The application that was measured.
        table: Structured array [n] with at least the fields `FIELDS`; rows with more than one
            attempt or a failure are left out where the table tells.
        waits_s: Declared wait of every stage, seconds, by (job, stage).
        slots: Worker slots that were measured.
        cores: Cores that stood behind them.
        origin: Machine, date and command.

    Raises:
        ValueError: A missing field, impossible times, or too few tasks of a stage; the message
            says which.
    """
    _check_table(table, slots)
    keys = [(job.name, stage.name) for job in application.jobs for stage in job.stages]
    tasks = {key: _stage_tasks(table, key, waits_s[key]) for key in keys}
    lines = {key: _fit_line(t.records, t.compute_s) for key, t in tasks.items()}
    slowdowns = {key: np.ones(slots + 1) for key in keys}
    for _ in range(ROUNDS):
        common = _slowdown(list(tasks.values()), list(lines.values()), np.ones(slots + 1), 0.0)
        for key, t in tasks.items():
            slowdowns[key] = _slowdown([t], [lines[key]], common, PRIOR_TASKS)
            lines[key] = _fit_line(t.records, t.compute_s / slowdowns[key][t.busy])
    costs = {key: _stage_cost(tasks[key], lines[key], slowdowns[key], waits_s[key]) for key in keys}
    profile = Profile(application.name, costs, slots, cores, origin)
    fits = tuple(_stage_fit(key, tasks[key], costs[key]) for key in keys)
    return ProfileFit(profile, fits)


def _check_table(table: NDArray[np.void], slots: int) -> None:
    names = table.dtype.names or ()
    missing = [name for name in FIELDS if name not in names]
    if missing:
        raise ValueError(f"the table of task times lacks {missing}; it has {list(names)}")
    if not np.all(np.isfinite(table["duration_s"]) & (table["duration_s"] >= 0.0)):
        raise ValueError("the table of task times holds a negative or non-finite duration_s")
    if len(table) and (table["busy"].min() < 1 or table["busy"].max() > slots):
        raise ValueError(
            f"the table of task times has busy from {table['busy'].min()} to "
            f"{table['busy'].max()}; expected 1 to {slots} slots"
        )


def _stage_tasks(table: NDArray[np.void], key: tuple[str, str], wait_s: float) -> _Tasks:
    chosen = (table["job"] == key[0]) & (table["stage"] == key[1])
    if "attempts" in (table.dtype.names or ()):
        chosen &= (table["attempts"] == 1) & ~table["failed"]
    rows = table[chosen]
    if len(rows) < LEAST_TASKS:
        raise ValueError(
            f"stage {key[1]!r} of job {key[0]!r} has {len(rows)} measured tasks; expected at "
            f"least {LEAST_TASKS}: measure for longer"
        )
    return _Tasks(
        records=rows["records"].astype(np.float64),
        busy=rows["busy"].astype(np.int64),
        compute_s=np.maximum(rows["duration_s"] - wait_s, LEAST_TIME_S),
    )


def _fit_line(records: NDArray[np.float64], time_s: NDArray[np.float64]) -> tuple[float, float]:
    """Fit time = fixed + per_record * records, both at least 0, with Huber weights.

    Errors are taken relative to the line, since the model scatters by a factor. With a single
    size the two cannot be told apart, and all is taken as fixed.
    """
    line = float(np.median(time_s)), 0.0
    if np.ptp(records) == 0.0:
        return line
    for _ in range(ROUNDS):
        middle = np.maximum(line[0] + line[1] * records, LEAST_TIME_S)
        error = np.abs(time_s / middle - 1.0)
        scale = max(1.4826 * float(np.median(error)), 1e-3)
        weight = np.minimum(1.0, HUBER * scale / np.maximum(error, 1e-12)) / middle**2
        line = _weighted_line(records, time_s, weight)
    return line


def _weighted_line(
    x: NDArray[np.float64], y: NDArray[np.float64], weight: NDArray[np.float64]
) -> tuple[float, float]:
    """Return intercept and slope >= 0 of the weighted least-squares line."""
    total = weight.sum()
    mean_x, mean_y = (weight * x).sum() / total, (weight * y).sum() / total
    spread = (weight * (x - mean_x) ** 2).sum()
    slope = max(float((weight * (x - mean_x) * (y - mean_y)).sum() / max(spread, 1e-30)), 0.0)
    intercept = float(mean_y - slope * mean_x)
    if intercept < 0.0:
        return 0.0, float((weight * x * y).sum() / (weight * x * x).sum())
    return intercept, slope


def _slowdown(
    tasks: list[_Tasks],
    lines: list[tuple[float, float]],
    prior: NDArray[np.float64],
    prior_tasks: float,
) -> NDArray[np.float64]:
    """Return the slowdown by busy slots, float64 [slots + 1], never falling, 1 at one busy slot.

    Args:
        tasks: Measurements of some stages.
        lines: Their lines (fixed, per record).
        prior: Slowdown to lean on where there are few measurements, float64 [slots + 1].
        prior_tasks: How many measurements it counts as.
    """
    busy = np.concatenate([t.busy for t in tasks])
    ratio = np.concatenate(
        [
            t.compute_s / np.maximum(fixed + per_record * t.records, LEAST_TIME_S)
            for t, (fixed, per_record) in zip(tasks, lines, strict=True)
        ]
    )
    count = np.bincount(busy, minlength=len(prior)).astype(np.float64)
    level = np.ones(len(prior))
    for k in np.flatnonzero(count):
        level[k] = _trimmed_mean(ratio[busy == k])
    # The prior is only a shape: bring it to the level of these measurements first.
    weight = count + prior_tasks
    scale = (count * level).sum() / (count * prior).sum()
    level = (count * level + prior_tasks * scale * prior) / np.maximum(weight, 1e-12)
    if prior_tasks == 0.0:
        level = np.interp(np.arange(len(level)), np.flatnonzero(count), level[count > 0])
        weight = np.maximum(count, 1e-3)
    rising = isotonic(level[1:], weight[1:])
    return np.concatenate([[1.0], rising / rising[0]])


def _trimmed_mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the values below their 98th percentile (a hiccup is no slowdown)."""
    return float(values[values <= np.quantile(values, 0.98)].mean())


def isotonic(values: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the non-decreasing sequence nearest to values (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, w in zip(values.tolist(), weight.tolist(), strict=True):
        block = (value, w, 1)
        while blocks and blocks[-1][0] > block[0]:
            mean, total, length = blocks.pop()
            joined = total + block[1]
            block = (mean * total + block[0] * block[1]) / joined, joined, length + block[2]
        blocks.append(block)
    return np.concatenate([np.full(length, mean) for mean, _, length in blocks])


def _stage_cost(
    tasks: _Tasks, line: tuple[float, float], slowdown: NDArray[np.float64], wait_s: float
) -> StageCost:
    """Scale the line so that the mean time is kept, and tabulate the residuals."""
    model = np.maximum(line[0] + line[1] * tasks.records, LEAST_TIME_S) * slowdown[tasks.busy]
    scale = float(tasks.compute_s.mean() / model.mean())
    ratio = np.sort(tasks.compute_s / (scale * model))
    groups = np.array_split(ratio, min(QUANTILES, len(ratio)))
    residual = np.array([group.mean() for group in groups])
    return StageCost(
        wait_s=wait_s,
        fixed_s=scale * line[0],
        per_record_s=scale * line[1],
        residual=residual / residual.mean(),
        slowdown=slowdown,
    )


def _stage_fit(key: tuple[str, str], tasks: _Tasks, cost: StageCost) -> StageFit:
    """Compare the distribution that a cost predicts with the measured one."""
    compute = (cost.fixed_s + cost.per_record_s * tasks.records) * cost.slowdown[tasks.busy]
    times = tasks.compute_s + cost.wait_s
    predicted = cost.wait_s + np.outer(compute, cost.residual)
    spread = float(times.var())
    error = float(((times - cost.wait_s - compute) ** 2).mean())
    p95 = float(np.quantile(times, 0.95))
    return StageFit(
        job=key[0],
        stage=key[1],
        tasks=len(times),
        mean_s=float(times.mean()),
        mean_error=float(predicted.mean() / times.mean() - 1.0),
        p95_error=float(np.quantile(predicted, 0.95) / p95 - 1.0),
        explained=1.0 - error / spread if spread > 0.0 else 1.0,
    )
