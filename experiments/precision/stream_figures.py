"""Figures of simulated streams: pure functions from the tables of comparisons to figures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from envs.precision.viewer import CORRUPTED_COLOUR, level_colours
from experiments.errors import ConfigError
from experiments.figure_style import (
    ACCENT,
    DASHES,
    PLAIN,
    QUIET,
    check_columns,
    colours_of,
    interval_dot,
    label,
    marker_of,
    name_rows,
    panels,
)
from experiments.precision.summary import (
    CLAIRVOYANT,
    SMALL_HEADROOM,
    STATIC_BEST,
    difference,
    scores_of,
)
from experiments.statistics import Estimate

LEARNED = ("ppo", "maskable_ppo", "recurrent_ppo", "dqn", "qr_dqn", "bandit")
_KEYS = ("network", "stream", "agent", "train_seed", "episode", "effective_accuracy")
_PREDICTED = (
    ("effective_accuracy", "effective accuracy (%)", 100.0),
    ("missed_share", "missed requests (%)", 100.0),
    ("p50_s", "median latency (ms)", 1e3),
    ("p99_s", "p99 latency (ms)", 1e3),
)
_STEPS = ("agent", "time_s", "requests", "dropped", "condition", "in_time", "escalate_below")
_BIN_S = 0.5
"""Width of the bins of rates and accuracies in a timeline, seconds."""
_ASIDE = 0.012
"""How far intervals at the same load stand apart."""
_ABOVE_GRID = 0.9
"""Drawing order of reference lines and bars: over the grid, under the data."""
_AGAIN_COLOUR = "#4D4D4D"


def gain_by_agent(table: pd.DataFrame, accent: Collection[str] = LEARNED) -> Figure:
    """Draw every agent's effective accuracy over that of the best constant, a panel per stream.

    Gains are paired by episode, with 95 % intervals. A panel shows who ran in its stream, the best
    on top; whoever is far worse stands at the edge, beside a number.

    Args:
        table: Columns network, stream, agent, train_seed, episode, effective_accuracy; static_best
            is among the agents of every stream.
        accent: Agents to be drawn in colour.

    Raises:
        ConfigError: A column is missing, or static_best is.
    """
    check_columns(table, _KEYS)
    settings = list(table.groupby(["network", "stream"], sort=False))
    figure, grid = panels(len(settings), height=1.3 + 0.24 * table["agent"].nunique(), columns=2)
    for axes, ((network, stream), part) in zip(grid, settings, strict=True):
        scores = scores_of(part)
        if STATIC_BEST not in scores:
            raise ConfigError(f"static_best did not run on {stream!r}; gains are drawn over it")
        gains = {n: _percent(difference(scores, n, STATIC_BEST)) for n in scores}
        order = sorted(gains, key=lambda name, own=gains: -own[name].value)
        _draw_gains(
            axes, [gains[n] for n in order], [ACCENT if n in accent else PLAIN for n in order]
        )
        name_rows(axes, order, accent)
        level = 100.0 * scores[STATIC_BEST].mean()
        title = f"{label(str(network))}, {stream}: static best has {level:.1f} %"
        axes.set(title=title, xlabel="effective accuracy over static best (points)")
    learned = Line2D([], [], color=ACCENT, marker="o", linestyle="", label="learned")
    figure.legend(handles=[learned], loc="outside lower right", fontsize="small")
    return figure


def _draw_gains(axes: Axes, gains: Sequence[Estimate], colours: Sequence[str]) -> None:
    """Draw a gain a row, on an axis that reaches twice as far below 0 as above, or a point.

    It reaches farther where half of the gains would lie outside.
    """
    values = [gain.value for gain in gains]
    least = min(-2.0 * max(values), -1.0, 1.2 * float(np.median(values)))
    shown = [gain for gain in gains if gain.value >= least]
    ends = [end for gain in shown for end in (gain.value, gain.low, gain.high)]
    for y, (gain, colour) in enumerate(zip(gains, colours, strict=True)):
        if gain.value < least:
            axes.plot(least, y, marker="o", color=colour, markersize=6)
            _write_gain(axes, (least, y), gain.value)
        else:
            interval_dot(axes, y, gain, colour)
    axes.axvline(0.0, color="black", linewidth=1.0, zorder=_ABOVE_GRID)
    low = least if len(shown) < len(gains) else max(least, float(np.nanmin(ends)))
    high = float(np.nanmax(ends))
    axes.xaxis.set_major_locator(MaxNLocator(5))  # more would touch each other
    axes.set_xlim(low - 0.06 * (high - low) - 0.1, high + 0.06 * (high - low) + 0.1)


def _write_gain(axes: Axes, at: tuple[float, float], gain: float) -> None:
    """Write a gain beside a mark that stands at the edge, since it is far worse."""
    place = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
    axes.annotate(f"{gain:.0f}".replace("-", "\N{MINUS SIGN}"), at, fontsize="x-small", **place)


def headroom_by_stream(table: pd.DataFrame, agents: Sequence[str]) -> Figure:
    """Draw what adapting can win over the best constant assignment, and what agents win of it.

    Args:
        table: As of `gain_by_agent`, with the clairvoyant reference.
        agents: Agents whose gains are drawn; those that the table does not have are left out.
    """
    check_columns(table, _KEYS)
    agents = [name for name in agents if name in set(table["agent"])]
    settings = list(table.groupby(["network", "stream"], sort=False))
    figure, (axes,) = panels(1, height=1.6 + 0.5 * len(settings), width=6.4)
    colours = colours_of(agents)
    rows = [scores_of(part) for _, part in settings]
    rooms = [_percent(difference(scores, CLAIRVOYANT, STATIC_BEST)) for scores in rows]
    for y, room in enumerate(rooms):
        axes.barh(y, room.value, height=0.62, color="#E5E5E5", zorder=_ABOVE_GRID)
        if np.isfinite(room.low):
            axes.plot([room.low, room.high], [y, y], color=QUIET, linewidth=5.0, zorder=_ABOVE_GRID)
    least = -max(room.value for room in rooms)
    for y, scores in enumerate(rows):
        for k, name in enumerate(agents):
            if name not in scores:
                continue
            gain = 100.0 * difference(scores, name, STATIC_BEST).value
            at = max(gain, least), y + 0.44 * (k / max(len(agents) - 1, 1) - 0.5)
            axes.plot(*at, marker=marker_of(k), color=colours[name])
            if gain < least:  # or nothing else could be told apart
                _write_gain(axes, at, gain)
    axes.axvline(0.0, color="black", linewidth=1.0)
    axes.axvline(100.0 * SMALL_HEADROOM, color=PLAIN, linestyle="dotted", linewidth=1.0)
    name_rows(axes, [f"{network}, {stream}" for (network, stream), _ in settings], ())
    axes.set_xlabel("effective accuracy over static best (points)")
    handles: list[Line2D | Patch] = [
        Patch(color="#E5E5E5", label="headroom: clairvoyant reference"),
        Line2D([], [], color=QUIET, linewidth=5.0, label="its 95 % interval"),
        Line2D([], [], color=PLAIN, linestyle="dotted", label="below it not worth adapting"),
    ]
    handles += [
        Line2D([], [], marker=marker_of(k), color=colours[n], ls="", label=label(n))
        for k, n in enumerate(agents)
    ]
    figure.legend(handles=handles, loc="outside right upper", fontsize="small")
    return figure


def headroom_by_load(table: pd.DataFrame) -> Figure:
    """Draw what a rule and a search win over the best constant assignment, load by load.

    Args:
        table: Columns stream, load, agent, train_seed, episode, effective_accuracy; static_best is
            among the agents, each constant or rule tuned at its load.
    """
    check_columns(table, ("load", *_KEYS[1:]))
    streams = list(table["stream"].unique())
    figure, grid = panels(
        len(streams), height=3.6, width=6.4 if len(streams) == 1 else 5.0, columns=2
    )
    for axes, stream in zip(grid, streams, strict=True):
        axes.sharey(grid[0])  # before anything is drawn: axes that join later take over the limits
        _draw_loads(axes, table[table["stream"] == stream])
        axes.set_title(stream)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    return figure


def _draw_loads(axes: Axes, table: pd.DataFrame) -> None:
    parts = {float(load): scores_of(part) for load, part in table.groupby("load")}
    agents = [name for name in table["agent"].unique() if name != STATIC_BEST]
    colours = colours_of(agents)
    for k, name in enumerate(agents):
        gains = [_percent(difference(own, name, STATIC_BEST)) for own in parts.values()]
        aside = _ASIDE * (k - 0.5 * (len(agents) - 1))
        axes.errorbar(
            [load + aside for load in parts],
            [gain.value for gain in gains],
            yerr=np.abs([[g.value - g.low, g.high - g.value] for g in gains]).T,
            marker=marker_of(k),
            color=colours[name],
            capsize=2.0,
            label=label(name),
        )
    axes.axhline(0.0, color="black", linewidth=1.0, zorder=_ABOVE_GRID)
    named = [f"{load:g}\n{100.0 * own[STATIC_BEST].mean():.0f}" for load, own in parts.items()]
    axes.set_xticks(list(parts), named)
    axes.set_xlim(min(parts) - 0.05, max(parts) + 0.05)  # one load alone is no range
    what = "load (in what the safe levels carry)\nand what static best answers rightly in time (%)"
    axes.set_xlabel(what)
    axes.set_ylabel("gain over static best (points)")


def ablation(summary: pd.DataFrame) -> Figure:
    """Draw what hiding each group of signals from the headline agent costs, with 95 % intervals.

    Args:
        summary: Columns hidden, change, low, high; the change against hiding nothing.
    """
    check_columns(summary, ("hidden", "change", "low", "high"))
    own = summary[summary["hidden"] != "nothing"].sort_values("change")
    figure, (axes,) = panels(1, height=1.3 + 0.4 * len(own), width=5.4)
    for y, row in enumerate(own.itertuples()):
        interval_dot(axes, y, _percent(Estimate(row.change, row.low, row.high)), PLAIN)
    axes.axvline(0.0, color="black", linewidth=1.0, zorder=_ABOVE_GRID)
    name_rows(axes, [f"without {name}" for name in own["hidden"]], ())
    axes.set_xlabel("change of effective accuracy (points)")
    return figure


def stream_timeline(steps: pd.DataFrame, agents: Sequence[str], levels: Sequence[str]) -> Figure:
    """Draw one episode: rate and condition, accuracy by agent, and the levels of every agent.

    Where one of the agents has a second pass on offer, a row of its own below the stages says when.

    Args:
        steps: Rows of the agent "given" (time_s, requests, condition), and of agents a row per
            batch: time_s, requests, dropped, in_time, `level_<stage>`, escalate_below.
        agents: Which agents, at most four; those without rows are left out.
        levels: Names of the levels.
    """
    check_columns(steps, _STEPS)
    agents = [name for name in agents if name in set(steps["agent"])]
    given = steps[steps["agent"] == "given"]
    end_s = float(given["time_s"].max())
    stages = [name for name in steps if str(name).startswith("level_")]
    again = bool((steps.loc[steps["agent"].isin(agents), "escalate_below"] > 0.0).any())
    rows = [*stages, "escalate_below"] if again else stages
    height = 3.2 + len(agents) * (0.4 + 0.19 * len(rows))
    figure = Figure(figsize=(9.5, height), layout="constrained")
    heights = (1.0, 1.2, *(0.24 * len(rows) for _ in agents))
    grid: list[Axes] = list(figure.subplots(2 + len(agents), 1, sharex=True, height_ratios=heights))
    edges = np.arange(0.0, end_s + _BIN_S, _BIN_S)
    _draw_rate(grid[0], given, edges)
    grid[0].set_xlim(0.0, end_s)
    for axes in grid[:2]:
        _shade(axes, given)
    for k, (agent, colour) in enumerate(colours_of(agents).items()):
        own = steps[steps["agent"] == agent]
        style = {"color": colour, "linestyle": DASHES[k % len(DASHES)], "where": "post"}
        right = _accuracies(own, edges)
        grid[1].step(edges, np.append(right, right[-1]), label=label(agent), **style)
        _raster(grid[2 + k], own, rows, len(levels))
        grid[2 + k].set_title(label(agent), loc="left", fontsize="small", color=colour)
    grid[1].set(ylabel="correct and\nin time (%)", ylim=(-3.0, 103.0))
    grid[-1].set_xlabel("time (s)")
    figure.align_ylabels(grid)
    named, _ = grid[1].get_legend_handles_labels()
    figure.legend(handles=named, loc="outside upper center", ncols=len(agents))
    _name_hues(figure, levels, again)
    return figure


def _draw_rate(axes: Axes, given: pd.DataFrame, edges: NDArray[np.float64]) -> None:
    """Draw requests per second, with room above them where the condition shows."""
    rate = np.histogram(given["time_s"], edges, weights=given["requests"])[0] / _BIN_S
    axes.fill_between(edges, np.append(rate, rate[-1]), step="post", color="#9D9DA1")
    axes.set(ylabel="requests\n(per s)", ylim=(0.0, 1.15 * max(rate.max(), 1.0)))


def _name_hues(figure: Figure, levels: Sequence[str], again: bool) -> None:
    """Write what the colours of levels and conditions mean below a timeline."""
    hues = [
        Patch(color=colour, label=name)
        for name, colour in zip(levels, level_colours(len(levels)), strict=True)
    ]
    hues += [Patch(color=_AGAIN_COLOUR, label="second pass on offer")] * again
    hues.append(Patch(color=CORRUPTED_COLOUR, label="inputs corrupted"))
    figure.legend(handles=hues, loc="outside lower center", ncols=len(hues), fontsize="small")


def predicted_streams(table: pd.DataFrame) -> Figure:
    """Draw predicted against measured figures of real streams, a point per stream and agent.

    Args:
        table: Columns stream, agent, source (measured or simulated), effective_accuracy,
            missed_share, p50_s, p99_s.

    Raises:
        ConfigError: No run is in the table from both sources.
    """
    check_columns(table, ("stream", "agent", "source", *(name for name, _, _ in _PREDICTED)))
    names = [name for name, _, _ in _PREDICTED]
    means = table.groupby(["stream", "agent", "source"])[names].mean().unstack("source").dropna()
    if means.empty or set(table["source"]) != {"measured", "simulated"}:
        raise ConfigError("no run is in the table both simulated and measured; nothing to compare")
    colours = colours_of(sorted(means.index.unique("agent")))
    figure, grid = panels(len(_PREDICTED), height=3.4, width=3.4, columns=2)
    for axes, (name, said, scale) in zip(grid, _PREDICTED, strict=True):
        measured, predicted = (scale * means[name, s] for s in ("measured", "simulated"))
        ends = np.concatenate([measured, predicted])
        margin = 0.06 * max(float(np.ptp(ends)), 1e-9)
        limits = (float(ends.min()) - margin, float(ends.max()) + margin)
        axes.plot(limits, limits, color="black", linewidth=0.8)
        for k, (agent, colour) in enumerate(colours.items()):
            own = means.index.get_level_values("agent") == agent
            shown = {"color": colour, "marker": marker_of(k), "label": label(agent)}
            axes.scatter(measured[own], predicted[own], **shown)
        axes.set(xlabel=f"measured {said}", ylabel=f"predicted {said}", xlim=limits, ylim=limits)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    return figure


def _accuracies(own: pd.DataFrame, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of requests answered correctly and in time in each bin, per cent."""
    asked, right = (
        np.histogram(own["time_s"], edges, weights=values)[0]
        for values in (own["requests"] + own["dropped"], own["in_time"])
    )
    return np.where(asked > 0, 100.0 * right / np.maximum(asked, 1.0), np.nan)


def _shade(axes: Axes, given: pd.DataFrame) -> None:
    """Shade the time during which inputs are corrupted."""
    time_s = given["time_s"].to_numpy()
    conditions = given["condition"].to_numpy()
    changes = np.flatnonzero(conditions[1:] != conditions[:-1]) + 1
    places = [0, *changes.tolist(), len(time_s) - 1]

    for first, last in pairwise(places):
        if conditions[first] != "clean":
            axes.axvspan(time_s[first], time_s[last], color=CORRUPTED_COLOUR, linewidth=0, zorder=0)


def _raster(axes: Axes, own: pd.DataFrame, rows: Sequence[str], n_levels: int) -> None:
    """Draw stages times time, coloured by level; the plan of the last batch before each instant.

    Args:
        axes: Where, with its limits of time.
        own: An agent's batches.
        rows: Columns to draw, of levels, and `escalate_below` (where there is a second pass).
        n_levels: Number of levels.
    """
    end_s = axes.get_xlim()[1]
    times = np.linspace(0.0, end_s, 1200)
    place = np.clip(np.searchsorted(own["time_s"], times, side="right") - 1, 0, None)
    image = own[list(rows)].to_numpy(dtype=np.float64)[place].T
    if rows[-1] == "escalate_below":
        image[-1] = np.where(image[-1] > 0.0, n_levels, np.nan)
    axes.imshow(
        image,
        aspect="auto",
        interpolation="nearest",
        extent=(0.0, end_s, len(rows) - 0.5, -0.5),
        cmap=ListedColormap([*level_colours(n_levels), _AGAIN_COLOUR]),
        vmin=0,
        vmax=n_levels,
    )
    names = [name.removeprefix("level_") for name in rows]
    axes.set_yticks(range(len(rows)), ["again" if n == "escalate_below" else n for n in names])
    axes.tick_params(axis="y", length=0, labelsize="x-small")


def _percent(estimate: Estimate) -> Estimate:
    return Estimate(100.0 * estimate.value, 100.0 * estimate.low, 100.0 * estimate.high)
