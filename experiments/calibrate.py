"""Choose the level of every stage: `python -m experiments.calibrate network=fashion_cnn`.

Trains the network if need be, prepares all variants, measures them inside the running chain, runs
the training mode, and sets it beside uniform levels, an integer programme and, for small chains,
the best of all assignments. Interrupted, it begins anew; the trained network stays.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf

from experiments.cli import run_main
from experiments.console import line_per_step, progress_bar, say, show_table, shown_path
from experiments.errors import ConfigError
from experiments.figure_style import save_figure
from experiments.files import write_csv, write_json
from experiments.precision.answers import HELD_OUT as MODEL_HELD_OUT
from experiments.precision.answers import MODELLED_SAMPLES, modelled_answers
from experiments.precision.banks import TrainedBank, inputs, open_bank
from experiments.precision.calibration import (
    CHOSEN,
    EVERY,
    FIT,
    FRONT,
    HELD_OUT,
    KERNELS,
    LATENCIES,
    LEVELS,
    MODELLED,
    PROFILE,
    RIVALS,
    TABLE,
    TRIALS,
    Calibrated,
    CalibrationNode,
    calibrate,
    calibration_record,
    level_table,
    search_table,
)
from experiments.precision.declared import names_emulated
from experiments.precision.figures import front
from experiments.precision.latencies import (
    BucketLatencies,
    LatencySettings,
    fit_table,
    latency_table,
    measure_bank,
    rival_table,
    round_s,
)
from experiments.precision.profiling import build_profile, shown
from experiments.precision.reference import record_bank
from experiments.provenance import command_line, machine_summary
from experiments.record import RunFolder, open_run
from experiments.schema import read_node
from experiments.training import Report, silent
from runtime.precision.corruptions import corrupt, corruption_names, input_kind
from runtime.precision.measure import measure_latencies
from simulators.precision.profile_file import FORMAT_VERSION

SEVERITY = 3
"""Severity of the corruptions in the table of levels."""


def calibrate_network(config: DictConfig, report: Report = silent) -> RunFolder:
    """Calibrate the configured network, or return the finished run.

    Returns:
        The run folder, with the tables of levels, trials, assignments and chosen assignments, the
        calibration as JSON and the front as a figure.

    Raises:
        ConfigError: A wrong configuration or data.
        ValueError: A level that cannot run here.
    """
    node = read_node(CalibrationNode, config.calibration, "calibration")
    if node.batch not in list(config.bank.buckets):
        raise ConfigError(
            f"calibration.batch is {node.batch}; expected one of bank.buckets="
            f"{list(config.bank.buckets)}"
        )
    settings = read_node(LatencySettings, config.size.latencies, "size.latencies")
    trained = open_bank(config, report)
    node.names(trained.data.validation.x)  # mistakes show before anything is measured
    run = open_run(_own_config(config))
    if run.complete:
        return run
    x = inputs(trained.data.validation.x)
    measured = measure_bank(trained, x, settings, report)
    main = next(at for at in measured if at.bucket == node.batch)
    calibrated = calibrate(trained, main, node, report)
    table = level_table(trained, measured, _accuracies(trained, node.samples, report))
    rows = _chosen_table(trained, calibrated, measured, settings, report)
    _write(run, trained, calibrated, {LEVELS: table, CHOSEN: rows})
    write_csv(run.path / LATENCIES, latency_table(measured, trained.bank))
    write_csv(run.path / RIVALS, rival_table(measured))
    write_csv(run.path / FIT, fit_table(measured))
    on = "one GPU" if trained.on_gpu else "one thread"
    caption = (
        f"Accuracy on calibration data against predicted latency of {config.network.name} at batch "
        f"{node.batch}, {on}; grey: all assignments that were tried. Made by `{command_line()}`."
    )
    save_figure(front(calibrated.every, rows), run.path / FRONT, caption)
    if node.profiled > 0:
        write_csv(run.path / MODELLED, _modelled(trained, node, report))
        _profile(run, trained, measured, node, report)
    run.mark_complete()
    return run


def _profile(
    run: RunFolder,
    trained: TrainedBank,
    measured: list[BucketLatencies],
    node: CalibrationNode,
    report: Report,
) -> None:
    """Write what simulations of this bank are made with: one profile to train on, one to report."""
    origin = f"measured on {machine_summary()} by `{command_line()}`"
    for name, part in ((PROFILE, trained.data.calibration), (HELD_OUT, trained.data.validation)):
        own = part.first(node.profile_samples(trained))
        profile = build_profile(trained, measured, own, node, origin, report)
        profile.save(run.path / name)


def _modelled(trained: TrainedBank, node: CalibrationNode, report: Report) -> pd.DataFrame:
    """Return how far answers are off that are modelled from single stages, a row a condition."""
    part = trained.data.validation.first(min(node.profiled, MODELLED_SAMPLES))
    rows = []
    for k, condition in enumerate(node.names(part.x)):
        rng, told = np.random.default_rng(0), partial(report, f"modelled answers, {condition}")
        error = modelled_answers(trained, shown(part, condition, k), part.y, rng, told).error
        assert error is not None  # the answers are modelled
        rows.append({"condition": condition, **error._asdict(), "assignments": MODEL_HELD_OUT})
    return pd.DataFrame(rows)


def _own_config(config: DictConfig) -> DictConfig:
    """Return the part of a configuration that a calibration depends on."""
    size = {key: config.size[key] for key in ("name", "network", "latencies")}
    # A finished run whose profiles this code cannot read is another run: it is measured again.
    study = {"name": f"calibration-{config.network.name}", "profile_format": FORMAT_VERSION}
    own = {
        "study": study,
        "size": size,
        "network": config.network,
        "bank": config.bank,
        "calibration": config.calibration,
        "seed": config.seed,
        "data": config.data,
        "results": config.results,
    }
    return cast("DictConfig", OmegaConf.create(own))


def _accuracies(
    trained: TrainedBank, samples: int, report: Report
) -> dict[str, NDArray[np.float64]]:
    """Return held-out accuracy of uniform assignments, clean and under every corruption."""
    part = trained.data.validation.first(samples)
    names = corruption_names(input_kind(part.x))
    result = {}
    for k, name in enumerate(["clean", *names]):
        report("accuracy under corruptions", k, 1 + len(names))
        rng = np.random.default_rng(k)
        x = part.x if name == "clean" else corrupt(part.x, name, SEVERITY, rng)
        result[name if name == "clean" else f"{name}_{SEVERITY}"] = np.array(
            [_accuracy(trained, x, part.y, level) for level in range(len(trained.bank.levels))]
        )
    report("accuracy under corruptions", 1 + len(names), 1 + len(names))
    return result


def _accuracy(
    trained: TrainedBank, x: NDArray[np.float32], y: NDArray[np.int64], level: int
) -> float:
    bank = trained.bank
    assignment = (level,) * len(bank.stages)
    batches = torch.split(inputs(x), bank.buckets[-1])
    answers = torch.cat([trained.run(batch, assignment).argmax(dim=1) for batch in batches])
    return float((answers.numpy() == y).mean())


def _chosen_table(
    trained: TrainedBank,
    calibrated: Calibrated,
    measured: list[BucketLatencies],
    settings: LatencySettings,
    report: Report,
) -> pd.DataFrame:
    """Return who chose what: accuracies, and latencies measured together at every batch size.

    Latencies of assignments with emulated levels are declared.
    """
    bank = trained.bank
    names = [level.name for level in bank.levels]
    every = calibrated.every.set_index("assignment")
    said = {k: "/".join(names[level] for level in a) for k, a in calibrated.chosen.items()}
    table = pd.DataFrame({"chosen_by": list(said), "assignment": list(said.values())})
    for column in ("calibration", "held_out"):
        table[column] = every.loc[table["assignment"], column].to_numpy()
    chosen = list(calibrated.chosen.values())
    pairs = zip(chosen, table["assignment"], strict=True)
    real = list(dict.fromkeys(a for a, words in pairs if not names_emulated(words)))
    for at in measured:
        batch = inputs(trained.data.validation.x[: at.bucket])
        calls = [partial(bank.run, assignment=assignment) for assignment in real]
        rounds = settings.rounds_of(round_s(calls, batch))
        found = measure_latencies(
            calls,
            batch,
            rounds,
            np.random.default_rng(at.bucket),
            lambda done, b=at.bucket, n=rounds: report(f"chosen levels, batch {b}", done, n),
        )
        seconds = dict(zip(chosen, at.fit.predict_s(np.array(chosen)).tolist(), strict=True))
        seconds |= zip(real, found.steady_s.tolist(), strict=True)
        table[f"batch_{at.bucket}_ms"] = [1e3 * seconds[a] for a in chosen]
    return table


def _write(
    run: RunFolder, trained: TrainedBank, calibrated: Calibrated, tables: dict[str, pd.DataFrame]
) -> None:
    bank = trained.bank
    for name, table in tables.items():
        write_csv(run.path / name, table)
    write_csv(run.path / TRIALS, search_table(calibrated))
    write_csv(run.path / EVERY, calibrated.every)
    names = tuple(level.name for level in bank.levels)
    write_json(run.path / TABLE, calibration_record(calibrated, names))
    kernels = {
        f"{bank.stages[stage]}, {level.name}": [
            f"{kernel.primitive} {kernel.implementation} {'/'.join(kernel.types)}"
            for kernel in bank.kernels(stage, k)
        ]
        for stage in range(len(bank.stages))
        for k, level in enumerate(bank.levels)
        if not bank.refusal(stage, k)
    }
    write_json(run.path / KERNELS, kernels)


def task(config: DictConfig) -> None:
    """Calibrate with a progress bar and show what came out."""
    with progress_bar() as bar:
        run = calibrate_network(config, line_per_step(bar))
    levels, chosen = (pd.read_csv(run.path / name) for name in (LEVELS, CHOSEN))
    _show_levels(levels)
    _show_rivals(pd.read_csv(run.path / RIVALS))
    _show_trials(pd.read_csv(run.path / TRIALS))
    _show_chosen(chosen)
    record_bank(config, run)
    say(f"tables and figure: {shown_path(run.path)}")


def _show_levels(table: pd.DataFrame) -> None:
    """Show latency and speed-up per level, then accuracy clean and corrupted."""
    costs, accuracies = {"level": "level"}, {"level": "level"}
    shown = table.copy()
    for column in table.columns:
        if column.startswith("accuracy_"):
            shown[column] = 100.0 * table[column]
            accuracies[column] = column.removeprefix("accuracy_").replace("_", " ")
        elif column.endswith("_ms"):
            costs[column] = column.removesuffix("_ms").replace("batch_", "b") + " ms"
        elif column.endswith("fp32_compiled"):
            costs[column] = "b" + column.split("_")[1] + " x"
    shown["kB"] = table["bytes"] / 1e3
    show_table("levels: latency, speed over compiled fp32, memory", shown, costs | {"kB": "kB"})
    show_table(f"levels: accuracy %, clean and at severity {SEVERITY}", shown, accuracies)


def _show_rivals(table: pd.DataFrame) -> None:
    """Show the whole network by other means: latency at every batch size and accuracy."""
    wide = table.pivot(index="rival", columns="batch", values="ms")
    wide.columns = [f"b{batch} ms" for batch in wide.columns]
    headings = {"rival": "rival"} | {column: column for column in wide.columns}
    wide["held out %"] = 100.0 * table.groupby("rival")["held_out"].mean()
    headings["held out %"] = "held out %"
    show_table("the whole network by other means", wide.reset_index(), headings)


def _show_trials(trials: pd.DataFrame) -> None:
    """Show what the first search tried."""
    first = trials[trials["search"] == trials["search"].iloc[0]].copy()
    first["time ms"] = 1e3 * first["time_s"]
    headings = {"stage": "stage", "level": "level", "outcome": "outcome", "result": "result"}
    show_table(f"training mode: {trials['search'].iloc[0]}", first, headings | {"time ms": "ms"})


def _show_chosen(table: pd.DataFrame) -> None:
    """Show accuracy and latency by who chose, and which levels below."""
    shown = table.copy()
    headings = {"chosen_by": "chosen by"}
    for column, heading in (("calibration", "calib. %"), ("held_out", "held out %")):
        shown[column] = 100.0 * table[column]
        headings[column] = heading
    for column in table.columns:
        if column.endswith("_ms"):
            headings[column] = column.removesuffix("_ms").replace("batch_", "b") + " ms"
    emulated = table["assignment"].map(names_emulated)
    unsaid = emulated & ~table["chosen_by"].str.contains("emulated")
    shown["chosen_by"] = table["chosen_by"].where(~unsaid, table["chosen_by"] + " (emulated)")
    title = "who chose what: accuracy and measured latency"
    show_table(f"{title} (emulated: declared)" if emulated.any() else title, shown, headings)
    for name, assignment in zip(table["chosen_by"], table["assignment"], strict=True):
        say(f"  {name}: {assignment}")


if __name__ == "__main__":
    run_main(task)
