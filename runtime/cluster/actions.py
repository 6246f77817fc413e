"""From the choice of an agent to a plan: the action spaces of a stream cluster.

Used by environments (to build their spaces) and by exported policies (to decode the output of
their network).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.actions import MAX_LISTED, ActionCodec, ListedActions
from runtime.plan import PLAN_COLUMNS, Plan, Policy, Pools

__all__ = [
    "MAX_LISTED",
    "ActionCodec",
    "FieldActions",
    "ListedActions",
    "MoveActions",
    "action_codec",
]

_FIELD_COLUMNS = np.arange(len(PLAN_COLUMNS) - 1)
"""All columns but the last: parallelism per pool is not a choice."""


@dataclass(frozen=True)
class FieldActions:
    """One choice per field of the plan (MultiDiscrete), each an absolute level.

    Attributes:
        pools: Kinds of pools on offer.
        share: Shares on offer.
        policies: Policies on offer, for each pool.
        parallelism: Parallelism values on offer.
        interval_s: Batch intervals on offer, seconds.
        idle_batches: Idle triggers on offer.
    """

    pools: tuple[Pools, ...] = (Pools.SINGLE, Pools.HARD, Pools.SOFT)
    share: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    policies: tuple[Policy, ...] = (Policy.FIFO, Policy.FAIR)
    parallelism: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16)
    interval_s: tuple[float, ...] = (0.1, 0.15, 0.25, 0.4, 0.6, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    idle_batches: tuple[int, ...] = (0, 1, 2, 4)

    def __post_init__(self) -> None:
        """Refuse empty lists and levels that no plan may have.

        Raises:
            ValueError: One of these; the message names the field.
        """
        object.__setattr__(self, "pools", tuple(Pools(p) for p in self.pools))
        object.__setattr__(self, "policies", tuple(Policy(p) for p in self.policies))
        for name in ("share", "parallelism", "interval_s", "idle_batches"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not all(self._levels()):
            raise ValueError("an action field has no levels; give each at least one")
        for choice in range(max(self.nvec)):
            columns = [min(choice, n - 1) for n in self.nvec]
            Plan.from_row(self.decode(np.array([columns]), np.zeros((1, len(PLAN_COLUMNS))))[0])

    def _levels(self) -> tuple[Sequence[float], ...]:
        return (
            self.pools,
            self.share,
            self.policies,
            self.policies,
            self.parallelism,
            self.interval_s,
            self.idle_batches,
        )

    @property
    def nvec(self) -> tuple[int, ...]:
        """Number of levels per field: pools, share, two policies, parallelism, interval, idle."""
        return tuple(len(levels) for levels in self._levels())

    @property
    def names(self) -> tuple[str, ...]:
        """Return nothing: combinations have no names."""
        return ()

    def decode(
        self, actions: NDArray[np.int64], current: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the chosen levels; see `ActionCodec`."""
        rows = np.zeros((len(actions), len(PLAN_COLUMNS)))
        rows[:, :-1] = self._table[_FIELD_COLUMNS, actions]
        return rows

    def nearest(self, plan: Plan) -> NDArray[np.int64]:
        """Return the choice whose plan is nearest to a plan in every field, int64 [len(nvec)]."""
        values = plan.to_row()[_FIELD_COLUMNS].tolist()
        pairs = zip(self._levels(), values, strict=True)
        return np.array([np.abs(np.asarray(levels) - value).argmin() for levels, value in pairs])

    @cached_property
    def _table(self) -> NDArray[np.float64]:
        """Levels of every field, float64 [fields, most levels], filled up with zeros."""
        table = np.zeros((len(self.nvec), max(self.nvec)))
        for row, levels in zip(table, self._levels(), strict=True):
            row[: len(levels)] = levels
        return table

    def masks(self, current: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return all True: every combination is a plan."""
        return np.ones((len(current), sum(self.nvec)), dtype=bool)

    def to_mapping(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "kind": "fields",
            "pools": [p.name.lower() for p in self.pools],
            "share": list(self.share),
            "policies": [p.name.lower() for p in self.policies],
            "parallelism": list(self.parallelism),
            "interval_s": list(self.interval_s),
            "idle_batches": list(self.idle_batches),
        }


_MOVES = ("share", "parallelism", "interval_s")
_MOVED_COLUMN = {"share": 1, "parallelism": 4, "interval_s": 5}


class MoveActions:
    """Steps of one level up or down in share, parallelism or interval, or none (Discrete).

    The other fields stay as they are in force. A step starts from the level nearest to the value
    in force.
    """

    def __init__(self, levels: FieldActions) -> None:
        """Take the levels of `levels`; its other fields do not matter."""
        self.levels = levels

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the moves."""
        return ("keep", *(f"{field}_{way}" for field in _MOVES for way in ("down", "up")))

    @property
    def nvec(self) -> tuple[int, ...]:
        """Number of moves."""
        return (len(self.names),)

    def _nearest(
        self, field: str, current: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        levels = np.sort(np.asarray(getattr(self.levels, field), dtype=np.float64))
        distance = np.abs(levels[None] - current[:, _MOVED_COLUMN[field], None])
        return levels, distance.argmin(axis=1)

    def decode(
        self, actions: NDArray[np.int64], current: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the plans in force, one field moved; see `ActionCodec`."""
        rows = current.copy()
        for i, field in enumerate(_MOVES):
            levels, at = self._nearest(field, current)
            for way, step in ((1, -1), (2, 1)):
                chosen = actions[:, 0] == 2 * i + way
                moved = levels[np.clip(at + step, 0, len(levels) - 1)]
                rows[chosen, _MOVED_COLUMN[field]] = moved[chosen]
        return rows

    def masks(self, current: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return False for moves beyond the last level, and for the share of a single pool."""
        masks = np.ones((len(current), len(self.names)), dtype=bool)
        for i, field in enumerate(_MOVES):
            levels, at = self._nearest(field, current)
            masks[:, 2 * i + 1] = at > 0
            masks[:, 2 * i + 2] = at < len(levels) - 1
        masks[current[:, 0] == Pools.SINGLE, 1:3] = False
        return masks

    def to_mapping(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"kind": "moves", "levels": self.levels.to_mapping()}


def action_codec(mapping: Mapping[str, Any]) -> ActionCodec:
    """Build an action codec from its `to_mapping` form.

    Raises:
        ValueError: Unknown kind, field or level.
    """
    values = dict(mapping)
    kind = values.pop("kind", None)
    try:
        if kind == "fields":
            values["pools"] = [Pools[name.upper()] for name in values["pools"]]
            values["policies"] = [Policy[name.upper()] for name in values["policies"]]
            return FieldActions(**values)
        if kind == "plans":
            plans = values["plans"].items()
            return ListedActions({name: Plan.from_mapping(plan) for name, plan in plans})
        if kind == "moves":
            levels = action_codec(values["levels"])
            if isinstance(levels, FieldActions):
                return MoveActions(levels)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a description of actions of kind {kind!r}: {error}") from error
    raise ValueError(f"unknown kind of actions {kind!r}; expected 'fields', 'plans' or 'moves'")
