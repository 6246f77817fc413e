"""Compare agents on held-out arrivals: `python -m experiments.compare workload.load=0.7`.

With `env=staged_precision` the agents are those of precision servers, on held-out samples too.

Agents that do not exist yet are made first. Every agent meets the same episodes; the rows, one per
agent, training seed and episode, are kept as they are.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from agents.api import BatchAgent, Rollout, run_episodes
from agents.clairvoyant import ScheduleRows
from envs.cluster.config import StreamClusterConfig
from experiments.cli import run_main
from experiments.console import CONSOLE, one_line, progress_bar, say, show_table, shown_path
from experiments.domains import Domain, domain_of
from experiments.files import write_csv
from experiments.lineup import Entrant, hindsight_rows, line_up
from experiments.precision.compare import SHOWN as STREAMS_SHOWN
from experiments.precision.compare import compare_streams, shown
from experiments.precision.summary import headroom_line
from experiments.record import RunFolder, open_run
from experiments.rows import ENERGY_MODEL, summary_row
from experiments.statistics import interquartile_mean, paired_change
from experiments.training import Report, cluster_part, episode_count, silent
from experiments.worlds import Part, build_world, evaluation_episodes, settled
from runtime.snapshot import SIGNAL_INDEX
from simulators.cluster.metrics import is_stable

ROWS, SUMMARY, TIMELINE = "rows.csv", "summary.csv", "timeline.csv.gz"
REFERENCE_AGENT = "clairvoyant"
SHOWN = {
    "agent": "agent",
    "seeds": "seeds",
    "mean_s": "mean",
    "iqm_s": "iqm",
    "p95_s": "p95",
    "stable": "stable",
    "vs_spark_default_%": "vs spark %",
    "vs_static_best_%": "vs static %",
}
"""Columns of a summary that are shown on the screen, with their headings."""
_PLAN_FIELDS = ("pools", "share", "parallelism", "batch_interval_s", "idle_batches")


def compare(config: DictConfig, report: Report = silent) -> RunFolder:
    """Run all agents on the held-out episodes of a settled configuration.

    Returns:
        The run folder, with `rows.csv`, `summary.csv` and `timeline.csv.gz`.
    """
    own = {"agent": {"name": "all"}, "seed": 0}
    everyone = OmegaConf.merge(cluster_part(config), {"agent": None}, own)
    world = build_world(config, Part.HELD_OUT)
    n = episode_count(config)
    episodes = evaluation_episodes(config, Part.HELD_OUT, n)
    entrants = line_up(config, world, n, report)
    run = open_run(cast("DictConfig", everyone))
    if run.complete:
        return run
    rows: list[dict[str, object]] = []
    timelines: list[pd.DataFrame] = []
    for k, entrant in enumerate(entrants):
        report("held-out episodes", k, len(entrants))
        rollout = run_episodes(world, entrant.agent, episodes)
        rows += _rows(config, world, entrant, rollout)
        if entrant.train_seed == 0:
            timelines.append(_timeline(entrant.name, rollout))
    report("held-out episodes", len(entrants), len(entrants))
    schedule = ScheduleRows(hindsight_rows(config, world, episodes, report))
    searched = Entrant("hindsight_search", 0, schedule)
    rows += _rows(config, world, searched, run_episodes(world, schedule, episodes))
    table = _with_clairvoyant(pd.DataFrame(rows))
    write_csv(run.path / ROWS, table)
    write_csv(run.path / TIMELINE, pd.concat(timelines))
    write_csv(run.path / SUMMARY, summarise(table))
    run.mark_complete()
    return run


def _rows(
    config: DictConfig, world: StreamClusterConfig, entrant: Entrant[BatchAgent], rollout: Rollout
) -> list[dict[str, object]]:
    """Return one row per episode."""
    fixed = {
        "study": str(config.study.name),
        "env": str(config.env.name),
        "workload": str(config.workload.name),
        "load": float(config.workload.load),
        "part": Part.HELD_OUT.value,
        "agent": entrant.name,
        "train_seed": entrant.train_seed,
        "slots": world.slots,
        "cores": world.profile.cores,
        "source": "simulated",
    }
    times = rollout.signals[:, 0, SIGNAL_INDEX["time_s"]]
    rows = []
    for k, reports in enumerate(rollout.reports):
        signals = rollout.signals[:, k]
        records_in = signals[:, SIGNAL_INDEX["records_in"]]
        left = signals[:, SIGNAL_INDEX["records_out"]] + signals[:, SIGNAL_INDEX["records_failed"]]
        row = summary_row(
            reports,
            cap_s=world.reward.latency_cap_s,
            duration_s=world.horizon_s,
            energy=ENERGY_MODEL,
        )
        area = signals[:, SIGNAL_INDEX["system_record_s"]].sum()
        extra = {
            "episode": k,
            "little_mean_s": float(area / max(records_in[-1], 1.0)),
            "stable": bool(is_stable(times, records_in, left)),
            "unfinished": int(rollout.unfinished[k]),
        }
        rows.append(fixed | extra | row)
    return rows


def _with_clairvoyant(table: pd.DataFrame) -> pd.DataFrame:
    """Add the clairvoyant reference: in every episode the best that anybody reached."""
    best = table.loc[table.groupby("episode")["mean_s"].idxmin()].copy()
    best["reached_by"] = best["agent"]
    best["agent"] = REFERENCE_AGENT
    best["train_seed"] = 0
    return pd.concat([table, best], ignore_index=True)


def _timeline(name: str, rollout: Rollout) -> pd.DataFrame:
    """Return what one agent did and saw in the first episode."""
    signals = rollout.signals[:, 0]
    columns = ("time_s", "records_in", "records_uncut", "records_pending", *_PLAN_FIELDS)
    frame = pd.DataFrame({c: signals[:, SIGNAL_INDEX[c]] for c in columns})
    parts = ("accumulation_record_s", "queueing_record_s", "processing_record_s")
    latency = sum(signals[:, SIGNAL_INDEX[part]] for part in parts)
    records = signals[:, SIGNAL_INDEX["report_records"]]
    frame["latency_s"] = np.where(records > 0.0, latency / np.maximum(records, 1.0), np.nan)
    frame.insert(0, "agent", name)
    return frame


def by_agent(table: pd.DataFrame, column: str = "mean_s") -> dict[str, np.ndarray]:
    """Return scores by agent, float64 [train seeds, episodes]."""
    return {
        str(name): rows.pivot(index="train_seed", columns="episode", values=column).to_numpy()
        for name, rows in table.groupby("agent")
    }


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per agent: latency over episodes, and change against the main rivals."""
    scores = by_agent(table)
    rng = np.random.default_rng(0)
    rivals = [r for r in ("spark_default", "single_best", "static_best") if r in scores]
    rows = []
    for name, own in scores.items():
        mine = own.mean(axis=0)
        row: dict[str, object] = {
            "agent": name,
            "seeds": own.shape[0],
            "episodes": own.shape[1],
            "mean_s": float(own.mean()),
            "iqm_s": float(interquartile_mean(own.reshape(-1))),
            "stable": float(table.loc[table["agent"] == name, "stable"].mean()),
        }
        for column in ("p50_s", "p95_s", "p99_s"):
            row[column] = float(table.loc[table["agent"] == name, column].mean())
        for rival in rivals:
            change = paired_change([scores[rival].mean(axis=0)], [mine], rng)
            row[f"vs_{rival}_%"] = change.value
            row[f"vs_{rival}_low_%"], row[f"vs_{rival}_high_%"] = change.low, change.high
        rows.append(row)
    return pd.DataFrame(rows).sort_values("mean_s", ignore_index=True)


def headroom(table: pd.DataFrame) -> float:
    """Return what adapting can win: static best minus clairvoyant reference, per cent."""
    scores = by_agent(table)
    static, reference = scores["static_best"].mean(), scores[REFERENCE_AGENT].mean()
    return float(100.0 * (1.0 - reference / static))


def task(config: DictConfig) -> None:
    """Compare with a progress bar and print the summary."""
    config = settled(config, CONSOLE.print)
    precision = domain_of(config) is Domain.PRECISION
    with progress_bar() as bar:
        run = (compare_streams if precision else compare)(config, one_line(bar))
    summary, rows = pd.read_csv(run.path / SUMMARY), pd.read_csv(run.path / ROWS)
    if precision:
        title = f"held-out streams, {config.env.stream}, load {config.workload.load:g}: simulated"
        show_table(title, shown(summary), STREAMS_SHOWN)
        say(headroom_line(rows))
    else:
        show_table(f"held-out latency (s), load {config.workload.load:g}", summary, SHOWN)
        CONSOLE.print(f"headroom over static best: {headroom(rows):.1f} %")
    say(f"rows, summary and timeline: {shown_path(run.path)}")


if __name__ == "__main__":
    run_main(task)
