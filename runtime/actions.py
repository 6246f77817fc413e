"""What the action spaces of all domains share: the interface, and named lists of plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

MAX_LISTED = 64
"""Longest list of plans or moves: the largest Discrete space on offer."""


class ActionCodec(Protocol):
    """What all kinds of actions have in common."""

    @property
    def nvec(self) -> tuple[int, ...]:
        """Number of choices per dimension; one dimension means a Discrete space."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the choices of a Discrete space are called, empty otherwise."""

    def decode(
        self, actions: NDArray[np.int64], current: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the proposed plans.

        Args:
            actions: int64 [N, len(nvec)].
            current: float64 [N, plan columns], plans in force.

        Returns:
            float64 [N, plan columns].
        """

    def masks(self, current: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which choices change or keep something sensible, bool [N, sum(nvec)]."""

    def to_mapping(self) -> dict[str, Any]:
        """Return plain JSON values from which the domain's `action_codec` builds it again."""


class RowPlan(Protocol):
    """What a listed plan can do."""

    def to_row(self) -> NDArray[np.float64]:
        """Return the plan as float64 [plan columns]."""

    def to_mapping(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""


PlanT = TypeVar("PlanT", bound=RowPlan)


class ListedActions(Generic[PlanT]):
    """A named list of whole plans (Discrete)."""

    kind = "plans"

    def __init__(self, plans: Mapping[str, PlanT]) -> None:
        """Keep the list.

        Args:
            plans: 1 to `MAX_LISTED` plans by name.

        Raises:
            ValueError: Too few or too many plans.
        """
        if not 1 <= len(plans) <= MAX_LISTED:
            raise ValueError(f"{len(plans)} plans are listed; expected 1 to {MAX_LISTED}")
        self.plans = dict(plans)
        self._rows = np.stack([plan.to_row() for plan in plans.values()])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the plans."""
        return tuple(self.plans)

    @property
    def nvec(self) -> tuple[int, ...]:
        """Number of plans."""
        return (len(self.plans),)

    @property
    def rows(self) -> NDArray[np.float64]:
        """All plans, float64 [plans, plan columns]."""
        return self._rows

    def decode(
        self, actions: NDArray[np.int64], current: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the chosen plans; see `ActionCodec`."""
        return self._rows[actions[:, 0]]

    def masks(self, current: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return all True: every listed plan may follow every other."""
        return np.ones((len(current), len(self.names)), dtype=bool)

    def to_mapping(self) -> dict[str, Any]:
        """Return plain JSON values."""
        plans = {name: plan.to_mapping() for name, plan in self.plans.items()}
        return {"kind": self.kind, "plans": plans}
