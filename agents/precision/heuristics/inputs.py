"""A rule that looks at the inputs only."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.precision.known import Known
from agents.precision.rule import Rule

_PLACES = (0.15, 0.3, 0.45, 0.6, 0.75)


@dataclass(eq=False)
class Difficulty(Rule):
    """Chooses among tables by where a signal of the inputs lies between thresholds.

    Attributes:
        known: What it starts from.
        signal: A signal, such as "property_noise" (of the batch to come) or "last_margin".
        thresholds: Ascending.
        tables: Assignments, one more than thresholds: the first runs up to the first threshold
            (included), the last beyond the last.
    """

    name: ClassVar[str] = "difficulty"
    known: Known
    signal: str
    thresholds: tuple[float, ...]
    tables: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        """Refuse tables that do not fit.

        Raises:
            ValueError: Names the field.
        """
        if list(self.thresholds) != sorted(self.thresholds):
            raise ValueError(f"thresholds are {self.thresholds}; expected ascending numbers")
        if len(self.tables) != len(self.thresholds) + 1:
            raise ValueError(
                f"{len(self.tables)} tables are given; expected one more than "
                f"{len(self.thresholds)} thresholds"
            )
        self._column = self.known.column(self.signal)
        self._tables = self.known.assignments(np.array(self.tables, dtype=np.float64))

    def rows(self, signals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Look the signal up; see `Rule`."""
        place = np.searchsorted(self.thresholds, signals[:, self._column])
        return self.known.rows[self._tables[place]]


def difficulty_grid(known: Known) -> list[Difficulty]:
    """Return all settings to choose from: a threshold on any property or the last margin.

    Both directions and every pair of uniform tables are tried.
    """
    layout = known.layout
    names = [layout.names[k] for k in range(*layout.property_columns.indices(layout.size))]
    ranges = dict(
        zip(names, zip(known.property_low, known.property_high, strict=True), strict=True)
    )
    ranges["last_margin"] = (0.0, 1.0)
    pairs = list(permutations(range(known.tables.n_levels), 2))
    return [
        Difficulty(
            known,
            name,
            (low + place * (high - low),),
            (known.uniform(first), known.uniform(second)),
        )
        for name, (low, high) in ranges.items()
        for place in _PLACES
        for first, second in pairs
    ]
