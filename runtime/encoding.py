"""What the codecs of all domains share: layout entries, scaling to [0, 1], rates over windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_NO_WEIGHT = 1e-300  # before any time has passed the sums are 0, and so are the rates


class Entry(NamedTuple):
    """One number of an observation.

    Encoded as (x - low) / (high - low) (linear) or
    log(1 + (x - low) / log_step) / log(1 + (high - low) / log_step) (log), clipped to [0, 1].
    """

    name: str
    unit: str
    high: float
    log_step: float  # 0 for linear
    meaning: str
    low: float = 0.0


class Encoder:
    """Scales the columns of N observations as their entries say.

    A column x becomes min(gain * f(max((x - low) * multiplier, 0)), 1), f = log1p where `is_log`.

    Attributes:
        low: float64 [columns].
        multiplier: float64 [columns].
        gain: float64 [columns].
        is_log: bool [columns].
    """

    def __init__(self, layout: Sequence[Entry]) -> None:
        """Prepare the scaling.

        Args:
            layout: One entry per column.
        """
        self.low = np.array([entry.low for entry in layout])
        span = np.array([entry.high for entry in layout]) - self.low
        step = np.array([entry.log_step for entry in layout])
        self.is_log = step > 0
        divisor = np.where(self.is_log, step, span)
        self.multiplier = 1.0 / divisor
        self.gain = np.where(self.is_log, 1.0 / np.log1p(span / divisor), 1.0)
        self._shifts = bool(self.low.any())

    def encode(self, raw: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the scaled columns, float32 [N, len(layout)] in [0, 1], of raw float64 ones."""
        scaled = (raw - self.low if self._shifts else raw) * self.multiplier
        np.maximum(scaled, 0.0, out=scaled)
        np.log1p(scaled, out=scaled, where=self.is_log)
        scaled *= self.gain
        return np.minimum(scaled, 1.0, dtype=np.float32, casting="same_kind")


class RateWindows:
    """Exponentially weighted mean rates of N streams over several windows."""

    def __init__(self, windows_s: Sequence[float], n: int) -> None:
        """Start with no past.

        Args:
            windows_s: Time constants, seconds.
            n: Number of streams N.
        """
        self._negative_inverse = -1.0 / np.array(windows_s)
        self._sums = np.zeros((n, len(windows_s)))
        self._weights = np.zeros((n, len(windows_s)))

    def reset(self, which: NDArray[np.int64] | slice = slice(None)) -> None:
        """Forget the past of some streams."""
        self._sums[which] = 0.0
        self._weights[which] = 0.0

    def update(
        self, elapsed_s: NDArray[np.float64], rate: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Advance the weighted means; weights that sum to less than 1 are made up for.

        Args:
            elapsed_s: float64 [N, 1], time since the last call, seconds >= 0; 0 changes nothing.
            rate: float64 [N, 1], mean rate over that time.

        Returns:
            float64 [N, len(windows_s)].
        """
        weight = -np.expm1(elapsed_s * self._negative_inverse)
        self._sums += weight * (rate - self._sums)
        self._weights += weight * (1.0 - self._weights)
        return self._sums / np.maximum(self._weights, _NO_WEIGHT)
