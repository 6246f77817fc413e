"""What groups of signals are worth: the headline agent trained without each of them."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from agents.precision.api import run_streams
from agents.precision.bundle import BundleStreams
from experiments.files import write_csv
from experiments.precision.compare import ROWS, SUMMARY, rows_of
from experiments.precision.learning import with_hidden
from experiments.precision.lineup import Entrant
from experiments.precision.summary import scores_of
from experiments.precision.worlds import build_world, evaluation_episodes
from experiments.record import RunFolder, open_run
from experiments.statistics import Estimate, mean, stratified_bootstrap
from experiments.training import BUNDLE, Report, precision_part, silent, train_agent, with_agent
from experiments.workloads import Part
from runtime.precision.policy import PrecisionBundle

NOTHING = "nothing"
"""What is hidden from the agent that the others are compared with."""


def ablation_makers(config: DictConfig) -> list[DictConfig]:
    """Return the configurations of the runs that make the agents of the ablation.

    The headline learner with all signals, then without each group, with the seeds of the others.
    """
    size = config.size.precision
    headline, seeds = str(size.learners[0]), range(int(size.seeds))
    groups = [[], *([str(group)] for group in size.hidden)]
    return [
        with_agent(with_hidden(config, group), headline, seed) for group in groups for seed in seeds
    ]


def ablate(config: DictConfig, report: Report = silent) -> RunFolder:
    """Compare agents that lack a group of signals on the held-out episodes of a stream.

    Args:
        config: A settled configuration, with `size.precision.hidden`.
        report: Told about progress.

    Returns:
        The run folder, with `rows.csv` and `summary.csv`.
    """
    own = {"study": {"name": f"{config.study.name}-ablation"}, "seed": 0}
    own |= {"agent": {"name": str(config.size.precision.learners[0])}}
    world = build_world(config, Part.HELD_OUT)
    n = int(config.size.precision.evaluation_seeds)
    episodes = evaluation_episodes(config, Part.HELD_OUT, n)
    made = [(each, train_agent(each, report)) for each in ablation_makers(config)]
    part = OmegaConf.merge(precision_part(config), {"agent": None}, own)
    run = open_run(cast("DictConfig", part))
    if run.complete:
        return run
    rows: list[dict[str, Any]] = []
    for k, (each, folder) in enumerate(made):
        report("held-out streams of the ablation", k, len(made))
        agent = BundleStreams(PrecisionBundle.load(folder.path / BUNDLE))
        entrant = Entrant(str(each.agent.name), int(each.seed), agent)
        hidden = "+".join(each.env.hidden) or NOTHING
        streams = run_streams(world, agent, episodes)
        rows += [{"hidden": hidden} | row for row in rows_of(config, world, entrant, streams)]
    report("held-out streams of the ablation", len(made), len(made))
    table = pd.DataFrame(rows)
    write_csv(run.path / ROWS, table)
    write_csv(run.path / SUMMARY, ablation_table(table))
    run.mark_complete()
    return run


def ablation_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row per hidden group: effective accuracy, and what hiding it costs, by episode."""
    scores = {name: own.mean(axis=0) for name, own in _by_hidden(rows).items()}
    table = []
    for name, own in scores.items():
        cost = _difference(own - scores[NOTHING])
        row = {"hidden": name, "effective_accuracy": float(own.mean())}
        table.append(row | {"change": cost.value, "low": cost.low, "high": cost.high})
    return pd.DataFrame(table)


def _by_hidden(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return scores by hidden group, float64 [train seeds, episodes]."""
    return scores_of(rows.drop(columns="agent").rename(columns={"hidden": "agent"}))


def _difference(own: np.ndarray) -> Estimate:
    return stratified_bootstrap([own], mean, np.random.default_rng(0))
