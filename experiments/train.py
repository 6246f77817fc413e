"""Make one agent: `python -m experiments.train agent=ppo seed=0 workload.load=0.7`.

`agent=constants` tunes every family of constant plans; `agent=ppo` learns a policy and exports it
as a bundle. Ctrl-C leaves a checkpoint; the same command goes on from there.
"""

from __future__ import annotations

from omegaconf import DictConfig

from experiments.cli import run_main
from experiments.console import CONSOLE, one_line, progress_bar
from experiments.record import run_path
from experiments.training import train_agent, training_part
from experiments.worlds import settled


def task(config: DictConfig) -> None:
    """Train with a progress bar, then say where the results are."""
    config = training_part(settled(config, CONSOLE.print))
    CONSOLE.print(f"run folder: {run_path(config)}")
    with progress_bar() as bar:
        run = train_agent(config, one_line(bar))
    CONSOLE.print(f"done: {run.path}")


if __name__ == "__main__":
    run_main(task)
