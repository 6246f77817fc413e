"""Learning agents of staged precision, each in its run folder."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, cast

import numpy as np
from omegaconf import DictConfig, OmegaConf

from agents.precision.candidates import candidate_rows
from agents.precision.known import known_of
from agents.precision.tuning import row_accuracies
from envs.precision.config import StagedPrecisionConfig
from experiments.errors import ConfigError, unknown_name
from experiments.precision.worlds import build_world, evaluation_episodes
from experiments.provenance import provenance
from experiments.record import RunFolder
from experiments.schema import check_keys, plain_node
from experiments.training import Report
from experiments.workloads import Part
from runtime.precision.actions import TableActions
from runtime.precision.plan import PrecisionPlan

STARTS = 128
"""Most constant assignments that the start of learning is chosen from, where levels are learned."""


def learn(config: DictConfig, run: RunFolder, report: Report) -> None:
    """Train an agent, from its last checkpoint if there is one; leaves `bundle/` in the folder.

    Args:
        config: A settled configuration with an agent of kind learned.
        run: Where to write.
        report: Told about progress.

    Raises:
        ConfigError: An unknown learner, hyperparameter, or actions that it cannot use.
    """
    from agents.precision.learned import Training, train_learner

    node, preset = config.agent, _preset(config.agent)
    world = build_world(config, Part.TRAIN)
    total = int(node.timesteps)
    what = f"{node.name}, {config.env.stream}, seed {config.seed}"
    if config.env.hidden:
        what += f", without {', '.join(config.env.hidden)}"
    training = Training(
        timesteps=total,
        preset=preset,
        start=best_constant(config, world) if node.start else None,
        provenance=provenance() | {"config": run.config},
    )
    try:
        train_learner(
            str(node.learner),
            world,
            training,
            run.path,
            int(config.seed),
            lambda steps: report(what, min(steps, total), total),
        )
    except ValueError as error:
        raise ConfigError(f"agent={node.name}: {error}") from error
    report(what, total, total)


def _preset(node: DictConfig) -> dict[str, Any]:
    """Return the hyperparameters that are given, by name; others are the learner's own."""
    from agents.precision.learned import LEARNERS

    learner = str(node.learner)
    if learner not in LEARNERS:
        raise unknown_name("agent.learner", learner, LEARNERS)
    given = plain_node(node.preset, "agent.preset")
    check_keys(given, "agent.preset", [field.name for field in fields(LEARNERS[learner].preset)])
    return {name: value for name, value in given.items() if value is not None}


def best_constant(config: DictConfig, world: StagedPrecisionConfig) -> PrecisionPlan:
    """Return the plan on offer that is best on training episodes when it never changes.

    Args:
        config: A settled configuration with `agent.episodes`.
        world: Its training world.
    """
    if isinstance(world.actions, TableActions):
        rows = world.actions.rows
    else:
        rows = candidate_rows(world, known_of(world), STARTS)
    episodes = evaluation_episodes(config, Part.TRAIN, int(config.agent.episodes))
    scores = np.nanmean(row_accuracies(world, rows, episodes), axis=1)
    return PrecisionPlan.from_row(rows[int(scores.argmax())])


def with_hidden(config: DictConfig, groups: list[str]) -> DictConfig:
    """Return the configuration in which agents do not see some groups of signals."""
    return cast("DictConfig", OmegaConf.merge(config, {"env": {"hidden": groups}}))
