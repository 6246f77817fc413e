"""Figures of the experiments: pure functions from tables to figures.

The long table has one row per agent, training seed and episode, with at least the columns that a
figure's documentation names; latencies in it are record-weighted within an episode, and episodes
count alike.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from experiments.errors import ConfigError
from experiments.figure_style import (
    ACCENT,
    DASHES,
    PLAIN,
    QUIET,
    check_columns,
    colours_of,
    interval_dot,
    is_wide,
    label,
    marker_of,
    name_rows,
    panels,
    use_log,
)
from experiments.statistics import (
    Estimate,
    interquartile_mean,
    mean,
    paired_change,
    stratified_bootstrap,
)

STATIC_BEST, CLAIRVOYANT = "static_best", "clairvoyant"
HEADLINE = ("ppo",)
BANDS = {"mean_s": 0.10, "p95_s": 0.15}
"""Errors of the prediction that are aimed at, by figure."""

_LARGEST_CHANGE = 100.0
# None of them is the colour of one of the first four agents.
_POOL_HUES = {
    0: ("single pool", "#D0D0D0"),
    1: ("hard pools", "#E69F00"),
    2: ("soft pools", "#56B4E9"),
}


def latency_by_agent(table: pd.DataFrame, accent: Collection[str] = HEADLINE) -> Figure:
    """Draw the mean latency of every agent with its 95 % interval, a panel per workload and load.

    A hollow marker means that the backlog grew in more than half of the episodes. The intervals
    are those of the level, over episodes; how agents differ on the same ones is `change_by_agent`.

    Args:
        table: Columns workload, load, agent, train_seed, episode, mean_s, stable.
        accent: Agents to be drawn in colour.
    """
    check_columns(table, ("workload", "load", "agent", "train_seed", "episode", "mean_s", "stable"))
    order = _sorted_agents(table)
    settings = list(table.groupby(["workload", "load"]))
    figure, grid = panels(len(settings), height=1.3 + 0.26 * len(order))
    for axes, ((workload, load), part) in zip(grid, settings, strict=True):
        scores, stable = _scores(part, "mean_s"), part.groupby("agent")["stable"].mean()
        estimates = {name: _estimate(own) for name, own in scores.items()}
        for y, name in enumerate(order):
            if name in estimates:
                colour = ACCENT if name in accent else PLAIN
                interval_dot(axes, y, estimates[name], colour, hollow=bool(stable[name] < 0.5))
        ends = [x for e in estimates.values() for x in (e.value, e.low, e.high)]
        if is_wide(ends):
            use_log(axes, "x")
        else:
            axes.set_xlim(left=0.0)
        for name, dashes in ((STATIC_BEST, "dashed"), (CLAIRVOYANT, "dotted")):
            if name in estimates:
                axes.axvline(estimates[name].value, color=QUIET, linestyle=dashes, zorder=0.5)
        name_rows(axes, order, accent)
        axes.set(
            title=f"{label(str(workload))}, load {load:g}", xlabel="mean latency of a record (s)"
        )
    handles = [
        Line2D([], [], color=QUIET, linestyle="dashed", label="static best"),
        Line2D([], [], color=QUIET, linestyle="dotted", label="clairvoyant reference"),
        Line2D([], [], color=PLAIN, marker="o", mfc="white", label="backlog grows", linestyle=""),
    ]
    figure.legend(handles=handles, loc="outside lower right", ncols=3, fontsize="small")
    return figure


def change_by_agent(
    table: pd.DataFrame,
    baselines: Sequence[str] = ("spark_default", STATIC_BEST),
    accent: Collection[str] = HEADLINE,
) -> Figure:
    """Draw the change of the mean latency against baselines, paired by episode, in per cent.

    Changes beyond +100 % are written at the edge instead of drawn.

    Args:
        table: Columns workload, load, agent, train_seed, episode, mean_s; all agents on the same
            episodes.
        baselines: Agents that the others are compared with, a column of panels each.
        accent: Agents to be drawn in colour.

    Raises:
        ConfigError: A baseline is not in the table.
    """
    check_columns(table, ("workload", "load", "agent", "train_seed", "episode", "mean_s"))
    order = _sorted_agents(table)
    for name in baselines:
        if name not in order:
            raise ConfigError(f"the baseline {name!r} is not among the agents {', '.join(order)}")
    settings = list(table.groupby(["workload", "load"]))
    n = len(settings) * len(baselines)
    figure, grid = panels(n, height=1.2 + 0.26 * len(order), columns=len(baselines))
    cases = [(setting, name) for setting in settings for name in baselines]
    for axes, (((workload, load), part), baseline) in zip(grid, cases, strict=True):
        scores = _scores(part, "mean_s")
        for y, name in enumerate(order):
            if name == baseline:
                axes.plot(0.0, y, marker="D", color="black", markersize=5)
            elif name in scores:
                change = paired_change([scores[baseline]], [scores[name]], _rng())
                _change_dot(axes, y, change, ACCENT if name in accent else PLAIN)
        axes.axvline(0.0, color="black", linewidth=1.0, zorder=0.5)
        low = min(axes.get_xlim()[0], -5.0)
        axes.set_xlim(max(low, -100.0), min(max(axes.get_xlim()[1], 5.0), _LARGEST_CHANGE))
        name_rows(axes, order, accent)
        axes.set(
            title=f"{label(str(workload))}, load {load:g}",
            xlabel=f"change of the mean latency against {label(baseline)} (%)",
        )
    return figure


def timeline(steps: pd.DataFrame) -> Figure:
    """Draw one episode: arrivals, latencies, and what every agent chose.

    Args:
        steps: One row per agent and decision, columns agent, time_s, records_in (since the start),
            latency_s (mean over the records of the batches that ended in the period, NaN if none
            did), batch_interval_s, parallelism, pools (0 single, 1 hard, 2 soft), share. At most
            four agents stay readable.
    """
    drawn = ("latency_s", "batch_interval_s", "parallelism")
    check_columns(steps, ("agent", "time_s", "records_in", "pools", "share", *drawn))
    agents = list(dict.fromkeys(steps["agent"]))
    colours = colours_of(agents)
    figure = Figure(figsize=(9.0, 8.0 + 0.3 * len(agents)), layout="constrained")
    heights = (1.0, 1.4, 1.0, 1.0, 0.25 + 0.3 * len(agents))
    grid: list[Axes] = list(figure.subplots(5, 1, sharex=True, height_ratios=heights))
    first = steps[steps["agent"] == agents[0]]
    rate = np.diff(first["records_in"], prepend=0.0) / np.diff(first["time_s"], prepend=0.0)
    grid[0].fill_between(first["time_s"], rate, step="pre", color="#9D9DA1")
    grid[0].set(ylabel="arrivals\n(records/s)", ylim=(0.0, None))
    for i, agent in enumerate(agents):
        own = steps[steps["agent"] == agent]
        style: dict[str, Any] = {"color": colours[agent], "linestyle": DASHES[i % len(DASHES)]}
        # The first agents stay visible where many lines meet.
        style |= {"linewidth": 1.3, "zorder": 3.0 - 0.1 * i}
        ended = own.dropna(subset="latency_s")
        grid[1].plot(ended["time_s"], ended["latency_s"], label=label(agent), **style)
        for axes, column in zip(grid[2:4], drawn[1:], strict=True):
            axes.step(own["time_s"], own[column], where="pre", **style)
    names = ("latency of\nended batches (s)", "batch\ninterval (s)", "parallelism\n(jobs)")
    for axes, column, name in zip(grid[1:4], drawn, names, strict=True):
        axes.set_ylabel(name)
        if is_wide(steps[column].dropna().tolist()):
            use_log(axes, "y")
        else:
            axes.set_ylim(bottom=0.0)
    _pool_strips(grid[4], steps, agents)
    grid[4].set(xlabel="simulated time (s)", xlim=(0.0, float(steps["time_s"].max())))
    for axes in grid[:4]:
        axes.grid(color="#E5E5E5", linewidth=0.8)
        axes.set_axisbelow(True)
    figure.align_ylabels(grid)
    handles, labels = grid[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(agents), 4))
    hues = [
        Line2D([], [], color=colour, linewidth=6, label=name)
        for name, colour in _POOL_HUES.values()
    ]
    figure.legend(handles=hues, loc="outside lower center", ncols=len(hues))
    return figure


def predicted_against_measured(table: pd.DataFrame) -> Figure:
    """Draw simulated against measured latencies, mean and 95th percentile, with the bands aimed at.

    Args:
        table: Columns source (simulated or measured), workload, load, agent, episode, mean_s,
            p95_s. Rows of both sources with the same other keys make a point.

    Raises:
        ConfigError: No row of one source has a partner in the other.
    """
    keys = ["workload", "load", "agent", "episode"]
    check_columns(table, ("source", *keys, *BANDS))
    wide = table.pivot_table(index=keys, columns="source", values=list(BANDS)).dropna()
    if wide.empty or wide.columns.get_level_values("source").nunique() < 2:
        raise ConfigError("no run is in the table both simulated and measured; nothing to compare")
    agents = sorted(wide.index.unique("agent"))
    colours = colours_of(agents)
    figure, grid = panels(2, height=4.6, width=4.2)
    names = ("mean latency (s)", "95th percentile of latency (s)")
    for axes, (column, band), name in zip(grid, BANDS.items(), names, strict=True):
        measured, predicted = wide[column, "measured"], wide[column, "simulated"]
        ends = np.concatenate([measured, predicted])
        low, high = 0.8 * ends.min(), 1.2 * ends.max()
        line = np.linspace(low, high, 200)
        axes.fill_between(
            line, (1 - band) * line, (1 + band) * line, color="#E5E5E5", zorder=0.2, linewidth=0
        )
        axes.plot(line, line, color="black", linewidth=0.8)
        for i, agent in enumerate(agents):
            own = measured.index.get_level_values("agent") == agent
            axes.scatter(
                measured[own],
                predicted[own],
                s=34,
                color=colours[agent],
                # When colours begin again, markers are one ahead: no two agents look alike.
                marker=marker_of(i),
                alpha=0.85,
                label=label(agent),
            )
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        if is_wide(ends.tolist()):
            use_log(axes, "x")
            use_log(axes, "y")
        inside = int((np.abs(predicted / measured - 1.0) <= band).sum())
        axes.set_title(f"within {100 * band:.0f} %: {inside} of {len(wide)}", fontsize="medium")
        axes.set(xlabel=f"measured {name}", ylabel=f"simulated {name}")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(agents), 4))
    return figure


def learning_curves(table: pd.DataFrame, references: Mapping[str, float] | None = None) -> Figure:
    """Draw evaluation latency against training steps: seeds thin, interquartile mean thick.

    Args:
        table: Columns agent, train_seed, steps, mean_s.
        references: Mean latencies (s) to be drawn as level lines, by name.
    """
    check_columns(table, ("agent", "train_seed", "steps", "mean_s"))
    levels = dict(references or {})
    figure, (axes,) = panels(1, height=4.4, width=5.4)
    agents = list(dict.fromkeys(table["agent"]))
    for agent, colour in colours_of(agents).items():
        curves = table[table["agent"] == agent].pivot_table(
            index="steps", columns="train_seed", values="mean_s"
        )
        for seed in curves:
            own = curves[seed].dropna()
            axes.plot(own.index, own, color=colour, linewidth=0.8, alpha=0.45)
        common = curves.dropna()
        axes.plot(
            common.index,
            interquartile_mean(common.to_numpy()),
            color=colour,
            linewidth=2.2,
            label=f"{label(agent)}, interquartile mean of {curves.shape[1]} seeds",
        )
    for i, (name, value) in enumerate(levels.items()):
        style = DASHES[1 + i % (len(DASHES) - 1)]
        axes.axhline(value, color=PLAIN, linestyle=style, linewidth=1.2, label=label(name))
    if is_wide([*table["mean_s"], *levels.values()]):
        use_log(axes, "y")
    else:
        axes.set_ylim(bottom=0.0)
    axes.set(xlabel="training steps (decisions)", ylabel="mean latency of a record (s)")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(color="#E5E5E5", linewidth=0.8)
    figure.legend(loc="outside upper center", fontsize="small")
    return figure


def real_runs(table: pd.DataFrame, accent: Collection[str] = HEADLINE) -> Figure:
    """Draw measured latencies of every repetition; lines join what ran under the same arrivals.

    Args:
        table: Columns source, agent, episode (the repetition), mean_s, p95_s; rows whose source is
            not "measured" are left out.
        accent: Agents to be written in colour.
    """
    check_columns(table, ("source", "agent", "episode", "mean_s", "p95_s"))
    measured = table[table["source"] == "measured"]
    check_columns(measured, ())
    order = _sorted_agents(measured)
    repetitions = sorted(measured["episode"].unique())
    colours = colours_of([str(r) for r in repetitions])
    figure, grid = panels(2, height=1.8 + 0.45 * len(order))
    names = ("mean latency of a record (s)", "95th percentile of latency (s)")
    rows = np.arange(len(order))
    for axes, column, name in zip(grid, ("mean_s", "p95_s"), names, strict=True):
        values = measured.pivot_table(index="episode", columns="agent", values=column)[order]
        for i, repetition in enumerate(repetitions):
            style: dict[str, Any] = {"color": colours[str(repetition)]}
            style["marker"] = marker_of(i)
            own = values.loc[repetition]
            axes.plot(own, rows, linewidth=0.8, markersize=5, label=f"{repetition}", **style)
        axes.vlines(values.mean(), rows - 0.3, rows + 0.3, color="black", linewidth=2.0)
        if is_wide(values.to_numpy().ravel().tolist()):
            use_log(axes, "x")
        else:
            axes.set_xlim(left=0.0)
        name_rows(axes, order, accent)
        axes.set_xlabel(f"measured {name}")
    handles, labels = grid[0].get_legend_handles_labels()
    handles.append(Line2D([], [], color="black", linewidth=2.0))
    labels.append("mean")
    figure.legend(handles, labels, title="repetition", loc="outside right center", fontsize="small")
    return figure


def _rng() -> np.random.Generator:
    """Return the source of resamples: the same in every figure, so that figures repeat."""
    return np.random.default_rng(0)


def _scores(part: pd.DataFrame, column: str) -> dict[str, NDArray[np.float64]]:
    """Return the score of every episode by agent, float64 [episodes], mean over training seeds."""
    scores = part.groupby(["agent", "episode"])[column].mean().unstack("agent")
    return {str(name): scores[name].dropna().to_numpy() for name in scores}


def _sorted_agents(table: pd.DataFrame) -> list[str]:
    """Return the agents, lowest latency first: the geometric mean over all settings."""
    logs = np.log(table["mean_s"]).groupby(table["agent"]).mean()
    return [str(name) for name in logs.sort_values(kind="stable").index]


def _estimate(scores: NDArray[np.float64]) -> Estimate:
    return stratified_bootstrap([scores], mean, _rng())


def _change_dot(axes: Axes, y: float, change: Estimate, colour: str) -> None:
    """Draw a change in per cent, or write it at the edge where it is beyond the axis."""
    if change.value <= _LARGEST_CHANGE:
        interval_dot(axes, y, change, colour)
        return
    text: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center"}
    axes.text(0.985, y, f"+{change.value:.0f} % →", color=colour, fontsize="small", **text)


def _pool_strips(axes: Axes, steps: pd.DataFrame, agents: list[str]) -> None:
    """Draw a strip per agent: hue for the kind of pools, height of the fill for the share."""
    for row, agent in enumerate(agents):
        own = steps[steps["agent"] == agent]
        end = own["time_s"].to_numpy()
        start = np.concatenate([[0.0], end[:-1]])
        base = np.full(len(own), row + 0.4)
        for kind, (_, colour) in _POOL_HUES.items():
            chosen = (own["pools"] == kind).to_numpy()
            height = 0.8 * np.where(kind == 0, 1.0, own["share"].to_numpy())
            axes.bar(
                start[chosen],
                -height[chosen],
                width=(end - start)[chosen],
                bottom=base[chosen],
                align="edge",
                color=colour,
                linewidth=0,
            )
        axes.axhspan(row - 0.4, row + 0.4, facecolor="none", edgecolor=QUIET, linewidth=0.6)
    axes.set_yticks(range(len(agents)), [label(agent) for agent in agents])
    axes.set_ylim(len(agents) - 0.5, -0.5)
    axes.set_ylabel("pools, fill:\nshare")
