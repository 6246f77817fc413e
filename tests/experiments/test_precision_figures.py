from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from envs.precision.viewer import level_colours
from experiments.errors import ConfigError
from experiments.figure_style import ACCENT
from experiments.precision.figures import front
from experiments.precision.stream_figures import (
    ablation,
    gain_by_agent,
    headroom_by_load,
    headroom_by_stream,
    predicted_streams,
    stream_timeline,
)
from tests.experiments.drawn import check_texts, check_units

EFFECTIVE = {
    "clairvoyant": 0.9,
    "ppo": 0.88,
    "slack_fit": 0.85,
    "static_best": 0.8,
    "confidence_cascade": 0.75,
}
LEVELS = ("fp32", "int8", "int8_quarter")
STREAMS = ("steady", "both")
DRAWN = ("ppo", "slack_fit", "confidence_cascade")


def _rows(episodes: int = 5) -> pd.DataFrame:
    """Return a long table in which agents lose the same to the reference in every episode.

    On steady streams all have 0.93: there is nothing to adapt to.
    """
    rows = [
        {
            "network": "digits_cnn",
            "stream": stream,
            "agent": agent,
            "train_seed": seed,
            "episode": episode,
            "effective_accuracy": 0.93 if stream == "steady" else level - 0.01 * episode,
        }
        for stream in STREAMS
        for agent, level in EFFECTIVE.items()
        for seed in range(2 if agent == "ppo" else 1)
        for episode in range(episodes)
    ]
    return pd.DataFrame(rows)


def _given(end_s: float = 10.0) -> pd.DataFrame:
    """Return 2 requests per tick of 0.05 s; inputs are noisy from 4 s to 6 s."""
    time_s = np.arange(0.0, end_s, 0.05)
    noisy = (time_s >= 4.0) & (time_s < 6.0)
    condition = np.where(noisy, "noise-4", "clean")
    return pd.DataFrame(
        {"agent": "given", "time_s": time_s, "requests": 2.0, "condition": condition}
    )


def _steps(stages: int = 4, cascade: bool = True) -> pd.DataFrame:
    """Return an agent that lowers its levels at 5 s, and one that never does."""
    time_s = np.arange(0.0, 10.0, 0.1)
    tables = [_given()]
    for name in ("ppo", "confidence_cascade"):
        low = (time_s >= 5.0) if name == "ppo" else np.full(len(time_s), fill_value=True)
        own = pd.DataFrame({"agent": name, "time_s": time_s, "requests": 3.0, "dropped": 1.0})
        own["in_time"] = 2.0
        for k in range(stages):
            own[f"level_stage{k}"] = np.where(low, 2, 0)
        own["escalate_below"] = 0.4 if cascade and name == "confidence_cascade" else 0.0
        tables.append(own)
    return pd.concat(tables)


def _costs() -> pd.DataFrame:
    change = {"nothing": 0.0, "load": -0.08, "input": -0.01, "shadow": 0.002}
    table = pd.DataFrame({"hidden": change.keys(), "change": change.values()})
    return table.assign(low=table["change"] - 0.004, high=table["change"] + 0.004)


def _timeline(stages: int = 4, cascade: bool = True) -> Figure:
    return stream_timeline(_steps(stages, cascade), ["ppo", "absent", "confidence_cascade"], LEVELS)


def _tried() -> tuple[pd.DataFrame, pd.DataFrame]:
    every = pd.DataFrame({"assignment": list("abcd"), "calibration": [0.9, 0.95, 0.94, 0.97]})
    every["predicted_s"] = [1e-3, 2e-3, 3e-3, 4e-3]
    return every, pd.DataFrame({"chosen_by": ["x", "y", "z"], "assignment": list("bbd")})


def _by_load(episodes: int = 4, streams: Sequence[str] = ("both",)) -> pd.DataFrame:
    """Return gains of 1 and 2 points at one load, 2 and 4 at another, in every episode."""
    gains = {"static_best": 0.0, "slack_fit": 0.01, "foresight_windows": 0.02}
    rows = [
        {"stream": stream, "load": load, "agent": agent, "train_seed": 0, "episode": k}
        | {"effective_accuracy": level - 0.005 * k + times * gain}
        for stream in streams
        for load, level, times in ((0.3, 0.9, 1.0), (0.8, 0.7, 2.0))
        for agent, gain in gains.items()
        for k in range(episodes)
    ]
    return pd.DataFrame(rows)


def _real() -> pd.DataFrame:
    """Two agents on one stream, predicted 2 points and 10 % too high."""
    rows = [
        {"stream": "both", "agent": agent, "episode": k, "source": source}
        | {"effective_accuracy": value + off, "missed_share": 0.1 + off}
        | {"p50_s": 0.01 * scale, "p99_s": 0.03 * scale}
        for agent, value in (("ppo", 0.8), ("static_best", 0.7))
        for k in range(2)
        for source, off, scale in (("measured", 0.0, 1.0), ("simulated", 0.02, 1.1))
    ]
    return pd.DataFrame(rows)


FIGURES: dict[str, Callable[[], Figure]] = {
    "accuracy": lambda: gain_by_agent(_rows()),
    "accuracy, one episode": lambda: gain_by_agent(_rows(episodes=1)),
    "headroom": lambda: headroom_by_stream(_rows(), DRAWN),
    "headroom, one episode": lambda: headroom_by_stream(_rows(episodes=1), DRAWN),
    "loads": lambda: headroom_by_load(_by_load()),
    "loads, four streams": lambda: headroom_by_load(
        _by_load(streams=("steady", "burst", "drift", "both"))
    ),
    "loads, one episode": lambda: headroom_by_load(_by_load(episodes=1)),
    "predicted": lambda: predicted_streams(_real()),
    "ablation": lambda: ablation(_costs()),
    "timeline": _timeline,
    "timeline, eight stages": lambda: _timeline(stages=8),
    "timeline, no cascade": lambda: _timeline(cascade=False),
    "front": lambda: front(*_tried()),
}


@pytest.mark.parametrize("name", FIGURES)
def test_texts_never_overlap_and_numbers_have_units(name: str) -> None:
    figure = FIGURES[name]()
    check_texts(figure)
    check_units(figure)


def _names(axes: Axes) -> list[str]:
    return [tick.get_text() for tick in axes.get_yticklabels()]


def _marks(axes: Axes) -> list[tuple[float, float]]:
    """Return the places of single marks."""
    return [
        (float(np.asarray(line.get_xdata())[0]), float(np.asarray(line.get_ydata())[0]))
        for line in axes.lines
        if line.get_marker() not in ("", "None", None)
    ]


def test_gains_are_drawn_where_they_are() -> None:
    figure = gain_by_agent(_rows())
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        f"digits cnn, {s}: static best has {v} %"
        for s, v in zip(STREAMS, ("93.0", "78.0"), strict=True)
    ]
    assert {axes.get_xlabel() for axes in figure.axes} == {
        "effective accuracy over static best (points)"
    }
    both = figure.axes[1]
    assert _names(both) == ["clairvoyant", "ppo", "slack fit", "static best", "confidence cascade"]
    expected = [(100.0 * (level - 0.8), k) for k, level in enumerate(EFFECTIVE.values())]
    np.testing.assert_allclose(_marks(both), expected, atol=1e-9)
    np.testing.assert_allclose(_marks(figure.axes[0]), [(0.0, k) for k in range(5)], atol=1e-9)
    coloured = [t.get_text() for t in both.get_yticklabels() if t.get_color() == ACCENT]
    assert coloured == ["ppo"]


def test_gains_at_each_load_are_drawn_over_its_best_constant() -> None:
    axes = headroom_by_load(_by_load()).axes[0]
    drawn = {
        str(each.get_label()): np.asarray(each.lines[0].get_xydata()) for each in axes.containers
    }
    assert set(drawn) == {"slack fit", "foresight windows"}
    # intervals stand side by side
    np.testing.assert_allclose(drawn["slack fit"], [(0.294, 1.0), (0.794, 2.0)], atol=1e-9)
    np.testing.assert_allclose(drawn["foresight windows"], [(0.306, 2.0), (0.806, 4.0)], atol=1e-9)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0.3\n89", "0.8\n69"]


def test_streams_share_a_scale_that_holds_the_gains_of_all() -> None:
    table = _by_load(streams=("steady", "burst"))
    large = (table["stream"] == "burst") & (table["agent"] == "slack_fit")
    table.loc[large, "effective_accuracy"] += 0.5
    panels = headroom_by_load(table).axes
    low, high = panels[0].get_ylim()
    for axes in panels:
        assert axes.get_ylim() == (low, high)
        for each in axes.containers:
            gains = np.asarray(each.lines[0].get_ydata())
            assert low < gains.min() <= gains.max() < high


def test_who_is_far_worse_stands_at_the_edge_with_a_number() -> None:
    rows = _rows()
    worse = rows["agent"].eq("confidence_cascade") & rows["stream"].eq("both")
    rows.loc[worse, "effective_accuracy"] -= 0.4
    both = gain_by_agent(rows).axes[1]
    assert [text.get_text() for text in both.texts] == ["\N{MINUS SIGN}45"]
    left, right = both.get_xlim()
    assert _marks(both)[-1] == (pytest.approx(-20.0), 4)  # twice as far as the best is above
    assert left < -20.0
    assert right > 10.0


def test_gains_need_the_best_constant() -> None:
    rows = _rows()
    with pytest.raises(ConfigError, match="static_best did not run on 'steady'"):
        gain_by_agent(rows[rows["agent"] != "static_best"])


def test_marks_on_a_front_are_told_apart() -> None:
    letters = list("abcdefghij")
    every = pd.DataFrame({"assignment": letters, "calibration": np.linspace(0.5, 0.9, 10)})
    every["predicted_s"] = np.linspace(1e-3, 9e-3, 10)
    figure = front(every, pd.DataFrame({"chosen_by": letters, "assignment": letters}))
    marks = [line for line in figure.axes[0].lines if line.get_label() in letters]
    assert len({(line.get_marker(), line.get_color()) for line in marks}) == 10


def test_headroom_and_gains_are_paired_by_episode() -> None:
    figure = headroom_by_stream(_rows(), [*DRAWN, "absent"])
    (axes,) = figure.axes
    assert _names(axes) == ["digits cnn, steady", "digits cnn, both"]
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], [0.0, 10.0], atol=1e-9)
    gains = [x for x, y in _marks(axes) if y > 0.5]
    np.testing.assert_allclose(gains, [8.0, 5.0, -5.0])
    (legend,) = figure.legends
    named = [text.get_text() for text in legend.get_texts()]
    assert named[-3:] == ["ppo", "slack fit", "confidence cascade"]


def test_an_ablation_shows_the_groups_that_are_hidden() -> None:
    (axes,) = ablation(_costs()).axes
    assert _names(axes) == ["without load", "without input", "without shadow"]
    np.testing.assert_allclose([x for x, _ in _marks(axes)], [-8.0, -1.0, 0.2])


def test_a_timeline_shows_rates_accuracies_and_plans() -> None:
    figure = _timeline()
    rate, accuracy, ppo, cascade = figure.axes
    (area,) = rate.collections
    # 2 requests per 0.05 s, over corrupted inputs too
    heights = area.get_paths()[0].vertices
    assert heights[:, 1].max() == pytest.approx(40.0)
    assert heights[:, 0].max() == pytest.approx(10.0)
    (span,) = rate.patches
    assert (span.get_x(), span.get_x() + span.get_width()) == pytest.approx((4.0, 6.0))
    assert span.get_zorder() < area.get_zorder()
    # 2 of 3 + 1 requests are right and in time
    assert [line.get_label() for line in accuracy.lines] == ["ppo", "confidence cascade"]
    for line in accuracy.lines:
        np.testing.assert_allclose(np.asarray(line.get_ydata()), 50.0)
    assert _names(ppo) == ["stage0", "stage1", "stage2", "stage3", "again"]
    assert cascade.get_xlabel() == "time (s)"


def test_a_raster_has_the_colours_of_levels_and_of_the_second_pass() -> None:
    *_, ppo, cascade = _timeline().axes

    def colours(axes: Axes, row: int) -> list[str]:
        image = axes.images[0]
        shown = image.cmap(image.norm(image.get_array()[row]))
        return [to_hex(colour) if colour[3] else "" for colour in shown[[100, -100]]]

    names = [to_hex(colour) for colour in level_colours(3)]
    assert colours(ppo, 0) == [names[0], names[2]]
    assert colours(ppo, 4) == ["", ""]
    assert colours(cascade, 3) == [names[2], names[2]]
    assert colours(cascade, 4) == ["#4d4d4d"] * 2
    plain = _timeline(cascade=False)
    assert _names(plain.axes[-1]) == ["stage0", "stage1", "stage2", "stage3"]
    texts = [text.get_text() for legend in plain.legends for text in legend.get_texts()]
    assert texts == ["ppo", "confidence cascade", *LEVELS, "inputs corrupted"]


@pytest.mark.parametrize(
    ("draw", "table", "column"),
    [
        (gain_by_agent, _rows(), "episode"),
        (lambda table: headroom_by_stream(table, DRAWN), _rows(), "effective_accuracy"),
        (ablation, _costs(), "low"),
        (lambda table: stream_timeline(table, ["ppo"], LEVELS), _steps(), "in_time"),
        (lambda table: stream_timeline(table, ["ppo"], LEVELS), _steps(), "dropped"),
    ],
)
def test_missing_columns_and_rows_are_named(
    draw: Callable[[pd.DataFrame], Figure], table: pd.DataFrame, column: str
) -> None:
    with pytest.raises(ConfigError, match=f"has no column '{column}'; it has"):
        draw(table.drop(columns=column))
    with pytest.raises(ConfigError, match="has no rows"):
        draw(table.iloc[:0])


def test_predictions_stand_over_measurements() -> None:
    figure = predicted_streams(_real())
    points = [[c.get_offsets().data[0] for c in axes.collections] for axes in figure.axes]
    np.testing.assert_allclose(points[0], [[80.0, 82.0], [70.0, 72.0]])
    np.testing.assert_allclose(points[3], [[30.0, 33.0], [30.0, 33.0]])
    with pytest.raises(ConfigError, match="both simulated and measured"):
        predicted_streams(_real().query("source == 'measured'"))
