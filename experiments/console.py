"""What commands show on the screen: one console, one look of progress bars and tables."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from experiments.errors import REPOSITORY

CONSOLE = Console()
_REDRAWN_S = 0.2
"""How often a display is drawn at most, seconds."""


def progress_bar() -> Progress:
    """Return a progress display; use it as a context manager.

    It is drawn when something is reported, never by a thread: a thread that draws it ten times a
    second takes the interpreter for a millisecond each time, from whatever is served or timed.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=CONSOLE,
        auto_refresh=False,
    )


def line_per_step(bar: Progress) -> Callable[[str, int, int], None]:
    """Return a report that gives every step, by its name, a line of its own in a display."""
    lines: dict[str, TaskID] = {}
    draw = _seldom(bar)

    def report(what: str, done: int, total: int) -> None:
        if what not in lines:
            lines[what] = bar.add_task(what, total=total)
        bar.update(lines[what], completed=done, total=total)
        draw(done == total)

    return report


def one_line(bar: Progress) -> Callable[[str, int, int], None]:
    """Return a report whose steps share a line of a display: only the present one is shown."""
    line, draw = bar.add_task("starting", total=None), _seldom(bar)

    def report(what: str, done: int, total: int) -> None:
        bar.update(line, description=what, completed=done, total=total)
        draw(done == total)

    return report


def _seldom(bar: Progress) -> Callable[[bool], None]:
    """Return what draws a display if it must, or if the last time was a while ago."""
    last_s = -math.inf

    def draw(must: bool) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if must or now_s - last_s >= _REDRAWN_S:
            bar.refresh()
            last_s = now_s

    return draw


def say(line: str) -> None:
    """Print a line as it is: paths and settings stay whole, to be copied."""
    CONSOLE.print(line, markup=False, highlight=False, soft_wrap=True)


def shown_path(path: Path) -> Path:
    """Return a path as it is shown: inside the repository relative to it."""
    return path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path


def show_table(title: str, table: pd.DataFrame, columns: Sequence[str] | Mapping[str, str]) -> None:
    """Print some columns of a table, numbers with three significant digits.

    Args:
        title: Stands above it.
        table: Has the columns.
        columns: Their names; a mapping gives headings to names.
    """
    headings = columns if isinstance(columns, Mapping) else {name: name for name in columns}
    screen = Table(title=title)
    for column, heading in headings.items():
        numeric = pd.api.types.is_numeric_dtype(table[column])
        screen.add_column(heading, justify="right" if numeric else "left")
    for row in table[list(columns)].itertuples(index=False):
        screen.add_row(*_cells(row))
    CONSOLE.print(screen)


def _cells(row: Iterable[object]) -> list[str]:
    return [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
