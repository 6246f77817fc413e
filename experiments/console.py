"""What commands show on the screen: one console, one look of progress bars and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

CONSOLE = Console()


def progress_bar() -> Progress:
    """Return a progress display; use it as a context manager."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=CONSOLE,
    )


def say(line: str) -> None:
    """Print a line as it is: paths and settings stay whole, to be copied."""
    CONSOLE.print(line, markup=False, highlight=False, soft_wrap=True)


def show_table(title: str, table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Print some columns of a table, numbers with three significant digits."""
    screen = Table(title=title)
    for column in columns:
        numeric = pd.api.types.is_numeric_dtype(table[column])
        screen.add_column(column, justify="right" if numeric else "left")
    for row in table[list(columns)].itertuples(index=False):
        screen.add_row(*_cells(row))
    CONSOLE.print(screen)


def _cells(row: Iterable[object]) -> list[str]:
    return [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
