"""The agents that can serve real request streams, by the names that `drive.agents` gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig

from agents.deciders import Constant
from agents.precision.api import PrecisionAgent
from agents.precision.families import GRIDS
from agents.precision.heuristics.chance import EqualDuty
from agents.precision.heuristics.static import uniforms
from agents.precision.known import known_of
from agents.precision.saved import saved_rule
from envs.precision.config import StagedPrecisionConfig
from experiments.errors import ConfigError
from experiments.files import file_sha256
from experiments.precision.lineup import RULES
from experiments.precision.tuning import PROGRAMME, STATIC_BEST, TRAINING_MODE, read_rules
from experiments.roster import bundle_folder, check_names, named_plans, unknown_driver
from experiments.training import BUNDLE, Report, agent_names, train_agent, with_agent
from runtime.bundle_files import POLICY
from runtime.precision.guards import PrecisionGuards
from runtime.precision.plan import PrecisionPlan
from runtime.precision.policy import PrecisionBundle, PrecisionBundlePolicy
from runtime.precision.snapshot import PrecisionSnapshot
from simulators.precision.profile import PrecisionProfile

TUNED = (STATIC_BEST, PROGRAMME, *GRIDS, EqualDuty.name)
"""Names of what is tuned; uniform levels and the training mode's table need no tuning."""


class StreamDriver(NamedTuple):
    """One agent that serves streams.

    Attributes:
        name: What it is called in tables and folders.
        agent: Who decides.
        identity: What distinguishes it from another agent of this name (plain JSON values).
        train_seed: Seed of its training; 0 without any.
    """

    name: str
    agent: PrecisionAgent
    identity: dict[str, Any]
    train_seed: int = 0


def stream_drivers(
    config: DictConfig, world: StagedPrecisionConfig, report: Report
) -> list[StreamDriver]:
    """Return the agents of `drive.agents` and the fixed plans of `drive.plans`, in this order.

    Agents that do not exist yet are made; before that, all names and bundles are checked.

    Args:
        config: A settled configuration.
        world: The held-out world that they are to serve.
        report: Told about progress of what has to be made.

    Raises:
        ConfigError: An unknown name, two agents of one name, or a bundle for another network.
        BundleError: A folder that is no usable bundle.
    """
    entries = [str(entry) for entry in config.drive.agents]
    plans = _fixed_plans(config, world)
    bundles = {entry: bundle_folder(entry) for entry in entries if "/" in entry}
    untuned = untuned_plans(world)
    made = {name: _constant(name, plan) for name, plan in untuned.items() if name in entries}
    learned = [name for name in agent_names(config) if name != RULES]
    known = [*untuned, *TUNED, *learned]
    for entry in entries:
        if entry not in bundles and entry not in known:
            raise unknown_driver(entry, known)
    names = [bundles[e].name if e in bundles else e for e in entries] + [p.name for p in plans]
    check_names(names)
    made |= {e: _deployed(folder.name, folder, world.profile) for e, folder in bundles.items()}
    if set(entries) & set(TUNED):
        made |= _tuned(config, world, report)
    for name in set(entries) & set(learned):
        run = train_agent(with_agent(config, name), report)
        made[name] = _deployed(name, run.path / BUNDLE, world.profile)
    return [made[entry] for entry in entries] + plans


def _tuned(
    config: DictConfig, world: StagedPrecisionConfig, report: Report
) -> dict[str, StreamDriver]:
    """Return the tuned rules, each from its own reading: a rule keeps one past."""
    rules = read_rules(train_agent(with_agent(config, RULES), report), known_of(world))
    return {name: StreamDriver(name, rule, saved_rule(rule)) for name, rule in rules.items()}


def untuned_plans(world: StagedPrecisionConfig) -> dict[str, PrecisionPlan]:
    """Return the plans that have a name without any tuning: uniform levels and the safe plan."""
    rules = uniforms(known_of(world), world.profile.levels)
    return {rule.name: rule.plan for rule in rules} | {TRAINING_MODE: world.safe_plan}


def _constant(name: str, plan: PrecisionPlan) -> StreamDriver:
    return StreamDriver(name, Constant(name, plan), {"plan": plan.to_mapping()})


def _deployed(name: str, folder: Path, profile: PrecisionProfile) -> StreamDriver:
    """Load a bundle and refuse one that was made for another network."""
    bundle = PrecisionBundle.load(folder)
    for what, made_for, here in (
        ("stages", bundle.stages, profile.stages),
        ("levels", bundle.levels, profile.levels),
        ("input properties", bundle.scale.properties, profile.property_names),
    ):
        if tuple(made_for) != tuple(here):
            raise ConfigError(
                f"the bundle {folder} was made for a network with the {what} "
                f"{', '.join(made_for)}; {profile.network} has {', '.join(here)}: train and export "
                "an agent for this network"
            )
    identity = {"policy_sha256": file_sha256(folder / POLICY)}
    seed = int(bundle.provenance.get("seed", 0))
    return StreamDriver(name, PrecisionBundlePolicy(bundle), identity, seed)


def _fixed_plans(config: DictConfig, world: StagedPrecisionConfig) -> list[StreamDriver]:
    """Return the plans of `drive.plans`: a name, level names, and other fields of a plan."""
    result = []
    for place, name, content in named_plans(config):
        try:
            for key in {"levels", "escalate_levels"} & set(content):
                content[key] = world.profile.assignment(*map(str, content[key]))
            plan = PrecisionPlan.from_mapping(content)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{place} ({name}): {error}") from error
        _refuse_guarded(plan, world, f"{place} ({name})")
        result.append(_constant(name, plan))
    return result


def _refuse_guarded(plan: PrecisionPlan, world: StagedPrecisionConfig, place: str) -> None:
    """Refuse a fixed plan that guards would replace at the start of a stream."""
    layout = world.scale().signals
    guards = PrecisionGuards(world.guards, world.bank_tables(), world.safe_plan, layout)
    start = PrecisionSnapshot(layout, np.zeros(layout.size), world.safe_plan)
    if guards.apply(plan, start)[1]:
        raise ConfigError(f"{place} is outside env.guards, which would change it; widen the guards")
