"""Arrivals from measured traces: replay of rates and of single arrivals, and their rescaling.

Two things are rescaled, both recorded: time (`interval_s`: seconds of simulation per interval of
the trace) and load (`trace_factors`: records of the simulation per record of the trace). A replay
never wraps around: ticks beyond its end are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from simulators.arrivals import (
    COUNT_STREAM,
    ArrivalProcess,
    apply_factors,
    check_scale,
    draw_counts,
)
from simulators.compiled import jit
from simulators.noise import uniform
from simulators.rate_factors import RateFactor, check_range, whole_ticks
from simulators.traces import EventTrace, RateTrace, TraceError


@dataclass(frozen=True, eq=False)
class RateReplay(ArrivalProcess):
    """Replay of measured counts: constant rate inside an interval, records drawn from Poisson.

    Make one with `replay_rates` (one factor for the whole trace) or `replay_at_load` (rescaled by
    a trailing mean). A `GammaBursts` factor makes the arrivals inside an interval burstier.

    Attributes:
        rates_per_s: float64 [n_intervals], rate in each interval of the simulation.
        interval_s: Seconds of simulation per interval, a multiple of the tick.
        trace_factors: float64 [n_intervals], expected records of the simulation per record of the
            trace; for the record of the run.
        factors: Further variation, each of mean 1.
    """

    rates_per_s: NDArray[np.float64]
    interval_s: float
    trace_factors: NDArray[np.float64]
    factors: tuple[RateFactor, ...] = ()

    def __post_init__(self) -> None:
        """Refuse negative rates and an interval that is no multiple of the tick."""
        super().__post_init__()
        whole_ticks(self.interval_s, self.tick_s, "interval_s")
        rates = self.rates_per_s
        if rates.ndim != 1 or not len(rates) or not np.all(np.isfinite(rates) & (rates >= 0.0)):
            raise ValueError("rates_per_s must be a non-empty list of finite rates >= 0")
        if self.trace_factors.shape != rates.shape:
            raise ValueError(
                f"trace_factors has shape {self.trace_factors.shape}; expected {rates.shape}"
            )

    @property
    def mean_rate_per_s(self) -> float:
        """Mean rate over the whole trace, records per second."""
        return float(self.rates_per_s.mean())

    @property
    def length_ticks(self) -> int:
        """Number of ticks of the trace."""
        return len(self.rates_per_s) * whole_ticks(self.interval_s, self.tick_s, "interval_s")

    def scaled(self, factor: float) -> Self:
        """Return the replay with `factor` times the rate."""
        check_scale(factor)
        return replace(
            self,
            rates_per_s=self.rates_per_s * factor,
            trace_factors=self.trace_factors * factor,
        )

    def _counts(
        self, keys: NDArray[np.uint64], start_ticks: NDArray[np.int64], n_ticks: int
    ) -> NDArray[np.int64]:
        ticks_per_interval = whole_ticks(self.interval_s, self.tick_s, "interval_s")
        rates = np.empty((len(keys), n_ticks))
        _fill_rates(rates, self.rates_per_s, ticks_per_interval, start_ticks)
        apply_factors(self.factors, rates, keys, start_ticks, self.tick_s)
        return draw_counts(rates, keys, start_ticks, self.tick_s)


@dataclass(frozen=True, eq=False)
class EventReplay(ArrivalProcess):
    """Replay of single arrivals, binned exactly: no randomness unless scaled.

    Attributes:
        per_tick: int64 [length], arrivals of the trace in each tick.
        factor: Records per arrival. 1 replays the trace as it is. Otherwise each arrival gives
            floor(factor) records and one more with the probability that is left; the draw of an
            arrival is the same for every factor, so more load never removes a record.
    """

    per_tick: NDArray[np.int64]
    factor: float = 1.0

    def __post_init__(self) -> None:
        """Refuse empty traces and negative counts."""
        super().__post_init__()
        check_scale(self.factor)
        if self.per_tick.ndim != 1 or not len(self.per_tick) or (self.per_tick < 0).any():
            raise ValueError("per_tick must be a non-empty list of counts >= 0")

    @property
    def mean_rate_per_s(self) -> float:
        """Mean rate over the whole trace, records per second."""
        return float(self.per_tick.mean()) / self.tick_s * self.factor

    @property
    def length_ticks(self) -> int:
        """Number of ticks of the trace."""
        return len(self.per_tick)

    def scaled(self, factor: float) -> Self:
        """Return the replay with `factor` times the records, at the same instants."""
        check_scale(factor)
        return replace(self, factor=self.factor * factor)

    def _counts(
        self, keys: NDArray[np.uint64], start_ticks: NDArray[np.int64], n_ticks: int
    ) -> NDArray[np.int64]:
        counts = np.empty((len(keys), n_ticks), dtype=np.int64)
        _fill_events(counts, self.per_tick, self.factor, keys, start_ticks)
        return counts


def replay_rates(
    trace: RateTrace,
    tick_s: float,
    interval_s: float | None = None,
    factor: float = 1.0,
    factors: tuple[RateFactor, ...] = (),
) -> RateReplay:
    """Replay a trace with one factor for its whole length.

    Args:
        trace: Counts per interval; its lead-in is left out.
        tick_s: Length of a tick.
        interval_s: Seconds of simulation per interval of the trace; None keeps the trace's own.
        factor: Records of the simulation per record of the trace, above 0.
        factors: Further variation of the rate.
    """
    check_scale(factor)
    length_s = trace.interval_s if interval_s is None else interval_s
    counts = trace.counts[trace.lead_in :]
    return RateReplay(
        tick_s=tick_s,
        rates_per_s=counts.astype(np.float64) * (factor / length_s),
        interval_s=length_s,
        trace_factors=np.full(len(counts), factor),
        factors=factors,
    )


@dataclass(frozen=True)
class TrailingLoad:
    """How a trace is brought to a load.

    Attributes:
        load: Offered work over capacity that the trace has where it equals its own trailing mean.
        capacity_per_s: Capacity of the cluster that the load refers to, records per second.
        window: Intervals of the trailing mean.
    """

    load: float
    capacity_per_s: float
    window: int

    def __post_init__(self) -> None:
        """Refuse loads and windows of 0."""
        check_range("load", self.load, 1e-6, 100.0)
        check_range("capacity_per_s", self.capacity_per_s, 1e-9)
        if self.window < 1:
            raise ValueError(f"window is {self.window}; expected at least 1 interval")


def replay_at_load(
    trace: RateTrace,
    tick_s: float,
    interval_s: float,
    target: TrailingLoad,
    factors: tuple[RateFactor, ...] = (),
) -> RateReplay:
    """Replay a trace rescaled by a trailing mean, so that slow growth does not set the load.

    The rate in interval k is load * capacity * count[k] / mean(count[k - window : k]): the mean
    knows the past only, and not interval k itself. The first `window` intervals have no full past
    and are not replayed, so tick 0 is the trace's interval `window` (or the end of its lead-in,
    whichever is later). The mean load over a stretch differs from `load` where the trace grows or
    shrinks within a window; `mean_rate_per_s` states what came out.

    Args:
        trace: Counts per interval.
        tick_s: Length of a tick.
        interval_s: Seconds of simulation per interval of the trace.
        target: Load, capacity and window.
        factors: Further variation of the rate.

    Raises:
        TraceError: The trace is not longer than the window, or a window has no arrivals.
    """
    counts, window = trace.counts, target.window
    first = max(window, trace.lead_in)
    if len(counts) <= first:
        raise TraceError(
            f"{trace.name} has {len(counts)} intervals; a trailing mean over {window} needs more "
            f"than {first}"
        )
    total = np.concatenate([[0], np.cumsum(counts)])
    past: NDArray[np.float64] = (total[first:-1] - total[first - window : -1 - window]) / window
    if (past == 0.0).any():
        k = first + int(np.argmax(past == 0.0))
        raise TraceError(
            f"{trace.name} has no arrival in the {window} intervals before interval {k}; choose a "
            "longer window"
        )
    trace_factors = target.load * target.capacity_per_s * interval_s / past
    return RateReplay(
        tick_s=tick_s,
        rates_per_s=counts[first:].astype(np.float64) * trace_factors / interval_s,
        interval_s=interval_s,
        trace_factors=trace_factors,
        factors=factors,
    )


def replay_events(
    trace: EventTrace, tick_s: float, time_scale: float = 1.0, factor: float = 1.0
) -> EventReplay:
    """Replay single arrivals.

    Args:
        trace: Times of the arrivals.
        tick_s: Length of a tick.
        time_scale: Seconds of simulation per second of the trace, above 0. An arrival at t falls
            into tick floor(t * time_scale / tick_s).
        factor: Records per arrival (see `EventReplay`).
    """
    check_range("time_scale", time_scale, 1e-9)
    tick = np.floor(trace.times_s * (time_scale / tick_s)).astype(np.int64)
    return EventReplay(tick_s=tick_s, per_tick=np.bincount(tick), factor=factor)


@jit
def _fill_rates(
    rates: NDArray[np.float64],
    rates_per_s: NDArray[np.float64],
    ticks_per_interval: int,
    start_ticks: NDArray[np.int64],
) -> None:
    n_rows, n_ticks = rates.shape
    for i in range(n_rows):
        for j in range(n_ticks):
            rates[i, j] = rates_per_s[(start_ticks[i] + j) // ticks_per_interval]


@jit
def _fill_events(
    counts: NDArray[np.int64],
    per_tick: NDArray[np.int64],
    factor: float,
    keys: NDArray[np.uint64],
    start_ticks: NDArray[np.int64],
) -> None:
    whole = int(factor)
    rest = factor - whole
    n_rows, n_ticks = counts.shape
    for i in range(n_rows):
        for j in range(n_ticks):
            tick = start_ticks[i] + j
            arrivals = per_tick[tick]
            count = whole * arrivals
            if rest > 0.0:
                for m in range(arrivals):
                    if uniform(keys[i], COUNT_STREAM, tick, m) < rest:
                        count += 1
            counts[i, j] = count
