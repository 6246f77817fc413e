"""Arrival processes: how many records arrive in each tick of a stream.

All have one interface (`ArrivalProcess`): the count of tick k of a stream with key s depends on
(s, k) only, so a stream is bit-identical whatever number of streams is asked for, in whatever
order, and however a horizon is cut into calls. The engine spreads the n records of a tick evenly:
at (i + 0.5)/n of the tick.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simulators.compiled import jit
from simulators.rate_factors import (
    STREAMS_PER_FACTOR,
    FlashCrowds,
    GammaBursts,
    RateFactor,
    Sine,
    check_range,
)
from simulators.sampling import poisson
from simulators.traces import TraceError

COUNT_STREAM = 1 << 32
"""Stream of the counts; the engine numbers its own streams (stages) from 0, far below."""
_FACTOR_STREAM = COUNT_STREAM + 16


@dataclass(frozen=True, eq=False)
class ArrivalProcess(ABC):
    """Common interface of all arrival processes.

    Attributes:
        tick_s: Length of a tick, seconds.
    """

    tick_s: float

    def __post_init__(self) -> None:
        """Refuse an empty tick."""
        check_range("tick_s", self.tick_s, 1e-6, 3600.0)

    @property
    @abstractmethod
    def mean_rate_per_s(self) -> float:
        """Mean rate: expected (synthetic) or over the whole trace (replay), records per second."""

    @property
    def length_ticks(self) -> int | None:
        """Number of ticks that the process has; None if it never ends."""
        return None

    @abstractmethod
    def scaled(self, factor: float) -> Self:
        """Return the same process with `factor` times the rate (above 0) at every instant."""

    @abstractmethod
    def _counts(
        self, keys: NDArray[np.uint64], start_ticks: NDArray[np.int64], n_ticks: int
    ) -> NDArray[np.int64]:
        """Return the counts for checked arguments."""

    def counts(self, keys: ArrayLike, start_ticks: ArrayLike, n_ticks: int) -> NDArray[np.int64]:
        """Return how many records arrive in each tick.

        Args:
            keys: uint64 [N], key of each stream.
            start_ticks: int64 [N], first tick of each stream, at least 0.
            n_ticks: Number of ticks, at least 0.

        Returns:
            int64 [N, n_ticks].

        Raises:
            ValueError: Wrong shapes or negative ticks.
            TraceError: The ticks reach beyond the end of a replayed trace.
        """
        keys_n = np.ascontiguousarray(keys, dtype=np.uint64)
        starts_n = np.ascontiguousarray(start_ticks, dtype=np.int64)
        if keys_n.ndim != 1 or keys_n.shape != starts_n.shape:
            raise ValueError(
                f"keys and start_ticks have shapes {keys_n.shape} and {starts_n.shape}; expected "
                "[N] for both"
            )
        if n_ticks < 0 or (starts_n < 0).any():
            raise ValueError(
                f"n_ticks is {n_ticks} and the first start tick {starts_n.min(initial=0)}; "
                "expected both at least 0"
            )
        length = self.length_ticks
        if length is not None and (starts_n > length - n_ticks).any():
            raise TraceError(
                f"ticks {starts_n.max()} to {starts_n.max() + n_ticks} were asked for, but the "
                f"replayed trace has {length}; start earlier, shorten the horizon or choose a "
                "longer trace"
            )
        return self._counts(keys_n, starts_n, int(n_ticks))


@dataclass(frozen=True, eq=False)
class PoissonArrivals(ArrivalProcess):
    """Poisson arrivals whose rate is a constant times independent factors.

    Given the factors, counts of different ticks are independent and Poisson. Without factors it
    is the homogeneous Poisson process.

    Attributes:
        rate_per_s: Mean rate, records per second, at least 0.
        factors: What makes the rate vary; each has mean 1.
    """

    rate_per_s: float
    factors: tuple[RateFactor, ...] = ()

    def __post_init__(self) -> None:
        """Refuse negative rates."""
        super().__post_init__()
        check_range("rate_per_s", self.rate_per_s, 0.0, 1e12)

    @property
    def mean_rate_per_s(self) -> float:
        """Expected rate, records per second."""
        return self.rate_per_s

    def scaled(self, factor: float) -> Self:
        """Return the process with `factor` times the rate."""
        check_scale(factor)
        return replace(self, rate_per_s=self.rate_per_s * factor)

    def rates(
        self, keys: NDArray[np.uint64], start_ticks: NDArray[np.int64], n_ticks: int
    ) -> NDArray[np.float64]:
        """Return the rate of each tick before the Poisson draw.

        Returns:
            float64 [N, n_ticks], records per second.
        """
        result = np.full((len(keys), n_ticks), self.rate_per_s)
        apply_factors(self.factors, result, keys, start_ticks, self.tick_s)
        return result

    def _counts(
        self, keys: NDArray[np.uint64], start_ticks: NDArray[np.int64], n_ticks: int
    ) -> NDArray[np.int64]:
        rates = self.rates(keys, start_ticks, n_ticks)
        return draw_counts(rates, keys, start_ticks, self.tick_s)


def worldcup_like(tick_s: float, rate_per_s: float, minute_s: float = 3.0) -> PoissonArrivals:
    """Return a synthetic process about as bursty as the 1998 World Cup trace.

    For machines without the data: time of day, slow growth and decline, loud days, crowds around
    matches and noise from minute to minute. Not a model of that site. Over 51 days, per minute
    (median of 20 keys, in brackets the trace): coefficient of variation 1.7 (1.74), peak over mean
    22 (20), autocorrelation at one minute 0.997 (0.999), one hour 0.91 (0.91), half a day 0.40
    (0.44). After division by a trailing mean of one day it stays burstier than the trace:
    coefficient of variation 0.9 (0.53).

    Args:
        tick_s: Length of a tick, of which `minute_s` is a multiple.
        rate_per_s: Mean rate, records per second.
        minute_s: Seconds of simulation per minute of the trace.
    """
    day_s = 1440.0 * minute_s
    return PoissonArrivals(
        tick_s=tick_s,
        rate_per_s=rate_per_s,
        factors=(
            Sine(amplitude=0.5, period_s=day_s),
            Sine(amplitude=0.98, period_s=45.0 * day_s),
            FlashCrowds(onsets_per_s=0.12 / day_s, peak_factor=12.0, decay_s=2.0 * day_s),
            FlashCrowds(onsets_per_s=0.7 / day_s, peak_factor=4.0, decay_s=180.0 * minute_s),
            GammaBursts(cv=0.03, block_s=minute_s),
        ),
    )


def check_scale(factor: float) -> None:
    """Refuse a scale that is not above 0 and finite.

    Raises:
        ValueError: Names the factor.
    """
    check_range("factor", factor, 1e-9, 1e9)


def apply_factors(
    factors: tuple[RateFactor, ...],
    rates: NDArray[np.float64],
    keys: NDArray[np.uint64],
    start_ticks: NDArray[np.int64],
    tick_s: float,
) -> None:
    """Multiply rates (float64 [N, n_ticks], changed) by all factors, each on its own streams."""
    for position, factor in enumerate(factors):
        stream = _FACTOR_STREAM + STREAMS_PER_FACTOR * position
        factor.multiply(rates, keys, start_ticks, tick_s, stream)


def draw_counts(
    rates: NDArray[np.float64],
    keys: NDArray[np.uint64],
    start_ticks: NDArray[np.int64],
    tick_s: float,
) -> NDArray[np.int64]:
    """Draw the Poisson count of each tick from its rate.

    Args:
        rates: float64 [N, n_ticks], records per second.
        keys: uint64 [N], key of each row.
        start_ticks: int64 [N], tick of each row's first column.
        tick_s: Length of a tick, seconds.

    Returns:
        int64 [N, n_ticks].
    """
    counts = np.empty(rates.shape, dtype=np.int64)
    _fill_counts(counts, rates, keys, start_ticks, tick_s)
    return counts


@jit
def _fill_counts(
    counts: NDArray[np.int64],
    rates: NDArray[np.float64],
    keys: NDArray[np.uint64],
    start_ticks: NDArray[np.int64],
    tick_s: float,
) -> None:
    n_rows, n_ticks = rates.shape
    for i in range(n_rows):
        for j in range(n_ticks):
            tick = start_ticks[i] + j
            counts[i, j] = poisson(rates[i, j] * tick_s, keys[i], COUNT_STREAM, tick)
