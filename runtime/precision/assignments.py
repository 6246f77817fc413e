"""Assignments of a bank: one level per stage, by name, as a tuple or as one number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from runtime.precision.levels import Level
from runtime.precision.names import closest

Assignment = tuple[int, ...]
"""One level per stage, as places in `Bank.levels`."""

_MOST_CHECKED = 1 << 16
"""Assignments remembered as valid."""


class Assignments:
    """Which assignments a bank can run, and their names and numbers.

    Attributes:
        stages: Names of the stages.
        levels: On offer.
        refusals: Why a stage cannot run at a level, by (stage, level).
    """

    def __init__(
        self,
        stages: Sequence[str],
        levels: Sequence[Level],
        refusals: Mapping[tuple[int, int], str],
    ) -> None:
        """Keep what is on offer."""
        self.stages, self.levels, self.refusals = tuple(stages), tuple(levels), refusals
        self._checked: set[Assignment] = set()

    def check(self, levels: Assignment) -> None:
        """Refuse an assignment that does not exist; quick for one that has passed before.

        Raises:
            ValueError: Names the stage and what it offers.
        """
        if levels in self._checked:
            return
        if len(levels) != len(self.stages):
            raise ValueError(
                f"{len(levels)} levels given for {len(self.stages)} stages "
                f"({', '.join(self.stages)}); give one per stage"
            )
        for stage, level in enumerate(levels):
            if not 0 <= level < len(self.levels):
                names = ", ".join(f"{i} = {lv.name}" for i, lv in enumerate(self.levels))
                raise ValueError(
                    f"stage {self.stages[stage]!r} given level {level}; expected of {names}"
                )
            if (stage, level) in self.refusals:
                raise ValueError(
                    f"stage {self.stages[stage]!r} cannot run at {self.levels[level].name!r}: "
                    f"{self.refusals[stage, level]}"
                )
        if len(self._checked) >= _MOST_CHECKED:
            self._checked = set()
        self._checked.add(levels)

    def read(self, assignment: Sequence[int] | int) -> Assignment:
        """Return a checked assignment from levels or from its number."""
        if isinstance(assignment, int | np.integer):
            levels = self.decode(int(assignment))
        else:
            levels = tuple(int(level) for level in assignment)
        self.check(levels)
        return levels

    def encode(self, levels: Sequence[int]) -> int:
        """Return an assignment as one number, stage 0 the most significant digit."""
        number = 0
        for level in self.read(levels):
            number = number * len(self.levels) + level
        return number

    def decode(self, number: int) -> Assignment:
        """Return the assignment with a number.

        Raises:
            ValueError: There is none.
        """
        count, digits = len(self.levels), []
        if not 0 <= number < count ** len(self.stages):
            raise ValueError(
                f"no assignment {number}; {len(self.stages)} stages with {count} levels have "
                f"numbers 0 to {count ** len(self.stages) - 1}"
            )
        for _ in self.stages:
            number, digit = divmod(number, count)
            digits.append(digit)
        return tuple(reversed(digits))

    def named(self, *names: str) -> Assignment:
        """Return an assignment from names of levels: one for all stages, or one per stage."""
        given = names * len(self.stages) if len(names) == 1 else names
        return self.read([self.level_index(name) for name in given])

    def level_index(self, name: str) -> int:
        """Return the place of a level in `levels`.

        Raises:
            ValueError: It is not on offer; the message lists what is.
        """
        known = [level.name for level in self.levels]
        if name not in known:
            offered = ", ".join(known)
            raise ValueError(
                f"no level {name!r} in this bank; expected of {offered}{closest(name, known)}"
            )
        return known.index(name)
