"""Learned agents of staged precision: six learners, one way to train and export them.

`train_learner` does everything from a name and a world to a bundle on disk.

A decision serves one batch, and batches differ in size and time. The discounts of PPO and its
relatives count time, in deadlines (see `agents.precision.discounting`); those of DQN and QR-DQN,
whose library cannot vary them from step to step, count decisions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from sb3_contrib import QRDQN, MaskablePPO, RecurrentPPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.deciders import BatchDecider
from agents.learned import (
    CHECKPOINT,
    LearnedBatch,
    Score,
    normalised,
    train,
    use_padded_distribution,
)
from agents.precision.api import Episodes, accuracies
from agents.precision.discounting import discount_by_time
from agents.precision.export import export_agent
from agents.precision.imitation import imitate
from agents.precision.presets import GradientPreset, ValuePreset
from agents.precision.rule import Rule
from agents.precision.vec_env import PrecisionVecEnv
from envs.precision.config import StagedPrecisionConfig

__all__ = ["LEARNERS", "LearnedStreams", "Training", "make_learner", "train_learner"]

BUNDLE = "bundle"
IMITATORS = ("ppo", "maskable_ppo")
"""Learners whose policy can be taught by a rule first."""
JUDGING_STREAMS, JUDGING_S = 128, 15.0
"""Many short streams take fewer calls than few long ones and differ more from each other."""
_JUDGING_KEY = 7_000_000  # keys of the streams on which policies are judged

LearnedStreams = LearnedBatch
"""A trained model deciding for N servers, a `PrecisionBatchAgent`; see `LearnedBatch`."""

Preset = GradientPreset | ValuePreset
Report = Callable[[int], None]


def _silent(steps: int) -> None:
    """Report to nobody."""


class Learner(NamedTuple):
    """How a kind of agent is learned.

    Attributes:
        algorithm: The library's class.
        preset: Hyperparameters unless told otherwise.
        policy: The library's name of the policy.
    """

    algorithm: type[BaseAlgorithm]
    preset: Preset
    policy: str = "MlpPolicy"


LEARNERS: dict[str, Learner] = {
    "ppo": Learner(PPO, GradientPreset()),
    "maskable_ppo": Learner(MaskablePPO, GradientPreset()),
    "recurrent_ppo": Learner(RecurrentPPO, GradientPreset(), "MlpLstmPolicy"),
    "dqn": Learner(DQN, ValuePreset()),
    "qr_dqn": Learner(QRDQN, ValuePreset(quantiles=32)),
    "bandit": Learner(DQN, ValuePreset(gamma=0.0)),
}
"""All learners by name. The contextual bandit is value learning at discount 0: it learns what a
batch's own requests (and those dropped meanwhile) lose under each table, and nothing further."""


@dataclass(frozen=True)
class Training:
    """How long and from where to learn.

    Attributes:
        timesteps: Decisions in all, earlier starts included.
        preset: Hyperparameters that differ from the learner's preset, by name.
        start: A tuned rule to imitate first, so that learning improves on it; for PPO and
            MaskablePPO.
        score: Judges policies, lower is better; None judges by effective accuracy, and by the
            accuracy floor if there is one, on `JUDGING_STREAMS` streams of the world (`judge`).
        checkpoint_every: Decisions between checkpoints.
        provenance: Plain JSON values to keep in the bundle.
    """

    timesteps: int
    preset: Mapping[str, Any] = field(default_factory=dict)
    start: Rule | None = None
    score: Score | None = None
    checkpoint_every: int = 100_000
    provenance: Mapping[str, Any] = field(default_factory=dict)


def train_learner(
    name: str,
    config: StagedPrecisionConfig,
    training: Training,
    folder: Path,
    seed: int,
    report: Report = _silent,
) -> None:
    """Train an agent, from the last checkpoint if there is one, and write its bundle.

    The policy that scored best on training streams is kept. Afterwards `folder` holds `bundle/`,
    the checkpoint, progress*.csv and TensorBoard files; with a bundle there, nothing is done.
    Interrupting it (KeyboardInterrupt) leaves a checkpoint behind.

    Args:
        name: One of `LEARNERS`.
        config: The simulated world, with training streams.
        training: How long and from where to learn.
        folder: Where everything goes.
        seed: Seed of network, exploration and streams.
        report: Told the decisions so far, between updates.

    Raises:
        ValueError: Unknown learner or hyperparameter, or actions or a start that it cannot use.
        ExportError: The exported policy decides differently.
    """
    bundle = folder / BUNDLE
    if bundle.exists():
        return
    preset = preset_of(name, training.preset)
    model = make_learner(name, config, seed, preset)
    if training.start is not None and not (folder / CHECKPOINT).exists():
        if name not in IMITATORS:
            raise ValueError(f"{name} cannot start from a rule; expected one of {list(IMITATORS)}")
        imitate(cast("PPO", model), config, training.start)
    score = training.score or judge(config)
    train(model, training.timesteps, folder, report, score, training.checkpoint_every)
    origin = dict(training.provenance) | {
        "learner": name,
        "seed": seed,
        "timesteps": model.num_timesteps,
        "preset": dataclasses.asdict(preset) | {"net": list(preset.net)},
    }
    export_agent(name, model, config, bundle, origin)


def preset_of(name: str, changes: Mapping[str, Any]) -> Preset:
    """Return a learner's preset with changes.

    Raises:
        ValueError: Unknown learner or hyperparameter.
    """
    if name not in LEARNERS:
        raise ValueError(f"unknown learner {name!r}; expected one of {list(LEARNERS)}")
    preset = LEARNERS[name].preset
    known = [each.name for each in dataclasses.fields(preset)]
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise ValueError(f"learner {name!r} has no {unknown[0]!r}; expected of {known}")
    values = {k: tuple(v) if k == "net" else v for k, v in changes.items()}
    return dataclasses.replace(preset, **values)


def make_learner(
    name: str,
    config: StagedPrecisionConfig,
    seed: int,
    preset: Preset | None = None,
) -> BaseAlgorithm:
    """Build an untrained agent with its own training servers.

    Args:
        name: One of `LEARNERS`.
        config: The simulated world, with training streams.
        seed: Seed of network, exploration and servers.
        preset: Hyperparameters; None takes the learner's own.

    Raises:
        ValueError: Unknown learner, or actions that it cannot use.
    """
    preset = preset or preset_of(name, {})
    nvec = config.actions.nvec
    worlds = PrecisionVecEnv(config, preset.n_envs, preset.multiplier_rate, preset.less_noise)
    kind = LEARNERS[name]
    arguments = preset.arguments() | {"seed": seed}
    if isinstance(preset, ValuePreset):
        if len(nvec) > 1:
            raise ValueError(f"{name} chooses from a list; give it TableActions, not one per stage")
        return kind.algorithm(kind.policy, worlds, **arguments)
    if name == "recurrent_ppo":
        arguments["policy_kwargs"] |= {
            "lstm_hidden_size": preset.lstm_units,
            "enable_critic_lstm": False,
        }
    model = kind.algorithm(kind.policy, normalised(worlds, preset), **arguments)
    discount_by_time(cast("PPO", model), lambda: worlds.elapsed)
    if not isinstance(model, MaskablePPO):
        use_padded_distribution(model, nvec)
    return model


def judge(config: StagedPrecisionConfig, streams: int = JUDGING_STREAMS) -> Score:
    """Return what judges a policy: minus its mean effective accuracy on streams of a world.

    The streams are common to all policies, spread over the starts that the world allows, and last
    `JUDGING_S` (the world's horizon if that is shorter). A policy that falls short of the accuracy
    floor of the world's reward is worse than any that does not, the worse the further it does.

    Args:
        config: The simulated world, with training streams.
        streams: Number of streams.
    """
    keys = np.arange(_JUDGING_KEY, _JUDGING_KEY + streams, dtype=np.uint64)
    first, last = config.starts
    episodes = Episodes(keys, np.linspace(first, last, streams).astype(np.int64))
    short = dataclasses.replace(config, horizon_s=min(config.horizon_s, JUDGING_S))

    def score(agent: BatchDecider[Any]) -> float:
        found = accuracies(short, agent, episodes)
        below = config.reward.accuracy_floor - float(np.nanmean(found.served))
        return 1.0 + below if below > 0.0 else -float(np.nanmean(found.effective))

    return score
