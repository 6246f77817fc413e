"""Search with the true future: what one plan, or one plan a window, could have reached.

Not a bound and not deployable: the references that headroom is measured against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from agents.deciders import Worlds, descend
from agents.precision.api import Episodes, effective_accuracies
from agents.precision.scores import row_accuracies
from envs.precision.config import StagedPrecisionConfig

_TIME = 0  # column of the time in the signals


class WindowRows:
    """Proposes a given plan in each window of time, another sequence in every server."""

    decides = observes = False

    def __init__(self, rows: NDArray[np.float64], window_s: float) -> None:
        """Keep the plans.

        Args:
            rows: float64 [windows, N, 2 * S + 1]; the last window has no end.
            window_s: Length of a window, seconds.
        """
        self._rows, self._window_s = rows, window_s

    def begin(self, servers: Worlds) -> None:
        """Nothing to forget."""

    def propose(
        self, observation: NDArray[np.float32], signals: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the plans of each server's window; see `agents.deciders.BatchDecider`."""
        window = (signals[:, _TIME] / self._window_s).astype(np.int64)
        chosen: NDArray[np.float64] = self._rows[
            np.minimum(window, len(self._rows) - 1), np.arange(len(signals))
        ]
        return chosen


def hindsight_best(
    config: StagedPrecisionConfig, rows: NDArray[np.float64], episodes: Episodes
) -> NDArray[np.int64]:
    """Return which constant plan is best in each episode, knowing its future, int64 [episodes].

    Args:
        config: The simulated world.
        rows: float64 [M, 2 * S + 1], plans to choose from.
        episodes: Which streams.
    """
    return np.asarray(row_accuracies(config, rows, episodes).argmax(axis=0))


def with_other_samples(
    config: StagedPrecisionConfig, rng: np.random.Generator
) -> StagedPrecisionConfig:
    """Return the world in which the same requests, in the same conditions, carry other samples.

    Args:
        config: The simulated world.
        rng: Draws which sample takes the place of which.
    """
    profile = config.profile
    order = rng.permutation(profile.n_samples)
    other = replace(
        profile,
        truth=profile.truth[order],
        label=profile.label[..., order],
        margin=profile.margin[..., order],
        properties=profile.properties[:, order],
    )
    return replace(config, profile=other)


def hindsight_windows(
    worlds: Sequence[StagedPrecisionConfig],
    rows: NDArray[np.float64],
    episodes: Episodes,
    window_s: float,
    passes: int = 1,
) -> NDArray[np.float64]:
    """Search a plan for each window of each episode, knowing its future.

    Coordinate descent from the plan that is best throughout (see `agents.deciders.descend`): its
    effective accuracy, in the mean over the worlds, is never below that of the best constant plan.

    Args:
        worlds: The simulated world: then the search knows which requests every plan answers
            rightly, and wins by it even where nothing changes. Or several `with_other_samples`:
            then it knows arrivals and conditions alone.
        rows: float64 [E, M, 2 * S + 1], plans to choose from in each of E episodes.
        episodes: Which streams; simulated side by side.
        window_s: Length of a window, seconds.
        passes: How often all windows are gone through.

    Returns:
        float64 [windows, E, 2 * S + 1], for `WindowRows`.
    """
    count, n, width = rows.shape
    same = Episodes(np.repeat(episodes.keys, n), np.repeat(episodes.starts, n))
    windows = max(1, int(np.ceil(worlds[0].horizon_s / window_s - 1e-9)))
    own = np.arange(count)

    def losses(choice: NDArray[np.int64]) -> NDArray[np.float64]:
        chosen = rows[own[:, None, None], choice]  # [E, M, windows, width]
        agent = WindowRows(chosen.reshape(count * n, windows, width).swapaxes(0, 1), window_s)
        scores = [effective_accuracies(world, agent, same) for world in worlds]
        return -np.mean(scores, axis=0).reshape(count, n)

    best = descend(losses, (count, n, windows), passes)
    return rows[own[:, None], best].swapaxes(0, 1)
