"""Figures of staged precision: pure functions from tables to figures."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from experiments.figure_style import (
    COLOURS,
    QUIET,
    check_columns,
    is_wide,
    marker_of,
    use_log,
)


def front(every: pd.DataFrame, chosen: pd.DataFrame) -> Figure:
    """Draw accuracy against latency of all assignments, and who chose which.

    Args:
        every: `assignment`, `calibration` (share of right answers), `predicted_s`.
        chosen: `chosen_by`, `assignment`.
    """
    check_columns(every, ["assignment", "calibration", "predicted_s"])
    check_columns(chosen, ["chosen_by", "assignment"])
    figure = Figure(figsize=(9.0, 5.2), layout="constrained")
    axes = figure.subplots()
    ms, share = 1e3 * every["predicted_s"], 100.0 * every["calibration"]
    axes.scatter(ms, share, s=12, color=QUIET, linewidths=0, label="all tried", zorder=2)
    order = every.sort_values("predicted_s")
    best = order[order["calibration"] > order["calibration"].cummax().shift(fill_value=-1.0)]
    axes.step(
        1e3 * best["predicted_s"],
        100.0 * best["calibration"],
        where="post",
        color=QUIET,
        linewidth=1.2,
        label="front",
        zorder=1,
    )
    places = every.set_index("assignment")
    # Whoever chose the same assignment shares a mark.
    for k, (assignment, group) in enumerate(chosen.groupby("assignment", sort=False)):
        row = places.loc[assignment]
        axes.plot(
            1e3 * row["predicted_s"],
            100.0 * row["calibration"],
            linestyle="none",
            marker=marker_of(k),
            color=COLOURS[k % len(COLOURS)],
            markersize=8,
            label=";\n".join(group["chosen_by"]),
            zorder=3,
        )
    if is_wide(ms.tolist()):
        use_log(axes, "x")
    axes.set_xlabel("latency of a batch, predicted (ms)")
    axes.set_ylabel("accuracy on calibration data (%)")
    axes.grid(color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure
