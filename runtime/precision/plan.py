"""Plans of staged precision: one level per stage, and optionally a second pass for unsure samples.

An assignment is one level per stage, as a tuple of level indices or as one integer in mixed radix:
((l0 * P + l1) * P + l2) ..., stage 0 most significant. Level 0 is the most precise one, so
assignment 0 is the reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class PrecisionPlan:
    """One versioned decision.

    Attributes:
        levels: Level index of each stage; 0 is the most precise level.
        escalate_below: Samples of a batch whose output margin is below this are run again at
            `escalate_levels`; in [0, 1], 0 runs none again.
        escalate_levels: Levels of the second pass; empty means `levels`, which runs none again.
        version: Number of the decision; every report names the version its batch was run under.
    """

    levels: tuple[int, ...]
    escalate_below: float = 0.0
    escalate_levels: tuple[int, ...] = ()
    version: int = 0

    def __post_init__(self) -> None:
        """Refuse values that no bank could run.

        Raises:
            ValueError: A field is outside its range; the message names field, value and range.
        """
        object.__setattr__(self, "levels", tuple(int(level) for level in self.levels))
        escalated = tuple(int(level) for level in self.escalate_levels) or self.levels
        object.__setattr__(self, "escalate_levels", escalated)
        if not self.levels or min(self.levels) < 0:
            raise ValueError(f"plan.levels is {self.levels}; expected one level >= 0 per stage")
        if len(escalated) != len(self.levels) or min(escalated) < 0:
            raise ValueError(
                f"plan.escalate_levels is {escalated}; expected {len(self.levels)} levels >= 0, "
                "one per stage"
            )
        if not (math.isfinite(self.escalate_below) and 0.0 <= self.escalate_below <= 1.0):
            raise ValueError(
                f"plan.escalate_below is {self.escalate_below}; expected a margin in [0, 1]"
            )

    def to_row(self) -> NDArray[np.float64]:
        """Return the plan as float64 [len(plan_columns(n_stages))]."""
        return np.array([*self.levels, self.escalate_below, *self.escalate_levels], np.float64)

    @classmethod
    def from_row(cls, row: NDArray[np.float64], version: int = 0) -> PrecisionPlan:
        """Build a plan from a row written by `to_row` or by batched code.

        Args:
            row: float64 [2 * n_stages + 1].
            version: Number of the decision.

        Raises:
            ValueError: The row has an even length, or a value is outside its range.
        """
        values = row.tolist()
        n = len(values) // 2
        if len(values) != 2 * n + 1 or not np.isfinite(row).all():
            raise ValueError(f"plan row is {values}; expected 2 * stages + 1 finite numbers")
        levels, escalated = values[:n], values[n + 1 :]
        if any(level != int(level) for level in levels + escalated):
            raise ValueError(f"plan row is {values}; expected whole numbers as levels")
        return cls(tuple(map(int, levels)), values[n], tuple(map(int, escalated)), version)

    def to_mapping(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        return {
            "levels": list(self.levels),
            "escalate_below": self.escalate_below,
            "escalate_levels": list(self.escalate_levels),
            "version": self.version,
        }

    @classmethod
    def from_mapping(cls, mapping: dict[str, Any]) -> PrecisionPlan:
        """Build a plan from `to_mapping`'s form (all but `levels` may be missing).

        Raises:
            ValueError: An unknown or missing field, or a value outside its range.
        """
        known = ("levels", "escalate_below", "escalate_levels", "version")
        unknown = sorted(set(mapping) - set(known))
        if unknown:
            raise ValueError(f"unknown plan field {unknown[0]!r}; expected one of {list(known)}")
        if "levels" not in mapping:
            raise ValueError("plan.levels is missing; expected one level per stage")
        try:
            return cls(**mapping)
        except TypeError as error:
            raise ValueError(f"not a precision plan: {error}") from error


@cache
def plan_columns(n_stages: int) -> tuple[str, ...]:
    """Return the columns of a plan row (float64), the form in which batched code passes plans."""
    return (
        *(f"level_{k}" for k in range(n_stages)),
        "escalate_below",
        *(f"escalate_level_{k}" for k in range(n_stages)),
    )


def assignment_index(levels: tuple[int, ...], n_levels: int) -> int:
    """Return an assignment as an integer.

    Raises:
        ValueError: A level is not in [0, n_levels).
    """
    index = 0
    for stage, level in enumerate(levels):
        if not 0 <= level < n_levels:
            raise ValueError(f"level of stage {stage} is {level}; expected 0 to {n_levels - 1}")
        index = index * n_levels + level
    return index


def assignment_levels(index: int, n_stages: int, n_levels: int) -> tuple[int, ...]:
    """Return the levels of an assignment.

    Raises:
        ValueError: There is no such assignment.
    """
    if not 0 <= index < n_levels**n_stages:
        raise ValueError(f"assignment is {index}; expected 0 to {n_levels**n_stages - 1}")
    levels = []
    for _ in range(n_stages):
        index, level = divmod(index, n_levels)
        levels.append(level)
    return tuple(reversed(levels))


def all_assignments(n_stages: int, n_levels: int) -> NDArray[np.int64]:
    """Return the levels of every assignment, int64 [n_levels**n_stages, n_stages], in order."""
    grid = np.indices((n_levels,) * n_stages).reshape(n_stages, -1)
    return np.ascontiguousarray(grid.T)
