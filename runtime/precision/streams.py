"""Request streams in real time: what is asked of a server, and what became of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

NO_ANSWER = -1
"""Stands for the answer to a request that was dropped, or that holds infinities or NaN."""


@dataclass(frozen=True, eq=False)
class RequestStream:
    """Requests that arrive in real time.

    Attributes:
        arrival_s: float64 [n], seconds since the start, ascending.
        inputs: Returns the inputs of requests first to last (excluded), float32 [last - first,
            ...]; called when they are dispatched.
        truth: int64 [n], right answers, for reports only; None where nobody knows them.
        condition: int64 [n], true condition, for reports only; None where nobody knows it.
    """

    arrival_s: NDArray[np.float64]
    inputs: Callable[[int, int], Tensor]
    truth: NDArray[np.int64] | None = None
    condition: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        """Refuse a stream that does not flow.

        Raises:
            ValueError: Names the field.
        """
        times = self.arrival_s
        if times.ndim != 1 or not np.isfinite(times).all() or (np.diff(times) < 0.0).any():
            raise ValueError("arrival_s is no ascending row of finite seconds")
        if len(times) and times[0] < 0.0:
            raise ValueError(f"arrival_s begins at {times[0]}; expected at least 0")
        for name in ("truth", "condition"):
            row = getattr(self, name)
            if row is not None and row.shape != times.shape:
                raise ValueError(f"{name} has shape {row.shape}; expected {times.shape}")


@dataclass(frozen=True, slots=True)
class Switch:
    """One change of levels, explained.

    Attributes:
        time_s: When the batch was dispatched.
        batch: Its number.
        before: Levels of the batch before.
        after: Levels of this one.
        proposed: What the agent answered; None if it gave no plan.
        causes: Why guards or server changed the proposal; empty if they did not.
    """

    time_s: float
    batch: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    proposed: tuple[int, ...] | None
    causes: tuple[str, ...]


class Served(NamedTuple):
    """What became of a stream.

    Reports, latencies and switches are in seconds of the stream, which may last longer or shorter
    than those of a clock (see `PrecisionServer`); what serving cost is in seconds of a clock.

    Attributes:
        reports: float64 [batches, len(REPORT_COLUMNS)].
        plans: float64 [batches, 2 * S + 1], the plan that each batch was run under.
        answers: int64 [n], label that each request was given, or `NO_ANSWER`.
        latency_s: float64 [n], NaN where dropped.
        switches: All changes of levels.
        causes: How often each cause changed a proposal.
        decision_s: float64 [batches], from the formed batch until its plan is in force, properties
            included.
        late_start_s: float64 [batches], how much later than possible a batch was formed (the
            clock's and the sleep's inaccuracy).
        busy_s: From the formed batch to its answers, summed over all batches.
        cpu_s: Processor time of the serving thread; well below `busy_s` means that other programs
            kept it from running, and that latencies say more about them than about the server.
    """

    reports: NDArray[np.float64]
    plans: NDArray[np.float64]
    answers: NDArray[np.int64]
    latency_s: NDArray[np.float64]
    switches: list[Switch]
    causes: Counter[str]
    decision_s: NDArray[np.float64]
    late_start_s: NDArray[np.float64]
    busy_s: float
    cpu_s: float
