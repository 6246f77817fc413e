"""Plans drawn at random with the same duty as another agent's: what is its timing worth?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.precision.rule import Rule

_DRAWS_AT_ONCE = 512


@dataclass(eq=False)
class EqualDuty(Rule):
    """Draws each batch's plan independently.

    Attributes:
        plans: float64 [K, 2 * S + 1].
        duty: float64 [K], how likely each is; adds up to 1.
        seed: Source of the draws; server k has its own, whatever N is.
    """

    name: ClassVar[str] = "equal_duty"
    plans: NDArray[np.float64]
    duty: NDArray[np.float64]
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no distribution.

        Raises:
            ValueError: Shows the duty.
        """
        right = self.duty.shape == (len(self.plans),) and len(self.plans) > 0
        if not right or (self.duty < 0.0).any() or not np.isclose(self.duty.sum(), 1.0):
            raise ValueError(
                f"duty is {self.duty}; expected {len(self.plans)} shares that add up to 1"
            )
        self._until = np.cumsum(self.duty)
        self._until[-1] = np.inf  # sums that end a hair below 1

    def forget(self, n: int) -> None:
        """Begin the same draws again; see `Rule`."""
        seeds = (np.random.SeedSequence(self.seed, spawn_key=(k,)) for k in range(n))
        self._rngs = [np.random.default_rng(seed) for seed in seeds]
        self._next = _DRAWS_AT_ONCE

    def rows(self, signals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Draw; see `Rule`."""
        if self._next == _DRAWS_AT_ONCE:
            self._draws = np.stack([rng.random(_DRAWS_AT_ONCE) for rng in self._rngs], axis=1)
            self._next = 0
        place = np.searchsorted(self._until, self._draws[self._next], side="right")
        self._next += 1
        return self.plans[place]

    def settings(self) -> dict[str, Any]:
        """Return plans and duty as plain JSON values."""
        return {"plans": self.plans.tolist(), "duty": self.duty.tolist(), "seed": self.seed}


def equal_duty(plans: Sequence[NDArray[np.float64]], seed: int = 0) -> EqualDuty:
    """Return the rule that uses each plan as often as another agent did.

    Args:
        plans: Per episode float64 [batches, 2 * S + 1]: `Streams.plans` of that agent.
        seed: Source of the draws.
    """
    rows, counts = np.unique(np.concatenate(list(plans)), axis=0, return_counts=True)
    return EqualDuty(rows, counts / counts.sum(), seed)
