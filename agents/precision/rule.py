"""What all hand-made rules have in common: one decision for N servers or for a single one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.deciders import Worlds
from runtime.precision.plan import PrecisionPlan
from runtime.precision.snapshot import PrecisionSnapshot


class Rule(ABC):
    """A rule; subclasses are dataclasses whose fields are `known` and their settings.

    The same code decides for N servers and, with N = 1, for one. A rule serves either way, not
    both at the same time: it remembers one past.
    """

    name: ClassVar[str]
    decides: ClassVar[bool] = True
    """Whether it looks at what happens; see `agents.precision.api.decides`."""
    observes: ClassVar[bool] = False
    """Whether it decides by observations; see `agents.precision.api.observes`."""

    def forget(self, n: int) -> None:
        """Forget the past; N servers start."""
        return

    @abstractmethod
    def rows(self, signals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the proposed plans, float64 [N, 2 * S + 1].

        Args:
            signals: float64 [N, layout.size].
        """

    def settings(self) -> dict[str, Any]:
        """Return what was tuned, by name."""
        names = [field.name for field in fields(self) if field.init]  # type: ignore[arg-type]
        return {name: getattr(self, name) for name in names if name != "known"}

    def begin(self, servers: Worlds) -> None:
        """Forget the past; see `agents.deciders.BatchDecider`."""
        self.forget(servers.n)

    def propose(
        self, observation: NDArray[np.float32], signals: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Decide for N servers; see `agents.deciders.BatchDecider`."""
        return self.rows(signals)

    def reset(self) -> None:
        """Forget the past; see `agents.deciders.Decider`."""
        self.forget(1)

    def decide(self, snapshot: PrecisionSnapshot) -> PrecisionPlan:
        """Decide for one server; see `agents.deciders.Decider`."""
        return _plan_of(self.rows(snapshot.signals[None])[0].tobytes())


@lru_cache(maxsize=4096)
def _plan_of(row: bytes) -> PrecisionPlan:
    """Return the plan of a row: rules pick among few, and to check one takes time."""
    return PrecisionPlan.from_row(np.frombuffer(row))
