"""The agents that can steer one real cluster, by the names that `drive.agents` gives them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig, OmegaConf

from agents.api import Agent
from agents.heuristics.constant import FAMILIES, ConstantAgent
from agents.heuristics.random import RandomAgent
from envs.cluster.config import StreamClusterConfig
from experiments.errors import REPOSITORY, ConfigError, did_you_mean
from experiments.files import file_sha256
from experiments.training import BUNDLE, Report, train_agent, tuned_plans, with_agent
from runtime.guards import Guards
from runtime.plan import Plan
from runtime.policy import POLICY, Bundle, BundlePolicy
from runtime.snapshot import SIGNALS, Snapshot

TUNED_NAMES = (*FAMILIES, "count_share")
LEARNED, RANDOM = "ppo", "random"


class Driver(NamedTuple):
    """One agent that drives.

    Attributes:
        name: What it is called in tables and folders.
        agent: Who decides.
        plan: The plan in force at the start, and the safe one of its guards.
        identity: What distinguishes it from another agent of this name (plain JSON values).
    """

    name: str
    agent: Agent
    plan: Plan
    identity: dict[str, Any]


def drivers(config: DictConfig, world: StreamClusterConfig, report: Report) -> list[Driver]:
    """Return the agents of `drive.agents` and the fixed plans of `drive.plans`, in this order.

    Agents that do not exist yet are made; before that, all names and bundles are checked.

    Args:
        config: A settled configuration.
        world: The world that they are to steer.
        report: Told about progress of what has to be made.

    Raises:
        ConfigError: An unknown name, two agents of one name, a plan that the guards would change,
            or a bundle for another cluster.
        BundleError: A folder that is no usable bundle.
    """
    entries = [str(entry) for entry in config.drive.agents]
    plans = _fixed_plans(config, world)
    bundles = {entry: bundle_folder(entry) for entry in entries if "/" in entry}
    known = (*TUNED_NAMES, LEARNED, RANDOM)
    for entry in entries:
        if entry not in bundles and entry not in known:
            raise unknown_driver(entry, known)
    names = [bundles[e].name if e in bundles else e for e in entries] + [p.name for p in plans]
    check_names(names)
    for folder in bundles.values():
        _loaded(folder, world)
    tuned = tuned_plans(config, report) if set(entries) & set(TUNED_NAMES) else {}
    result = []
    for entry in entries:
        if entry in bundles:
            result.append(_deployed(bundles[entry].name, bundles[entry], world))
        elif entry == LEARNED:
            run = train_agent(with_agent(config, LEARNED), report)
            result.append(_deployed(LEARNED, run.path / BUNDLE, world))
        elif entry == RANDOM:
            chance = RandomAgent(world.actions, np.random.SeedSequence(0))
            result.append(Driver(RANDOM, chance, world.initial_plan, {"random": 0}))
        else:
            result.append(_constant(entry, _tuned(entry, tuned)))
    return result + plans


def _constant(name: str, plan: Plan) -> Driver:
    return Driver(name, ConstantAgent(name, plan), plan, {"plan": plan.to_mapping()})


def _tuned(name: str, tuned: dict[str, Plan]) -> Plan:
    if name not in tuned:
        raise ConfigError(
            f"no plan of env.actions belongs to the family {name!r}; tuned were {', '.join(tuned)}"
        )
    return tuned[name]


def _deployed(name: str, folder: Path, world: StreamClusterConfig) -> Driver:
    bundle = _loaded(folder, world)
    identity = {"policy_sha256": file_sha256(folder / POLICY)}
    return Driver(name, BundlePolicy(bundle), world.initial_plan, identity)


def _loaded(folder: Path, world: StreamClusterConfig) -> Bundle:
    """Load a bundle and refuse one that was made for another cluster."""
    bundle = Bundle.load(folder)
    if isinstance(bundle.policy, Plan):
        return bundle
    for what, made_for, here in (
        ("slots", bundle.scale.slots, world.slots),
        ("period_s", bundle.period_s, world.period_s),
        ("max_open", bundle.scale.max_open, world.max_open),
    ):
        if made_for != here:
            raise ConfigError(
                f"the bundle {folder} was made for env.{what}={made_for:g}, here it is {here:g}; "
                f"set env.{what}={made_for:g} or train an agent for this cluster"
            )
    return bundle


def bundle_folder(entry: str) -> Path:
    """Return the folder that an entry names, in the working directory or in the repository.

    Raises:
        ConfigError: There is no such folder.
    """
    path = Path(entry).expanduser()
    for candidate in (path, REPOSITORY / path):
        if candidate.is_dir():
            return candidate.resolve()
    raise ConfigError(
        f"drive.agents has {entry!r}, which is no folder; give the folder of a bundle, as "
        "experiments.export makes it"
    )


def unknown_driver(entry: str, known: Collection[str]) -> ConfigError:
    """Make the error for a name in `drive.agents` that nobody has."""
    return ConfigError(
        f"unknown agent {entry!r} in drive.agents{did_you_mean(entry, known) or ';'} expected one "
        f"of {', '.join(sorted(known))}, or the folder of a bundle with a '/' in its path"
    )


def named_plans(config: DictConfig) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield place, name and other fields of each plan of `drive.plans`.

    Raises:
        ConfigError: One of them has no name.
    """
    for k, node in enumerate(config.drive.plans):
        place = f"drive.plans[{k}]"
        content: Any = OmegaConf.to_container(node, resolve=True)
        if not isinstance(content, dict) or not isinstance(content.get("name"), str):
            raise ConfigError(f"{place} is {content!r}; expected a name and fields of a plan")
        name = content.pop("name")
        yield place, name, content


def _fixed_plans(config: DictConfig, world: StreamClusterConfig) -> list[Driver]:
    result = []
    for place, name, content in named_plans(config):
        try:
            plan = Plan.from_mapping(content)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{place} ({name}): {error}") from error
        start = Snapshot(np.zeros(len(SIGNALS)))
        if Guards(world.guards, plan).apply(plan, start)[1]:
            raise ConfigError(
                f"{place} ({name}) is outside env.guards, which would change it; widen the guards"
            )
        result.append(_constant(name, plan))
    return result


def check_names(names: list[str]) -> None:
    """Refuse names that are given twice or cannot name a folder.

    Raises:
        ConfigError: Names the name.
    """
    if not names:
        raise ConfigError("drive.agents and drive.plans are empty; name at least one agent")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two agents to drive are called {name!r}; rename a folder or a plan")
        if not name.replace("_", "").replace("-", "").replace(".", "").isalnum():
            raise ConfigError(f"an agent to drive is called {name!r}; expected letters and digits")
