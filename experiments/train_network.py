"""Train a staged network: `python -m experiments.train_network network=eurosat_resnet size=quick`.

Full width and narrower ones are trained together. Ctrl-C loses the epoch that is running; the same
command goes on from the one before.
"""

from __future__ import annotations

import pandas as pd
from omegaconf import DictConfig

from experiments.cli import run_main
from experiments.console import one_line, progress_bar, say, show_table, shown_path
from experiments.precision.training import ACCURACY, NETWORK, own_config, train_network
from experiments.record import run_path


def task(config: DictConfig) -> None:
    """Train with a progress bar, then show accuracy and cost of each width."""
    say(f"run folder: {shown_path(run_path(own_config(config)))}")
    with progress_bar() as bar:
        run = train_network(config, one_line(bar))
    table = pd.read_csv(run.path / ACCURACY)
    table["accuracy %"] = 100.0 * table["accuracy"]
    headings = {
        "width": "interior width",
        "accuracy %": "accuracy %",
        "million_multiplications": "million multiplications",
    }
    show_table(f"{config.network.name} on held-out samples", table, headings)
    say(f"network: {shown_path(run.path / NETWORK)}")


if __name__ == "__main__":
    run_main(task)
