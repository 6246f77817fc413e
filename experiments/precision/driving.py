"""Request streams served in real time by the bank of a trained network, prediction beside.

Every agent meets the same held-out streams, in an order that changes from repetition to repetition,
and the simulator predicts each run. Finished runs are kept: after Ctrl-C the same command goes on
with the missing ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from envs.precision.config import StagedPrecisionConfig
from experiments.console import line_per_step, progress_bar, say, show_table, shown_path
from experiments.errors import ConfigError
from experiments.files import file_sha256, write_csv, write_json, write_lines
from experiments.precision.banks import open_bank
from experiments.precision.compare import TIMELINE, fixed_columns, given_of, timeline_of
from experiments.precision.declared import refuse_emulated
from experiments.precision.real_streams import (
    Episode,
    RealBank,
    RealRun,
    episode_requests,
    open_real,
    pace,
    predict,
    serve_for_real,
)
from experiments.precision.roster import StreamDriver, stream_drivers
from experiments.precision.worlds import build_world, evaluation_episodes
from experiments.record import RunFolder, open_run
from experiments.training import Report, precision_part, silent
from experiments.turns import REPORTS, ROWS, Turn, alternated, check_inputs, keep, take_turns
from experiments.workloads import Part
from experiments.worlds import profile_path
from runtime.precision.snapshot import REPORT_COLUMNS
from runtime.precision.streams import Switch
from simulators.precision.metrics import summarise
from simulators.precision.requests import Requests

SWITCHES, SERVING = "switches.jsonl", "serving.json"
SHORTEST_S = 1.0
UNDISTURBED = 0.9
"""Share of its busy time that a server has the processor for on a quiet machine."""
STEADY = 1.25
"""By what factor passes may be slower or faster after a run than before it."""
Said: TypeAlias = Callable[[str], None]
StreamTurn: TypeAlias = Turn[StreamDriver, Episode]


def drive_streams(
    config: DictConfig, report: Report = silent, told: Said = lambda line: None
) -> RunFolder:
    """Serve the held-out streams of a settled configuration for real, and predict every run.

    Args:
        config: With measured profiles in `env`, the network and bank that they are of,
            `size.drive` and `drive`.
        report: Told about progress.
        told: Told in a line what came out of each run.

    Returns:
        The run folder, with `rows.csv` (a measured and a simulated row for every repetition and
        agent) and for each of them a folder with reports, switches and what serving cost.

    Raises:
        ConfigError: A wrong setting; no real run was started.
    """
    _check_settings(config)
    world = build_world(config, Part.HELD_OUT)
    world = replace(world, horizon_s=float(config.size.drive.seconds))
    every = evaluation_episodes(config, Part.HELD_OUT, int(config.size.drive.repetitions))
    episodes = [Episode(key, int(start)) for key, start in zip(*every, strict=True)]
    for episode in episodes:
        episode_requests(world, episode)  # mistakes show before anything is made
    roster = stream_drivers(config, world, report)
    real = open_real(open_bank(config, report), world.profile)
    run = open_run(own_config(config))
    check_inputs(run, _inputs(config) | {driver.name: driver.identity for driver in roster})
    if run.complete:
        return run
    turns = alternated(episodes, roster)
    take = partial(_take_turn, config, world, real, run, told)
    take_turns(run, turns, lambda turn: None, take, report)
    return run


def real_timeline(config: DictConfig, run: RunFolder) -> pd.DataFrame:
    """Return what every agent did in the first repetition of real runs, and what it was like.

    Args:
        config: The configuration of the runs.
        run: Their folder.

    Returns:
        As the timeline of a comparison: see `timeline_of` and `given_of`.
    """
    world = build_world(config, Part.HELD_OUT)
    world = replace(world, horizon_s=float(config.size.drive.seconds))
    episodes = evaluation_episodes(config, Part.HELD_OUT, int(config.size.drive.repetitions))
    found = sorted(run.path.glob(f"repetition=0/*/{TIMELINE}"))
    return pd.concat([*map(pd.read_csv, found), given_of(world, episodes)], ignore_index=True)


def _check_settings(config: DictConfig) -> None:
    refuse_emulated(config.bank.levels or [], "drive")
    if config.env.held_out_profile is None:
        raise ConfigError(
            "env.held_out_profile is null, but real runs send the samples that a measured profile "
            "was made from; run `python -m experiments.calibrate` and give env.profile=<its "
            "profile.npz> env.held_out_profile=<its profile_held_out.npz>"
        )
    if float(config.size.drive.seconds) < SHORTEST_S:
        raise ConfigError(
            f"size.drive.seconds is {config.size.drive.seconds:g}; expected at least "
            f"{SHORTEST_S:g} s"
        )
    if int(config.drive.tries) < 1:
        raise ConfigError(f"drive.tries is {config.drive.tries}; expected at least 1")
    if config.drive.passive:
        raise ConfigError(
            "drive.passive is true, which staged precision does not offer; drive the safe plan "
            "(training_mode) beside the agents instead"
        )


def _inputs(config: DictConfig) -> dict[str, Any]:
    """Return what the runs depend on beside the configuration and the agents."""
    paths = {name: str(config.env[name]) for name in ("profile", "held_out_profile")}
    return {
        name: {"sha256": file_sha256(profile_path(path))}
        for name, path in paths.items()
        if path != "None"
    }


def own_config(config: DictConfig) -> DictConfig:
    """Return the part of a configuration that real runs of streams depend on."""
    part = precision_part(config)
    size = {**part.size, "network": config.size.network, "drive": config.size.drive}
    own = {
        "size": size,
        **{key: config[key] for key in ("network", "bank", "drive")},
        "agent": {"name": "drive"},
        "seed": 0,
    }
    return cast("DictConfig", OmegaConf.merge(part, {"agent": None}, own))


def _take_turn(
    config: DictConfig,
    world: StagedPrecisionConfig,
    real: RealBank,
    run: RunFolder,
    told: Said,
    turn: StreamTurn,
) -> None:
    """Serve and predict one stream, and keep both; nothing is kept of an interrupted run."""
    requests = episode_requests(world, turn.episode)
    ran, paces = _at_a_steady_pace(int(config.drive.tries), world, real, turn.driver, requests)
    energy = world.profile.energy
    measured = summarise(ran.served.reports, requests.arrival_s, energy)
    simulated = predict(world, turn.driver.agent, turn.episode).summaries[0]
    driver = turn.driver
    fixed = fixed_columns(config, world, driver.name, driver.train_seed)
    rows = [
        fixed | {"source": source, "episode": turn.repetition} | summary._asdict()
        for summary, source in ((measured, "measured"), (simulated, "simulated"))
    ]
    timeline = timeline_of(driver.name, world, ran.served.reports, ran.served.plans)
    entry = serving_entry(ran, world) | {"pace": paces}
    keep(turn.folder(run), partial(_write, rows, ran, entry, world.profile.levels, timeline))
    told(
        f"{turn.title}: effective accuracy {100 * measured.effective_accuracy:.2f} %, predicted "
        f"{100 * simulated.effective_accuracy:.2f} %; p99 {1e3 * measured.p99_s:.1f} ms, predicted "
        f"{1e3 * simulated.p99_s:.1f} ms{_disturbance(ran, paces[-1])}"
    )


def _at_a_steady_pace(
    tries: int,
    world: StagedPrecisionConfig,
    real: RealBank,
    driver: StreamDriver,
    requests: Requests,
) -> tuple[RealRun, list[tuple[float, float]]]:
    """Serve requests at the machine's pace, again if it was another one afterwards.

    A load refers to what the machine can do. If passes take 0.8 times as long as profiled, a second
    of the stream lasts 0.8 s. What decides whether a run is repeated is how long passes take before
    and after it, not what the agent reached.

    Returns:
        The last run, and the paces before and after each.
    """
    paces: list[tuple[float, float]] = []
    while True:
        before = pace(real, world)
        ran = serve_for_real(real, world, driver.agent, requests, before)
        paces.append((before, pace(real, world)))
        if len(paces) == tries or is_steady(paces[-1]):
            return ran, paces


def is_steady(paces: tuple[float, float]) -> bool:
    """Return whether the machine was as fast after a run as before it."""
    return 1.0 / STEADY <= paces[1] / paces[0] <= STEADY


def _disturbance(ran: RealRun, paces: tuple[float, float]) -> str:
    """Say so where other programs took the processor, or the machine changed its pace."""
    said = ""
    if ran.processor_share < UNDISTURBED:
        taken = 100.0 * (1.0 - ran.processor_share)
        said += f"; other programs took {taken:.0f} % of its time: run again on a quiet machine"
    if not is_steady(paces):
        before, after = paces
        said += f"; passes took {before:.2f} times as long as profiled before, {after:.2f} after"
    return said


def _write(
    rows: list[dict[str, Any]],
    ran: RealRun,
    entry: dict[str, Any],
    levels: tuple[str, ...],
    timeline: pd.DataFrame,
    folder: Path,
) -> None:
    served = ran.served
    write_csv(folder / TIMELINE, timeline)
    write_csv(folder / ROWS, pd.DataFrame(rows))
    write_csv(folder / REPORTS, pd.DataFrame(served.reports, columns=list(REPORT_COLUMNS)))
    write_lines(folder / SWITCHES, [switch_entry(s, levels) for s in served.switches])
    write_json(folder / SERVING, entry)


def serving_entry(ran: RealRun, world: StagedPrecisionConfig) -> dict[str, Any]:
    """Return what serving cost and what it was like, as plain JSON values."""
    served, levels = ran.served, world.profile.levels
    requests = served.reports[:, REPORT_COLUMNS.index("requests")].sum()
    return {
        "safe_levels": [levels[level] for level in world.safe_plan.levels],
        "levels": list(levels),
        "stages": list(world.profile.stages),
        "conditions": list(world.profile.conditions),
        "deadline_s": world.serving.deadline_s,
        "causes": dict(served.causes),
        "decision_s": _quantiles(served.decision_s),
        "decision_per_request_s": float(served.decision_s.sum() / requests),
        "late_start_s": _quantiles(served.late_start_s),
        "processor_share": ran.processor_share,
        "shadow": {"skipped_batches": ran.skipped, "failed_batches": ran.failed},
    }


def _quantiles(seconds: NDArray[np.float64]) -> dict[str, float]:
    p50, p99 = np.quantile(seconds, (0.5, 0.99))
    return {"p50": float(p50), "p99": float(p99), "worst": float(seconds.max())}


def switch_entry(switch: Switch, levels: tuple[str, ...]) -> dict[str, Any]:
    """Return a switch as plain JSON values, levels by name.

    Its explanation: it is what the agent proposed where there are no causes, else they say why
    something else was done.
    """
    before, after, proposed = (
        None if row is None else [levels[level] for level in row]
        for row in (switch.before, switch.after, switch.proposed)
    )
    return {
        "time_s": switch.time_s,
        "batch": switch.batch,
        "before": before,
        "after": after,
        "proposed": proposed,
        "causes": list(switch.causes),
    }


def serving_table(run: RunFolder) -> pd.DataFrame:
    """Return what serving cost beside the passes, a row per real run.

    Returns:
        `agent`, `repetition`, decision times (median, p99, mean per request), how late batches were
        formed (p99), `processor_share`, batches whose shadow check was skipped, `switches`, how
        long passes took before and after over what was profiled, and how often it was tried.
    """
    rows = []
    for path in sorted(run.path.glob(f"repetition=*/*/{SERVING}")):
        entry = json.loads(path.read_text(encoding="utf-8"))
        row = {"agent": path.parent.name, "repetition": path.parent.parent.name.split("=")[1]}
        row |= {f"decision_{q}_us": 1e6 * entry["decision_s"][q] for q in ("p50", "p99")}
        row["decision_per_request_us"] = 1e6 * entry["decision_per_request_s"]
        row["late_start_p99_us"] = 1e6 * entry["late_start_s"]["p99"]
        row["processor_share"] = entry["processor_share"]
        row["pace_before"], row["pace_after"] = entry["pace"][-1]
        row["tries"] = len(entry["pace"])
        row["skipped_checks"] = entry["shadow"]["skipped_batches"]
        row["switches"] = len((path.parent / SWITCHES).read_text(encoding="utf-8").splitlines())
        rows.append(row)
    return pd.DataFrame(rows)


def predictions(rows: pd.DataFrame) -> pd.DataFrame:
    """Return measured and predicted figures of every agent, means over the repetitions.

    Args:
        rows: The long table.

    Returns:
        A row per agent, highest measured effective accuracy first: effective accuracy and misses
        in per cent, median and p99 latency in ms, each measured and predicted.
    """
    scales = {
        "effective_accuracy": ("effective %", 100.0),
        "missed_share": ("missed %", 100.0),
        "p50_s": ("p50 ms", 1e3),
        "p99_s": ("p99 ms", 1e3),
    }
    means = rows.groupby(["agent", "source"])[list(scales)].mean().unstack("source")
    order = means["effective_accuracy", "measured"].sort_values(ascending=False).index
    table = pd.DataFrame({"agent": order})
    for column, (heading, factor) in scales.items():
        for source, said in (("measured", ""), ("simulated", " predicted")):
            table[heading + said] = factor * means.loc[order, (column, source)].to_numpy()
    return table


def show(run: RunFolder) -> None:
    """Print what came out of the real runs."""
    table = predictions(pd.read_csv(run.path / ROWS))
    show_table("real streams, measured and predicted", table, list(table.columns))
    say(f"rows, reports and switches: {shown_path(run.path)}")


def drive_streams_task(config: DictConfig) -> None:
    """Drive with a progress display, then show what was measured beside what was predicted."""
    with progress_bar() as bar:
        run = drive_streams(config, line_per_step(bar), say)
    show(run)
