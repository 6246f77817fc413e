"""What a bank of variants costs and how well it answers: a measured (or declared) profile.

Serving a batch in bucket b with levels l takes

    (fixed_s[b] + sum over k of latency_s[b, k, l_k] + sum over k of transition_s[b, k, l_k, l_k+1])

times a residual whose distribution is stored (of measured banks: of served batches over their
median, with a long tail to the right), and decision_s[b] where an agent decides for it, and
switch_s[b] where the pass before it ran other levels. The parts are profiled inside the running
chain: sums of isolated timings miss. Answers are exact: the label and the output margin of every
sample under every assignment and every condition are stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.precision.plan import all_assignments, assignment_index, assignment_levels
from runtime.precision.snapshot import bucket_of
from simulators.energy import EnergyModel

MARGIN_STEPS = 255
"""Margins are stored as round(255 * margin)."""
MAX_BUCKET = 64
"""Largest batch that the engine serves (one bit per request of a shadow-checked batch)."""
MAX_ASSIGNMENTS = 1 << 16
RESIDUAL_CELLS = 1024
"""Equally likely cells in which the lognormal residual is drawn."""


@dataclass(frozen=True, eq=False)
class PrecisionProfile:
    """Costs and answers of one network under every assignment. S stages, P levels, B buckets.

    C conditions of n samples each, F properties; A = P**S assignments in mixed radix (see
    `runtime.precision.plan`). Level 0 is the most precise, assignment 0 the reference.

    Attributes:
        network: Name of the network.
        stages: Names of the stages.
        levels: Names of the levels.
        emulated: Whether a level is emulated: its answers are real, its costs declared.
        buckets: Batch sizes that are prepared, ascending, at most `MAX_BUCKET`.
        conditions: Names of the input conditions; the first one is clean.
        property_names: Names of the input properties.
        fixed_s: float64 [B], cost per batch, seconds >= 0.
        decision_s: float64 [B], what an agent takes that decides for every batch, beyond one that
            always gives the same plan, seconds >= 0: a policy network, and about what rules take.
        switch_s: float64 [B], how much longer the first pass after one at other levels takes,
            seconds >= 0.
        latency_s: float64 [B, S, P], in situ, seconds >= 0.
        transition_s: float64 [B, S-1, P, P], from the level of stage k to that of stage k+1,
            seconds; a negative one means that a pair of levels saves work at its border.
        residual: float64 [B, RESIDUAL_CELLS], ascending: what passes take over what is predicted,
            each cell equally likely (see `residual_cells`).
        bytes: int64 [S, P], memory of each variant.
        truth: uint8 [n], true label of each sample.
        label: uint8 [C, A, n], answers.
        margin: uint8 [C, A, n], output margins times `MARGIN_STEPS`.
        properties: float32 [C, n, F], input properties.
        clip_rate: float32 [C, S, P], share of activations that saturate.
        sqnr_db: float32 [C, S, P], signal over quantisation noise of a stage, decibels.
        power_active_w: Additional power while serving, watts (declared unless `origin` says how
            it was metered).
        power_idle_w: Power at rest, watts.
        origin: How the numbers came about ("synthetic", or machine, date and command).
    """

    network: str
    stages: tuple[str, ...]
    levels: tuple[str, ...]
    emulated: tuple[bool, ...]
    buckets: tuple[int, ...]
    conditions: tuple[str, ...]
    property_names: tuple[str, ...]
    fixed_s: NDArray[np.float64]
    decision_s: NDArray[np.float64]
    switch_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    transition_s: NDArray[np.float64]
    residual: NDArray[np.float64]
    bytes: NDArray[np.int64]
    truth: NDArray[np.uint8]
    label: NDArray[np.uint8]
    margin: NDArray[np.uint8]
    properties: NDArray[np.float32]
    clip_rate: NDArray[np.float32]
    sqnr_db: NDArray[np.float32]
    power_active_w: float
    power_idle_w: float
    origin: str

    def __post_init__(self) -> None:
        """Refuse values that describe no bank.

        Raises:
            ValueError: The message names field and reason.
        """
        _check_names(self)
        _check_shapes(self)
        _check_values(self)

    @property
    def n_assignments(self) -> int:
        """Number of assignments A."""
        return int(len(self.levels) ** len(self.stages))

    @property
    def n_samples(self) -> int:
        """Number of samples n of each condition."""
        return len(self.truth)

    @property
    def energy(self) -> EnergyModel:
        """Declared power model; the bank counts as one slot."""
        return EnergyModel(self.origin, self.power_idle_w, self.power_active_w)

    def assignment(self, *levels: str) -> tuple[int, ...]:
        """Return level indices from names: one for all stages, or one per stage.

        Raises:
            ValueError: An unknown name or the wrong number of them.
        """
        names = levels * len(self.stages) if len(levels) == 1 else levels
        if len(names) != len(self.stages):
            raise ValueError(f"{len(names)} levels are given; expected 1 or {len(self.stages)}")
        unknown = [name for name in names if name not in self.levels]
        if unknown:
            raise ValueError(f"unknown level {unknown[0]!r}; the profile has {list(self.levels)}")
        return tuple(self.levels.index(name) for name in names)

    def levels_of(self, assignment: int) -> tuple[int, ...]:
        """Return the level indices of an assignment given as an integer."""
        return assignment_levels(assignment, len(self.stages), len(self.levels))

    def predict_latency_s(self, levels: tuple[int, ...], bucket: int) -> float:
        """Return the mean service time of one pass, seconds.

        Args:
            levels: Level index of each stage.
            bucket: Number of requests; the next larger prepared batch size counts.

        Raises:
            ValueError: No such level, or more requests than the largest bucket.
        """
        assignment_index(levels, len(self.levels))  # refuses unknown levels
        b = bucket_of(bucket, self.buckets)
        total = float(self.fixed_s[b])
        for stage, level in enumerate(levels):
            total += float(self.latency_s[b, stage, level])
        for stage in range(len(levels) - 1):
            total += float(self.transition_s[b, stage, levels[stage], levels[stage + 1]])
        return total

    def latency_table_s(self) -> NDArray[np.float64]:
        """Return `predict_latency_s` of all assignments and buckets, float64 [A, B], same bits."""
        levels = all_assignments(len(self.stages), len(self.levels))
        table = np.tile(self.fixed_s, (len(levels), 1))
        for stage in range(len(self.stages)):
            table += self.latency_s[:, stage, levels[:, stage]].T
        for stage in range(len(self.stages) - 1):
            table += self.transition_s[:, stage, levels[:, stage], levels[:, stage + 1]].T
        return table

    def capacity_per_s(self, levels: tuple[int, ...], max_batch: int) -> float:
        """Return the highest rate at which a constant assignment keeps up, requests per second."""
        return max(size / self.predict_latency_s(levels, size) for size in range(1, max_batch + 1))

    def accuracy(self) -> NDArray[np.float64]:
        """Return the share of correct answers, float64 [C, A]."""
        return np.asarray((self.label == self.truth).mean(axis=2))

    def agreement(self) -> NDArray[np.float64]:
        """Return the share of answers equal to the reference assignment's, float64 [C, A]."""
        return np.asarray((self.label == self.label[:, :1]).mean(axis=2))

    def without_decisions(self) -> PrecisionProfile:
        """Return the profile under which deciding takes no time: for plans that never change."""
        return replace(self, decision_s=np.zeros_like(self.decision_s))

    def take(self, samples: NDArray[np.int64]) -> PrecisionProfile:
        """Return the profile of some samples only: to hold the others out."""
        return replace(
            self,
            truth=self.truth[samples],
            label=np.ascontiguousarray(self.label[:, :, samples]),
            margin=np.ascontiguousarray(self.margin[:, :, samples]),
            properties=np.ascontiguousarray(self.properties[:, samples]),
        )

    def save(self, path: Path) -> None:
        """Write the profile (one file, atomically); see `simulators.precision.profile_file`."""
        from simulators.precision.profile_file import write_profile

        write_profile(self, path)

    @classmethod
    def load(cls, path: Path) -> PrecisionProfile:
        """Read a profile written by `save`.

        Raises:
            ValueError: Names file, field and reason.
        """
        from simulators.precision.profile_file import read_profile

        return read_profile(path)


def residual_cells() -> NDArray[np.float64]:
    """Return the probabilities whose quantiles are the cells of a residual."""
    return np.asarray((np.arange(RESIDUAL_CELLS) + 0.5) / RESIDUAL_CELLS)


def lognormal_residual(sigma: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return lognormal residuals with mean 1, float64 [B, RESIDUAL_CELLS], for declared banks.

    Args:
        sigma: float64 [B], standard deviation of the logarithm, at least 0.
    """
    from scipy.special import ndtri

    table = np.exp(sigma[:, None] * ndtri(residual_cells()))
    return np.asarray(table / table.mean(axis=1, keepdims=True))


def array_types(profile: PrecisionProfile) -> dict[str, tuple[type[np.generic], tuple[int, ...]]]:
    """Return dtype and expected shape of every array field, by name."""
    s, p, b = len(profile.stages), len(profile.levels), len(profile.buckets)
    c, f, n = len(profile.conditions), len(profile.property_names), len(profile.truth)
    a = profile.n_assignments
    return {
        "fixed_s": (np.float64, (b,)),
        "decision_s": (np.float64, (b,)),
        "switch_s": (np.float64, (b,)),
        "latency_s": (np.float64, (b, s, p)),
        "transition_s": (np.float64, (b, s - 1, p, p)),
        "residual": (np.float64, (b, RESIDUAL_CELLS)),
        "bytes": (np.int64, (s, p)),
        "truth": (np.uint8, (n,)),
        "label": (np.uint8, (c, a, n)),
        "margin": (np.uint8, (c, a, n)),
        "properties": (np.float32, (c, n, f)),
        "clip_rate": (np.float32, (c, s, p)),
        "sqnr_db": (np.float32, (c, s, p)),
    }


def _check_names(profile: PrecisionProfile) -> None:
    for field in ("stages", "levels", "conditions", "property_names"):
        names = getattr(profile, field)
        if field != "property_names" and not names:
            raise ValueError(f"{field} is empty; expected at least one name")
        if len(set(names)) != len(names):
            raise ValueError(f"{field} is {list(names)}; expected different names")
    if len(profile.emulated) != len(profile.levels):
        raise ValueError(
            f"emulated has {len(profile.emulated)} entries; expected one for each of "
            f"{len(profile.levels)} levels"
        )
    buckets = profile.buckets
    if not buckets or buckets[0] < 1 or list(buckets) != sorted(set(buckets)):
        raise ValueError(f"buckets is {list(buckets)}; expected ascending batch sizes from 1")
    if buckets[-1] > MAX_BUCKET:
        raise ValueError(f"buckets is {list(buckets)}; the engine serves at most {MAX_BUCKET}")
    if profile.n_assignments > MAX_ASSIGNMENTS:
        raise ValueError(
            f"levels: {len(profile.levels)} levels of {len(profile.stages)} stages make "
            f"{profile.n_assignments} assignments; at most {MAX_ASSIGNMENTS} are stored one by one"
        )


def _check_shapes(profile: PrecisionProfile) -> None:
    for field, (dtype, shape) in array_types(profile).items():
        array = getattr(profile, field)
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(
                f"{field} is {array.dtype} {list(array.shape)}; expected "
                f"{np.dtype(dtype)} {list(shape)}"
            )
    if not profile.n_samples:
        raise ValueError("truth is empty; expected at least one sample")


def _check_values(profile: PrecisionProfile) -> None:
    for field in ("fixed_s", "decision_s", "switch_s", "latency_s", "clip_rate", "bytes"):
        array = getattr(profile, field)
        if not (np.isfinite(array) & (array >= 0)).all():
            raise ValueError(f"{field} holds {_worst(array)}; expected finite numbers >= 0")
    for field in ("transition_s", "properties", "sqnr_db"):
        if not np.isfinite(getattr(profile, field)).all():
            raise ValueError(f"{field} holds a number that is not finite")
    if profile.clip_rate.max() > 1.0:
        raise ValueError(f"clip_rate holds {profile.clip_rate.max()}; expected shares up to 1")
    _check_residual(profile.residual)
    shortest = profile.latency_table_s().min()
    if not shortest > 0.0:
        raise ValueError(
            f"fixed_s, latency_s and transition_s add up to {shortest} s for some assignment; a "
            "batch must take time"
        )
    for field in ("power_active_w", "power_idle_w"):
        value = getattr(profile, field)
        if not (math.isfinite(value) and value >= 0.0):
            raise ValueError(f"{field} is {value}; expected finite watts >= 0")


def _check_residual(residual: NDArray[np.float64]) -> None:
    bad = residual[~(np.isfinite(residual) & (residual > 0.0))]
    if bad.size:
        raise ValueError(f"residual holds {bad[0]}; expected finite numbers > 0")
    if (np.diff(residual) < 0.0).any():
        raise ValueError("residual falls from one cell to the next; expected ascending numbers")


def _worst(array: NDArray[np.generic]) -> object:
    """Return the first entry that is negative or not finite."""
    return array[~(np.isfinite(array) & (array >= 0))].flat[0]  # type: ignore[operator]
