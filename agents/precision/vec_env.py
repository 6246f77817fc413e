"""Stable-Baselines3's view of N simulated precision servers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from agents.precision.expected_failures import ExpectedFailures
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

    With `less_noise` the learner does not pay for failures that were to be expected of the
    requests, see `ExpectedFailures`.

    Attributes:
        multiplier: The Lagrange multiplier m, 0 at first.
        elapsed: float64 [N], the time that the last step of each server took, in deadlines.
    """

    def __init__(
        self,
        config: StagedPrecisionConfig,
        n_envs: int,
        multiplier_rate: float = 0.0,
        less_noise: bool = False,
    ) -> None:
        """Build the servers.

        Args:
            config: The simulated world.
            n_envs: Number of servers N.
            multiplier_rate: Rise of the multiplier per unit of mean cost and step; 0 leaves the
                floor out.
            less_noise: Whether expected failures are left out of what the learner gets.

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
        self.elapsed = np.zeros(n_envs)
        self._rate = multiplier_rate
        self._expected = ExpectedFailures(self.servers) if less_noise else None
        self._per_failure = config.reward.effective_accuracy / config.serving.max_batch
        self._unavoidable = np.zeros(n_envs)
        super().__init__(self.servers)

    def reset(self) -> NDArray[np.float32]:
        """Start an episode everywhere; observations float32 [N, size]."""
        observation = super().reset()
        if self._expected is not None:
            self._expected.begin(np.arange(self.num_envs))
        return observation

    def advance(self, actions: NDArray[np.int64]) -> Stepped:
        """Serve a batch in every server."""
        signals = self.servers.engine.signals
        before_s = signals[:, 0].copy()
        stepped = self.servers.step(actions)
        self.elapsed = (signals[:, 0] - before_s) / self.servers.config.serving.deadline_s
        if self._expected is not None:
            self._unavoidable = self._per_failure * self._expected.of_last_step()
        return stepped

    def restart(self, over: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Start an episode in the servers that reached the horizon."""
        which = np.flatnonzero(over)
        observation = self.servers.reset(self._rngs, which)
        if self._expected is not None:
            self._expected.begin(which)
        return observation

    def shown(self, reward: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the reward without expected failures, less the cost of the accuracy floor."""
        reward = reward + self._unavoidable
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
