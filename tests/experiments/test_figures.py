from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D

from experiments.errors import ConfigError
from experiments.figure_style import ACCENT, COLOURS, is_wide, save_figure
from experiments.figures import (
    change_by_agent,
    latency_by_agent,
    learning_curves,
    predicted_against_measured,
    real_runs,
    timeline,
)
from tests.experiments.drawn import check_texts, check_units

LATENCY_S = {
    "clairvoyant": 0.9,
    "ppo": 1.0,
    "static_best": 1.25,
    "proportional_integral": 1.5,
    "spark_default": 9.0,
}


def _long(loads: tuple[float, ...] = (0.5, 0.7), episodes: int = 6) -> pd.DataFrame:
    """Return a long table in which every agent takes LATENCY_S times the episode's size."""
    rows = [
        {
            "source": "simulated",
            "workload": "worldcup98",
            "load": load,
            "agent": agent,
            "train_seed": seed,
            "episode": episode,
            "mean_s": factor * (1.0 + 0.1 * episode) * (1.0 + load) * (1.0 + 0.1 * seed),
            "p95_s": 3.0 * factor * (1.0 + 0.1 * episode),
            "stable": agent != "spark_default",
        }
        for load in loads
        for agent, factor in LATENCY_S.items()
        for seed in range(3 if agent == "ppo" else 1)
        for episode in range(episodes)
    ]
    return pd.DataFrame(rows)


def _both() -> pd.DataFrame:
    table = _long(loads=(0.7,))
    table = table[table["train_seed"] == 0]
    # The simulation says 5 % too much for all agents, and 20 % too much for one.
    factor = np.where(table["agent"] == "static_best", 1.2, 1.05)
    measured = table.assign(source="measured")
    predicted = table.assign(mean_s=table["mean_s"] * factor, p95_s=table["p95_s"] * factor)
    return pd.concat([predicted, measured])


def _steps(agents: tuple[str, ...] = ("ppo", "static_best", "spark_default")) -> pd.DataFrame:
    time_s = np.arange(1, 61) * 2.0
    tables = [
        pd.DataFrame(
            {
                "agent": agent,
                "time_s": time_s,
                "records_in": np.cumsum(np.full(60, 200.0)),
                "latency_s": np.where(np.arange(60) % 7 == 0, np.nan, 1.0 + k),
                "batch_interval_s": 0.5 + 0.5 * k,
                "parallelism": 4 + 4 * k,
                "pools": (np.arange(60) // 10 + k) % 3,
                "share": np.linspace(0.1, 0.9, 60),
            }
        )
        for k, agent in enumerate(agents)
    ]
    return pd.concat(tables)


def _learning() -> pd.DataFrame:
    steps = np.arange(0, 1_000_001, 100_000)
    return pd.concat(
        pd.DataFrame(
            {"agent": "ppo", "train_seed": seed, "steps": steps, "mean_s": 4.0 - steps / 4e5 + seed}
        )
        for seed in range(4)
    )


FIGURES: dict[str, Callable[[], Figure]] = {
    "latency": lambda: latency_by_agent(_long()),
    "latency, one episode": lambda: latency_by_agent(_long(episodes=1)),
    "change": lambda: change_by_agent(_long()),
    "timeline": lambda: timeline(_steps()),
    "prediction": lambda: predicted_against_measured(_both()),
    "learning": lambda: learning_curves(_learning(), {"static_best": 1.25, "clairvoyant": 0.9}),
    "real runs": lambda: real_runs(_both()),
}


def _dots(axes: Axes) -> dict[float, Line2D]:
    """Return the markers of a dot plot by row."""
    return {
        float(np.asarray(line.get_ydata())[0]): line
        for line in axes.lines
        if line.get_marker() in ("o", "D")
    }


def _rows(axes: Axes) -> list[str]:
    return [tick.get_text() for tick in axes.get_yticklabels()]


@pytest.mark.parametrize("name", FIGURES)
def test_texts_of_a_figure_never_overlap_and_stay_inside(name: str) -> None:
    check_texts(FIGURES[name]())


@pytest.mark.parametrize("name", FIGURES)
def test_numbers_on_axes_have_units(name: str) -> None:
    check_units(FIGURES[name]())


def test_latencies_are_drawn_where_they_are() -> None:
    figure = latency_by_agent(_long())
    assert [axes.get_title() for axes in figure.axes] == [
        "worldcup98, load 0.5",
        "worldcup98, load 0.7",
    ]
    expected_rows = ["clairvoyant", "ppo", "static best", "proportional integral", "spark default"]
    for axes, load in zip(figure.axes, (0.5, 0.7), strict=True):
        assert _rows(axes) == expected_rows
        assert axes.get_xscale() == "log"
        dots = _dots(axes)
        # 1.25 is the mean of 1 + 0.1 e over six episodes, 1.1 the mean over three seeds.
        for y, agent in enumerate(sorted(LATENCY_S, key=lambda name: LATENCY_S[name])):
            value = LATENCY_S[agent] * 1.25 * (1.0 + load) * (1.1 if agent == "ppo" else 1.0)
            assert float(np.asarray(dots[y].get_xdata())[0]) == pytest.approx(value)
        assert dots[4].get_markerfacecolor() == "white"
        assert dots[1].get_color() == dots[1].get_markerfacecolor() == ACCENT
        intervals = [
            np.asarray(line.get_xdata()) for line in axes.lines if line.get_linewidth() == 1.8
        ]
        assert len(intervals) == len(LATENCY_S)
    narrow = latency_by_agent(_long().query("agent != 'spark_default'")).axes[0]
    assert narrow.get_xscale() == "linear"
    assert narrow.get_xlim()[0] == 0.0


def test_changes_are_paired_and_far_ones_are_written() -> None:
    figure = change_by_agent(_long(loads=(0.7,)))
    against_default, against_static = figure.axes
    rows = _rows(against_static)
    dots = _dots(against_static)
    for agent, value in {
        "clairvoyant": 0.9 / 1.25,
        "ppo": 1.1 / 1.25,
        "proportional integral": 1.5 / 1.25,
        "static best": 1.0,
    }.items():
        x = float(np.asarray(dots[rows.index(agent)].get_xdata())[0])
        assert x == pytest.approx(100.0 * (value - 1.0))
    # All differences are the same in every episode: the paired interval has no width.
    widths = [
        np.ptp(np.asarray(line.get_xdata()))
        for line in against_static.lines
        if line.get_linewidth() == 1.8
    ]
    assert max(widths) < 1e-9
    assert [text.get_text() for text in against_static.texts] == ["+620 % →"]
    assert rows.index("spark default") not in dots
    assert len(_dots(against_default)) == len(LATENCY_S)
    with pytest.raises(ConfigError, match="baseline 'fifo' is not among the agents"):
        change_by_agent(_long(), baselines=("fifo",))


def test_predictions_inside_the_bands_are_counted() -> None:
    figure = predicted_against_measured(_both())
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["within 10 %: 24 of 30", "within 15 %: 24 of 30"]
    for axes in figure.axes:
        assert axes.get_xlim() == axes.get_ylim()
    with pytest.raises(ConfigError, match="both simulated and measured"):
        predicted_against_measured(_both().query("source == 'measured'"))


def test_learning_curves_show_every_seed_and_the_interquartile_mean() -> None:
    axes = learning_curves(_learning(), {"static_best": 1.25}).axes[0]
    thin, thick = (
        [line for line in axes.lines if line.get_linewidth() == width] for width in (0.8, 2.2)
    )
    assert (len(thin), len(thick)) == (4, 1)
    # Of four seeds the lowest and the highest are left out.
    np.testing.assert_allclose(np.asarray(thick[0].get_ydata())[[0, -1]], [5.5, 3.0])
    # A seed that has not finished does not bend the mean of the others.
    unfinished = _learning().query("train_seed < 3 or steps < 500_000")
    axes = learning_curves(unfinished).axes[0]
    (thick_line,) = (line for line in axes.lines if line.get_linewidth() == 2.2)
    assert np.asarray(thick_line.get_xdata()).max() == 400_000


def test_a_timeline_shows_every_agent_in_every_panel() -> None:
    figure = timeline(_steps())
    arrivals, latency, interval, parallelism, pools = figure.axes
    assert [len(axes.lines) for axes in (latency, interval, parallelism)] == [3, 3, 3]
    colours = [[line.get_color() for line in axes.lines] for axes in (latency, interval)]
    assert colours == [list(COLOURS[:3])] * 2
    # Rates from counts: 200 records in 2 s.
    (area,) = arrivals.collections
    assert area.get_paths()[0].vertices[:, 1].max() == pytest.approx(100.0)
    assert np.asarray(latency.lines[1].get_ydata()).tolist() == [2.0] * 51
    assert _rows(pools) == ["ppo", "static best", "spark default"]
    assert len(pools.patches) == 3 * 60 + 3


def test_real_runs_leave_simulated_rows_out() -> None:
    figure = real_runs(_both())
    axes = figure.axes[0]
    joined = [line for line in axes.lines if line.get_linewidth() == 0.8]
    assert len(joined) == 6
    expected = [LATENCY_S[a] * 1.7 for a in sorted(LATENCY_S, key=lambda n: LATENCY_S[n])]
    np.testing.assert_allclose(np.asarray(joined[0].get_xdata()), expected)
    with pytest.raises(ConfigError, match="no rows"):
        real_runs(_both().query("source == 'simulated'"))


@pytest.mark.parametrize(
    ("draw", "table", "column"),
    [
        (latency_by_agent, _long(), "stable"),
        (change_by_agent, _long(), "episode"),
        (timeline, _steps(), "latency_s"),
        (predicted_against_measured, _both(), "p95_s"),
        (learning_curves, _learning(), "steps"),
        (real_runs, _both(), "source"),
    ],
)
def test_missing_columns_and_rows_are_named(
    draw: Callable[[pd.DataFrame], Figure], table: pd.DataFrame, column: str
) -> None:
    with pytest.raises(ConfigError, match=f"has no column '{column}'; it has"):
        draw(table.drop(columns=column))
    with pytest.raises(ConfigError, match="has no rows"):
        draw(table.iloc[:0])


def test_a_figure_is_saved_with_its_caption(tmp_path: Path) -> None:
    path = tmp_path / "figures" / "latency.png"
    save_figure(FIGURES["learning"](), path, "  Latency while learning.\nTen seeds.  ")
    assert sorted(p.name for p in path.parent.iterdir()) == ["latency.md", "latency.png"]
    figure = FIGURES["learning"]()
    wide, high = figure.get_size_inches() * 150
    assert imread(path).shape[:2] == (round(high), round(wide))
    assert path.with_suffix(".md").read_text() == (
        "![latency](latency.png)\n\nLatency while learning.\nTen seeds.\n"
    )
    first = path.read_bytes()
    save_figure(figure, path, "again")
    assert path.read_bytes() == first


def test_a_figure_needs_a_caption_and_the_right_ending(tmp_path: Path) -> None:
    for path, caption, message in (
        (tmp_path / "a.png", " ", "has no caption"),
        (tmp_path / "a.pdf", "x", "does not end in .png"),
    ):
        with pytest.raises(ConfigError, match=message):
            save_figure(FIGURES["learning"](), path, caption)
    assert list(tmp_path.iterdir()) == []


def test_logarithmic_axes_are_for_wide_ranges_alone() -> None:
    assert is_wide([1.0, 9.0])
    assert not is_wide([1.0, 7.0])
    assert not is_wide([0.0, 9.0])
    assert not is_wide([])
    assert not is_wide([1.0, float("nan")])
