"""The whole flow: `make reproduce`; `make reproduce SIZE=paper record=true` writes the claims.

With `ARGS="env=staged_precision network=..."` the flow is that of staged precision, see
`experiments.precision.reproduction`.

measure -> simulate -> train -> compare -> export -> drive -> tables and figures. Every step is a
run folder of its own; a second start skips what is finished.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from experiments import figures
from experiments.cli import CONF, run_main
from experiments.compare import (
    REFERENCE_AGENT,
    ROWS,
    SHOWN,
    SUMMARY,
    TIMELINE,
    compare,
    headroom,
)
from experiments.console import CONSOLE, line_per_step, progress_bar, say, show_table, shown_path
from experiments.domains import Domain, domain_of
from experiments.drive import drive
from experiments.errors import REPOSITORY
from experiments.figure_style import save_figure
from experiments.files import write_csv
from experiments.lineup import line_up
from experiments.measure import PROFILE, measure
from experiments.parallel import train_all
from experiments.precision.reproduction import reproduce_streams
from experiments.record import RunFolder, results_root, run_path
from experiments.reference import record_reference
from experiments.throughput import throughput
from experiments.training import (
    BUNDLE,
    Report,
    seeds_of,
    train_agent,
    with_agent,
    with_load,
)
from experiments.worlds import Part, build_world, settled

MAIN_LOAD = 0.7
FIXED_ARM = "stream_cluster_fixed_interval"
TIMELINE_AGENTS = ("ppo", "static_best", "spark_default")
BISECTED = ("spark_default", "single_best", "static_best", "idle_trigger", "ppo")


def with_profile(config: DictConfig, measured: RunFolder) -> DictConfig:
    """Return the configuration that uses a measured profile."""
    path = (measured.path / PROFILE).resolve()
    inside = path.is_relative_to(REPOSITORY)
    setting = str(path.relative_to(REPOSITORY) if inside else path)
    return cast("DictConfig", OmegaConf.merge(config, {"env": {"profile": setting}}))


def with_fixed_interval(config: DictConfig) -> DictConfig:
    """Return the configuration of the arm that isolates share, policy and parallelism."""
    arm = OmegaConf.load(CONF / "env" / f"{FIXED_ARM}.yaml")
    assert isinstance(arm, DictConfig)
    arm.pop("defaults", None)
    seeds = {"headline_seeds": config.size.seeds}
    return cast("DictConfig", OmegaConf.merge(config, {"env": arm, "size": seeds}))


def verified(config: DictConfig, report: Report) -> list[RunFolder]:
    """Drive fixed plans beside their prediction, where the size asks for it."""
    repetitions = int(config.size.verify_repetitions)
    if repetitions == 0:
        return []
    study = OmegaConf.load(CONF / "study" / "verify.yaml")
    own = {"size": {"drive": {"repetitions": repetitions}}}
    return [drive(cast("DictConfig", OmegaConf.merge(config, study, own)), report)]


def worlds_of(config: DictConfig) -> list[DictConfig]:
    """Return the settings that agents are trained and compared in: loads, then the fixed arm."""
    loads = [with_load(config, float(load)) for load in config.size.loads]
    return [*loads, with_fixed_interval(with_load(config, MAIN_LOAD))]


def make_agents(settings: list[DictConfig], report: Report) -> None:
    """Tune and train everything that the comparisons need."""
    for setting in settings:
        train_agent(with_agent(setting, "constants"), report)
    missing = [
        config
        for setting in settings
        for config in (with_agent(setting, "ppo", seed) for seed in seeds_of(setting))
        if not (run_path(config) / "complete.json").exists()
    ]
    if missing:
        train_all(missing, report)


def bisect(config: DictConfig, report: Report) -> pd.DataFrame:
    """Return the sustainable rates of the main agents."""
    path = _tables(config) / "throughput.csv"
    if not path.exists():
        n = int(config.size.throughput.episodes)
        world = build_world(config, Part.HELD_OUT)
        entrants = [e for e in line_up(config, world, n, report) if e.name in BISECTED]
        write_csv(path, throughput(config, world, entrants, n, report))
    return pd.read_csv(path)


def _tables(config: DictConfig) -> Path:
    """Return the folder of joint tables and figures of a size."""
    return results_root(config) / "runs" / str(config.size.name) / "summary"


def draw(config: DictConfig, compared: list[RunFolder], real: pd.DataFrame) -> None:
    """Draw all figures from the tables."""
    folder = _tables(config)
    rows = pd.concat([pd.read_csv(run.path / ROWS) for run in compared], ignore_index=True)
    free = rows[rows["env"] != FIXED_ARM]
    command = f"make reproduce SIZE={config.size.name}"
    made = f"Made by `{command}`; simulated with a measured profile, held-out arrivals."
    save_figure(
        figures.latency_by_agent(free),
        folder / "latency.png",
        f"Mean latency of a record by agent, over held-out episodes, 95 % interval. {made}",
    )
    save_figure(
        figures.change_by_agent(free),
        folder / "change.png",
        f"Change of the mean latency, paired by episode, 95 % interval. {made}",
    )
    main = next(
        run
        for run in compared
        if run.config["env"]["name"] != FIXED_ARM and run.config["workload"]["load"] == MAIN_LOAD
    )
    steps = pd.read_csv(main.path / TIMELINE)
    chosen = [steps[steps["agent"] == name] for name in TIMELINE_AGENTS]
    save_figure(
        figures.timeline(pd.concat(chosen)),
        folder / "timeline.png",
        f"What agents chose in the first held-out episode, load {MAIN_LOAD}. {made}",
    )
    save_figure(
        figures.predicted_against_measured(real),
        folder / "predicted.png",
        "Predicted against measured latency of real torch execution on the same arrivals. "
        f"Made by `{command}`.",
    )
    save_figure(
        figures.real_runs(real[real["study"] == str(config.study.name)]),
        folder / "real.png",
        f"Measured latency of real torch execution by repetition. Made by `{command}`.",
    )


def last_words(config: DictConfig, compared: list[RunFolder], driven: RunFolder) -> None:
    """Say in five lines what came out and where it is."""
    main = next(r for r in compared if r.config["workload"]["load"] == MAIN_LOAD)
    summary = pd.read_csv(main.path / SUMMARY).set_index("agent")
    room = headroom(pd.read_csv(main.path / ROWS))
    real = pd.read_csv(driven.path / ROWS)
    measured = real[real["source"] == "measured"].groupby("agent")["mean_s"].mean()
    wide = real.pivot_table(index=["agent", "episode"], columns="source", values="mean_s")
    error = 100.0 * (wide["simulated"] / wide["measured"] - 1.0).abs().median()
    ppo, spark = summary.loc["ppo"], summary.loc["spark_default"]
    CONSOLE.rule(f"{config.size.name}: what came out")
    say(
        f"1. simulated, load {MAIN_LOAD}: mean latency ppo {ppo['mean_s']:.2f} s, spark_default "
        f"{spark['mean_s']:.2f} s, static_best {summary.loc['static_best', 'mean_s']:.2f} s, "
        f"clairvoyant {summary.loc[REFERENCE_AGENT, 'mean_s']:.2f} s"
    )
    say(f"2. headroom over the best constant plan without a trigger: {room:.0f} %")
    say(
        f"3. real torch execution: mean latency ppo {measured['ppo']:.2f} s, spark_default "
        f"{measured['spark_default']:.2f} s"
    )
    say(f"4. predicted against measured mean latency: median error {error:.0f} %")
    folder, bundle = (shown_path(path) for path in (_tables(config), _bundle(config)))
    say(f"5. tables and figures: {folder}   bundle: {bundle}")
    if config.size.name != "paper":
        CONSOLE.print("(this size shows the machinery and makes no claim)", style="dim")


def _bundle(config: DictConfig) -> Path:
    return run_path(with_agent(with_load(config, MAIN_LOAD), "ppo")) / BUNDLE


def reproduce(config: DictConfig, report: Report) -> None:
    """Run the whole flow of a settled configuration."""
    CONSOLE.print("[bold]measure[/] real torch jobs on this machine")
    config = with_profile(config, measure(config, report))
    settings = worlds_of(config)
    CONSOLE.print("[bold]train[/] constant plans and PPO in the measured world")
    make_agents(settings, report)
    CONSOLE.print("[bold]compare[/] on held-out arrivals")
    compared = [compare(setting, report) for setting in settings]
    main = with_load(config, MAIN_LOAD)
    bisected = bisect(main, report)
    CONSOLE.print("[bold]drive[/] real torch execution")
    driven = drive(main, report)
    real = [driven, *verified(main, report)]
    table = pd.concat([pd.read_csv(run.path / ROWS) for run in real], ignore_index=True)
    write_csv(_tables(config) / "real.csv", table)
    draw(config, compared, table)
    for run in compared:
        load, env = run.config["workload"]["load"], run.config["env"]["name"]
        summary = pd.read_csv(run.path / SUMMARY)
        show_table(f"{env}, load {load:g}: held-out latency (s)", summary, SHOWN)
    show_table("throughput (simulated)", bisected, ["agent", "train_seed", "load", "rate_per_s"])
    record_reference(config, _tables(config), compared)
    last_words(main, compared, driven)


def task(config: DictConfig) -> None:
    """Reproduce with one progress display throughout."""
    config = settled(config, CONSOLE.print)
    flow = reproduce_streams if domain_of(config) is Domain.PRECISION else reproduce
    with progress_bar() as bar:
        flow(config, line_per_step(bar))


if __name__ == "__main__":
    run_main(task)
