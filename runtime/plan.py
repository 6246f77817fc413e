"""Plans: the one decision language of simulator, controller and real executor."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Pools(IntEnum):
    """How slots are divided between independent and dependent jobs."""

    SINGLE = 0
    HARD = 1
    SOFT = 2


class Policy(IntEnum):
    """Order of task sets inside a pool (Spark's comparators)."""

    FIFO = 0
    FAIR = 1


PLAN_COLUMNS: tuple[str, ...] = (
    "pools",
    "share",
    "independent_policy",
    "dependent_policy",
    "parallelism",
    "batch_interval_s",
    "idle_batches",
    "per_pool_parallelism",
)
"""Columns of a plan row (float64), the form in which batched code passes plans."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One versioned decision.

    Attributes:
        pools: Kind of pools.
        share: Fraction of the slots (hard) or weight (soft) of the independent pool, in [0, 1].
            Ignored by a single pool.
        independent_policy: Order inside the independent pool, and of the whole queue when
            `pools` is single.
        dependent_policy: Order inside the dependent pool. Ignored by a single pool.
        parallelism: Maximum number of jobs running at once, at least 1.
        batch_interval_s: Seconds between two cuts; with `idle_batches` > 0 the minimum gap
            between two cuts.
        idle_batches: 0 cuts by the clock. m > 0 cuts as soon as a record waits, fewer than m
            batches are pending and `batch_interval_s` has passed since the last cut.
        per_pool_parallelism: Whether `parallelism` caps each pool separately instead of all
            jobs together.
        version: Number of the decision; every report names the version its batch was cut under.
    """

    pools: Pools = Pools.SINGLE
    share: float = 0.5
    independent_policy: Policy = Policy.FIFO
    dependent_policy: Policy = Policy.FIFO
    parallelism: int = 1
    batch_interval_s: float = 2.0
    idle_batches: int = 0
    per_pool_parallelism: bool = False
    version: int = 0

    def __post_init__(self) -> None:
        """Refuse values that no executor could apply.

        Raises:
            ValueError: A field is outside its range; the message names field, value and range.
        """
        object.__setattr__(self, "pools", Pools(self.pools))
        object.__setattr__(self, "independent_policy", Policy(self.independent_policy))
        object.__setattr__(self, "dependent_policy", Policy(self.dependent_policy))
        if not (math.isfinite(self.share) and 0.0 <= self.share <= 1.0):
            raise ValueError(
                f"plan.share is {self.share}; expected a fraction of the slots in [0, 1]"
            )
        if self.parallelism < 1:
            raise ValueError(
                f"plan.parallelism is {self.parallelism}; expected at least 1: with no job "
                "allowed to run nothing would ever finish"
            )
        if not (math.isfinite(self.batch_interval_s) and self.batch_interval_s >= 0.0):
            raise ValueError(
                f"plan.batch_interval_s is {self.batch_interval_s}; expected finite seconds >= 0"
            )
        if self.batch_interval_s == 0.0 and self.idle_batches == 0:
            raise ValueError(
                "plan.batch_interval_s is 0; expected seconds > 0 (0 is a minimum gap and needs "
                "idle_batches > 0)"
            )
        if self.idle_batches < 0:
            raise ValueError(f"plan.idle_batches is {self.idle_batches}; expected at least 0")

    def to_row(self) -> NDArray[np.float64]:
        """Return the plan as one row.

        Returns:
            float64 array of shape [len(PLAN_COLUMNS)].
        """
        return np.array([float(getattr(self, name)) for name in PLAN_COLUMNS])

    @classmethod
    def from_row(cls, row: NDArray[np.float64], version: int = 0) -> Plan:
        """Build a plan from a row written by `to_row` or by batched code.

        Args:
            row: float64 array of shape [len(PLAN_COLUMNS)].
            version: Number of the decision.

        Raises:
            ValueError: A value is outside its range.
        """
        pools, share, first, second, parallelism, interval_s, idle, per_pool = row.tolist()
        return cls(
            pools=Pools(int(pools)),
            share=share,
            independent_policy=Policy(int(first)),
            dependent_policy=Policy(int(second)),
            parallelism=int(parallelism),
            batch_interval_s=interval_s,
            idle_batches=int(idle),
            per_pool_parallelism=bool(per_pool),
            version=version,
        )

    def to_mapping(self) -> dict[str, Any]:
        """Return the plan as plain JSON values (enums by lower-case name)."""
        mapping: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("pools", "independent_policy", "dependent_policy"):
            mapping[name] = mapping[name].name.lower()
        return mapping

    @classmethod
    def from_mapping(cls, mapping: dict[str, Any]) -> Plan:
        """Build a plan from `to_mapping`'s form (missing fields take their defaults).

        Raises:
            ValueError: An unknown field or enum name, or a value outside its range.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(mapping) - known)
        if unknown:
            raise ValueError(f"unknown plan field {unknown[0]!r}; expected one of {sorted(known)}")
        values = dict(mapping)
        for name, kind in (
            ("pools", Pools),
            ("independent_policy", Policy),
            ("dependent_policy", Policy),
        ):
            if name in values:
                values[name] = _enum_member(kind, name, values[name])
        return cls(**values)


def _enum_member(kind: type[Pools] | type[Policy], field: str, value: object) -> Pools | Policy:
    """Look up an enum member by number or by name in any case."""
    if isinstance(value, str):
        member = kind.__members__.get(value.upper())
        if member is None:
            names = [name.lower() for name in kind.__members__]
            raise ValueError(f"plan.{field} is {value!r}; expected one of {names}")
        return member
    if not isinstance(value, int):
        raise ValueError(f"plan.{field} is {value!r}; expected a name or a number")
    return kind(value)


def hard_slots(share: float, slots: int, n_independent: int, n_dependent: int) -> tuple[int, int]:
    """Split slots into two disjoint pools.

    Every class that has jobs gets at least one slot. With a single slot and jobs of both classes
    no split can do that: both pools are then given the one slot and share it in time.

    Args:
        share: Fraction of the slots for the independent pool, in [0, 1].
        slots: Number of slots, at least 1.
        n_independent: Number of independent jobs.
        n_dependent: Number of dependent jobs.

    Returns:
        Slots of the independent and of the dependent pool.
    """
    if n_independent == 0:
        return 0, slots
    if n_dependent == 0:
        return slots, 0
    if slots == 1:
        return 1, 1
    independent = min(max(math.floor(share * slots + 0.5), 1), slots - 1)
    return independent, slots - independent
