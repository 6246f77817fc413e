"""Hyperparameters of the learners of staged precision that suit a compiled environment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agents.learned import PolicyGradientPreset


@dataclass(frozen=True)
class GradientPreset(PolicyGradientPreset):
    """Hyperparameters of PPO, MaskablePPO and RecurrentPPO.

    Attributes:
        gamma: Discount per deadline, as `gae_lambda`: see `agents.precision.discounting`.
        multiplier_rate: Of the accuracy floor's Lagrange multiplier, see `PrecisionVecEnv`.
        less_noise: Whether rewards leave out failures that were to be expected, see
            `agents.precision.expected_failures`.
        lstm_units: Units of the memory of the recurrent policy.
    """

    n_envs: int = 128
    n_steps: int = 128
    gamma: float = 0.7
    gae_lambda: float = 0.9
    ent_coef: float = 0.003
    multiplier_rate: float = 0.0
    less_noise: bool = True
    lstm_units: int = 64


@dataclass(frozen=True)
class ValuePreset:
    """Hyperparameters of DQN and QR-DQN.

    Attributes:
        n_envs: Servers simulated at once.
        buffer_size: Decisions that are remembered.
        learning_starts: Random decisions before the network changes.
        train_freq: Steps of all servers between updates.
        gradient_steps: Gradient steps per update.
        batch_size: Decisions per gradient step.
        learning_rate: Initial step size, falling linearly to a tenth.
        gamma: Discount per decision; 0 makes a contextual bandit.
        target_update_interval: Decisions between copies of the network to the target network.
        exploration_fraction: Part of the training during which random actions become rarer.
        exploration_final: Share of random actions after it.
        quantiles: Quantiles of the return that are learned; 0 learns the mean alone (DQN).
        net: Widths of the hidden layers, ReLU.
        multiplier_rate: Of the accuracy floor's Lagrange multiplier, see `PrecisionVecEnv`.
        less_noise: As in `GradientPreset`.
    """

    n_envs: int = 64
    buffer_size: int = 200_000
    learning_starts: int = 8192
    train_freq: int = 8
    gradient_steps: int = 8
    batch_size: int = 512
    learning_rate: float = 1e-3
    gamma: float = 0.97
    target_update_interval: int = 8192
    exploration_fraction: float = 0.3
    exploration_final: float = 0.05
    quantiles: int = 0
    net: tuple[int, ...] = (64, 64)
    multiplier_rate: float = 0.0
    less_noise: bool = True

    def arguments(self) -> dict[str, Any]:
        """Return what the library's constructors call these numbers."""
        rate = self.learning_rate
        quantiles = {"n_quantiles": self.quantiles} if self.quantiles else {}
        return {
            "learning_rate": lambda left: rate * (0.1 + 0.9 * left),
            "buffer_size": self.buffer_size,
            "learning_starts": self.learning_starts,
            "batch_size": self.batch_size,
            "gamma": self.gamma,
            "train_freq": self.train_freq,
            "gradient_steps": self.gradient_steps,
            "target_update_interval": self.target_update_interval,
            "exploration_fraction": self.exploration_fraction,
            "exploration_final_eps": self.exploration_final,
            "policy_kwargs": {"net_arch": list(self.net)} | quantiles,
            "device": "cpu",
        }
