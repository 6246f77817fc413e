"""Stable-Baselines3's view of N simulated precision servers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from agents.vec_env import CompiledVecEnv, Stepped
from envs.precision.config import StagedPrecisionConfig
from envs.precision.servers import Servers

MULTIPLIER = "multiplier"


class PrecisionVecEnv(CompiledVecEnv):
    """N servers: the same core as `envs.precision.env.StagedPrecisionVectorEnv`.

    A step of a server is one batch, so servers reach the horizon at different steps and each
    begins anew when it does.

    With an accuracy floor (`config.reward.accuracy_floor`) and `multiplier_rate` > 0 the learner
    gets (reward - m * cost) / (1 + m), where the Lagrange multiplier m >= 0 climbs by the rate
    times the mean cost of all servers at every step: up while accuracy is below the floor, down
    while it is above. The divisor keeps the size of what is learned (Stooke et al.,
    arXiv:2007.03964).

    Attributes:
        multiplier: The Lagrange multiplier m, 0 at first.
    """

    def __init__(
        self, config: StagedPrecisionConfig, n_envs: int, multiplier_rate: float = 0.0
    ) -> None:
        """Build the servers.

        Args:
            config: The simulated world.
            n_envs: Number of servers N.
            multiplier_rate: Rise of the multiplier per unit of mean cost and step; 0 leaves the
                floor out.

        Raises:
            ValueError: A negative rate, or a rate without a floor.
        """
        if not 0.0 <= multiplier_rate < math.inf:
            raise ValueError(f"multiplier_rate is {multiplier_rate}; expected a number >= 0")
        if multiplier_rate > 0.0 and config.reward.accuracy_floor == 0.0:
            raise ValueError(
                "multiplier_rate needs an accuracy floor, but the reward's accuracy_floor is 0"
            )
        self.servers = Servers(config, n_envs)
        self.multiplier = 0.0
        self._rate = multiplier_rate
        super().__init__(self.servers)

    def advance(self, actions: NDArray[np.int64]) -> Stepped:
        """Serve a batch in every server."""
        return self.servers.step(actions)

    def restart(self, over: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Start an episode in the servers that reached the horizon."""
        return self.servers.reset(self._rngs, np.flatnonzero(over))

    def shown(self, reward: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the reward, less the cost of the accuracy floor."""
        if self._rate == 0.0:
            return reward
        cost = self.servers.cost
        result = (reward - self.multiplier * cost) / (1.0 + self.multiplier)
        self.multiplier = max(self.multiplier + self._rate * float(cost.mean()), 0.0)
        return result

    def numbers(self) -> dict[str, float]:
        """Return the multiplier, if there is a floor."""
        return {MULTIPLIER: self.multiplier} if self._rate > 0.0 else {}

    def restore(self, numbers: dict[str, float]) -> None:
        """Go on from a checkpoint's multiplier."""
        self.multiplier = numbers.get(MULTIPLIER, 0.0)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions hold the guards' floors now, bool [N, sum(nvec)]."""
        return self.servers.action_masks()
