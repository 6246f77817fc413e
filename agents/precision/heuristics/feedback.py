"""Rules that follow measured feedback: the shadow check, or the time that batches really take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from agents.precision.known import FrontierTable, Known
from agents.precision.rule import Rule

_HALF_ROOT = math.sqrt(0.5)


@dataclass(eq=False)
class ShadowFeedback(Rule):
    """Raises levels while shadow checks disagree too often, lowers them while they rarely do.

    It climbs a ladder of uniform tables from the coarsest to the finest one, one rung at a time:
    up while the Wilson lower bound of the disagreement exceeds a target, down while the upper
    bound is below it. After a move the window still holds old checks, hence the pause.

    Attributes:
        known: What it starts from.
        target: Share of answers that may differ from the reference level's.
        pause_s: Time between two moves of a server, seconds.
        start: Level at the start.
    """

    name: ClassVar[str] = "shadow_feedback"
    known: Known
    target: float
    pause_s: float
    start: int

    def forget(self, n: int) -> None:
        """Start at the first level; see `Rule`."""
        self._level = np.full(n, self.start)
        self._moved_s = np.full(n, -np.inf)

    def rows(self, signals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Move at most one rung; see `Rule`."""
        known = self.known
        names = ("time_s", "shadow_checks", "shadow_low", "shadow_high")
        time_s, checks, low, high = (signals[:, known.column(name)] for name in names)
        step = np.where(low > self.target, -1, np.where(high < self.target, 1, 0))
        free = (checks > 0.0) & (time_s - self._moved_s >= self.pause_s)
        level = np.clip(self._level + np.where(free, step, 0), 0, known.tables.n_levels - 1)
        self._moved_s = np.where(level != self._level, time_s, self._moved_s)
        self._level = level
        tables = np.repeat(level[:, None], known.tables.n_stages, axis=1)
        return known.rows[known.assignments(tables.astype(np.float64))]


def shadow_feedback_grid(known: Known) -> list[ShadowFeedback]:
    """Return all settings to choose from."""
    levels = range(known.tables.n_levels)
    targets = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2)
    return [ShadowFeedback(known, *s) for s in product(targets, (0.5, 2.0, 5.0), levels)]


@dataclass(eq=False)
class Alert(Rule):
    """Runs the assignment with the highest expected in-time accuracy.

    In the manner of ALERT (Wan et al., "ALERT: Accurate Learning for Energy and Timeliness", USENIX
    ATC 2020): the ratio of measured over predicted latency is followed by a Kalman filter with
    adaptive process noise, and taken as normal. The filter's constants are not theirs; the one that
    matters most, the least process noise, is tuned.

    Attributes:
        known: What it starts from.
        process_noise: Least variance that the ratio gains per batch.
        factor: Share of the head's slack that counts as time left.
    """

    name: ClassVar[str] = "alert"
    known: Known
    process_noise: float
    factor: float

    MEASUREMENT_NOISE: ClassVar[float] = 1e-3
    FORGETTING: ClassVar[float] = 0.3

    def forget(self, n: int) -> None:
        """Start with a ratio of 1; see `Rule`."""
        self.ratio = np.ones(n)
        self.variance = np.full(n, 0.1)
        self._gain = np.full(n, 0.5)
        self._noise = np.full(n, self.process_noise)
        self._error = np.zeros(n)
        self._busy_s = np.zeros(n)

    def rows(self, signals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Renew the ratio, then choose; see `Rule`."""
        self._follow(signals)
        known = self.known
        left_s = self.factor * signals[:, known.column("head_slack_s")]
        chosen = np.empty(len(signals), dtype=np.int64)
        belief = Belief(self.ratio, np.sqrt(self.variance))
        bucket = known.bucket(signals[:, known.column("batch")])
        _expect(known.frontier_table, bucket, left_s, belief, chosen)
        return known.rows[chosen]

    def _follow(self, signals: NDArray[np.float64]) -> None:
        """Take the last batch's measured ratio in, where there is a new one."""
        known, s = self.known, self.known.tables.n_stages
        busy_s = signals[:, known.column("busy_s")]
        news = busy_s > self._busy_s
        self._busy_s = busy_s.copy()
        if not news.any():
            return
        size = signals[:, known.column("last_batch")]
        again = np.rint(size * signals[:, known.column("last_escalated_share")])
        plan = signals[:, known.layout.plan_columns]
        first, second = known.assignments(plan[:, :s]), known.assignments(plan[:, s + 1 :])
        expected_s = known.latency_s(first, size) + known.latency_s(second, again)
        measured_s = signals[:, known.column("last_service_s")]
        error = measured_s / np.maximum(expected_s, 1e-12) - self.ratio
        adapted = self.FORGETTING * self._noise + (1.0 - self.FORGETTING) * (
            (self._gain * self._error) ** 2
        )
        noise = np.maximum(self.process_noise, adapted)
        prior = (1.0 - self._gain) * self.variance + noise
        gain = prior / (prior + self.MEASUREMENT_NOISE)
        renewed = (self.ratio + gain * error, prior, gain, noise, error)
        kept = (self.ratio, self.variance, self._gain, self._noise, self._error)
        values = [np.where(news, new, old) for new, old in zip(renewed, kept, strict=True)]
        self.ratio, self.variance, self._gain, self._noise, self._error = values


class Belief(NamedTuple):
    """What N servers believe about measured over predicted latency.

    Attributes:
        ratio: float64 [N], its mean.
        spread: float64 [N], its standard deviation.
    """

    ratio: NDArray[np.float64]
    spread: NDArray[np.float64]


@njit(cache=True, error_model="numpy")
def _expect(
    table: FrontierTable,
    bucket: NDArray[np.int64],
    left_s: NDArray[np.float64],
    belief: Belief,
    result: NDArray[np.int64],
) -> None:
    """Write the assignment of each batch's frontier with the highest expected accuracy in time."""
    for i in range(len(result)):
        b = bucket[i]
        # Where nothing is expected in time, the first and fastest one runs.
        best, highest = 0, -1.0
        for k in range(table.latency_s.shape[1]):
            allowed = left_s[i] / table.latency_s[b, k]
            z = (allowed - belief.ratio[i]) / belief.spread[i]
            expected = 0.5 * math.erfc(-z * _HALF_ROOT) * table.accuracy[b, k]
            if expected > highest:  # false past the end of the frontier
                best, highest = k, expected
        result[i] = table.assignment[b, best]


def alert_grid(known: Known) -> list[Alert]:
    """Return all settings to choose from."""
    factors = (0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
    return [Alert(known, *setting) for setting in product((1e-4, 1e-3, 1e-2, 1e-1), factors)]
