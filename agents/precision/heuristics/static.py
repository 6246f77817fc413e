"""Plans that never change: uniform levels, any table, the confidence cascade, the best of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.precision.known import Known
from agents.precision.rule import Rule
from runtime.precision.plan import PrecisionPlan

MARGINS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9)
"""Margins below which the tuned rules run a sample again."""


@dataclass(eq=False)
class Static(Rule):
    """Always proposes the same plan.

    Attributes:
        name: What it is called in tables.
        plan: The plan.
    """

    decides: ClassVar[bool] = False
    name: str  # type: ignore[misc]
    plan: PrecisionPlan

    def rows(self, signals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the plan's row; see `Rule`."""
        return np.tile(self.plan.to_row(), (len(signals), 1))

    def settings(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        return self.plan.to_mapping()


def uniforms(known: Known, levels: Sequence[str]) -> list[Static]:
    """Return the rules that run every stage at the same level: "static_" and the level's name."""
    plans = [PrecisionPlan(known.uniform(level)) for level in range(known.tables.n_levels)]
    return [Static(f"static_{name}", plan) for name, plan in zip(levels, plans, strict=True)]


@dataclass(eq=False)
class Cascade(Rule):
    """Runs everything at low levels, and samples with a small output margin again at high ones.

    Attributes:
        known: What it starts from.
        low: Level of all stages in the first pass.
        high: Level of all stages in the second.
        below: Margin below which a sample is run again.
    """

    name: ClassVar[str] = "confidence_cascade"
    decides: ClassVar[bool] = False
    known: Known
    low: int
    high: int
    below: float

    def rows(self, signals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the plan with its second pass; see `Rule`."""
        return np.tile(self.plan.to_row(), (len(signals), 1))

    @property
    def plan(self) -> PrecisionPlan:
        """The plan that it always proposes."""
        known = self.known
        return PrecisionPlan(known.uniform(self.low), self.below, known.uniform(self.high))


def cascade_grid(known: Known) -> list[Cascade]:
    """Return every pair of uniform levels with every margin."""
    pairs = list(combinations(range(known.tables.n_levels), 2))
    return [Cascade(known, low, high, below) for high, low in pairs for below in MARGINS]
