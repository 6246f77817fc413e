"""Reports of served batches and the snapshots that a precision controller decides on.

A decision is due whenever a batch of requests is about to be dispatched; its input properties are
known by then. Rows of float64 are the definition of both; how many columns a snapshot has depends
on the number of stages and on the input properties (`SignalLayout`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from runtime.precision.plan import PrecisionPlan, plan_columns

REPORT_COLUMNS: tuple[str, ...] = (
    "batch",  # number of the batch, from 0
    "plan_version",  # version of the plan it was run under
    "requests",  # requests in the batch; 0: the stream was over, nothing was served
    "first_request",  # index of its first request since the start of the stream
    "first_arrival_s",
    "mean_arrival_s",  # mean over its requests
    "last_arrival_s",
    "start_s",  # when it was dispatched
    "end_s",  # when its results were there
    "escalated",  # requests that were run a second time
    "late",  # requests whose latency exceeded the deadline
    "dropped",  # requests that left unserved between `start_s` and the next decision
    "switched",  # stages whose level differs from the batch before
    "correct",  # requests answered correctly, NaN without labels; never part of an observation
    "correct_in_time",  # correct and within the deadline, NaN without labels; likewise
    "condition",  # true condition of its first request, -1 if unknown; likewise
)
REPORT_INDEX: dict[str, int] = {name: i for i, name in enumerate(REPORT_COLUMNS)}

LOW_MARGIN = 0.25
"""Output margins below this count as low in the signals."""

PRECISION_SIGNALS: tuple[str, ...] = (
    "time_s",  # time of the decision: a batch is about to be dispatched
    "requests_in",  # arrived since the start
    "requests_served",  # answered, late or not
    "requests_late",  # answered after the deadline
    "requests_dropped",  # left unserved, too late to be answered in time
    "busy_s",  # time spent serving since the start
    "waiting",  # requests that wait, those of the batch included
    "batch",  # requests of the batch that is about to be dispatched (0: the stream is over)
    "head_slack_s",  # time that its oldest request has left until the deadline
    "last_service_s",  # service time of the last batch
    "last_batch",  # its requests
    "last_margin",  # mean output margin of its first pass
    "last_low_margin_share",  # share of its requests with a margin below LOW_MARGIN
    "last_escalated_share",  # share of its requests that were run again
    "shadow_checks",  # shadow-checked requests in the window (0: nothing is known yet)
    "shadow_disagreement",  # share of them whose answer differed from the reference level's
    "shadow_low",  # Wilson 95 % interval of that share
    "shadow_high",
)
"""The signals that every chain has; `SignalLayout` adds those per property and per stage."""


@dataclass(frozen=True)
class SignalLayout:
    """Columns of a snapshot row: all that a decision may be based on.

    Everything can be measured by an operator: no correctness, no true condition.

    Attributes:
        n_stages: Number of stages S.
        properties: Names of the input properties, means over the batch about to be dispatched.
    """

    n_stages: int
    properties: tuple[str, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All columns: common ones, then properties, clip rates, SQNRs, the plan in force."""
        stages = range(self.n_stages)
        return (
            *PRECISION_SIGNALS,
            *(f"property_{name}" for name in self.properties),
            *(f"clip_rate_{k}" for k in stages),  # share of clipped activations, last batch
            *(f"sqnr_db_{k}" for k in stages),  # last shadow check, 0 before the first, dB
            *plan_columns(self.n_stages),
        )

    @cached_property
    def index(self) -> dict[str, int]:
        """Column of each name."""
        return {name: i for i, name in enumerate(self.names)}

    @property
    def size(self) -> int:
        """Number of columns."""
        return len(self.names)

    @property
    def property_columns(self) -> slice:
        """Columns of the input properties."""
        return slice(len(PRECISION_SIGNALS), len(PRECISION_SIGNALS) + len(self.properties))

    @property
    def clip_columns(self) -> slice:
        """Columns of the clip rates."""
        start = self.property_columns.stop
        return slice(start, start + self.n_stages)

    @property
    def sqnr_columns(self) -> slice:
        """Columns of the SQNRs."""
        start = self.clip_columns.stop
        return slice(start, start + self.n_stages)

    @property
    def plan_columns(self) -> slice:
        """Columns of the plan in force."""
        return slice(self.sqnr_columns.stop, self.size)


@dataclass(frozen=True, slots=True)
class PrecisionSnapshot:
    """What the controller sees at a decision.

    Attributes:
        layout: What the columns are.
        signals: float64 row of shape [layout.size]; NaN where a monitor is silent.
        plan: The plan in force.
    """

    layout: SignalLayout
    signals: NDArray[np.float64]
    plan: PrecisionPlan

    def __post_init__(self) -> None:
        """Refuse a row of the wrong length.

        Raises:
            ValueError: `signals` is not of shape [layout.size].
        """
        if self.signals.shape != (self.layout.size,):
            raise ValueError(
                f"snapshot signals have shape {self.signals.shape}; expected ({self.layout.size},)"
            )

    def __getitem__(self, name: str) -> float:
        """Return one signal by its name.

        Raises:
            KeyError: No signal has this name.
        """
        return float(self.signals[self.layout.index[name]])


WILSON_Z = 1.959963984540054
"""Standard normal quantile of a two-sided 95 % interval."""


def wilson_interval(disagreements: int, checks: int, z: float = WILSON_Z) -> tuple[float, float]:
    """Return Wilson's score interval of a share; (0, 1) without checks.

    E. B. Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    Args:
        disagreements: Number of disagreements, 0 to `checks`.
        checks: Number of checks.
        z: Standard normal quantile.
    """
    if checks == 0:
        return 0.0, 1.0
    share, z2n = disagreements / checks, z * z / checks
    half = z * math.sqrt(share * (1.0 - share) / checks + z2n / (4.0 * checks))
    centre, scale = share + 0.5 * z2n, 1.0 / (1.0 + z2n)
    return max((centre - half) * scale, 0.0), min((centre + half) * scale, 1.0)


def bucket_of(requests: int, buckets: Sequence[int]) -> int:
    """Return the index of the smallest batch bucket that holds a number of requests.

    Raises:
        ValueError: Not even the largest one does.
    """
    for index, size in enumerate(buckets):
        if requests <= size:
            return index
    raise ValueError(f"{requests} requests do not fit the largest bucket ({buckets[-1]})")
