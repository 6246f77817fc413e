"""Making agents: tuning constant plans and learning policies, each in its run folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from agents.api import BatchAgent, ConstantRows, mean_latencies_s
from agents.heuristics.constant import FAMILIES, count_share_plans, neighbours, plan_grid
from agents.tuning import evaluate_plans
from envs.cluster.config import StreamClusterConfig
from experiments.cli import CONF
from experiments.domains import Domain, domain_of
from experiments.errors import ConfigError, unknown_name
from experiments.files import write_csv, write_json
from experiments.provenance import provenance
from experiments.record import COMPLETE, RunFolder, load_run, open_run, run_path
from experiments.worlds import Part, build_world, evaluation_episodes
from runtime.cluster.actions import FieldActions
from runtime.plan import Plan

Report = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""

JUDGING_EPISODES = 64
"""Training episodes that a policy in training is judged on."""

REFINEMENTS = 8
"""Rounds of neighbours at most after the grid; three or four usually find nothing better."""

_STAGED = ("network", "bank", "calibration")  # nodes of staged networks
_OTHERS = ("agent", "drive", "export", *_STAGED, "size")  # no part of how agents are made
_SIZES = ("network", "latencies", "precision")  # keys of sizes that are of staged networks

TUNED, SWEEP, BUNDLE = "tuned.json", "sweep.csv.gz", "bundle"


def silent(what: str, done: int, total: int) -> None:
    """Report to nobody."""


def agent_files(config: DictConfig) -> Path:
    """Return the folder of the configurations of a domain's agents."""
    own = domain_of(config)
    return CONF / "agent" / ("" if own is Domain.CLUSTER else own.value)


def agent_names(config: DictConfig) -> list[str]:
    """Return the names of the agents that can be trained."""
    return sorted(path.stem for path in agent_files(config).glob("*.yaml"))


def with_agent(config: DictConfig, name: str, seed: int = 0) -> DictConfig:
    """Return the configuration of the run that makes an agent.

    Raises:
        ConfigError: There is no such agent.
    """
    if name not in agent_names(config):
        raise unknown_name("agent", name, agent_names(config))
    node = OmegaConf.load(agent_files(config) / f"{name}.yaml")
    changed = OmegaConf.merge(config, {"agent": None}, {"agent": node, "seed": seed})
    return training_part(cast("DictConfig", changed))


def training_part(config: DictConfig) -> DictConfig:
    """Return the part of a configuration that the making of its agent depends on.

    What belongs to other commands is left out: an agent is not made again because it shall be
    driven for longer or compared in more episodes.
    """
    if domain_of(config) is Domain.PRECISION:
        config = precision_part(config)
    node = OmegaConf.to_container(config.agent, resolve=True)
    kept = [key for key in config if key not in _OTHERS]
    rest = OmegaConf.masked_copy(config, kept)
    own = {"agent": node, "size": {"name": config.size.name}}
    return cast("DictConfig", OmegaConf.merge(rest, own))


def cluster_part(config: DictConfig) -> DictConfig:
    """Return a configuration without what belongs to staged networks."""
    part = OmegaConf.masked_copy(config, [key for key in config if key not in _STAGED])
    sizes = [key for key in config.size if key not in _SIZES]
    part.size = OmegaConf.masked_copy(config.size, sizes)
    return part


def precision_part(config: DictConfig) -> DictConfig:
    """Return a configuration without what belongs to clusters and to making banks, resolved.

    A bank comes in by the profile that `env` names, a stream by `env.stream`: what else a whole
    reproduction does is left out too.
    """
    resolved = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
    kept = [key for key in resolved if key not in ("application", "drive", "export", *_STAGED)]
    part = OmegaConf.masked_copy(cast("DictConfig", resolved), kept)
    sizes = [key for key in ("name", "precision") if key in config.size]
    part.size = OmegaConf.masked_copy(part.size, sizes)
    if "precision" in part.size:
        own = [key for key in part.size.precision if key not in ("streams", "drive", "loads")]
        part.size.precision = OmegaConf.masked_copy(part.size.precision, own)
    return part


def with_load(config: DictConfig, load: float) -> DictConfig:
    """Return the configuration at another load."""
    return cast("DictConfig", OmegaConf.merge(config, {"workload": {"load": load}}))


def train_agent(config: DictConfig, report: Report = silent) -> RunFolder:
    """Make the agent that a configuration asks for, or return the finished run.

    Args:
        config: A settled configuration (`worlds.settled`).
        report: Told about progress.

    Raises:
        ConfigError: The kind of agent is unknown.
    """
    kinds: dict[str, Callable[[DictConfig, RunFolder, Report], None]] = {
        "constants": _tune,
        "ppo": _learn,
    }
    check: Callable[[DictConfig, Part], object] = build_world
    if domain_of(config) is Domain.PRECISION:
        from experiments.precision import agents

        kinds, check = agents.KINDS, agents.check_agent
    kind = str(config.agent.get("kind", config.agent.name))
    if kind not in kinds:
        raise unknown_name("agent.kind", kind, kinds)
    check(config, Part.TRAIN)  # mistakes show before anything is written
    run = open_run(config)
    if not run.complete:
        kinds[kind](config, run, report)
        run.mark_complete()
    return run


def finished_run(config: DictConfig) -> RunFolder:
    """Return the finished run that made an agent.

    Args:
        config: The configuration of the run, as `with_agent` or `training_part` returns it.

    Raises:
        ConfigError: There is none.
    """
    path, name = run_path(config), str(config.agent.name)
    if not (path / COMPLETE).exists():
        choice = (agent_files(config) / name).relative_to(CONF / "agent")
        raise ConfigError(
            f"{name} has not been made with these settings (no finished run in {path}); run "
            f"`python -m experiments.train agent={choice} seed={config.seed}` with the same "
            "settings first"
        )
    return load_run(path)


def _tune(config: DictConfig, run: RunFolder, report: Report) -> None:
    """Find the best constant plan of every family on training data.

    All plans of a grid, then for every family rounds of the best plan's neighbours on all levels
    that the environment offers, until none is better: the grid's edges do not bound the result.
    """
    world = build_world(config, Part.TRAIN)
    if not isinstance(world.actions, FieldActions):
        raise ConfigError("constants are tuned over fields; env.actions.kind must be 'fields'")
    levels = replace(world.actions, **_levels(config, world.actions))
    counted = count_share_plans(world.application, world.slots, levels)
    episodes = evaluation_episodes(config, Part.TRAIN, int(config.agent.episodes))
    latencies_s: dict[Plan, NDArray[np.float64]] = {}

    def evaluate(plans: list[Plan]) -> None:
        total = len(latencies_s) + len(plans)
        found = evaluate_plans(
            world,
            plans,
            episodes,
            lambda done: report("constant plans", total - len(plans) + done, total),
        )
        latencies_s.update(zip(plans, found, strict=True))

    evaluate(list(dict.fromkeys([*plan_grid(levels), *counted])))
    best = _best_of_families(latencies_s)
    for _ in range(REFINEMENTS):
        near = {
            other
            for name, plan in best.items()
            for other in neighbours(plan, world.actions)
            if FAMILIES[name](other) and other not in latencies_s
        }
        if not near:
            break
        evaluate(sorted(near, key=lambda plan: tuple(plan.to_row())))
        best = _best_of_families(latencies_s)
    best["count_share"] = min(counted, key=lambda plan: float(latencies_s[plan].mean()))
    table = pd.DataFrame([plan.to_mapping() for plan in latencies_s]).drop(columns="version")
    scores = np.stack(list(latencies_s.values()))
    for k in range(scores.shape[1]):
        table[f"episode_{k}_s"] = scores[:, k]
    table["mean_s"] = scores.mean(axis=1)
    write_csv(run.path / SWEEP, table)
    tuned = {
        name: {"plan": plan.to_mapping(), "training_mean_s": float(latencies_s[plan].mean())}
        for name, plan in best.items()
    }
    write_json(run.path / TUNED, tuned)


def _best_of_families(latencies_s: dict[Plan, NDArray[np.float64]]) -> dict[str, Plan]:
    """Return the plan with the lowest mean latency of every family that has a plan."""
    means = {plan: float(latency.mean()) for plan, latency in latencies_s.items()}
    members = {name: [p for p in means if member(p)] for name, member in FAMILIES.items()}
    return {name: min(plans, key=means.__getitem__) for name, plans in members.items() if plans}


def _levels(config: DictConfig, actions: FieldActions) -> dict[str, tuple[float, ...]]:
    """Return the levels of the grid; a field that the environment fixes stays fixed."""
    levels = cast("dict[str, Any]", OmegaConf.to_container(config.agent.levels, resolve=True))
    fixed = {name for name in levels if len(getattr(actions, name)) == 1}
    return {name: tuple(values) for name, values in levels.items() if name not in fixed}


def tuned_plans(config: DictConfig, report: Report = silent) -> dict[str, Plan]:
    """Return the tuned constant plans by agent name, tuning them if that has not been done."""
    content = read_tuned(train_agent(with_agent(config, "constants"), report))
    return {name: Plan.from_mapping(entry["plan"]) for name, entry in content.items()}


def read_tuned(run: RunFolder) -> dict[str, Any]:
    """Return what the tuning of constant plans found, by family: plan and `training_mean_s`."""
    content: dict[str, Any] = json.loads((run.path / TUNED).read_text())
    return content


def sweep_table(config: DictConfig) -> pd.DataFrame:
    """Return the table of all constant plans on training data (tuned before)."""
    return pd.read_csv(run_path(with_agent(config, "constants")) / SWEEP)


def _learn(config: DictConfig, run: RunFolder, report: Report) -> None:
    """Train PPO, from the last checkpoint if there is one, and export it."""
    from agents.export import export_ppo
    from agents.learned import PPOPreset, make_ppo, train

    world: StreamClusterConfig = build_world(config, Part.TRAIN)
    fields = cast("dict[str, Any]", OmegaConf.to_container(config.agent.preset, resolve=True))
    fields["net"] = tuple(fields["net"])
    preset = PPOPreset(**fields)
    start = None if config.agent.start is None else _starting_plan(config, report)
    model = make_ppo(preset, world, int(config.seed), start)
    total = int(config.agent.timesteps)
    what = f"ppo, load {config.workload.load:g}, seed {config.seed}"
    score = _judge(config, world, start or world.initial_plan)
    train(model, total, run.path, lambda steps: report(what, min(steps, total), total), score)
    origin = provenance()
    origin |= {"config": run.config, "timesteps": model.num_timesteps}
    bundle: Path = run.path / BUNDLE
    if not bundle.exists():
        export_ppo(model, world, bundle, origin)
    report(what, total, total)


def _judge(
    config: DictConfig, world: StreamClusterConfig, plan: Plan
) -> Callable[[BatchAgent], float]:
    """Return what judges a policy: its latency over that of a constant plan, mean over episodes.

    A mean of latencies would judge by the one or two most crowded episodes alone.
    """
    episodes = evaluation_episodes(config, Part.TRAIN, JUDGING_EPISODES)
    stated = replace(world, load_factors=(1.0,))
    rows = np.tile(plan.to_row(), (JUDGING_EPISODES, 1))
    usual_s = mean_latencies_s(stated, ConstantRows(rows), episodes)
    return lambda agent: float((mean_latencies_s(stated, agent, episodes) / usual_s).mean())


def _starting_plan(config: DictConfig, report: Report) -> Plan:
    """Return the constant plan that is best on training data, of any family."""
    search = {"name": "constants", "kind": "constants", **config.agent.start}
    own = OmegaConf.merge(config, {"agent": None}, {"agent": search, "seed": 0})
    content = read_tuned(train_agent(cast("DictConfig", own), report))
    best = min(content.values(), key=lambda entry: float(entry["training_mean_s"]))
    return Plan.from_mapping(best["plan"])


def seeds_of(config: DictConfig) -> list[int]:
    """Return the training seeds of the headline agent at this size."""
    return list(range(int(config.size.headline_seeds)))


def episode_count(config: DictConfig) -> int:
    """Return the number of evaluation episodes at this size."""
    return int(np.asarray(config.size.evaluation_seeds))
