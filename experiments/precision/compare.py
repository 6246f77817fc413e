"""Comparing agents of staged precision on held-out streams."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from agents.precision.api import Episodes, PrecisionBatchAgent, Streams, run_streams
from envs.precision.config import StagedPrecisionConfig
from experiments.files import write_csv
from experiments.precision.lineup import Entrant, hindsight, line_up
from experiments.precision.summary import summarise, with_clairvoyant
from experiments.precision.worlds import build_world, evaluation_episodes
from experiments.record import RunFolder, open_run
from experiments.training import Report, precision_part, silent
from experiments.workloads import Part
from runtime.precision.snapshot import REPORT_INDEX

ROWS, SUMMARY, TIMELINE = "rows.csv", "summary.csv", "timeline.csv.gz"
SHOWN = {
    "agent": "agent",
    "effective": "effective %",
    "vs static": "vs static",
    "vs cascade": "vs cascade",
    "closed": "closed %",
    "missed": "missed %",
    "p99_ms": "p99 ms",
}
"""Columns of `shown` with their headings."""


def compare_streams(config: DictConfig, report: Report = silent) -> RunFolder:
    """Run all agents on the held-out episodes of a settled configuration.

    Returns:
        The run folder, with `rows.csv`, `summary.csv` and `timeline.csv.gz` (of the first episode).
    """
    part = precision_part(config)
    world = build_world(config, Part.HELD_OUT)
    n = int(config.size.precision.evaluation_seeds)
    episodes = evaluation_episodes(config, Part.HELD_OUT, n)
    entrants = line_up(config, world, report)
    own = {"agent": {"name": "all"}, "seed": 0}
    run = open_run(cast("DictConfig", OmegaConf.merge(part, {"agent": None}, own)))
    if run.complete:
        return run
    entrants += hindsight(config, world, episodes, report)
    rows: list[dict[str, Any]] = []
    timelines: list[pd.DataFrame] = []
    for k, entrant in enumerate(entrants):
        report("held-out streams", k, len(entrants))
        streams = run_streams(world, entrant.agent, episodes)
        rows += rows_of(config, world, entrant, streams)
        if entrant.train_seed == 0:
            first = streams.reports[0], streams.plans[0]
            timelines.append(timeline_of(entrant.name, world, *first))
    report("held-out streams", len(entrants), len(entrants))
    table = with_clairvoyant(pd.DataFrame(rows))
    write_csv(run.path / ROWS, table)
    timelines.append(given_of(world, episodes))
    write_csv(run.path / TIMELINE, pd.concat(timelines))
    write_csv(run.path / SUMMARY, summarise(table))
    run.mark_complete()
    return run


def rows_of(
    config: DictConfig,
    world: StagedPrecisionConfig,
    entrant: Entrant[PrecisionBatchAgent],
    streams: Streams,
) -> list[dict[str, Any]]:
    """Return one row per episode of an agent."""
    fixed = fixed_columns(config, world, entrant.name, entrant.train_seed)
    return [
        fixed | {"source": "simulated", "episode": k} | summary._asdict()
        for k, summary in enumerate(streams.summaries)
    ]


def fixed_columns(
    config: DictConfig, world: StagedPrecisionConfig, agent: str, train_seed: int
) -> dict[str, Any]:
    """Return the columns that are the same in all rows of an agent, simulated or real."""
    return {
        "study": str(config.study.name),
        "network": world.profile.network,
        "stream": str(config.env.stream),
        "workload": str(config.workload.name),
        "load": float(config.workload.load),
        "deadline_s": world.serving.deadline_s,
        "part": Part.HELD_OUT.value,
        "agent": agent,
        "train_seed": train_seed,
    }


def timeline_of(
    name: str,
    world: StagedPrecisionConfig,
    reports: NDArray[np.float64],
    plans: NDArray[np.float64],
) -> pd.DataFrame:
    """Return what an agent did in a stream: a row per batch.

    Args:
        name: What the agent is called.
        world: Where it served.
        reports: float64 [batches, len(REPORT_COLUMNS)].
        plans: float64 [batches, 2 * S + 1].

    Returns:
        `agent`, `time_s`, `requests`, `dropped`, `in_time` (correct answers within the deadline),
        `level_<stage>` and `escalate_below`.
    """
    names = {"time_s": "start_s", "requests": "requests", "dropped": "dropped"}
    names["in_time"] = "correct_in_time"
    frame = pd.DataFrame({key: reports[:, REPORT_INDEX[of]] for key, of in names.items()})
    for k, stage in enumerate(world.profile.stages):
        frame[f"level_{stage}"] = plans[:, k].astype(int)
    frame["escalate_below"] = plans[:, len(world.profile.stages)]
    frame.insert(0, "agent", name)
    return frame


def given_of(world: StagedPrecisionConfig, episodes: Episodes) -> pd.DataFrame:
    """Return what the first episode was like: requests per tick and condition, agent "given"."""
    key, start = episodes.keys[:1], episodes.starts[:1]
    arrivals = world.workload.arrivals
    requests = arrivals.counts(key, start, world.n_ticks)[0]
    time_s = arrivals.tick_s * np.arange(world.n_ticks)
    segments = world.workload.conditions.segments(key, world.horizon_s)
    place = np.searchsorted(segments.start_s[0], time_s, side="right") - 1
    condition = np.array(world.profile.conditions)[segments.condition[0][place]]
    return pd.DataFrame(
        {"agent": "given", "time_s": time_s, "requests": requests, "condition": condition}
    )


def shown(summary: pd.DataFrame) -> pd.DataFrame:
    """Return a summary in the units in which it is shown."""
    table = summary.copy()
    table["effective"] = 100.0 * summary["effective_accuracy"]
    table["missed"], table["p99_ms"] = 100.0 * summary["missed_share"], 1e3 * summary["p99_s"]
    for heading, rival in (("vs static", "static_best"), ("vs cascade", "confidence_cascade")):
        table[heading] = 100.0 * summary[f"vs_{rival}"]
    table["closed"] = 100.0 * summary["closed"]
    return table
