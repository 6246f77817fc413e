"""Making agents: tuning constant plans and learning policies, each in its run folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from agents.api import BatchAgent, mean_latencies_s
from agents.heuristics.constant import FAMILIES, count_share_plans, plan_grid
from agents.tuning import evaluate_plans
from envs.cluster.config import StreamClusterConfig
from experiments.cli import CONF
from experiments.errors import ConfigError, unknown_name
from experiments.files import write_csv, write_json
from experiments.provenance import provenance
from experiments.record import RunFolder, open_run, run_path
from experiments.worlds import Part, build_world, evaluation_episodes
from runtime.cluster.actions import FieldActions
from runtime.plan import Plan

Report = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""

JUDGING_EPISODES = 32
"""Training episodes that a policy in training is judged on."""

_OTHERS = ("agent", "drive", "export", "network", "size")  # no part of how agents are made

TUNED, SWEEP, BUNDLE = "tuned.json", "sweep.csv.gz", "bundle"


def silent(what: str, done: int, total: int) -> None:
    """Report to nobody."""


def agent_names() -> list[str]:
    """Return the names of the agents that can be trained."""
    return sorted(path.stem for path in (CONF / "agent").glob("*.yaml"))


def with_agent(config: DictConfig, name: str, seed: int = 0) -> DictConfig:
    """Return the configuration of the run that makes an agent.

    Raises:
        ConfigError: There is no such agent.
    """
    if name not in agent_names():
        raise unknown_name("agent", name, agent_names())
    node = OmegaConf.load(CONF / "agent" / f"{name}.yaml")
    changed = OmegaConf.merge(config, {"agent": None}, {"agent": node, "seed": seed})
    return training_part(cast("DictConfig", changed))


def training_part(config: DictConfig) -> DictConfig:
    """Return the part of a configuration that the making of its agent depends on.

    What belongs to other commands is left out: an agent is not made again because it shall be
    driven for longer or compared in more episodes.
    """
    node = OmegaConf.to_container(config.agent, resolve=True)
    kept = [key for key in config if key not in _OTHERS]
    rest = OmegaConf.masked_copy(config, kept)
    own = {"agent": node, "size": {"name": config.size.name}}
    return cast("DictConfig", OmegaConf.merge(rest, own))


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
    kind = str(config.agent.get("kind", config.agent.name))
    if kind not in kinds:
        raise unknown_name("agent.kind", kind, kinds)
    world = build_world(config, Part.TRAIN)  # mistakes show before anything is written
    del world
    run = open_run(config)
    if not run.complete:
        kinds[kind](config, run, report)
        run.mark_complete()
    return run


def _tune(config: DictConfig, run: RunFolder, report: Report) -> None:
    """Evaluate all constant plans on training data and keep the best of every family."""
    world = build_world(config, Part.TRAIN)
    if not isinstance(world.actions, FieldActions):
        raise ConfigError("constants are tuned over fields; env.actions.kind must be 'fields'")
    levels = replace(world.actions, **_levels(config, world.actions))
    plans = plan_grid(levels)
    counted = count_share_plans(world.application, world.slots, levels)
    episodes = evaluation_episodes(config, Part.TRAIN, int(config.agent.episodes))
    everything = plans + counted
    total = len(everything)
    latency_s = evaluate_plans(
        world, everything, episodes, lambda done: report("constant plans", done, total)
    )
    mean_s = latency_s.mean(axis=1)
    table = pd.DataFrame([plan.to_mapping() for plan in everything]).drop(columns="version")
    for k in range(latency_s.shape[1]):
        table[f"episode_{k}_s"] = latency_s[:, k]
    table["mean_s"] = mean_s
    write_csv(run.path / SWEEP, table)
    best = {
        name: min((i for i, plan in enumerate(plans) if member(plan)), key=lambda i: mean_s[i])
        for name, member in FAMILIES.items()
        if any(member(plan) for plan in plans)
    }
    best["count_share"] = len(plans) + int(mean_s[len(plans) :].argmin())
    tuned = {
        name: {"plan": everything[i].to_mapping(), "training_mean_s": float(mean_s[i])}
        for name, i in best.items()
    }
    write_json(run.path / TUNED, tuned)


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
    episodes = evaluation_episodes(config, Part.TRAIN, JUDGING_EPISODES)

    def score(agent: BatchAgent) -> float:
        return float(mean_latencies_s(replace(world, load_factors=(1.0,)), agent, episodes).mean())

    train(model, total, run.path, lambda steps: report(what, min(steps, total), total), score)
    origin = provenance()
    origin |= {"config": run.config, "timesteps": model.num_timesteps}
    bundle: Path = run.path / BUNDLE
    if not bundle.exists():
        export_ppo(model, world, bundle, origin)
    report(what, total, total)


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
