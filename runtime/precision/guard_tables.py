"""Which assignments guards let pass: floors, ceilings, accuracy floor, latency target, as tables.

All of it is worked out once, for every assignment and every batch bucket; at run time a guard looks
up two numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from runtime.limits import Limits
from runtime.precision.plan import all_assignments

_STEP = np.int64(1) << 40
"""Cost of one level of distance; below it the rank of a candidate."""


class Conflict(Enum):
    """What yields where no assignment holds both the accuracy floor and the latency target."""

    ACCURACY_FIRST = "accuracy_first"
    DEADLINE_FIRST = "deadline_first"


@dataclass(frozen=True)
class PrecisionLimits(Limits):
    """What guards enforce; part of every policy bundle.

    Attributes:
        finest: Lowest level index that each stage may have; empty means 0 for all.
        coarsest: Highest one; empty means no limit.
        accuracy_floor: Lowest accuracy of an assignment, by the guards' table, in [0, 1]. A second
            pass is not counted in its favour.
        latency_target_s: Highest mean service time of a batch, second pass included, seconds.
        conflict: Which of the two goes first where they cannot both hold.
        dwell_s: Minimum time between opposite moves of a stage's level, seconds.
        dwell_requests: Minimum number of served requests between opposite moves.
    """

    finest: tuple[int, ...] = ()
    coarsest: tuple[int, ...] = ()
    accuracy_floor: float = 0.0
    latency_target_s: float = math.inf
    conflict: Conflict = Conflict.ACCURACY_FIRST
    dwell_s: float = 0.0
    dwell_requests: int = 0

    def __post_init__(self) -> None:
        """Refuse limits outside their own range.

        Raises:
            ValueError: Names the field.
        """
        object.__setattr__(self, "finest", tuple(self.finest))
        object.__setattr__(self, "coarsest", tuple(self.coarsest))
        object.__setattr__(self, "conflict", Conflict(self.conflict))
        if self.finest and self.coarsest:
            pairs = list(zip(self.finest, self.coarsest, strict=False))
            if len(self.finest) != len(self.coarsest) or any(low > high for low, high in pairs):
                raise ValueError(
                    f"guard finest is {self.finest} and coarsest {self.coarsest}; expected finest "
                    "<= coarsest in every stage"
                )
        if not 0.0 <= self.accuracy_floor <= 1.0:
            raise ValueError(f"guard accuracy_floor is {self.accuracy_floor}; expected [0, 1]")
        if not self.latency_target_s > 0.0:
            raise ValueError(
                f"guard latency_target_s is {self.latency_target_s}; expected seconds > 0"
            )
        if not (self.dwell_s >= 0.0 and self.dwell_requests >= 0):
            raise ValueError(
                f"guard dwell_s is {self.dwell_s} and dwell_requests {self.dwell_requests}; "
                "expected numbers >= 0"
            )


@dataclass(frozen=True, eq=False)
class BankTables:
    """What guards know about a bank; part of every policy bundle. A = n_levels**n_stages.

    Attributes:
        n_stages: Number of stages S.
        n_levels: Number of levels P.
        buckets: Batch sizes that are prepared, ascending.
        accuracy: float64 [A], accuracy of each assignment on calibration data.
        latency_s: float64 [A, len(buckets)], mean service time of one pass, seconds.
    """

    n_stages: int
    n_levels: int
    buckets: tuple[int, ...]
    accuracy: NDArray[np.float64] = field(repr=False)
    latency_s: NDArray[np.float64] = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse tables of the wrong shape or with numbers that are not finite.

        Raises:
            ValueError: Names the table.
        """
        a = self.n_levels**self.n_stages
        shapes = {"accuracy": (a,), "latency_s": (a, len(self.buckets))}
        for name, shape in shapes.items():
            table = getattr(self, name)
            if table.shape != shape or not np.isfinite(table).all():
                raise ValueError(
                    f"guard table {name} has shape {table.shape}; expected {shape}, all finite"
                )

    def to_mapping(self) -> dict[str, Any]:
        """Return the tables as plain JSON values."""
        return {
            "n_stages": self.n_stages,
            "n_levels": self.n_levels,
            "buckets": list(self.buckets),
            "accuracy": self.accuracy.tolist(),
            "latency_s": self.latency_s.tolist(),
        }

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Build tables from `to_mapping`'s form.

        Raises:
            ValueError: Missing or unknown keys, or impossible tables.
        """
        try:
            values = dict(mapping)
            values["buckets"] = tuple(values["buckets"])
            for name in ("accuracy", "latency_s"):
                values[name] = np.asarray(values[name], dtype=np.float64)
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not guard tables: {error}") from error


class Allowed:
    """Which assignments may run in which bucket, and what replaces the others.

    Attributes:
        low: int64 [S], lowest level index of each stage.
        high: int64 [S], highest one.
        accurate: bool [A], whether the accuracy floor holds.
        in_time: bool [A, B], whether the latency target holds.
        allowed: bool [A, B].
        replacement: int64 [A, B]: the allowed assignment with the fewest level steps away, among
            those the most accurate, then the fastest; itself where allowed.
        conflict: bool [B], whether no assignment holds both.
    """

    def __init__(self, limits: PrecisionLimits, bank: BankTables) -> None:
        """Work out the tables.

        Raises:
            ValueError: Limits for another number of stages, or levels that the bank lacks.
        """
        s, p = bank.n_stages, bank.n_levels
        for name in ("finest", "coarsest"):
            levels = getattr(limits, name)
            if levels and (len(levels) != s or min(levels) < 0 or max(levels) >= p):
                raise ValueError(f"guard {name} is {levels}; expected {s} levels from 0 to {p - 1}")
        self.low = np.array(limits.finest or (0,) * s, dtype=np.int64)
        self.high = np.array(limits.coarsest or (p - 1,) * s, dtype=np.int64)
        levels = all_assignments(s, p)
        inside = np.asarray(((levels >= self.low) & (levels <= self.high)).all(axis=1))
        self.accurate = bank.accuracy >= limits.accuracy_floor
        self.in_time = bank.latency_s <= limits.latency_target_s
        both = inside[:, None] & self.accurate[:, None] & self.in_time
        self.conflict = ~np.asarray(both.any(axis=0))
        self.allowed = both
        self.replacement = np.empty(both.shape, dtype=np.int64)
        for b in range(both.shape[1]):
            if self.conflict[b]:
                self.allowed[_settle(limits.conflict, inside, self, b, bank), b] = True
            self.replacement[:, b] = _nearest(self.allowed[:, b], bank, b)


def _settle(
    rule: Conflict, inside: NDArray[np.bool_], tables: Allowed, b: int, bank: BankTables
) -> int:
    """Return the one assignment that runs where floor and target cannot both hold.

    The fastest that holds the floor, or the most accurate that holds the target; where even that
    one cannot hold, the one that comes nearest to it.
    """
    latency_s, accuracy = bank.latency_s[:, b], bank.accuracy
    if rule is Conflict.ACCURACY_FIRST:
        first, wins = inside & tables.accurate, np.lexsort((-accuracy, latency_s))
        nearest = np.lexsort((latency_s, -accuracy))
    else:
        first, wins = inside & tables.in_time[:, b], np.lexsort((latency_s, -accuracy))
        nearest = np.lexsort((-accuracy, latency_s))
    order, among = (wins, first) if first.any() else (nearest, inside)
    return int(order[among[order]][0])


def _nearest(allowed: NDArray[np.bool_], bank: BankTables, b: int) -> NDArray[np.int64]:
    """Return the nearest allowed assignment of each, int64 [A].

    A distance transform: level steps add up over stages, so each stage is gone through once.
    """
    order = np.lexsort((bank.latency_s[:, b], -bank.accuracy))
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    cost = np.where(allowed, rank, np.iinfo(np.int64).max // 2)
    grid = cost.reshape((bank.n_levels,) * bank.n_stages)
    levels = np.arange(bank.n_levels)
    steps = np.abs(levels[:, None] - levels) * _STEP
    for stage in range(bank.n_stages):
        moved = np.moveaxis(grid, stage, -1)[..., None, :] + steps
        grid = np.moveaxis(moved.min(axis=-1), -1, stage)
    return order[grid.reshape(-1) % _STEP]
