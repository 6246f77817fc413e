"""What adapting can win of a network: `python -m experiments.headroom env=staged_precision`.

Before anything learns: calibrates the network if need be, tunes constant plans and a rule on
training streams of all kinds and at several loads, and sets a search that knows what comes beside
them. Where that wins little, no agent will win more.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from experiments.calibrate import calibrate_network
from experiments.cli import run_main
from experiments.console import CONSOLE, line_per_step, progress_bar, say, show_table, shown_path
from experiments.domains import Domain, domain_of
from experiments.errors import ConfigError
from experiments.files import write_csv
from experiments.precision.commands import stream_command
from experiments.precision.declared import emulated_of
from experiments.precision.loads import compare_loads, draw_loads, joined
from experiments.precision.reference import (
    LOADS_FIGURE,
    record_bank,
    record_headroom,
)
from experiments.precision.reproduction import stream_settings, summary_folder, with_profiles
from experiments.precision.stream_claims import LOADS
from experiments.precision.summary import SMALL_HEADROOM, STATIC_BEST, difference, scores_of
from experiments.training import Report
from experiments.worlds import settled


def headroom(config: DictConfig, report: Report) -> Path:
    """Look what adapting can win on all streams of a network.

    Args:
        config: A settled configuration with `env=staged_precision`.
        report: Told about progress.

    Returns:
        The folder with `LOADS`, a row per stream, load, agent and episode, and its figure.

    Raises:
        ConfigError: A wrong setting, or another environment.
    """
    if domain_of(config) is not Domain.PRECISION:
        raise ConfigError(
            f"headroom looks at staged networks, but env is {config.env.name}; say "
            "env=staged_precision (`make compare` shows the headroom of clusters)"
        )
    calibrated = calibrate_network(config, report)
    config = with_profiles(config, calibrated)
    table = joined([compare_loads(setting, report) for setting in stream_settings(config)])
    folder = summary_folder(config)
    write_csv(folder / LOADS, table)
    draw_loads(table, folder / LOADS_FIGURE, stream_command(config, "headroom"))
    record_bank(config, calibrated)
    record_headroom(config, folder)
    return folder


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per stream and load: what static best reaches, and what others gain, in words.

    Args:
        table: As `experiments.precision.loads.joined` gives it.
    """
    rows: list[dict[str, Any]] = []
    for (stream, load), part in table.groupby(["stream", "load"], sort=False):
        scores = scores_of(part)
        row: dict[str, Any] = {"stream": stream, "load": load}
        row["static best %"] = 100.0 * float(scores[STATIC_BEST].mean())
        for name in scores:
            if name == STATIC_BEST:
                continue
            gain = difference(scores, name, STATIC_BEST)
            said = f"{100.0 * gain.value:+.1f}"
            if math.isfinite(gain.low):  # one episode has no interval
                said += f" ({100.0 * gain.low:.1f} to {100.0 * gain.high:.1f})"
            row[name] = said + (" (small)" if gain.value < SMALL_HEADROOM else "")
        rows.append(row)
    return pd.DataFrame(rows)


def task(config: DictConfig) -> None:
    """Show a table of the headroom, with a progress bar before."""
    config = settled(config, CONSOLE.print)
    with progress_bar() as bar:
        folder = headroom(config, line_per_step(bar))
    table = shown(pd.read_csv(folder / LOADS))
    show_table("points over static best, training streams, simulated", table, list(table.columns))
    if emulated := emulated_of(config.bank.levels or []):
        say(f"{', '.join(emulated)}: costs declared, not measured")
    say(f"table and figure: {shown_path(folder)}")


if __name__ == "__main__":
    run_main(task)
