"""Rules that look at the load only, in the manner of published serving systems."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.precision.known import Known
from agents.precision.rule import Rule

LOSSES = (1.0, 0.1, 0.05)
"""Bounds of accuracy lost that rules are tuned over."""


@dataclass(eq=False)
class SlackFit(Rule):
    """Runs the most accurate assignment whose predicted latency fits the slack of the head.

    In the manner of SlackFit (SuperServe; Khare et al., NSDI 2025), batch sizes being given.

    Attributes:
        known: What it starts from.
        factor: Share of the slack that a batch may take.
        most_loss: What an assignment may lose against the most accurate one, in [0, 1]; without a
            bound any is run that is fast enough, however little is left of the answers.
    """

    name: ClassVar[str] = "slack_fit"
    known: Known
    factor: float
    most_loss: float = 1.0

    def __post_init__(self) -> None:
        """Leave out what loses too much."""
        self._kept = replace(self.known, most_loss=self.most_loss)

    def rows(self, signals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Fit every server's batch in its slack; see `Rule`."""
        known = self.known
        budget_s = self.factor * signals[:, known.column("head_slack_s")]
        return known.rows[self._kept.best_within(signals[:, known.column("batch")], budget_s)]


def slack_fit_grid(known: Known) -> list[SlackFit]:
    """Return all settings to choose from."""
    factors = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    return [SlackFit(known, *setting) for setting in product(factors, LOSSES)]


@dataclass(eq=False)
class ModelSwitching(Rule):
    """Switches tables of the whole chain by load.

    In the manner of Model-Switching (Zhang et al., HotCloud 2020): every table has a load up to
    which it is used, here a share of its capacity; the most accurate one whose load is not exceeded
    runs. Tables are those of the frontier of full batches.

    Attributes:
        known: What it starts from.
        share: Share of a table's capacity up to which it is used.
        window_s: Time constant of the arrival rate, seconds.
        most_loss: As in `SlackFit`.
    """

    name: ClassVar[str] = "model_switching"
    known: Known
    share: float
    window_s: float
    most_loss: float = 1.0

    def __post_init__(self) -> None:
        """Work out the load of each table."""
        kept = replace(self.known, most_loss=self.most_loss)
        full = int(kept.bucket(np.array([kept.max_batch], np.float64))[0])
        self._tables = kept.frontiers[full].assignment[::-1]  # the most accurate first
        self._most_per_s = self.share * self.known.capacity_per_s[self._tables]

    def forget(self, n: int) -> None:
        """Start with an unknown rate; see `Rule`."""
        self._rate_per_s = np.zeros(n)
        self._before = np.zeros((n, 2))  # time, requests in

    def rows(self, signals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Follow the arrival rate; see `Rule`."""
        known = self.known
        now = signals[:, [known.column("time_s"), known.column("requests_in")]]
        elapsed_s, arrived = (now - self._before).T
        self._before = now
        kept = np.exp(-np.maximum(elapsed_s, 0.0) / self.window_s)
        recent = arrived / np.maximum(elapsed_s, 1e-9)
        self._rate_per_s = np.where(
            elapsed_s > 0.0, kept * self._rate_per_s + (1.0 - kept) * recent, self._rate_per_s
        )
        carries = self._rate_per_s[:, None] <= self._most_per_s
        fastest = int(self._most_per_s.argmax())
        table = np.where(carries.any(axis=1), carries.argmax(axis=1), fastest)
        return known.rows[self._tables[table]]


def model_switching_grid(known: Known) -> list[ModelSwitching]:
    """Return all settings to choose from."""
    shares, windows_s = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0), (0.25, 1.0, 4.0)
    return [ModelSwitching(known, *s) for s in product(shares, windows_s, LOSSES)]


@dataclass(eq=False)
class StageShedding(Rule):
    """Lowers the least sensitive stages while the queue is long, and puts them back.

    In the manner of MorphServe (2025), which swaps layers in the order of their sensitivity under
    pressure. Sensitivity of a stage: the accuracy lost on calibration data by lowering it alone.

    Attributes:
        known: What it starts from.
        high: Level of all stages without pressure.
        low: Level of lowered stages.
        start: Queue, in largest batches, beyond which the first stage is lowered.
        step: Further queue, in largest batches, for each further stage.
    """

    name: ClassVar[str] = "stage_shedding"
    known: Known
    high: int
    low: int
    start: float
    step: float

    def __post_init__(self) -> None:
        """Work out the assignments with 0 to S lowered stages, the least sensitive first."""
        known = self.known
        n_stages = known.tables.n_stages
        alone = np.full((n_stages, n_stages), self.high)
        np.fill_diagonal(alone, self.low)
        loss = -known.tables.accuracy[known.assignments(alone)]
        tables = np.full((n_stages + 1, n_stages), self.high)
        for k, stage in enumerate(np.argsort(loss, kind="stable").tolist()):
            tables[k + 1 :, stage] = self.low
        self._tables = known.assignments(tables)

    def rows(self, signals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Lower as many stages as the queue asks for; see `Rule`."""
        known = self.known
        queue = signals[:, known.column("waiting")] / known.max_batch
        over = np.ceil((queue - self.start) / self.step)
        lowered = np.clip(np.nan_to_num(over), 0, known.tables.n_stages).astype(np.int64)
        return known.rows[self._tables[lowered]]


def stage_shedding_grid(known: Known) -> list[StageShedding]:
    """Return all settings to choose from."""
    levels = combinations(range(known.tables.n_levels), 2)
    queues = product((0.1, 0.25, 0.5, 0.75, 1.0), (0.05, 0.2, 0.5))
    return [StageShedding(known, *pair, *queue) for pair, queue in product(levels, queues)]
