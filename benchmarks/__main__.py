"""Run benchmarks and print their figures: `python -m benchmarks [NAME ...]`.

`python -m benchmarks record=true` runs all of them, writes results/reference/bench.csv and the
claims made with it.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from benchmarks import (
    engine,
    environment,
    executor_overhead,
    precision_bank,
    precision_serving,
    precision_simulator,
)
from benchmarks.record import record
from benchmarks.rows import BenchmarkRow

BENCHMARKS: dict[str, Callable[[], list[BenchmarkRow]]] = {
    "engine": engine.measure_all,
    "environment": environment.measure_all,
    "executor": executor_overhead.measure_all,
    "precision": precision_simulator.measure_all,
    "bank": precision_bank.measure_all,
    "serving": precision_serving.measure_all,
}


def build_table(title: str, rows: list[BenchmarkRow]) -> Table:
    """Return the rows as a table for the terminal."""
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    for heading in ("value", "unit", "ratio", "CPU s", "wall s"):
        table.add_column(heading, justify="left" if heading == "unit" else "right")
    table.add_column("note")
    for row in rows:
        value = f"{row.value:,.0f}" if row.value >= 1000 else f"{row.value:.3g}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(
            row.name, value, row.unit, ratio, f"{row.cpu_s:.2f}", f"{row.wall_s:.2f}", row.note
        )
    return table


def main(arguments: list[str] | None = None) -> None:
    """Run the named benchmarks, or all; write claims if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; or record=true"
    )
    words = parser.parse_args(arguments).names
    names = [word for word in words if word not in ("record=true", "record=false")]
    for name in names:
        if name not in BENCHMARKS:
            close = difflib.get_close_matches(name, [*BENCHMARKS, "record=true"], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            parser.error(f"no benchmark {name!r}; expected of {', '.join(BENCHMARKS)}{hint}")
    if "record=true" in words and names:
        parser.error("record=true runs all benchmarks; leave the names out")
    console = Console()
    measured = {}
    for name in names or BENCHMARKS:
        measured[name] = BENCHMARKS[name]()
        console.print(build_table(name, measured[name]))
    if "record=true" in words:
        record(measured)


if __name__ == "__main__":
    main()
