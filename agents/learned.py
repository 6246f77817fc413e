"""Policies learned by Stable-Baselines3: presets, training with checkpoints, batched deciding."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, make_output_format
from stable_baselines3.common.vec_env import VecNormalize

from agents.api import BatchAgent
from agents.distributions import PaddedMultiCategorical
from agents.vec_env import ClusterVecEnv
from envs.cluster.clusters import Clusters
from envs.cluster.config import StreamClusterConfig
from runtime.cluster.actions import FieldActions
from runtime.plan import Plan

CHECKPOINT, BEST = "checkpoint.pt", "best.pt"
Score = Callable[[BatchAgent], float]
"""Judges a policy on training data; lower is better."""


@dataclass(frozen=True)
class PPOPreset:
    """Hyperparameters of PPO that suit a compiled environment.

    SB3's defaults (batches of 64, 10 epochs) spend 95 % of the time in tiny gradient steps; many
    clusters and large batches learn the same in a fraction of it.

    Attributes:
        n_envs: Clusters simulated at once.
        n_steps: Decisions per cluster between updates.
        batch_size: Decisions per gradient step.
        n_epochs: Passes over the decisions of an update.
        learning_rate: Initial step size, falling linearly to a tenth.
        gamma: Discount per decision.
        gae_lambda: Of generalised advantage estimation.
        ent_coef: Weight of the entropy bonus.
        clip_range: Of the policy ratio.
        log_scale_s: See `ClusterVecEnv`; 0 learns from the reward itself.
        net: Widths of the hidden layers, tanh, separate for policy and value.
        start_bias: Added to the preferences of the levels of the plan that learning starts from:
            exp(start_bias) times as likely as any other level at first.
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
    log_scale_s: float = 0.3
    net: tuple[int, ...] = (64, 64)
    start_bias: float = 3.0

    def to_mapping(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"net": list(self.net)}


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
    clusters = VecNormalize(
        ClusterVecEnv(config, preset.n_envs, preset.log_scale_s), norm_obs=False, gamma=preset.gamma
    )
    rate = preset.learning_rate
    model = PPO(
        "MlpPolicy",
        clusters,
        learning_rate=lambda left: rate * (0.1 + 0.9 * left),
        n_steps=preset.n_steps,
        batch_size=preset.batch_size,
        n_epochs=preset.n_epochs,
        gamma=preset.gamma,
        gae_lambda=preset.gae_lambda,
        ent_coef=preset.ent_coef,
        clip_range=preset.clip_range,
        policy_kwargs={"net_arch": list(preset.net)},
        seed=seed,
        device="cpu",
    )
    if len(config.actions.nvec) > 1:
        model.policy.action_dist = PaddedMultiCategorical(list(config.actions.nvec))
    if start is not None:
        _prefer(model, config, start, preset.start_bias)
    return model


def _prefer(model: PPO, config: StreamClusterConfig, plan: Plan, bias: float) -> None:
    """Make the levels of a plan likelier; an untrained action layer hardly looks at its input."""
    if not isinstance(config.actions, FieldActions):
        raise ValueError("learning can start from a plan only where actions are fields of a plan")
    nvec = config.actions.nvec
    first = np.concatenate([[0], np.cumsum(nvec)[:-1]])
    with torch.no_grad():
        model.policy.action_net.bias[first + config.actions.nearest(plan)] += bias


@contextlib.contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Use n threads inside torch operations: for small networks more threads only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def save_checkpoint(model: PPO, folder: Path) -> None:
    """Write all that training needs to go on (atomically); tensors and numbers only."""
    normaliser = model.get_vec_normalize_env()
    assert normaliser is not None
    content = {
        "parameters": model.get_parameters(),
        "timesteps": model.num_timesteps,
        "updates": model._n_updates,
        "return_mean": float(normaliser.ret_rms.mean),
        "return_var": float(normaliser.ret_rms.var),
        "return_count": float(normaliser.ret_rms.count),
        "torch_rng": torch.get_rng_state(),
    }
    _save(content, folder / CHECKPOINT)


def _save(content: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    torch.save(content, temporary)
    temporary.replace(path)


def load_checkpoint(model: PPO, folder: Path) -> bool:
    """Put a model back where `save_checkpoint` left it.

    The running episodes are not part of it: new ones start, drawn from a seed that depends on
    the progress.

    Returns:
        Whether there was a checkpoint.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return False
    content = torch.load(path, weights_only=True)
    model.set_parameters(content["parameters"], exact_match=True)
    model.num_timesteps = content["timesteps"]
    model._n_updates = content["updates"]
    normaliser = model.get_vec_normalize_env()
    assert normaliser is not None
    normaliser.ret_rms.mean = np.float64(content["return_mean"])
    normaliser.ret_rms.var = np.float64(content["return_var"])
    normaliser.ret_rms.count = content["return_count"]
    torch.set_rng_state(content["torch_rng"])
    sequence = np.random.SeedSequence([model.seed or 0, model.num_timesteps])
    normaliser.seed(int(sequence.generate_state(1)[0]))
    return True


class _BestPolicy:
    """Keeps the policy that scored best on training data: the last one is rarely the best."""

    def __init__(self, model: PPO, folder: Path, score: Score) -> None:
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

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._on_progress(self.num_timesteps)
        if self.num_timesteps >= self._next:
            self._judge()
            save_checkpoint(self.model, self._folder)  # type: ignore[arg-type]
            self._next = self.num_timesteps + self._every


def train(
    model: PPO,
    timesteps: int,
    folder: Path,
    on_progress: Callable[[int], None] = lambda steps: None,
    score: Score | None = None,
    checkpoint_every: int = 100_000,
) -> None:
    """Train up to a total number of decisions, from the last checkpoint if there is one.

    Interrupting it (KeyboardInterrupt) leaves a checkpoint behind.

    Args:
        model: An agent of `make_ppo`.
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
    """A trained policy deciding for N simulated clusters, by the most likely action."""

    def __init__(self, model: PPO) -> None:
        """Keep the model."""
        self._model = model

    def begin(self, clusters: Clusters) -> None:
        """Remember how actions are decoded."""
        self._clusters = clusters

    def propose(
        self, observation: NDArray[np.float32], signals: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the plans of the most likely actions; see `agents.api.BatchAgent`."""
        actions, _ = self._model.predict(observation, deterministic=True)
        choice = actions.reshape(len(observation), -1)
        return self._clusters.config.actions.decode(choice, self._clusters.plans)
