"""An agent that proposes a random plan in every period."""

from __future__ import annotations

import numpy as np

from runtime.cluster.actions import ActionCodec
from runtime.plan import Plan
from runtime.snapshot import Snapshot


class RandomAgent:
    """Draws every field of the plan independently."""

    def __init__(self, actions: ActionCodec, seed: np.random.SeedSequence) -> None:
        """Keep the choices; the seed makes all episodes reproducible.

        Args:
            actions: What to choose from.
            seed: Source of the draws.
        """
        self._actions, self._seed = actions, seed
        self.reset()

    @property
    def name(self) -> str:
        """What the agent is called in tables."""
        return "random"

    def reset(self) -> None:
        """Begin the same draws again."""
        self._rng = np.random.default_rng(self._seed)

    def decide(self, snapshot: Snapshot) -> Plan:
        """Return a random plan."""
        choice = self._rng.integers(0, self._actions.nvec)
        row = self._actions.decode(choice[None], snapshot.plan.to_row()[None])[0]
        return Plan.from_row(row)
