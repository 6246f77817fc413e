"""From the rows of a comparison to its summary: intervals, paired differences, headroom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.statistics import Estimate, interquartile_mean, mean, stratified_bootstrap

CLAIRVOYANT, STATIC_BEST = "clairvoyant", "static_best"
HINDSIGHT_BEST, HINDSIGHT_WINDOWS, FORESIGHT = (
    *("hindsight_best", "hindsight_windows", "foresight_windows"),
)
SEARCHED = (CLAIRVOYANT, HINDSIGHT_BEST, HINDSIGHT_WINDOWS, FORESIGHT)
"""Who knows the future: references, no agents."""
RIVALS = (STATIC_BEST, "confidence_cascade", "slack_fit", "model_switching")
SMALL_HEADROOM = 0.01
"""Headroom, in effective accuracy, below which adapting is not worth it: nothing is closed."""
_MEANS = (
    *("accuracy", "p50_s", "p99_s", "missed_share", "dropped_share", "energy_per_request_j"),
    *("switches_per_minute", "escalated_share"),
)
_NOTHING = Estimate(float("nan"), float("nan"), float("nan"))


def with_clairvoyant(table: pd.DataFrame) -> pd.DataFrame:
    """Add the clairvoyant reference: in every episode the best that anybody reached."""
    best = table.loc[table.groupby("episode")["effective_accuracy"].idxmax()].copy()
    best["reached_by"] = best["agent"]
    best["agent"], best["train_seed"] = CLAIRVOYANT, 0
    return pd.concat([table, best], ignore_index=True)


def scores_of(
    table: pd.DataFrame, column: str = "effective_accuracy"
) -> dict[str, NDArray[np.float64]]:
    """Return scores by agent, float64 [train seeds, episodes], of one stream."""
    return {
        str(name): rows.pivot(index="train_seed", columns="episode", values=column).to_numpy()
        for name, rows in table.groupby("agent", sort=False)
    }


def difference(scores: Mapping[str, NDArray[np.float64]], name: str, rival: str) -> Estimate:
    """Return how much more effective accuracy an agent has than a rival, paired by episode.

    Args:
        scores: From `scores_of`.
        name: The agent.
        rival: The rival; both are averaged over training seeds first.
    """
    own = scores[name].mean(axis=0) - scores[rival].mean(axis=0)
    return stratified_bootstrap([own], mean, np.random.default_rng(0))


def headroom(table: pd.DataFrame) -> Estimate:
    """Return what adapting can win over the best constant assignment, in effective accuracy."""
    return difference(scores_of(table), CLAIRVOYANT, STATIC_BEST)


def closed(table: pd.DataFrame, name: str) -> Estimate:
    """Return the share of the headroom that an agent closes; NaN where it is small.

    Episodes are resampled in pairs of gain and headroom, whose means are divided.
    """
    scores = scores_of(table)
    static = scores[STATIC_BEST].mean(axis=0)
    gain, room = scores[name].mean(axis=0) - static, scores[CLAIRVOYANT].mean(axis=0) - static
    if room.mean() < SMALL_HEADROOM:
        return _NOTHING
    drawn = np.random.default_rng(0).integers(len(gain), size=(2000, len(gain)))
    ratios = gain[drawn].mean(axis=1) / np.maximum(room[drawn].mean(axis=1), 1e-12)
    low, high = np.quantile(ratios, (0.025, 0.975)) if len(gain) > 1 else (np.nan, np.nan)
    return Estimate(float(gain.mean() / room.mean()), float(low), float(high))


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per agent of one stream: levels with intervals, differences, headroom closed.

    Args:
        table: Rows of one comparison, the clairvoyant reference among them.
    """
    scores = scores_of(table)
    rows = []
    for name, own in scores.items():
        flat = own.reshape(-1)
        iqm = stratified_bootstrap([flat], interquartile_mean, np.random.default_rng(0))
        row: dict[str, Any] = {
            "agent": name,
            "seeds": own.shape[0],
            "episodes": own.shape[1],
            "effective_accuracy": float(flat.mean()),
            **_interval("iqm", iqm),
        }
        mine = table[table["agent"] == name]
        row |= {column: float(mine[column].mean()) for column in _MEANS}
        for rival in (r for r in RIVALS if r in scores):
            row |= _interval(f"vs_{rival}", difference(scores, name, rival))
        row |= _interval("closed", closed(table, name))
        rows.append(row)
    return pd.DataFrame(rows).sort_values("effective_accuracy", ascending=False, kind="stable")


def headroom_line(table: pd.DataFrame) -> str:
    """Return what the headroom of a comparison says, in a sentence."""
    room = headroom(table)
    said = f"headroom over static best: {100 * room.value:.1f} points"
    if np.isfinite(room.low):
        said += f" ({100 * room.low:.1f} to {100 * room.high:.1f})"
    if room.value < SMALL_HEADROOM:
        said += "; so small that adapting is not worth it here"
    return said


def _interval(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
