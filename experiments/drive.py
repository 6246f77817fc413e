"""Drive real execution: `python -m experiments.drive env.profile=... drive.agents=[ppo,fifo]`.

Every agent meets the same held-out arrivals on real worker slots, in an order that changes from
repetition to repetition, and the simulator predicts each run. `drive.agents` takes names (tuned
constant plans, ppo, random) and folders of bundles (with a '/' in the path); `drive.plans` adds
fixed plans; `drive.passive=true` computes decisions without applying them. Finished runs are kept:
after Ctrl-C the same command goes on with the missing ones.

With `env=staged_precision` request streams are served by the bank of a trained network instead, see
`experiments.precision.driving`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from rich.live import Live

from agents.heuristics.constant import ConstantAgent
from envs.cluster.config import StreamClusterConfig
from experiments.cli import run_main
from experiments.console import CONSOLE, one_line, progress_bar, say, show_table
from experiments.domains import Domain, domain_of
from experiments.drive_view import REFRESH_PER_SECOND, DriveView
from experiments.errors import ConfigError
from experiments.files import file_sha256, write_csv, write_lines
from experiments.measure import real_jobs
from experiments.precision.driving import drive_streams_task
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
from experiments.turns import REPORTS, ROWS, Turn, alternated, check_inputs, keep, take_turns
from experiments.worlds import Part, build_world, evaluation_episodes, profile_path, settled
from runtime.cluster.stream_jobs import StreamJobs
from runtime.controller import Decision
from runtime.snapshot import REPORT_COLUMNS, SIGNAL_INDEX
from simulators.cluster.metrics import is_stable

DECISIONS = "decisions.jsonl"
BASELINE = "spark_default"
WARM_UP_S = 2.0
TRUSTED_REPETITIONS = 10
"""With fewer a bootstrap interval is too narrow (see `experiments.statistics`)."""


class Episode(NamedTuple):
    """What happens in a repetition.

    Attributes:
        world: Where exactly these records arrive.
        key: Key of the task times that the simulator draws.
    """

    world: StreamClusterConfig
    key: np.uint64


ClusterTurn: TypeAlias = Turn[Driver, Episode]


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
    run = open_run(_own_config(config))
    inputs = {"profile": {"sha256": file_sha256(profile_path(str(config.env.profile)))}}
    check_inputs(run, inputs | {driver.name: driver.identity for driver in roster})
    if run.complete:
        return run
    take_turns(
        run,
        alternated(repetitions, roster),
        partial(_warm_up, jobs),
        lambda turn: _take_turn(config, jobs, turn, run, watch or Unwatched()),
        report,
    )
    return run


def _check_settings(config: DictConfig) -> None:
    if config.env.profile is None:
        raise ConfigError(
            "env.profile is null, but real runs are compared with what a measured profile "
            "predicts; run `python -m experiments.measure` and give env.profile=<its profile.json>"
        )
    if config.drive.tries != 1:
        raise ConfigError(
            f"drive.tries is {config.drive.tries}, but only runs with env=staged_precision are "
            "repeated; leave it at 1"
        )
    seconds, period_s = float(config.size.drive.seconds), float(config.env.period_s)
    if seconds < 2.0 * period_s:
        raise ConfigError(
            f"size.drive.seconds is {seconds:g}; expected at least two periods of {period_s:g} s"
        )


def _repetitions(config: DictConfig, world: StreamClusterConfig) -> list[Episode]:
    """Return each repetition: the beginning of an evaluation episode."""
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
    return [Episode(*pair) for pair in zip(worlds, episodes.keys, strict=True)]


def _own_config(config: DictConfig) -> DictConfig:
    own = {"agent": {"name": "drive"}, "seed": 0}
    return cast("DictConfig", OmegaConf.merge(cluster_part(config), {"agent": None}, own))


def _warm_up(jobs: StreamJobs, turn: ClusterTurn) -> None:
    """Let torch allocate and choose its kernels in a short run that nobody counts."""
    own = turn.episode.world
    ticks = max(round(WARM_UP_S / own.arrivals.tick_s), 1)
    world = episode_world(own, arriving(own)[:ticks], WARM_UP_S)
    plan = own.initial_plan
    run_for_real(jobs, world, Driver("warm-up", ConstantAgent("", plan), plan, {}), "", Unwatched())


def _take_turn(
    config: DictConfig, jobs: StreamJobs, turn: ClusterTurn, run: RunFolder, watch: Watch
) -> None:
    """Drive and predict one episode, and keep both; nothing is kept of an interrupted run."""
    passive, world = bool(config.drive.passive), turn.episode.world
    real = run_for_real(jobs, world, turn.driver, turn.title, watch, passive)
    rollout = predict(world, turn.driver, turn.episode.key, passive)
    fixed = {
        "study": str(config.study.name),
        "env": str(config.env.name),
        "workload": str(config.workload.name),
        "load": float(config.workload.load),
        "part": Part.HELD_OUT.value,
        "agent": turn.driver.name,
        "train_seed": 0,
        "episode": turn.repetition,
        "slots": world.slots,
    }
    measured = fixed | {"cores": machine()["cores"], "source": "measured"}
    measured |= _figures(world, real.reports, real.signals, real.unfinished)
    simulated = fixed | {"cores": world.profile.cores, "source": "simulated"}
    unfinished = int(rollout.unfinished[0])
    simulated |= _figures(world, rollout.reports[0], rollout.signals[:, 0], unfinished)
    keep(turn.folder(run), partial(_write, real, pd.DataFrame([measured, simulated])))
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


def _write(real: RealRun, rows: pd.DataFrame, folder: Path) -> None:
    write_csv(folder / ROWS, rows)
    write_csv(folder / REPORTS, pd.DataFrame(real.reports, columns=list(REPORT_COLUMNS)))
    write_lines(folder / DECISIONS, [_decision_entry(decision) for decision in real.decisions])


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
    if domain_of(config) is Domain.PRECISION:
        drive_streams_task(config)
        return
    bar = progress_bar()
    view = DriveView(bar)
    with Live(view, console=CONSOLE, refresh_per_second=REFRESH_PER_SECOND, transient=True):
        run = drive(config, one_line(bar), view)
    show(run)


if __name__ == "__main__":
    run_main(task)
