"""What makes an arrival rate vary: factors of mean 1 that multiply it.

Every factor is a pure function of (key, tick): ticks count from 0 at the start of the process, a
factor with memory derives its state from hashed earlier ticks (also from those before 0, so it is
stationary from the start). Factors of one process draw from different streams, hence they are
independent and their product has mean 1 too.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulators.factor_kernels import (
    multiply_flash,
    multiply_gamma,
    multiply_markov,
    multiply_sine,
    multiply_steps,
)

STREAMS_PER_FACTOR = 4
"""Streams that `RateFactor.multiply` may use, counted from the one it is given."""


def whole_ticks(duration_s: float, tick_s: float, what: str) -> int:
    """Return a duration as a whole number of ticks, at least 1.

    Args:
        duration_s: The duration.
        tick_s: Length of a tick.
        what: How the message calls the duration.

    Raises:
        ValueError: It is not a positive multiple of the tick.
    """
    ticks = round(duration_s / tick_s) if math.isfinite(duration_s) else 0
    if ticks < 1 or abs(ticks * tick_s - duration_s) > 1e-6 * tick_s:
        raise ValueError(
            f"{what} is {duration_s} s; expected a positive multiple of the tick ({tick_s} s)"
        )
    return ticks


def check_range(what: str, value: float, low: float, high: float = math.inf) -> None:
    """Refuse a number that is not finite or lies outside [low, high].

    Raises:
        ValueError: Names the quantity, the value and the range.
    """
    if not (math.isfinite(value) and low <= value <= high):
        expected = f"at least {low}" if high == math.inf else f"in [{low}, {high}]"
        raise ValueError(f"{what} is {value}; expected a finite number {expected}")


class RateFactor(ABC):
    """A factor of mean 1 on an arrival rate."""

    @abstractmethod
    def multiply(
        self,
        rates: NDArray[np.float64],
        keys: NDArray[np.uint64],
        start_ticks: NDArray[np.int64],
        tick_s: float,
        stream: int,
    ) -> None:
        """Multiply rates in place by the factor.

        Args:
            rates: float64 [N, n_ticks], rate of each tick; changed.
            keys: uint64 [N], key of each row.
            start_ticks: int64 [N], tick of each row's first column.
            tick_s: Length of a tick, seconds.
            stream: First of `STREAMS_PER_FACTOR` streams of its own.

        Raises:
            ValueError: The tick does not suit the factor's times.
        """


@dataclass(frozen=True)
class GammaBursts(RateFactor):
    """Independent Gamma factors, one for each block of time.

    The rate of block b (all ticks in [b * block_s, (b+1) * block_s)) is multiplied by a number
    from the Gamma law with shape 1/cv**2 and scale cv**2, hence with mean 1 and coefficient of
    variation cv. Poisson counts on top are negative binomial: a block that expects m records has
    variance m + (cv*m)**2.

    Attributes:
        cv: Coefficient of variation of the factor, above 0.
        block_s: Length of a block, a multiple of the tick.
    """

    cv: float
    block_s: float

    def __post_init__(self) -> None:
        """Refuse a coefficient of variation that no Gamma law can be drawn with."""
        check_range("cv", self.cv, 1e-3, 10.0)

    def multiply(
        self,
        rates: NDArray[np.float64],
        keys: NDArray[np.uint64],
        start_ticks: NDArray[np.int64],
        tick_s: float,
        stream: int,
    ) -> None:
        """See `RateFactor.multiply`."""
        block = whole_ticks(self.block_s, tick_s, "block_s")
        multiply_gamma(rates, keys, start_ticks, block, 1.0 / self.cv**2, stream)


@dataclass(frozen=True)
class Sine(RateFactor):
    """A sine around 1: time of day, or any other cycle.

    The factor at time t (middle of the tick) is 1 + amplitude * sin(2 pi t / period_s + phase).
    Its coefficient of variation over whole periods is amplitude / sqrt(2).

    Attributes:
        amplitude: Relative amplitude in [0, 1].
        period_s: Length of a cycle, above 0.
        phase: Radians; None draws one per key, uniform over the cycle.
    """

    amplitude: float
    period_s: float
    phase: float | None = None

    def __post_init__(self) -> None:
        """Refuse negative rates and empty cycles."""
        check_range("amplitude", self.amplitude, 0.0, 1.0)
        check_range("period_s", self.period_s, 1e-9)
        if self.phase is not None:
            check_range("phase", self.phase, -1e6, 1e6)

    def multiply(
        self,
        rates: NDArray[np.float64],
        keys: NDArray[np.uint64],
        start_ticks: NDArray[np.int64],
        tick_s: float,
        stream: int,
    ) -> None:
        """See `RateFactor.multiply`."""
        phase = math.nan if self.phase is None else self.phase
        cycles_per_tick = tick_s / self.period_s
        multiply_sine(rates, keys, start_ticks, cycles_per_tick, (self.amplitude, phase), stream)


@dataclass(frozen=True)
class Steps(RateFactor):
    """Given levels, each held for a given time, repeated for ever.

    Attributes:
        levels: Relative levels, at least 0; they are divided by their time average, so only their
            ratios matter.
        durations_s: How long each is held, multiples of the tick.
    """

    levels: tuple[float, ...]
    durations_s: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse lists that do not match and levels that are all 0."""
        _check_levels(self.levels, self.durations_s, "durations_s", at_least=1)

    def multiply(
        self,
        rates: NDArray[np.float64],
        keys: NDArray[np.uint64],
        start_ticks: NDArray[np.int64],
        tick_s: float,
        stream: int,
    ) -> None:
        """See `RateFactor.multiply`."""
        ticks = [whole_ticks(d, tick_s, "durations_s") for d in self.durations_s]
        levels = np.array(self.levels, dtype=np.float64)
        ends = np.cumsum(np.array(ticks, dtype=np.int64))
        levels *= ends[-1] / np.dot(levels, ticks)
        multiply_steps(rates, start_ticks, ends, levels)


@dataclass(frozen=True)
class MarkovLevels(RateFactor):
    """A Markov chain over levels: each is held for a random time, then another one follows.

    The level may change at multiples of `step_s`; the time in level i is geometric with mean
    `holding_s[i]`; then one of the other levels follows, all equally likely. The share of time in
    a level is proportional to its mean holding time.

    A step at which every level would be left (probability step_s/max(holding_s) * S/(S-1), with S
    levels) forgets the past, so the state at any step is found by looking back to the last such
    step: exact, with no memory between calls.

    Attributes:
        levels: At least 2 relative levels, at least 0; they are divided by their time average.
        holding_s: Mean time in each level, at least step_s * S/(S-1).
        step_s: Time between two possible changes, a multiple of the tick.
    """

    levels: tuple[float, ...]
    holding_s: tuple[float, ...]
    step_s: float = 1.0

    def __post_init__(self) -> None:
        """Refuse lists that do not match and holding times shorter than the step allows."""
        _check_levels(self.levels, self.holding_s, "holding_s", at_least=2)
        check_range("step_s", self.step_s, 1e-9)
        n = len(self.levels)
        shortest = self.step_s * n / (n - 1)
        if min(self.holding_s) < shortest:
            raise ValueError(
                f"holding_s has {min(self.holding_s)} s; with {n} levels and step_s={self.step_s} "
                f"a mean holding time is at least {shortest:.6g} s: make step_s smaller"
            )

    def multiply(
        self,
        rates: NDArray[np.float64],
        keys: NDArray[np.uint64],
        start_ticks: NDArray[np.int64],
        tick_s: float,
        stream: int,
    ) -> None:
        """See `RateFactor.multiply`."""
        step = whole_ticks(self.step_s, tick_s, "step_s")
        n = len(self.levels)
        levels = np.array(self.levels, dtype=np.float64)
        holding_s = np.array(self.holding_s, dtype=np.float64)
        levels *= holding_s.sum() / np.dot(levels, holding_s)
        # A redraw picks the same level again with probability 1/n, so it must happen n/(n-1)
        # times as often as a change.
        redraw = self.step_s / holding_s * n / (n - 1)
        multiply_markov(rates, keys, start_ticks, step, (levels, redraw), stream)


_FLASH_MAX_PER_BLOCK = 30.0
# 17 blocks of 30 expected onsets hold 510 +- 23: twice as many never occur.
_FLASH_ROOM = 1024


@dataclass(frozen=True)
class FlashCrowds(RateFactor):
    """Sudden crowds that fade: onsets at random, each decaying exponentially.

    The rate is proportional to 1 + (peak_factor - 1) * sum over past onsets of
    exp(-(age of the onset) / decay_s); onsets are Poisson (several may overlap), and the whole is
    divided by its mean. So a lone crowd begins at `peak_factor` times the quiet rate.

    Attributes:
        onsets_per_s: Rate of onsets, above 0 and at most 30 per decay time.
        peak_factor: Rate at an onset over the quiet rate, at least 1.
        decay_s: Time in which a crowd shrinks to 1/e.
    """

    onsets_per_s: float
    peak_factor: float
    decay_s: float

    def __post_init__(self) -> None:
        """Refuse shrinking crowds and onset rates at which no crowd stands out."""
        check_range("decay_s", self.decay_s, 1e-9)
        check_range("peak_factor", self.peak_factor, 1.0)
        check_range("onsets_per_s", self.onsets_per_s, 1e-12, _FLASH_MAX_PER_BLOCK / self.decay_s)

    def multiply(
        self,
        rates: NDArray[np.float64],
        keys: NDArray[np.uint64],
        start_ticks: NDArray[np.int64],
        tick_s: float,
        stream: int,
    ) -> None:
        """See `RateFactor.multiply`."""
        block = max(math.ceil(self.decay_s / tick_s), 1)
        decay = tick_s / self.decay_s
        extra = self.peak_factor - 1.0
        # Expected sum over onsets: one term of e**(-decay * age) for each past tick.
        expected = self.onsets_per_s * tick_s / -math.expm1(-decay)
        shape = (self.onsets_per_s * tick_s * block, decay, extra, 1.0 / (1.0 + extra * expected))
        room = np.empty(_FLASH_ROOM, dtype=np.int64)
        multiply_flash(rates, keys, start_ticks, block, shape, (stream, room))


def _check_levels(
    levels: tuple[float, ...], times_s: tuple[float, ...], times: str, *, at_least: int
) -> None:
    """Refuse level lists of different lengths, negative levels and all-zero levels."""
    if len(levels) != len(times_s) or len(levels) < at_least:
        raise ValueError(
            f"{len(levels)} levels and {len(times_s)} {times}; expected equally many, at least "
            f"{at_least}"
        )
    for level, time_s in zip(levels, times_s, strict=True):
        check_range("levels", level, 0.0)
        check_range(times, time_s, 1e-9)
    if max(levels) == 0.0:
        raise ValueError("all levels are 0; expected at least one above 0")
