"""The agents that a comparison lines up, ready to decide for many simulated clusters."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from omegaconf import DictConfig

from agents.api import BatchAgent, ConstantRows, Episodes, Separately
from agents.bundle import BundleBatch
from agents.clairvoyant import hindsight_schedule
from agents.heuristics.random import RandomAgent
from agents.tuning import worker_pool
from envs.cluster.config import StreamClusterConfig
from experiments.training import (
    BUNDLE,
    Report,
    seeds_of,
    sweep_table,
    train_agent,
    tuned_plans,
    with_agent,
)
from runtime.plan import Plan
from runtime.policy import Bundle

AgentT = TypeVar("AgentT")


class Entrant(NamedTuple, Generic[AgentT]):
    """One agent of a comparison.

    Attributes:
        name: What it is called in tables.
        train_seed: Its training seed; 0 for what is not learned.
        agent: Who decides.
    """

    name: str
    train_seed: int
    agent: AgentT


def line_up(
    config: DictConfig, world: StreamClusterConfig, n: int, report: Report
) -> list[Entrant[BatchAgent]]:
    """Return all agents of a comparison, making those that do not exist yet.

    Args:
        config: A settled configuration.
        world: The held-out world.
        n: Number of episodes, run side by side.
        report: Told about progress of what has to be made.
    """
    constants = [
        Entrant(name, 0, ConstantRows(np.tile(plan.to_row(), (n, 1))))
        for name, plan in tuned_plans(config, report).items()
    ]
    seeds = np.random.SeedSequence(0).spawn(n)
    chance = Separately(lambda k: RandomAgent(world.actions, seeds[k]))
    learned = [
        Entrant("ppo", seed, BundleBatch(Bundle.load(run_folder / BUNDLE)))
        for seed, run_folder in ((s, _trained(config, s, report)) for s in seeds_of(config))
    ]
    return [*constants, Entrant("random", 0, chance), *learned]


def _trained(config: DictConfig, seed: int, report: Report) -> Path:
    return train_agent(with_agent(config, "ppo", seed), report).path


def candidate_plans(config: DictConfig, count: int) -> list[Plan]:
    """Return plans for the search with the true future: good ones that differ in kind.

    The best plan of each training episode, then the best ones by the mean over all, at most one
    per combination of pools, parallelism, interval and idle trigger.
    """
    table = sweep_table(config)
    episodes = [c for c in table.columns if c.startswith("episode_")]
    order = [int(table[c].to_numpy().argmin()) for c in episodes]
    order += np.argsort(table["mean_s"].to_numpy(), kind="stable").tolist()
    kinds = ["pools", "parallelism", "batch_interval_s", "idle_batches"]
    chosen: dict[tuple[object, ...], Plan] = {}
    for i in order:
        row = table.iloc[i]
        kind = tuple(row[kinds])
        if kind not in chosen and len(chosen) < count:
            values = row.drop([*episodes, "mean_s"]).to_dict()
            chosen[kind] = Plan.from_mapping(values)
    return list(chosen.values())


def hindsight_rows(
    config: DictConfig, world: StreamClusterConfig, episodes: Episodes, report: Report
) -> np.ndarray:
    """Return the schedules found with the true future, float64 [steps, N, len(PLAN_COLUMNS)]."""
    settings = config.size.clairvoyant
    n = len(episodes.keys)
    search = partial(
        hindsight_schedule,
        world,
        episodes,
        candidates=candidate_plans(config, int(settings.candidates)),
        segment_s=float(settings.segment_s),
        passes=int(settings.passes),
    )
    schedules = []
    with worker_pool(min(os.cpu_count() or 1, n)) as pool:
        for k, schedule in enumerate(pool.imap(search, range(n))):
            schedules.append(schedule)
            report("search with the true future", k + 1, n)
    return np.stack(schedules, axis=1)
