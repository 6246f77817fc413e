"""The agents that a comparison of staged precision lines up, and search with the true future."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from agents.precision.api import ConstantRows, Episodes, PrecisionBatchAgent
from agents.precision.bundle import BundleStreams
from agents.precision.clairvoyant import (
    WindowRows,
    hindsight_best,
    hindsight_windows,
    with_other_samples,
)
from agents.precision.known import known_of
from agents.precision.tables import verified_tables
from agents.tuning import worker_pool
from envs.precision.config import StagedPrecisionConfig
from experiments.lineup import Entrant
from experiments.precision.summary import FORESIGHT, HINDSIGHT_BEST, HINDSIGHT_WINDOWS
from experiments.precision.tuning import read_rules
from experiments.training import BUNDLE, Report, train_agent, with_agent
from runtime.precision.policy import PrecisionBundle

RULES = "rules"
_MARGINS = (0.2, 0.4, 0.6)
"""Of the cascades that are searched with the true future."""
_SEARCHED_AT_ONCE = 8
"""Most episodes that a worker searches side by side: a step of more servers costs little more."""


def seeds_of(config: DictConfig, learner: str) -> list[int]:
    """Return the training seeds of a learner: the first one that is named is the headline agent."""
    size = config.size.precision
    headline = learner == str(size.learners[0])
    return list(range(int(size.headline_seeds if headline else size.seeds)))


def makers(config: DictConfig) -> list[DictConfig]:
    """Return the configurations of all runs that make the agents of a comparison."""
    return [
        with_agent(config, RULES),
        *(
            with_agent(config, str(learner), seed)
            for learner in config.size.precision.learners
            for seed in seeds_of(config, str(learner))
        ),
    ]


def line_up(
    config: DictConfig, world: StagedPrecisionConfig, report: Report
) -> list[Entrant[PrecisionBatchAgent]]:
    """Return all agents of a comparison, making those that do not exist yet.

    Args:
        config: A settled configuration.
        world: The held-out world.
        report: Told about progress of what has to be made.
    """
    entrants = []
    for made in makers(config):
        run = train_agent(made, report)
        if made.agent.name == RULES:
            rules = read_rules(run, known_of(world))
            entrants += [Entrant(name, 0, rule) for name, rule in rules.items()]
        else:
            agent = BundleStreams(_bundle(run.path))
            entrants.append(Entrant(str(made.agent.name), int(made.seed), agent))
    return entrants


def _bundle(folder: Path) -> PrecisionBundle:
    return PrecisionBundle.load(folder / BUNDLE)


def hindsight(
    config: DictConfig,
    world: StagedPrecisionConfig,
    episodes: Episodes,
    report: Report,
    searches: Collection[str] = (HINDSIGHT_WINDOWS, FORESIGHT),
) -> list[Entrant[PrecisionBatchAgent]]:
    """Return the best plan of each episode, and plans window by window, with the future known.

    `FORESIGHT` knows arrivals and conditions, but not which request a plan will answer rightly.

    Args:
        config: With `size.precision.clairvoyant`.
        world: The held-out world.
        episodes: Which streams.
        report: Told about progress.
        searches: Which searches by windows are made.
    """
    settings = config.size.precision.clairvoyant
    known = known_of(world)
    tables = verified_tables(known, world.profile.levels, _MARGINS)
    best = tables.rows[hindsight_best(world, tables.rows, episodes)]
    rng = np.random.default_rng(0)
    others = [with_other_samples(world, rng) for _ in range(int(settings.shuffles))]
    candidates = _spread(world, tables.rows, int(settings.candidates))
    window_s, n = float(settings.window_s), len(episodes.keys)
    workers = os.cpu_count() or 1
    at_once = min(_SEARCHED_AT_ONCE, math.ceil(n / workers))
    work = []
    for k in range(0, n, at_once):
        own = slice(k, k + at_once)
        work.append((best[own], Episodes(episodes.keys[own], episodes.starts[own])))
    entrants: list[Entrant[PrecisionBatchAgent]] = [Entrant(HINDSIGHT_BEST, 0, ConstantRows(best))]
    for name, worlds in ((HINDSIGHT_WINDOWS, [world]), (FORESIGHT, others)):
        if not worlds or name not in searches:
            continue
        search = partial(
            _windows, worlds, candidates, window_s=window_s, passes=int(settings.passes)
        )
        found: list[NDArray[np.float64]] = []
        with worker_pool(min(workers, len(work))) as pool:
            for rows in pool.imap(search, work):
                found.append(rows)
                done = sum(each.shape[1] for each in found)
                report(f"search with the true future, {name}", done, n)
        entrants.append(Entrant(name, 0, WindowRows(np.concatenate(found, axis=1), window_s)))
    return entrants


def _windows(
    worlds: Sequence[StagedPrecisionConfig],
    candidates: NDArray[np.float64],
    work: tuple[NDArray[np.float64], Episodes],
    window_s: float,
    passes: int,
) -> NDArray[np.float64]:
    """Search some episodes, the plan that is best throughout each among the candidates."""
    best, episodes = work
    shared = np.repeat(candidates[None], len(best), axis=0)
    rows = np.concatenate([best[:, None], shared], axis=1)
    return hindsight_windows(worlds, rows, episodes, window_s, passes)


def _spread(
    world: StagedPrecisionConfig, rows: NDArray[np.float64], count: int
) -> NDArray[np.float64]:
    """Return some plans, evenly from the fastest to the slowest first pass at the largest batch."""
    known = known_of(world)
    first = known.assignments(rows[:, : known.tables.n_stages])
    size = np.full(len(rows), float(known.max_batch))
    again = np.where(rows[:, known.tables.n_stages] > 0.0, 1, 0)
    order = np.lexsort((again, known.latency_s(first, size)))
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return rows[order[places]]
