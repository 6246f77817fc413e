"""Drive real execution: `python -m experiments.drive env.profile=... drive.agents=[ppo,fifo]`.

Every agent meets the same held-out arrivals on real worker slots, in an order that changes from
repetition to repetition, and the simulator predicts each run. `drive.agents` takes names (tuned
constant plans, ppo, random) and folders of bundles (with a '/' in the path); `drive.plans` adds
fixed plans; `drive.passive=true` computes decisions without applying them. Finished runs are kept:
after Ctrl-C the same command goes on with the missing ones.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from rich.live import Live

from agents.heuristics.constant import ConstantAgent
from envs.cluster.config import StreamClusterConfig
from experiments.cli import run_main
from experiments.console import CONSOLE, progress_bar, say, show_table
from experiments.drive_view import REFRESH_PER_SECOND, DriveView
from experiments.errors import ConfigError
from experiments.files import file_sha256, write_csv, write_json, write_text
from experiments.measure import real_jobs
from experiments.provenance import machine
from experiments.real_run import (
    PATIENCE_S,
    RealRun,
    Unwatched,
    Watch,
    arriving,
    episode_world,
    predict,
    run_for_real,
)
from experiments.record import RunFolder, open_run
from experiments.roster import Driver, drivers
from experiments.rows import ENERGY_MODEL, summary_row
from experiments.statistics import paired_change
from experiments.training import Report, cluster_part, silent
from experiments.worlds import Part, build_world, evaluation_episodes, profile_path, settled
from runtime.cluster.stream_jobs import StreamJobs
from runtime.controller import Decision
from runtime.snapshot import REPORT_COLUMNS, SIGNAL_INDEX
from simulators.cluster.metrics import is_stable

ROWS, REPORTS, DECISIONS, INPUTS = "rows.csv", "reports.csv.gz", "decisions.jsonl", "inputs.json"
BASELINE = "spark_default"
WARM_UP_S = 2.0
TRUSTED_REPETITIONS = 10
"""With fewer a bootstrap interval is too narrow (see `experiments.statistics`)."""


@dataclass(frozen=True, eq=False)
class Turn:
    """One real run.

    Attributes:
        repetition: Which arrivals, from 0.
        driver: Who decides.
        world: Where exactly these records arrive.
        key: Key of the task times that the simulator draws.
    """

    repetition: int
    driver: Driver
    world: StreamClusterConfig
    key: np.uint64

    def folder(self, run: RunFolder) -> Path:
        """Return where the run is kept."""
        return run.path / f"repetition={self.repetition}" / self.driver.name


def drive(config: DictConfig, report: Report = silent, watch: Watch | None = None) -> RunFolder:
    """Run all agents of a settled configuration for real, and predict every run.

    Args:
        config: With a measured profile in `env.profile`, `size.drive` and `drive`.
        report: Told about progress.
        watch: Sees every run while it goes on.

    Returns:
        The run folder, with `rows.csv` (a measured and a simulated row for every repetition and
        agent) and for each of them a folder with reports and decisions.

    Raises:
        ConfigError: A wrong setting; no real run was started.
    """
    _check_settings(config)
    world = build_world(config, Part.HELD_OUT)
    jobs = real_jobs(world.application)
    repetitions = _repetitions(config, world)
    roster = drivers(config, world, report)
    turns = alternated(repetitions, roster)
    run = open_run(_own_config(config))
    _check_inputs(run, config, roster)
    if run.complete:
        return run
    missing = [turn for turn in turns if not turn.folder(run).exists()]
    if missing:
        report("real runs", len(turns) - len(missing), len(turns))
        _warm_up(jobs, missing[0])
    for k, turn in enumerate(missing, start=1 + len(turns) - len(missing)):
        _take_turn(config, jobs, turn, run, watch or Unwatched())
        report("real runs", k, len(turns))
    tables = [pd.read_csv(turn.folder(run) / ROWS) for turn in turns]
    write_csv(run.path / ROWS, pd.concat(tables, ignore_index=True))
    run.mark_complete()
    return run


def alternated(
    repetitions: Sequence[tuple[StreamClusterConfig, np.uint64]], roster: Sequence[Driver]
) -> list[Turn]:
    """Return all runs in the order in which they take place: A B C, B C A, C A B, ...

    What changes on the machine in the course of time so hits all agents alike.

    Args:
        repetitions: World and key of each repetition.
        roster: Who drives.
    """
    turns = []
    for r, (world, key) in enumerate(repetitions):
        first = r % len(roster)
        for driver in (*roster[first:], *roster[:first]):
            turns.append(Turn(r, driver, world, key))
    return turns


def _check_settings(config: DictConfig) -> None:
    if config.env.profile is None:
        raise ConfigError(
            "env.profile is null, but real runs are compared with what a measured profile "
            "predicts; run `python -m experiments.measure` and give env.profile=<its profile.json>"
        )
    seconds, period_s = float(config.size.drive.seconds), float(config.env.period_s)
    if seconds < 2.0 * period_s:
        raise ConfigError(
            f"size.drive.seconds is {seconds:g}; expected at least two periods of {period_s:g} s"
        )


def _repetitions(
    config: DictConfig, world: StreamClusterConfig
) -> list[tuple[StreamClusterConfig, np.uint64]]:
    """Return world and key of each repetition: the beginning of an evaluation episode."""
    n, seconds = int(config.size.drive.repetitions), float(config.size.drive.seconds)
    episodes = evaluation_episodes(config, Part.HELD_OUT, n)
    n_ticks = round(seconds / world.arrivals.tick_s)
    counts = world.arrivals.counts(episodes.keys, episodes.starts, n_ticks)
    for k in np.nonzero(counts.sum(axis=1) == 0)[0]:
        raise ConfigError(
            f"no record arrives in the {seconds:g} s of repetition {k + 1}; lengthen "
            "size.drive.seconds or raise workload.load"
        )
    worlds = [episode_world(world, row, seconds) for row in counts]
    return list(zip(worlds, episodes.keys, strict=True))


def _own_config(config: DictConfig) -> DictConfig:
    own = {"agent": {"name": "drive"}, "seed": 0}
    return cast("DictConfig", OmegaConf.merge(cluster_part(config), {"agent": None}, own))


def _check_inputs(run: RunFolder, config: DictConfig, roster: list[Driver]) -> None:
    """Refuse to go on with another profile or other agents than the runs before.

    Raises:
        ConfigError: Names what has changed.
    """
    inputs = {"profile": {"sha256": file_sha256(profile_path(str(config.env.profile)))}}
    inputs |= {driver.name: driver.identity for driver in roster}
    path = run.path / INPUTS
    if not path.exists():
        write_json(path, inputs)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in inputs if before.get(name) != inputs[name]]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)} changed since the runs in {run.path} began; move that folder "
            "away to begin anew"
        )


def _warm_up(jobs: StreamJobs, turn: Turn) -> None:
    """Let torch allocate and choose its kernels in a short run that nobody counts."""
    counts = arriving(turn.world)
    ticks = max(round(WARM_UP_S / turn.world.arrivals.tick_s), 1)
    world = episode_world(turn.world, counts[:ticks], WARM_UP_S)
    plan = turn.world.initial_plan
    run_for_real(jobs, world, Driver("warm-up", ConstantAgent("", plan), plan, {}), "", Unwatched())


def _take_turn(
    config: DictConfig, jobs: StreamJobs, turn: Turn, run: RunFolder, watch: Watch
) -> None:
    """Drive and predict one episode, and keep both; nothing is kept of an interrupted run."""
    passive = bool(config.drive.passive)
    title = f"repetition {turn.repetition + 1}, {turn.driver.name}"
    real = run_for_real(jobs, turn.world, turn.driver, title, watch, passive)
    rollout = predict(turn.world, turn.driver, turn.key, passive)
    fixed = {
        "study": str(config.study.name),
        "env": str(config.env.name),
        "workload": str(config.workload.name),
        "load": float(config.workload.load),
        "part": Part.HELD_OUT.value,
        "agent": turn.driver.name,
        "train_seed": 0,
        "episode": turn.repetition,
        "slots": turn.world.slots,
    }
    measured = fixed | {"cores": machine()["cores"], "source": "measured"}
    measured |= _figures(turn.world, real.reports, real.signals, real.unfinished)
    simulated = fixed | {"cores": turn.world.profile.cores, "source": "simulated"}
    unfinished = int(rollout.unfinished[0])
    simulated |= _figures(turn.world, rollout.reports[0], rollout.signals[:, 0], unfinished)
    _keep(turn.folder(run), real, pd.DataFrame([measured, simulated]))
    watch.ended(measured, simulated)


def _figures(
    world: StreamClusterConfig,
    reports: NDArray[np.float64],
    signals: NDArray[np.float64],
    unfinished: int,
) -> dict[str, Any]:
    """Return the figures of one run; see `summary_row`."""
    names = ("time_s", "records_in", "records_out", "records_failed")
    start = np.zeros((1, len(names)))
    seen = np.concatenate([start, signals[:, [SIGNAL_INDEX[name] for name in names]]])
    time_s, arrived, out, failed = seen.T
    row = summary_row(
        reports,
        cap_s=world.reward.latency_cap_s,
        duration_s=world.horizon_s,
        energy=ENERGY_MODEL,
    )
    stable = bool(is_stable(time_s, arrived, out + failed))
    return {"stable": stable, "unfinished": unfinished, **row}


def _keep(folder: Path, real: RealRun, rows: pd.DataFrame) -> None:
    """Write the folder of a run under another name, then rename it: it is there whole or not."""
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    write_csv(temporary / ROWS, rows)
    write_csv(temporary / REPORTS, pd.DataFrame(real.reports, columns=list(REPORT_COLUMNS)))
    lines = [json.dumps(_decision_entry(decision)) for decision in real.decisions]
    write_text(temporary / DECISIONS, "\n".join(lines) + "\n")
    os.replace(temporary, folder)


def _decision_entry(decision: Decision) -> dict[str, Any]:
    proposed = decision.proposed
    return {
        "time_s": decision.time_s,
        "proposed": None if proposed is None else proposed.to_mapping(),
        "applied": decision.applied.to_mapping(),
        "changed": decision.changed,
        "causes": list(decision.causes),
        "decision_s": decision.decision_s,
    }


def beside(rows: pd.DataFrame) -> pd.DataFrame:
    """Return measured and predicted latencies of every agent, means over the repetitions.

    Args:
        rows: The long table.

    Returns:
        Three rows per agent, lowest measured mean first: agent, latency (mean, p50 or p95),
        measured (s), predicted (s), and the error of the prediction (%).
    """
    figures = ["mean_s", "p50_s", "p95_s"]
    means = rows.groupby(["agent", "source"])[figures].mean().unstack("source")
    result = []
    for name, row in means.sort_values(("mean_s", "measured")).iterrows():
        for figure in figures:
            measured, predicted = row[figure, "measured"], row[figure, "simulated"]
            seconds = {"measured s": measured, "predicted s": predicted}
            error = {"error %": 100.0 * (predicted / measured - 1.0)}
            result.append({"agent": name, "latency": figure[:-2], **seconds, **error})
    return pd.DataFrame(result)


def changes(rows: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """Return how the measured mean latency of the agents differs from a baseline's, paired.

    Args:
        rows: The long table; the baseline is one of its agents.
        baseline: Name of an agent.

    Returns:
        A row per other agent: agent, change (%), and the ends of its 95 % bootstrap interval over
        repetitions (NaN with a single repetition).
    """
    measured = rows[rows["source"] == "measured"]
    scores = measured.pivot_table(index="episode", columns="agent", values="mean_s")
    rng = np.random.default_rng(0)
    result = []
    for name in scores.columns.drop(baseline):
        change = paired_change([scores[baseline]], [scores[name]], rng)
        ends = {"change %": change.value, "low %": change.low, "high %": change.high}
        result.append({"agent": name, **ends})
    return pd.DataFrame(result, columns=["agent", "change %", "low %", "high %"])


def show(run: RunFolder) -> None:
    """Print what came out of the real runs."""
    rows = pd.read_csv(run.path / ROWS)
    table = beside(rows)
    n = rows["episode"].nunique()
    title = f"latency of real runs ({n} repetition{'s' if n > 1 else ''})"
    show_table(title, table, list(table.columns))
    if BASELINE in set(rows["agent"]) and rows["agent"].nunique() > 1:
        change = changes(rows)
        show_table(f"measured mean latency against {BASELINE}", change, list(change.columns))
        if n < TRUSTED_REPETITIONS:
            say(f"{n} repetitions: too few to trust an interval; raise size.drive.repetitions")
    left = rows.loc[(rows["source"] == "measured") & (rows["unfinished"] > 0), "agent"]
    if len(left):
        names = ", ".join(dict.fromkeys(left))
        say(f"records that had not left {PATIENCE_S:g} s after the end are in no latency: {names}")
    say(f"rows, reports and decisions: {run.path}")


def task(config: DictConfig) -> None:
    """Drive with a live view, then compare measured and predicted."""
    config = settled(config, say)
    bar = progress_bar()
    view = DriveView(bar)
    with Live(view, console=CONSOLE, refresh_per_second=REFRESH_PER_SECOND, transient=True):
        line = bar.add_task("starting", total=None)
        run = drive(
            config,
            lambda what, done, total: bar.update(
                line, description=what, completed=done, total=total
            ),
            view,
        )
    show(run)


if __name__ == "__main__":
    run_main(task)
