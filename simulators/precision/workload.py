"""What streams of requests are like: arrivals, and how the condition of the inputs changes.

Four kinds of streams: steady, burst (the rate jumps), drift (the inputs are corrupted for a
while), and both at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from simulators.arrivals import ArrivalProcess, PoissonArrivals
from simulators.compiled import jit
from simulators.noise import uniform
from simulators.precision.model import SCHEDULE_STREAM
from simulators.rate_factors import MarkovLevels, RateFactor, check_range

_STREAM = int(SCHEDULE_STREAM)


class Segments(NamedTuple):
    """Conditions over time of N environments.

    Attributes:
        start_s: float64 [N, K], start of each stretch, ascending, the first at 0; infinite where
            an environment has fewer.
        condition: int64 [N, K], index of the condition in the profile.
    """

    start_s: NDArray[np.float64]
    condition: NDArray[np.int64]


class ConditionSchedule(Protocol):
    """Which condition the inputs of a stream have, and when."""

    def n_segments(self, horizon_s: float) -> int:
        """Return how many stretches reach over a horizon, at most."""

    def segments(self, keys: NDArray[np.uint64], horizon_s: float) -> Segments:
        """Return the stretches of the streams with these keys (uint64 [N]).

        Row k depends on key k alone.
        """


@dataclass(frozen=True)
class ListedConditions:
    """The same stretches in every stream.

    Attributes:
        stretches: Start (seconds) and condition index of each, ascending, the first at 0.
    """

    stretches: tuple[tuple[float, int], ...] = ((0.0, 0),)

    def __post_init__(self) -> None:
        """Refuse starts out of order.

        Raises:
            ValueError: Shows them.
        """
        starts = [start for start, _ in self.stretches]
        if not starts or starts[0] != 0.0 or starts != sorted(starts):
            raise ValueError(f"stretches start at {starts}; expected ascending seconds from 0")
        if min(condition for _, condition in self.stretches) < 0:
            raise ValueError(f"stretches are {self.stretches}; expected conditions >= 0")

    def n_segments(self, horizon_s: float) -> int:
        """Return their number; see `ConditionSchedule`."""
        return len(self.stretches)

    def segments(self, keys: NDArray[np.uint64], horizon_s: float) -> Segments:
        """Return them for every key; see `ConditionSchedule`."""
        rows = np.tile(np.array(self.stretches, dtype=np.float64), (len(keys), 1, 1))
        return Segments(rows[..., 0].copy(), rows[..., 1].astype(np.int64))


@dataclass(frozen=True)
class SwitchingConditions:
    """Clean and corrupted stretches in turn; which corruption is drawn anew each time.

    A stretch lasts between half and one and a half times its mean, uniform. Half of the streams
    begin corrupted.

    Attributes:
        corrupted: Condition indices, equally likely.
        clean_s: Mean length of a clean stretch, seconds.
        corrupted_s: Mean length of a corrupted one, seconds.
        clean: Condition index of the clean stretches.
    """

    corrupted: tuple[int, ...]
    clean_s: float
    corrupted_s: float
    clean: int = 0

    def __post_init__(self) -> None:
        """Refuse empty lists and lengths.

        Raises:
            ValueError: Names the field.
        """
        check_range("clean_s", self.clean_s, 1e-3)
        check_range("corrupted_s", self.corrupted_s, 1e-3)
        if not self.corrupted or min(self.corrupted, default=0) < 0 or self.clean < 0:
            raise ValueError(
                f"corrupted is {self.corrupted} and clean {self.clean}; expected at least one "
                "condition, each >= 0"
            )

    def n_segments(self, horizon_s: float) -> int:
        """Return their largest number; see `ConditionSchedule`."""
        return 2 * math.ceil(horizon_s / (0.5 * (self.clean_s + self.corrupted_s))) + 2

    def segments(self, keys: NDArray[np.uint64], horizon_s: float) -> Segments:
        """Draw them for each key; see `ConditionSchedule`."""
        shape = (len(keys), self.n_segments(horizon_s))
        result = Segments(np.empty(shape), np.empty(shape, dtype=np.int64))
        conditions = np.array([self.clean, *self.corrupted])
        means_s = np.array([self.clean_s, self.corrupted_s])
        _fill_switching(np.asarray(keys, dtype=np.uint64), conditions, means_s, *result)
        return result


@jit
def _fill_switching(
    keys: NDArray[np.uint64],
    conditions: NDArray[np.int64],
    means_s: NDArray[np.float64],
    start_s: NDArray[np.float64],
    condition: NDArray[np.int64],
) -> None:
    n_corrupted = len(conditions) - 1
    for i in range(len(keys)):
        kind = int(uniform(keys[i], _STREAM, 0, 2) < 0.5)
        now_s = 0.0
        for k in range(start_s.shape[1]):
            start_s[i, k] = now_s
            which = int(uniform(keys[i], _STREAM, k, 1) * n_corrupted)
            condition[i, k] = conditions[1 + which] if kind else conditions[0]
            now_s += means_s[kind] * (0.5 + uniform(keys[i], _STREAM, k, 0))
            kind = 1 - kind


class Stream(Enum):
    """Kinds of streams."""

    STEADY = "steady"
    BURST = "burst"
    DRIFT = "drift"
    BOTH = "both"


@dataclass(frozen=True, eq=False)
class PrecisionWorkload:
    """When requests arrive and in which condition.

    Attributes:
        name: What it is called in tables.
        arrivals: When requests arrive.
        conditions: Which condition their inputs have.
    """

    name: str
    arrivals: ArrivalProcess
    conditions: ConditionSchedule


def stream_workload(
    stream: Stream, rate_per_s: float, n_conditions: int, tick_s: float = 0.05
) -> PrecisionWorkload:
    """Return one of the four streams, on synthetic arrivals.

    A burst stream has three levels of its rate, held 12, 6 and 3 s on average at 0.5, 1.2 and
    2.6 times its mean (before the mean is set to 1); a drifting one has 12 s of clean inputs and
    8 s of corrupted ones in turn.

    Args:
        stream: Which one.
        rate_per_s: Mean rate, requests per second.
        n_conditions: Conditions of the profile; the first is clean, the others corrupted.
        tick_s: Length of a tick of the arrivals, seconds; 0.5 is a multiple of it.

    Raises:
        ValueError: A drifting stream with no corrupted condition.
    """
    factors: tuple[RateFactor, ...] = ()
    if stream in (Stream.BURST, Stream.BOTH):
        factors = (MarkovLevels((0.5, 1.2, 2.6), (12.0, 6.0, 3.0), step_s=0.5),)
    arrivals = PoissonArrivals(tick_s, rate_per_s, factors)
    conditions: ConditionSchedule = ListedConditions()
    if stream in (Stream.DRIFT, Stream.BOTH):
        conditions = SwitchingConditions(tuple(range(1, n_conditions)), 12.0, 8.0)
    return PrecisionWorkload(stream.value, arrivals, conditions)
