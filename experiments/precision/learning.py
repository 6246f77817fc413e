"""Learning agents of staged precision, each in its run folder."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from agents.precision.known import known_of
from agents.precision.rule import Rule
from envs.precision.config import StagedPrecisionConfig
from experiments.errors import ConfigError, unknown_name
from experiments.precision.tuning import best_rule
from experiments.precision.worlds import build_world
from experiments.provenance import provenance
from experiments.record import RunFolder
from experiments.schema import check_keys, plain_node
from experiments.training import Report, train_agent
from experiments.workloads import Part


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

    node, preset = config.agent, read_preset(config.agent)
    world = build_world(config, Part.TRAIN)
    total = int(node.timesteps)
    what = f"{node.name}, {config.env.stream}, seed {config.seed}"
    if config.env.hidden:
        what += f", without {', '.join(config.env.hidden)}"
    training = Training(
        timesteps=total,
        preset=preset,
        start=None if node.start is None else starting_rule(config, world, report),
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


def read_preset(node: DictConfig) -> dict[str, Any]:
    """Return the hyperparameters that are given, by name; others are the learner's own.

    Args:
        node: The node `agent` of a configuration, of kind learned.

    Raises:
        ConfigError: An unknown learner or hyperparameter.
    """
    from agents.precision.learned import LEARNERS

    learner = str(node.learner)
    if learner not in LEARNERS:
        raise unknown_name("agent.learner", learner, LEARNERS)
    given = plain_node(node.preset, "agent.preset")
    check_keys(given, "agent.preset", [field.name for field in fields(LEARNERS[learner].preset)])
    return {name: value for name, value in given.items() if value is not None}


def check_start(node: DictConfig) -> None:
    """Refuse a start that a learner cannot have.

    Args:
        node: The node `agent` of a configuration, of kind learned.

    Raises:
        ConfigError: The learner cannot imitate, or the node is not how rules are tuned.
    """
    from agents.precision.learned import IMITATORS

    if node.start is None:
        return
    if node.learner not in IMITATORS:
        raise ConfigError(
            f"agent.start is given, but {node.learner} cannot start from a rule; expected null, or "
            f"agent.learner one of {', '.join(IMITATORS)}"
        )
    keys = ["episodes", "settings", "assignments", "budget"]
    check_keys(plain_node(node.start, "agent.start"), "agent.start", keys, keys)


def starting_rule(config: DictConfig, world: StagedPrecisionConfig, report: Report) -> Rule:
    """Return the tuned rule that is best on training streams, tuning all if that was not done.

    Args:
        config: A settled configuration; `agent.start` says how rules are tuned.
        world: Its training world.
        report: Told about progress.
    """
    search = {"name": "rules", "kind": "rules", **config.agent.start}
    own = OmegaConf.merge(with_hidden(config, []), {"agent": None}, {"agent": search, "seed": 0})
    return best_rule(train_agent(cast("DictConfig", own), report), known_of(world))


def with_hidden(config: DictConfig, groups: list[str]) -> DictConfig:
    """Return the configuration in which agents do not see some groups of signals."""
    return cast("DictConfig", OmegaConf.merge(config, {"env": {"hidden": groups}}))
