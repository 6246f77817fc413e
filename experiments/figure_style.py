"""What all figures share: colours, panels, labels, and how they are saved.

No global state of matplotlib is used: every figure is an object of its own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.errors import ConfigError
from experiments.files import atomic_path, write_text
from experiments.statistics import Estimate

# Okabe and Ito's eight colours, which people with any colour blindness tell apart; yellow, too
# light on white, is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("solid", "dashed", "dashdot", "dotted")
PLAIN, ACCENT, QUIET = "#4D4D4D", "#D55E00", "#B3B3B3"
LOG_RATIO = 8.0
"""Largest over smallest value from which an axis is logarithmic."""
_DPI = 150


def save_figure(figure: Figure, path: Path, caption: str) -> None:
    """Write a figure and its caption, each atomically.

    Args:
        figure: What to draw.
        path: Where, ending in `.png`; the caption goes beside it, ending in `.md`.
        caption: What is seen, and with which command, seeds and data it was made.

    Raises:
        ConfigError: Another ending, or no caption.
    """
    if path.suffix != ".png":
        raise ConfigError(f"{path} does not end in .png, the format of figures")
    if not caption.strip():
        raise ConfigError(f"the figure {path.name} has no caption; say what is seen")
    with atomic_path(path) as temporary:
        # Without a version in the file the same figure gives the same bytes.
        figure.savefig(temporary, dpi=_DPI, metadata={"Software": None})
    write_text(path.with_suffix(".md"), f"![{path.stem}]({path.name})\n\n{caption.strip()}\n")


def check_columns(table: pd.DataFrame, needed: Iterable[str]) -> None:
    """Refuse a table without rows or without a column that will be drawn.

    Raises:
        ConfigError: Names the column.
    """
    for name in needed:
        if name not in table:
            raise ConfigError(
                f"the table to be drawn has no column {name!r}; it has {', '.join(table.columns)}"
            )
    if table.empty:
        raise ConfigError("the table to be drawn has no rows")


def label(name: str) -> str:
    """Return the name of an agent or workload as people read it."""
    return name.replace("_", " ")


def colours_of(names: Iterable[str]) -> dict[str, str]:
    """Give each name a colour of its own; from the eighth on colours repeat."""
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}


def marker_of(place: int) -> str:
    """Return the marker beside the colour of a place: together they repeat after 49 places."""
    return MARKERS[(place + place // len(COLOURS)) % len(MARKERS)]


def is_wide(values: Collection[float]) -> bool:
    """Tell whether positive values span so much that only a logarithmic axis shows them all."""
    finite = [v for v in values if math.isfinite(v)]
    return bool(finite) and min(finite) > 0.0 and max(finite) / min(finite) > LOG_RATIO


def use_log(axes: Axes, which: str) -> None:
    """Make an axis ("x" or "y") logarithmic with plain numbers (0.5, 2, 10) on its ticks."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    # Within two decades 1, 2 and 5 are labelled; beyond, powers of ten have to do.
    steps = (1.0, 2.0, 5.0) if high / max(low, 1e-12) < 200.0 else (1.0,)
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def panels(
    n: int, height: float, width: float = 4.6, columns: int = 3
) -> tuple[Figure, list[Axes]]:
    """Return a figure with n panels, at most `columns` side by side; sizes in inches each."""
    wide = min(n, columns)
    rows = math.ceil(n / wide)
    figure = Figure(figsize=(1.8 + width * wide, height * rows), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, wide, squeeze=False)).ravel()
    for unused in grid[n:]:
        unused.remove()
    # Titles and axis labels of neighbours keep their distance.
    cast("ConstrainedLayoutEngine", figure.get_layout_engine()).set(w_pad=0.12, h_pad=0.12)
    return figure, list(grid[:n])


def interval_dot(
    axes: Axes, y: float, estimate: Estimate, colour: str, *, hollow: bool = False
) -> None:
    """Draw a value with its interval, if it has one, in row y."""
    if math.isfinite(estimate.low):
        axes.plot([estimate.low, estimate.high], [y, y], color=colour, linewidth=1.8)
    face = "white" if hollow else colour
    axes.plot(estimate.value, y, marker="o", color=colour, markersize=6, markerfacecolor=face)


def name_rows(axes: Axes, names: list[str], accent: Collection[str]) -> None:
    """Write agents on the y axis, the first on top, those of `accent` in colour."""
    axes.set_yticks(range(len(names)), [label(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    for tick, name in zip(axes.get_yticklabels(), names, strict=True):
        tick.set_color(ACCENT if name in accent else "black")
    axes.grid(axis="x", color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
