"""Search with the true future: what a schedule of plans could have reached in hindsight.

Not a bound and not deployable: the reference that headroom is measured against.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from agents.deciders import Episodes, descend
from envs.cluster.clusters import Clusters
from envs.cluster.config import StreamClusterConfig
from runtime.plan import Plan
from runtime.snapshot import SIGNAL_INDEX

_SYSTEM = SIGNAL_INDEX["system_record_s"]
_IN = SIGNAL_INDEX["records_in"]


class ScheduleRows:
    """Proposes a given sequence of plans in every cluster."""

    def __init__(self, rows: NDArray[np.float64]) -> None:
        """Keep the plans, float64 [steps, N, len(PLAN_COLUMNS)]."""
        self._rows = rows

    def begin(self, clusters: Clusters) -> None:
        """Start from the first plan."""
        self._step = 0

    def propose(
        self, observation: NDArray[np.float32], signals: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the plans of this step; see `agents.api.BatchAgent`."""
        rows: NDArray[np.float64] = self._rows[self._step]
        self._step += 1
        return rows


def hindsight_schedule(
    config: StreamClusterConfig,
    episodes: Episodes,
    episode: int,
    candidates: Sequence[Plan],
    segment_s: float,
    passes: int,
) -> NDArray[np.float64]:
    """Search the plans of one episode, knowing its future.

    Coordinate descent: starting from the candidate that is best as a constant, segment after
    segment takes the candidate that makes the mean latency of the whole episode lowest, the other
    segments fixed.

    Args:
        config: The simulated world.
        episodes: Which arrivals.
        episode: Which of them.
        candidates: Plans to choose from.
        segment_s: Length of a segment, seconds; whole periods.
        passes: How often all segments are gone through.

    Returns:
        Plan rows float64 [steps, len(PLAN_COLUMNS)].
    """
    n = len(candidates)
    rows = np.stack([plan.to_row() for plan in candidates])
    clusters = Clusters(config, n)
    keys = np.repeat(episodes.keys[episode], n)
    starts = np.repeat(episodes.starts[episode], n)
    width = max(1, round(segment_s / config.period_s))
    segments = np.arange(config.steps) // width

    def latencies(choice: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the mean latency of each schedule of segments, choice int64 [1, n, segments]."""
        clusters.begin(keys, starts)
        area = np.zeros(n)
        for segment in segments:
            clusters.step_rows(rows[choice[0, :, segment]])
            area += clusters.engine.signals[:, _SYSTEM]
        result: NDArray[np.float64] = area / np.maximum(clusters.engine.signals[:, _IN], 1.0)
        return result[None]

    (best,) = descend(latencies, (1, n, int(segments[-1]) + 1), passes)
    return rows[best[segments]]
