"""Policies learned by Stable-Baselines3: presets, training with checkpoints, batched deciding."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, make_output_format
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from agents.deciders import BatchDecider
from agents.distributions import PaddedMultiCategorical
from agents.vec_env import ClusterVecEnv, CompiledVecEnv
from envs.cluster.config import StreamClusterConfig
from runtime.cluster.actions import FieldActions
from runtime.plan import Plan

CHECKPOINT, BEST = "checkpoint.pt", "best.pt"
Score = Callable[[BatchDecider[Any]], float]
"""Judges a policy on training data; lower is better."""


@dataclass(frozen=True)
class PolicyGradientPreset:
    """Hyperparameters of PPO and its relatives that suit a compiled environment.

    SB3's defaults (batches of 64, 10 epochs) spend 95 % of the time in tiny gradient steps; many
    worlds and large batches learn the same in a fraction of it.

    Attributes:
        n_envs: Worlds simulated at once.
        n_steps: Decisions per world between updates.
        batch_size: Decisions per gradient step.
        n_epochs: Passes over the decisions of an update.
        learning_rate: Initial step size, falling linearly to a tenth.
        gamma: Discount per decision.
        gae_lambda: Of generalised advantage estimation.
        ent_coef: Weight of the entropy bonus.
        clip_range: Of the policy ratio.
        net: Widths of the hidden layers, tanh, separate for policy and value.
    """

    n_envs: int = 128
    n_steps: int = 64
    batch_size: int = 2048
    n_epochs: int = 5
    learning_rate: float = 1e-3
    gamma: float = 0.99
    gae_lambda: float = 0.95
    ent_coef: float = 0.002
    clip_range: float = 0.2
    net: tuple[int, ...] = (64, 64)

    def arguments(self) -> dict[str, Any]:
        """Return what the library's constructors call these numbers."""
        rate = self.learning_rate
        return {
            "learning_rate": lambda left: rate * (0.1 + 0.9 * left),
            "n_steps": self.n_steps,
            "batch_size": self.batch_size,
            "n_epochs": self.n_epochs,
            "gamma": self.gamma,
            "gae_lambda": self.gae_lambda,
            "ent_coef": self.ent_coef,
            "clip_range": self.clip_range,
            "policy_kwargs": {"net_arch": list(self.net)},
            "device": "cpu",
        }


@dataclass(frozen=True)
class PPOPreset(PolicyGradientPreset):
    """Hyperparameters of PPO on stream clusters.

    Attributes:
        log_scale_s: See `ClusterVecEnv`; 0 learns from the reward itself.
        start_bias: Added to the preferences of the choices of the plan that learning starts from.
    """

    log_scale_s: float = 0.3
    start_bias: float = 3.0


def make_ppo(
    preset: PPOPreset, config: StreamClusterConfig, seed: int, start: Plan | None = None
) -> PPO:
    """Build an untrained PPO agent with its own training clusters.

    Rewards are divided by a running deviation of the discounted return (`VecNormalize`);
    observations are normalised by the codec already.

    Args:
        preset: Hyperparameters.
        config: The simulated world, with training arrivals.
        seed: Seed of network, exploration and clusters.
        start: A plan to prefer at first, so that learning improves on it; needs `FieldActions`.
    """
    clusters = ClusterVecEnv(config, preset.n_envs, preset.log_scale_s)
    model = PPO("MlpPolicy", normalised(clusters, preset), seed=seed, **preset.arguments())
    use_padded_distribution(model, config.actions.nvec)
    if start is not None:
        if not isinstance(config.actions, FieldActions):
            raise ValueError(
                "learning can start from a plan only where actions are fields of a plan"
            )
        choice = config.actions.nearest(start)
        prefer(model, config.actions.nvec, choice, preset.start_bias)
    return model


def normalised(worlds: VecEnv, preset: PolicyGradientPreset) -> VecNormalize:
    """Return worlds whose rewards are divided by a running deviation of the discounted return."""
    return VecNormalize(worlds, norm_obs=False, gamma=preset.gamma)


def use_padded_distribution(model: PPO, nvec: Sequence[int]) -> None:
    """Let an agent whose actions have several dimensions draw them all at once."""
    if len(nvec) > 1:
        model.policy.action_dist = PaddedMultiCategorical(list(nvec))


def prefer(
    model: BaseAlgorithm, nvec: Sequence[int], choice: NDArray[np.int64], bias: float
) -> None:
    """Make an action likelier; an untrained action layer hardly looks at its input.

    Args:
        model: An agent with an action layer (PPO and its relatives).
        nvec: Number of choices per dimension.
        choice: int64 [len(nvec)], the action.
        bias: Added to the preference of each of its choices.
    """
    first = np.concatenate([[0], np.cumsum(nvec)[:-1]])
    with torch.no_grad():
        model.policy.action_net.bias[first + choice] += bias


@contextlib.contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Use n threads inside torch operations: for small networks more threads only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _worlds_of(model: BaseAlgorithm) -> CompiledVecEnv:
    env = model.get_env()
    assert env is not None
    worlds = env.unwrapped
    assert isinstance(worlds, CompiledVecEnv)
    return worlds


def save_checkpoint(model: BaseAlgorithm, folder: Path) -> None:
    """Write all that training needs to go on (atomically); tensors and numbers only."""
    content = {
        "parameters": model.get_parameters(),
        "timesteps": model.num_timesteps,
        "updates": model._n_updates,  # type: ignore[attr-defined]
        "torch_rng": torch.get_rng_state(),
        "numbers": _worlds_of(model).numbers(),
    }
    normaliser = model.get_vec_normalize_env()
    if normaliser is not None:
        content["return_mean"] = float(normaliser.ret_rms.mean)
        content["return_var"] = float(normaliser.ret_rms.var)
        content["return_count"] = float(normaliser.ret_rms.count)
    _save(content, folder / CHECKPOINT)


def _save(content: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    torch.save(content, temporary)
    temporary.replace(path)


def load_checkpoint(model: BaseAlgorithm, folder: Path) -> bool:
    """Put a model back where `save_checkpoint` left it.

    The running episodes are not part of it: new ones start, drawn from a seed that depends on
    the progress. Nor is a replay buffer: random actions fill a new one, for as many decisions as
    at the very start, before the network changes again.

    Returns:
        Whether there was a checkpoint.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return False
    content = torch.load(path, weights_only=True)
    model.set_parameters(content["parameters"], exact_match=True)
    model.num_timesteps = content["timesteps"]
    model._n_updates = content["updates"]  # type: ignore[attr-defined]
    if isinstance(model, OffPolicyAlgorithm):
        model.learning_starts += model.num_timesteps
    normaliser = model.get_vec_normalize_env()
    if normaliser is not None:
        normaliser.ret_rms.mean = np.float64(content["return_mean"])
        normaliser.ret_rms.var = np.float64(content["return_var"])
        normaliser.ret_rms.count = content["return_count"]
    torch.set_rng_state(content["torch_rng"])
    worlds = _worlds_of(model)
    worlds.restore(content.get("numbers", {}))
    sequence = np.random.SeedSequence([model.seed or 0, model.num_timesteps])
    worlds.seed(int(sequence.generate_state(1)[0]))
    return True


class _BestPolicy:
    """Keeps the policy that scored best on training data: the last one is rarely the best."""

    def __init__(self, model: BaseAlgorithm, folder: Path, score: Score) -> None:
        self._model, self._path, self._score = model, folder / BEST, score

    def judge(self) -> float:
        """Score the present policy, keep it if it is the best so far, and return the score."""
        score = self._score(LearnedBatch(self._model))
        if not self._path.exists() or score < self._read()["score"]:
            content = {"score": score, "timesteps": self._model.num_timesteps}
            _save(content | {"policy": self._model.policy.state_dict()}, self._path)
        return score

    def restore(self) -> None:
        """Give the model the best policy."""
        self._model.policy.load_state_dict(self._read()["policy"])

    def _read(self) -> dict[str, Any]:
        content: dict[str, Any] = torch.load(self._path, weights_only=True)
        return content


class _Progress(BaseCallback):
    """Reports steps, judges the policy and writes checkpoints between updates."""

    def __init__(
        self,
        folder: Path,
        every: int,
        on_progress: Callable[[int], None],
        best: _BestPolicy | None,
    ) -> None:
        super().__init__()
        self._folder, self._every, self._on_progress, self._best = folder, every, on_progress, best
        self._next = 0

    def _on_training_start(self) -> None:
        self._next = self.num_timesteps + self._every
        self._judge()

    def _judge(self) -> None:
        if self._best is not None:
            self.logger.record("train_part/score", self._best.judge())
        if isinstance(self.model, OffPolicyAlgorithm):
            self.model.dump_logs()  # by itself it logs only when episodes end

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._on_progress(self.num_timesteps)
        for name, number in _worlds_of(self.model).numbers().items():
            self.logger.record(f"train/{name}", number)
        if self.num_timesteps >= self._next:
            self._judge()
            save_checkpoint(self.model, self._folder)
            self._next = self.num_timesteps + self._every


def train(
    model: BaseAlgorithm,
    timesteps: int,
    folder: Path,
    on_progress: Callable[[int], None] = lambda steps: None,
    score: Score | None = None,
    checkpoint_every: int = 100_000,
) -> None:
    """Train up to a total number of decisions, from the last checkpoint if there is one.

    Interrupting it (KeyboardInterrupt) leaves a checkpoint behind.

    Args:
        model: An untrained agent on a `CompiledVecEnv`.
        timesteps: Total decisions, earlier starts included.
        folder: Where checkpoints, progress*.csv and TensorBoard files go.
        on_progress: Told the decisions so far, between updates.
        score: Judges the policy before, at every checkpoint and after training; the model ends up
            with the best one. None: with the last one.
        checkpoint_every: Decisions between checkpoints.
    """
    resumed = load_checkpoint(model, folder)
    best = None if score is None else _BestPolicy(model, folder, score)
    left = timesteps - model.num_timesteps
    if left > 0:
        folder.mkdir(parents=True, exist_ok=True)
        model.set_logger(_logger(folder, f"_{model.num_timesteps}" if resumed else ""))
        callback = _Progress(folder, checkpoint_every, on_progress, best)
        with torch_threads(1):
            try:
                model.learn(left, callback, reset_num_timesteps=not resumed, log_interval=1)
            finally:
                save_checkpoint(model, folder)
                model.logger.close()
    if best is not None:
        best.judge()
        best.restore()


def _logger(folder: Path, suffix: str) -> Logger:
    """Return a logger to progress<suffix>.csv and TensorBoard; a resumed run gets its own files."""
    kinds = ("csv", "tensorboard")
    return Logger(str(folder), [make_output_format(kind, str(folder), suffix) for kind in kinds])


class LearnedBatch:
    """A trained policy deciding for N simulated worlds, by the most likely or most valued action.

    A recurrent policy's memory starts empty with the episodes; a masked one heeds the masks.
    """

    def __init__(self, model: BaseAlgorithm) -> None:
        """Keep the model."""
        self._model = model

    def begin(self, worlds: Any) -> None:
        """Remember how actions are decoded; forget the past."""
        self._worlds = worlds
        self._state: Any = None

    def propose(
        self, observation: NDArray[np.float32], signals: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the plans of the chosen actions; see `agents.deciders.BatchDecider`."""
        rows: NDArray[np.float64] = self._worlds.config.actions.decode(
            self.choose(observation), self._worlds.plans
        )
        return rows

    def choose(self, observation: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the chosen actions, int64 [N, dims], for observations float32 [N, size]."""
        masked = isinstance(self._model, MaskablePPO)
        options = {"action_masks": self._worlds.action_masks()} if masked else {}
        actions, self._state = self._model.predict(
            observation, self._state, deterministic=True, **options
        )
        return actions.reshape(len(observation), -1)
