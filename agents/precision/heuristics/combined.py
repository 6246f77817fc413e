"""Load and confidence together: the strong hand-made rival of learned control."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.precision.known import Known
from agents.precision.rule import Rule

_MEMORY = 0.8
"""Weight of the past in the share of requests that are run again."""


@dataclass(eq=False)
class SlackCascade(Rule):
    """Fits the best that there is time for: high levels, else a cascade, else what fits.

    If the high levels fit a share of the head's slack, they run. Otherwise low levels run and
    samples with a small margin again at high ones, if both passes are expected to fit; the share
    of the second is followed online. Otherwise the most accurate assignment that fits runs.

    Attributes:
        known: What it starts from.
        high: Level of all stages where there is time, and in the second pass.
        low: Level of all stages in the first pass of the cascade.
        below: Margin below which a sample is run again.
        factor: Share of the head's slack that a batch may take.
    """

    name: ClassVar[str] = "slack_cascade"
    known: Known
    high: int
    low: int
    below: float
    factor: float

    def __post_init__(self) -> None:
        """Look up the two uniform assignments."""
        tables = [self.known.uniform(level) for level in (self.high, self.low)]
        self._high, self._low = self.known.assignments(np.array(tables, dtype=np.float64))

    def forget(self, n: int) -> None:
        """Start with half of the requests expected to be run again; see `Rule`."""
        self.share = np.full(n, 0.5)
        self._busy_s = np.zeros(n)

    def rows(self, signals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fit every server's batch in its slack; see `Rule`."""
        self._follow(signals)
        known, n = self.known, len(signals)
        size = signals[:, known.column("batch")]
        budget_s = self.factor * signals[:, known.column("head_slack_s")]
        high, low = np.full(n, self._high), np.full(n, self._low)
        high_s = known.latency_s(high, size)
        again = np.ceil(self.share * size)
        cascade_s = known.latency_s(low, size) + known.latency_s(high, again)
        at_high = high_s <= budget_s
        in_cascade = ~at_high & (cascade_s <= budget_s)
        fitted = known.best_within(size, budget_s)
        first = np.where(at_high, high, np.where(in_cascade, low, fitted))
        rows = known.rows[first]
        s = known.tables.n_stages
        rows[in_cascade, s] = self.below
        rows[in_cascade, s + 1 :] = self.high
        return rows

    def _follow(self, signals: NDArray[np.float64]) -> None:
        """Take in how many of the last batch were run again, where this was the rule's cascade."""
        known, s = self.known, self.known.tables.n_stages
        busy_s = signals[:, known.column("busy_s")]
        plan = signals[:, known.layout.plan_columns]
        ran = (busy_s > self._busy_s) & (plan[:, s] == self.below)
        self._busy_s = busy_s.copy()
        seen = signals[:, known.column("last_escalated_share")]
        self.share = np.where(ran, _MEMORY * self.share + (1.0 - _MEMORY) * seen, self.share)


def slack_cascade_grid(known: Known) -> list[SlackCascade]:
    """Return all settings to choose from."""
    pairs = combinations(range(known.tables.n_levels), 2)
    others = product((0.15, 0.3, 0.5, 0.7, 0.9), (0.15, 0.3, 0.45, 0.6, 0.8, 1.0))
    return [SlackCascade(known, *pair, *other) for pair, other in product(pairs, others)]
