"""The whole flow of staged precision: `make reproduce ARGS="env=staged_precision network=..."`.

calibrate -> make agents -> compare on four streams -> hide signals -> serve for real -> tables and
figures. Every step is a run folder of its own; a second start skips what is finished.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from experiments.calibrate import calibrate_network
from experiments.console import CONSOLE, say, show_table, shown_path
from experiments.errors import REPOSITORY, ConfigError
from experiments.figure_style import save_figure
from experiments.files import write_csv
from experiments.parallel import train_all
from experiments.precision import stream_figures
from experiments.precision.ablation import ablate, ablation_makers
from experiments.precision.calibration import HELD_OUT, PROFILE
from experiments.precision.commands import stream_command
from experiments.precision.compare import ROWS, SHOWN, SUMMARY, TIMELINE, compare_streams, shown
from experiments.precision.declared import refuse_emulated
from experiments.precision.driving import (
    drive_streams,
    predictions,
    real_timeline,
    serving_table,
)
from experiments.precision.lineup import RULES, makers
from experiments.precision.loads import compare_loads, draw_loads, finished_loads, joined
from experiments.precision.reference import (
    LOADS_FIGURE,
    record_bank,
    record_streams,
)
from experiments.precision.roster import TUNED, untuned_plans
from experiments.precision.stream_claims import LOADS, MAIN_STREAM, REAL, SIMULATED
from experiments.precision.summary import STATIC_BEST, headroom_line
from experiments.precision.worlds import build_world
from experiments.record import COMPLETE, RunFolder, results_root, run_path
from experiments.training import Report, train_agent
from experiments.workloads import Part
from simulators.precision.profile import PrecisionProfile

ABLATION, COST = "ablation.csv", "serving.csv"
DRAWN_AGENTS = ("static_best", "confidence_cascade", "slack_cascade", "ppo")
"""Agents of the timeline and of the figure of headroom."""


class Made(NamedTuple):
    """What a reproduction consists of.

    Attributes:
        calibrated: The calibration of the network.
        compared: A comparison for each stream.
        loads: What adapting can win at each load, on the main stream and on all others that
            `headroom` has looked at.
        ablated: The ablation on the main stream.
        driven: Real runs for each stream.
    """

    calibrated: RunFolder
    compared: list[RunFolder]
    loads: list[RunFolder]
    ablated: RunFolder
    driven: list[RunFolder]


def reproduce_streams(config: DictConfig, report: Report) -> None:
    """Run the whole flow of a settled configuration with `env=staged_precision`.

    Args:
        config: With `network`, `bank`, `calibration`, `env`, `workload`, `size`.
        report: Told about progress.

    Raises:
        ConfigError: A wrong setting.
    """
    if STATIC_BEST not in config.drive.agents:  # before hours of work: figures compare with it
        raise ConfigError(
            f"drive.agents is [{', '.join(map(str, config.drive.agents))}]; expected "
            f"{STATIC_BEST} among them, which real streams are compared with"
        )
    refuse_emulated(config.bank.levels or [], "reproduce")
    CONSOLE.print(f"[bold]calibrate[/] {config.network.name} on this machine")
    calibrated = calibrate_network(config, report)
    config = with_profiles(config, calibrated)
    settings = stream_settings(config)
    CONSOLE.print("[bold]train[/] rules and learners on the calibrated profile")
    _make_agents([c for s in settings for c in makers(s)] + ablation_makers(settings[-1]), report)
    CONSOLE.print("[bold]compare[/] on held-out streams")
    compared = [compare_streams(setting, report) for setting in settings]
    looked_at = [run for setting in settings[:-1] if (run := finished_loads(setting)) is not None]
    loads = [*looked_at, compare_loads(settings[-1], report)]
    ablated = ablate(settings[-1], report)
    CONSOLE.print("[bold]drive[/] the real bank")
    driven = [drive_streams(with_drive(setting), report, say) for setting in settings]
    made = Made(calibrated, compared, loads, ablated, driven)
    folder = summary_folder(config)
    _write_tables(made, folder)
    draw(config, made, folder)
    record_bank(config, calibrated)
    record_streams(config, folder)
    _last_words(made, folder)


def with_profiles(config: DictConfig, calibrated: RunFolder) -> DictConfig:
    """Return the configuration that simulates a calibrated network."""
    paths = {"profile": PROFILE, "held_out_profile": HELD_OUT}
    env = {key: _portable(calibrated.path / name) for key, name in paths.items()}
    env["network"] = str(config.network.name)
    return cast("DictConfig", OmegaConf.merge(config, {"env": env}))


def _portable(path: Path) -> str:
    resolved = path.resolve()
    inside = resolved.is_relative_to(REPOSITORY)
    return str(resolved.relative_to(REPOSITORY) if inside else resolved)


def stream_settings(config: DictConfig) -> list[DictConfig]:
    """Return the settings of all streams, the main one last.

    All learners meet the main stream; the others the headline learner alone, with fewer seeds.
    """
    size = config.size.precision
    names = [str(name) for name in size.streams]
    order = sorted(names, key=lambda name: name == MAIN_STREAM)
    fewer = {"learners": [size.learners[0]], "headline_seeds": int(size.seeds)}
    settings = []
    for name in order:
        own = {} if name == order[-1] else {"size": {"precision": fewer}}
        merged = OmegaConf.merge(config, {"env": {"stream": name}}, own)
        settings.append(cast("DictConfig", merged))
    return settings


def with_drive(config: DictConfig) -> DictConfig:
    """Return the configuration whose real runs are those that the size gives streams."""
    drive = config.size.precision.drive
    timing = {key: drive[key] for key in ("seconds", "repetitions")}
    own: dict[str, Any] = {"size": {"drive": timing}, "drive": {"tries": drive.tries}}
    if drive.everybody and config.env.stream == MAIN_STREAM:
        own["drive"]["agents"] = everybody(config)
    return cast("DictConfig", OmegaConf.merge(config, own))


def everybody(config: DictConfig) -> list[str]:
    """Return the names of all baselines and of the learners of a configuration."""
    untuned = untuned_plans(build_world(config, Part.HELD_OUT))
    return [*untuned, *TUNED, *map(str, config.size.precision.learners)]


def _make_agents(configs: list[DictConfig], report: Report) -> None:
    distinct = {run_path(config): config for config in configs}
    missing = [config for path, config in distinct.items() if not (path / COMPLETE).exists()]
    learners = []
    for config in missing:
        if config.agent.name == RULES:  # uses all cores itself, and learners start from it
            train_agent(config, report)
        else:
            learners.append(config)
    if learners:
        train_all(learners, report)


def summary_folder(config: DictConfig) -> Path:
    """Return the folder of joint tables and figures of a network."""
    runs = results_root(config) / "runs" / str(config.size.name)
    return runs / f"summary-{config.network.name}"


def _write_tables(made: Made, folder: Path) -> None:
    rows = pd.concat([pd.read_csv(run.path / ROWS) for run in made.compared], ignore_index=True)
    write_csv(folder / SIMULATED, rows)
    real = pd.concat([pd.read_csv(run.path / ROWS) for run in made.driven], ignore_index=True)
    write_csv(folder / REAL, real)
    cost = [serving_table(run).assign(stream=run.config["env"]["stream"]) for run in made.driven]
    write_csv(folder / COST, pd.concat(cost, ignore_index=True))
    write_csv(folder / LOADS, joined(made.loads))
    write_csv(folder / ABLATION, pd.read_csv(made.ablated.path / SUMMARY))


def draw(config: DictConfig, made: Made, folder: Path) -> None:
    """Draw all figures from the tables."""
    command = stream_command(config)
    simulated, real = pd.read_csv(folder / SIMULATED), pd.read_csv(folder / REAL)
    measured = real[real["source"] == "measured"]
    save_figure(
        stream_figures.gain_by_agent(simulated),
        folder / "streams.png",
        "Requests answered correctly and in time by agent, over the best constant assignment, "
        "simulated with a measured profile, held-out samples and arrivals, 95 % interval over "
        f"episodes. Agents that are far worse stand at the edge. Made by `{command}`.",
    )
    save_figure(
        stream_figures.gain_by_agent(measured),
        folder / "real.png",
        "Requests answered correctly and in time by agent, over the best constant assignment, "
        "measured on the real bank, 95 % interval over repetitions. Agents that are far worse "
        f"stand at the edge. Made by `{command}`.",
    )
    save_figure(
        stream_figures.predicted_streams(real),
        folder / "predicted.png",
        "Predicted against measured figures of real streams, means over repetitions. Made by "
        f"`{command}`.",
    )
    save_figure(
        stream_figures.headroom_by_stream(simulated, [a for a in DRAWN_AGENTS if a != STATIC_BEST]),
        folder / "headroom.png",
        f"What adapting can win, and what agents win of it, simulated. Made by `{command}`.",
    )
    loads_command = stream_command(config, "headroom") if len(made.loads) > 1 else command
    draw_loads(pd.read_csv(folder / LOADS), folder / LOADS_FIGURE, loads_command)
    save_figure(
        stream_figures.ablation(pd.read_csv(folder / ABLATION)),
        folder / "ablation.png",
        f"Cost of hiding a group of signals from the headline agent. Made by `{command}`.",
    )
    levels = PrecisionProfile.load(made.calibrated.path / PROFILE).levels
    settings = with_drive(stream_settings(config)[-1])
    for name, said, steps in (
        ("timeline", "simulated", pd.read_csv(made.compared[-1].path / TIMELINE)),
        ("timeline_real", "on the real bank", real_timeline(settings, made.driven[-1])),
    ):
        drawn = [agent for agent in DRAWN_AGENTS if agent in set(steps["agent"])]
        save_figure(
            stream_figures.stream_timeline(steps, drawn, levels),
            folder / f"{name}.png",
            f"The first held-out episode, {said}: what agents chose. Made by `{command}`.",
        )


def _last_words(made: Made, folder: Path) -> None:
    """Show what came out of every stream, simulated and real."""
    for compared, driven in zip(made.compared, made.driven, strict=True):
        stream = compared.config["env"]["stream"]
        summary = pd.read_csv(compared.path / SUMMARY)
        show_table(f"{stream}: held-out streams, simulated", shown(summary), SHOWN)
        say(headroom_line(pd.read_csv(compared.path / ROWS)))
        table = predictions(pd.read_csv(driven.path / ROWS))
        show_table(f"{stream}: the real bank", table, list(table.columns))
    show_table("signals hidden", pd.read_csv(folder / ABLATION), ["hidden", "change"])
    say(f"tables and figures: {shown_path(folder)}")
