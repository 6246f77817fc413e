"""Making trained networks, each in its run folder."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from omegaconf import DictConfig, OmegaConf

from experiments.cli import data_root
from experiments.errors import ConfigError, unknown_name
from experiments.files import write_csv
from experiments.precision.data import DataSet, load_data
from experiments.precision.recipes import (
    Recipe,
    Trainer,
    accuracy,
    multiplications,
    random_widths,
    recalibrate,
)
from experiments.provenance import provenance
from experiments.record import COMPLETE, RunFolder, open_run, run_path
from experiments.schema import check_keys, plain_node, read_node
from experiments.training import Report, silent
from runtime.precision.checkpoint import read_tensors, save_network, write_tensors
from runtime.precision.networks import NETWORKS
from runtime.precision.slimmable import SlimmableNetwork

NETWORK, STATE, PROGRESS, ACCURACY = (
    *("network.safetensors", "state.safetensors"),
    *("progress.csv", "accuracy.csv"),
)
MIXES = 16
"""Random mixes of widths whose mean accuracy is reported."""


def train_network(config: DictConfig, report: Report = silent) -> RunFolder:
    """Train the configured network, go on with it, or return the finished run.

    Args:
        config: With `network`, `size.network`, `seed`, `data`.
        report: Told about progress.

    Returns:
        The run folder, with `network.safetensors`, `progress.csv` (a row an epoch) and
        `accuracy.csv` (a row a width, on held-out samples).

    Raises:
        ConfigError: A wrong configuration, or data that is not there or damaged.
    """
    own = own_config(config)
    if (run_path(own) / COMPLETE).exists():
        return open_run(own)
    recipe = read_recipe(own)
    report(f"reading {own.network.data}", 0, 1)
    data = load_data(str(own.network.data), data_root(config)).first(own.size.network.samples)
    torch.set_num_threads(recipe.threads)
    name = str(own.network.name)
    if name not in NETWORKS:
        raise unknown_name("network", name, NETWORKS)
    trainer = Trainer(name, recipe, data.train, int(own.seed))
    run = open_run(own)  # last, so that mistakes leave nothing behind
    rows = _resume(run, trainer)
    _learn(run, trainer, data, rows, report)
    _finish(run, trainer, data)
    run.mark_complete()
    (run.path / STATE).unlink(missing_ok=True)
    return run


def own_config(config: DictConfig) -> DictConfig:
    """Return the part of a configuration that a network depends on."""
    own = {
        "study": {"name": f"network-{config.network.name}"},
        "size": {"name": config.size.name, "network": config.size.network},
        "network": config.network,
        "seed": config.seed,
        "data": config.data,
        "results": config.results,
    }
    return cast("DictConfig", OmegaConf.create(own))


def read_recipe(config: DictConfig) -> Recipe:
    """Return the recipe of a network at a size.

    Raises:
        ConfigError: A key is unknown, missing or out of range.
    """
    size = plain_node(config.size.network, "size.network")
    check_keys(size, "size.network", ["epochs", "samples"], ["epochs"])
    node = plain_node(config.network, "network")
    fields: dict[str, Any] = {k: v for k, v in node.items() if k not in ("name", "data")}
    share = float(size["epochs"])
    if not 0.0 < share <= 1.0:
        raise ConfigError(f"size.network.epochs is {share}; expected a share in (0, 1]")
    if isinstance(fields.get("epochs"), int):
        fields["epochs"] = max(1, round(fields["epochs"] * share))
    return read_node(Recipe, fields, "network")


def _resume(run: RunFolder, trainer: Trainer) -> list[dict[str, float]]:
    """Go back to the last checkpoint, if there is one; return the rows of its epochs."""
    if not (run.path / STATE).exists():
        return []
    tensors, header = read_tensors(run.path / STATE)
    trainer.restore(tensors, int(header["epoch"]))
    return list(header["rows"])


def _learn(
    run: RunFolder, trainer: Trainer, data: DataSet, rows: list[dict[str, float]], report: Report
) -> None:
    network, epochs = trainer.network, trainer.recipe.epochs
    total = epochs * trainer.steps
    narrowest = network.uniform(min(network.widths))
    while trainer.epoch < epochs:
        what = f"{network.name}, epoch {trainer.epoch + 1} of {epochs}"
        done = trainer.epoch * trainer.steps
        loss = trainer.run_epoch(lambda step, _, w=what, d=done: report(w, d + step, total))
        row = {
            "epoch": trainer.epoch,
            "loss": loss,
            "calibration_full": accuracy(network, data.calibration, network.uniform(1.0)),
            "calibration_narrowest": accuracy(network, data.calibration, narrowest),
        }
        rows.append(row)
        header = {"epoch": trainer.epoch, "rows": rows}
        write_tensors(run.path / STATE, trainer.state(), header)
        write_csv(run.path / PROGRESS, pd.DataFrame(rows))


def _finish(run: RunFolder, trainer: Trainer, data: DataSet) -> None:
    network = trainer.network
    recalibrate(network, data.train, trainer.seed)
    table = accuracy_table(network, data, trainer.seed)
    write_csv(run.path / ACCURACY, table)
    header = {
        "data": {"name": data.name, "sha256": data.sha256(), "classes": data.classes},
        "seed": trainer.seed,
        "epochs": trainer.epoch,
        "accuracy": dict(zip(table["width"], table["accuracy"], strict=True)),
        "config": run.config,
        "provenance": provenance(),
    }
    save_network(run.path / NETWORK, network, header)


def accuracy_table(network: SlimmableNetwork, data: DataSet, seed: int) -> pd.DataFrame:
    """Return accuracy on held-out samples and cost: a row a width, and one of random mixes."""
    rows, one = [], network.example(1)
    for width in network.widths:
        widths = network.uniform(width)
        share = accuracy(network, data.validation, widths)
        rows.append((f"{width:g}", share, multiplications(network, one, widths) / 1e6))
    rng = np.random.default_rng(seed)
    mixes = [random_widths(network, rng) for _ in range(MIXES)]
    shares = [accuracy(network, data.validation, mix) for mix in mixes]
    costs = [multiplications(network, one, mix) / 1e6 for mix in mixes]
    rows.append(("random", float(np.mean(shares)), float(np.mean(costs))))
    return pd.DataFrame(rows, columns=["width", "accuracy", "million_multiplications"])
