"""What adapting can win at each load: where a server is never busy, or always, there is nothing.

On training streams, so that a load can be chosen by it without a look at what is reported on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from agents.precision.api import effective_accuracies
from agents.precision.candidates import candidate_rows
from agents.precision.heuristics.load import SlackFit, slack_fit_grid
from agents.precision.known import known_of
from agents.precision.scores import row_accuracies
from experiments.figure_style import save_figure
from experiments.files import write_csv
from experiments.precision.compare import ROWS
from experiments.precision.lineup import hindsight
from experiments.precision.stream_figures import headroom_by_load
from experiments.precision.summary import FORESIGHT, HINDSIGHT_WINDOWS, STATIC_BEST
from experiments.precision.tuning import evaluate_rules
from experiments.precision.worlds import build_world, evaluation_episodes
from experiments.record import COMPLETE, RunFolder, load_run, open_run, run_path
from experiments.training import Report, precision_part, silent, with_load
from experiments.workloads import Part


def compare_loads(config: DictConfig, report: Report = silent) -> RunFolder:
    """Tune the best constant plan and a rule at each load, and search plans with the true future.

    Args:
        config: A settled configuration; `size.precision.loads` are the loads, its `tuning_episodes`
            the training streams of each.
        report: Told about progress.

    Returns:
        The run folder, with `rows.csv`: a row per load, agent and episode.
    """
    run = open_run(_own_config(config))
    if run.complete:
        return run
    rows: list[dict[str, Any]] = []
    for load in run.config["study"]["loads"]:
        for agent, scores in _at(with_load(config, load), report).items():
            fixed = {"load": load, "agent": agent, "train_seed": 0}
            rows += [
                fixed | {"episode": k, "effective_accuracy": score}
                for k, score in enumerate(scores.tolist())
            ]
    write_csv(run.path / ROWS, pd.DataFrame(rows))
    run.mark_complete()
    return run


def finished_loads(config: DictConfig) -> RunFolder | None:
    """Return what `compare_loads` gives if it was finished before, None otherwise."""
    path = run_path(_own_config(config))
    return load_run(path) if (path / COMPLETE).exists() else None


def _own_config(config: DictConfig) -> DictConfig:
    """Return the part of a configuration that its loads depend on."""
    loads = [float(load) for load in config.size.precision.loads]
    study = {"name": f"{config.study.name}-loads", "loads": loads}
    own = {"study": study, "agent": {"name": "headroom"}, "seed": 0}
    return cast("DictConfig", OmegaConf.merge(precision_part(config), {"agent": None}, own))


def joined(runs: Sequence[RunFolder]) -> pd.DataFrame:
    """Return the rows of some streams' runs, with the column stream."""
    parts = [
        pd.read_csv(run.path / ROWS).assign(stream=run.config["env"]["stream"]) for run in runs
    ]
    return pd.concat(parts, ignore_index=True)


def draw_loads(table: pd.DataFrame, path: Path, command: str) -> None:
    """Draw what adapting can win, stream by stream, and say how it came about."""
    caption = (
        "What adapting can win at each load, simulated on training streams, 95 % interval over "
        "episodes; constants and rules are tuned at each load, on the same episodes. Made by "
        f"`{command}`."
    )
    save_figure(headroom_by_load(table), path, caption)


def _at(config: DictConfig, report: Report) -> dict[str, NDArray[np.float64]]:
    """Return the effective accuracy of each agent at a load, float64 [episodes], by name."""
    size = config.size.precision
    world = replace(build_world(config, Part.TRAIN), load_factors=(1.0,))
    known = known_of(world)
    episodes = evaluation_episodes(config, Part.TRAIN, int(size.tuning_episodes))
    constants = candidate_rows(world, known, int(size.assignments))
    constant = row_accuracies(world, constants, episodes)
    grid = slack_fit_grid(known)
    rule = evaluate_rules(world, grid, episodes, report)
    searched = FORESIGHT if int(size.clairvoyant.shuffles) else HINDSIGHT_WINDOWS
    *_, search = hindsight(config, world, episodes, report, (searched,))
    return {
        STATIC_BEST: _best(constant),
        SlackFit.name: _best(rule),
        searched: effective_accuracies(world, search.agent, episodes),
    }


def _best(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the row that is best in the mean, float64 [episodes], of float64 [M, episodes]."""
    best: NDArray[np.float64] = scores[int(np.nanmean(scores, axis=1).argmax())]
    return best
