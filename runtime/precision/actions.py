"""From the choice of an agent to a plan: the action spaces of staged precision.

Used by environments (to build their spaces) and by exported policies (to decode the output of
their network).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.actions import ActionCodec, ListedActions
from runtime.precision.plan import PrecisionPlan

__all__ = ["ActionCodec", "LevelActions", "TableActions", "action_codec"]


@dataclass(frozen=True)
class LevelActions:
    """One choice of level per stage (MultiDiscrete), and optionally one of the second pass.

    Attributes:
        n_stages: Number of stages.
        n_levels: Number of levels.
        escalate_below: Margins on offer for the second pass; more than one makes them a choice.
        escalate_levels: Levels of the second pass; empty means the most precise ones.
    """

    n_stages: int
    n_levels: int
    escalate_below: tuple[float, ...] = (0.0,)
    escalate_levels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what makes no plan.

        Raises:
            ValueError: Names the field.
        """
        if self.n_stages < 1 or self.n_levels < 1:
            raise ValueError(
                f"n_stages is {self.n_stages} and n_levels {self.n_levels}; expected at least 1"
            )
        again = tuple(self.escalate_levels) or (0,) * self.n_stages
        object.__setattr__(self, "escalate_levels", again)
        object.__setattr__(self, "escalate_below", tuple(self.escalate_below))
        if not self.escalate_below:
            raise ValueError("escalate_below is empty; expected at least one margin")
        if max(again) >= self.n_levels:
            raise ValueError(f"escalate_levels is {again}; expected levels below {self.n_levels}")
        for margin in self.escalate_below:
            PrecisionPlan((0,) * self.n_stages, margin, again)

    @property
    def nvec(self) -> tuple[int, ...]:
        """Number of levels per stage; then the number of margins if there is a choice."""
        margins = len(self.escalate_below)
        return (self.n_levels,) * self.n_stages + ((margins,) if margins > 1 else ())

    @property
    def names(self) -> tuple[str, ...]:
        """Return nothing: combinations have no names."""
        return ()

    def decode(
        self, actions: NDArray[np.int64], current: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the chosen levels; see `ActionCodec`."""
        s = self.n_stages
        rows = np.empty((len(actions), 2 * s + 1))
        rows[:, :s] = actions[:, :s]
        if len(self.escalate_below) > 1:
            rows[:, s] = np.array(self.escalate_below)[actions[:, s]]
        else:
            rows[:, s] = self.escalate_below[0]
        rows[:, s + 1 :] = self.escalate_levels
        return rows

    def nearest(self, plan: PrecisionPlan) -> NDArray[np.int64]:
        """Return the choice whose plan is nearest to a plan, int64 [len(nvec)]."""
        choice = [min(level, self.n_levels - 1) for level in plan.levels]
        if len(self.escalate_below) > 1:
            distance = np.abs(np.array(self.escalate_below) - plan.escalate_below)
            choice.append(int(distance.argmin()))
        return np.array(choice, dtype=np.int64)

    def masks(self, current: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return all True: every combination is a plan."""
        return np.ones((len(current), sum(self.nvec)), dtype=bool)

    def to_mapping(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "kind": "levels",
            "n_stages": self.n_stages,
            "n_levels": self.n_levels,
            "escalate_below": list(self.escalate_below),
            "escalate_levels": list(self.escalate_levels),
        }


class TableActions(ListedActions[PrecisionPlan]):
    """A named list of verified tables, each a whole plan (Discrete)."""

    kind = "tables"


def action_codec(mapping: Mapping[str, Any]) -> ActionCodec:
    """Build an action codec from its `to_mapping` form.

    Raises:
        ValueError: Unknown kind, field or level.
    """
    values = dict(mapping)
    kind = values.pop("kind", None)
    try:
        if kind == "levels":
            return LevelActions(**values)
        if kind == "tables":
            plans = values["plans"].items()
            return TableActions({name: PrecisionPlan.from_mapping(plan) for name, plan in plans})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a description of actions of kind {kind!r}: {error}") from error
    raise ValueError(f"unknown kind of actions {kind!r}; expected 'levels' or 'tables'")
