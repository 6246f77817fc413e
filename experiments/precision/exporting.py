"""The bundles that agents of staged precision are exported as."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from agents.precision.export import bundle_of
from agents.precision.families import GRIDS
from agents.precision.heuristics.chance import EqualDuty
from agents.precision.heuristics.static import Cascade, Static
from agents.precision.known import known_of
from agents.precision.saved import saved_rule
from envs.precision.config import StagedPrecisionConfig
from experiments.errors import ConfigError, unknown_name
from experiments.precision.lineup import RULES
from experiments.precision.roster import untuned_plans
from experiments.precision.tuning import PROGRAMME, STATIC_BEST, read_rules
from experiments.precision.worlds import build_world
from experiments.provenance import provenance
from experiments.record import portable_config
from experiments.training import (
    BUNDLE,
    agent_names,
    finished_run,
    precision_part,
    training_part,
    with_agent,
)
from experiments.workloads import Part
from runtime.precision.plan import PrecisionPlan
from runtime.precision.policy import PrecisionBundle

TUNED_PLANS = (STATIC_BEST, PROGRAMME, Cascade.name)
"""Tuned rules that are one plan."""

REACTIVE = (*(name for name in GRIDS if name not in TUNED_PLANS), EqualDuty.name)
"""Tuned rules that change their plan, which code alone can tell."""


def bundle_to_export(config: DictConfig, name: str) -> PrecisionBundle:
    """Return the bundle of an agent that has been made, or of a plan that needs no making.

    Args:
        config: A settled configuration.
        name: A learned agent, a tuned rule that is one plan, a uniform level ("static_" and its
            name) or "training_mode".

    Raises:
        ConfigError: Another name, or the agent has not been made.
        BundleError: The run's bundle is not usable.
    """
    world = build_world(config, Part.TRAIN)
    untuned = untuned_plans(world)
    learned = [each for each in agent_names(config) if each != RULES]
    if name in learned:
        return PrecisionBundle.load(finished_run(_maker(config, name)).path / BUNDLE)
    if name in untuned:
        own = portable_config(precision_part(config))
        return _constant(name, untuned[name], world, {"config": own | {"agent": None}})
    if name in TUNED_PLANS:
        return _tuned(config, name, world)
    known = (*learned, *TUNED_PLANS, *untuned)
    raise unknown_name("agent to export (export.agent)", name, known)


def _maker(config: DictConfig, name: str) -> DictConfig:
    """Return the configuration of the run that makes a learned agent, with the seed asked for."""
    chosen = name == str(config.agent.name)  # hyperparameters may have been given for it
    return training_part(config) if chosen else with_agent(config, name, int(config.seed))


def _tuned(config: DictConfig, name: str, world: StagedPrecisionConfig) -> PrecisionBundle:
    """Return the bundle of a tuned rule that is one plan."""
    run = finished_run(with_agent(config, RULES))
    rules = read_rules(run, known_of(world))
    rule = rules.get(name)
    if not isinstance(rule, Static | Cascade):
        raise ConfigError(f"export.agent is {name!r}; tuned were {', '.join(rules)}")
    origin = {"config": run.config, "tuned": saved_rule(rule)}
    return _constant(name, rule.plan, world, origin)


def _constant(
    name: str, plan: PrecisionPlan, world: StagedPrecisionConfig, origin: dict[str, Any]
) -> PrecisionBundle:
    return bundle_of(name, plan, world, provenance() | origin)
