"""The compiled core of `runtime.precision.observation.PrecisionCodec`.

The rules are those of `runtime.encoding`, whose classes are its oracle in tests. As three dozen
array operations a single observation takes 25 us, and 70 us between two passes, which take the
caches (measured in the running server, AMD EPYC with AVX-512).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

ACCUMULATED = 6
"""Signals that only grow and come first: time, arrived, served, late, dropped, time busy."""
DERIVED = 6
"""Entries worked out here and not copied; they come last."""


class Past(NamedTuple):
    """What N servers remember; changed in place.

    Attributes:
        known: float64 [N, signals], last known values.
        previous: float64 [N, ACCUMULATED], at the last call.
        sums: float64 [N, windows], exponentially weighted rates.
        weights: float64 [N, windows], their weights so far, up to 1.
    """

    known: NDArray[np.float64]
    previous: NDArray[np.float64]
    sums: NDArray[np.float64]
    weights: NDArray[np.float64]


class Scaling(NamedTuple):
    """How signals become entries. E entries, the last `DERIVED` of them derived.

    Attributes:
        source: int64 [E - DERIVED], column of the signal that is copied.
        window_s: float64 [6], time constants of the three arrival rates, the utilisation, the
            missed and the resolved requests.
        low: float64 [E]; see `runtime.encoding.Encoder`, as the next three.
        multiplier: float64 [E].
        gain: float64 [E].
        is_log: bool [E].
        shown: bool [E], whether an entry is not hidden.
    """

    source: NDArray[np.int64]
    window_s: NDArray[np.float64]
    low: NDArray[np.float64]
    multiplier: NDArray[np.float64]
    gain: NDArray[np.float64]
    is_log: NDArray[np.bool_]
    shown: NDArray[np.bool_]


@njit(cache=True, error_model="numpy")
def encode(
    signals: NDArray[np.float64], past: Past, scaling: Scaling, out: NDArray[np.float32]
) -> None:
    """Write the observations of N servers, float32 [N, E], from their signals float64 [N, ...]."""
    copied = len(scaling.source)
    raw = np.empty(copied + DERIVED)
    for e in range(len(signals)):
        known = past.known[e]
        for c in range(len(known)):
            if math.isfinite(signals[e, c]):
                known[c] = signals[e, c]
        for c in range(copied):
            raw[c] = known[scaling.source[c]]
        _derive(known, past.previous[e], past.sums[e], past.weights[e], scaling, raw[copied:])
        for c in range(len(raw)):
            value = max((raw[c] - scaling.low[c]) * scaling.multiplier[c], 0.0)
            if scaling.is_log[c]:
                value = math.log1p(value)
            out[e, c] = min(value * scaling.gain[c], 1.0) if scaling.shown[c] else 0.0


@njit(cache=True, error_model="numpy")
def _derive(
    known: NDArray[np.float64],
    previous: NDArray[np.float64],
    sums: NDArray[np.float64],
    weights: NDArray[np.float64],
    scaling: Scaling,
    out: NDArray[np.float64],
) -> None:
    """Advance the weighted rates of one server and write what is derived from them."""
    passed = np.empty(ACCUMULATED)
    for c in range(ACCUMULATED):
        passed[c] = known[c] - previous[c]
        previous[c] = known[c]
    elapsed_s = max(passed[0], 0.0)
    missed, resolved = passed[3] + passed[4], passed[2] + passed[4]
    amounts = (passed[1], passed[1], passed[1], passed[5], missed, resolved)
    for w, amount in enumerate(amounts):
        share = -math.expm1(-elapsed_s / scaling.window_s[w])
        sums[w] += share * (amount / max(elapsed_s, 1e-9) - sums[w])
        weights[w] += share * (1.0 - weights[w])
    rates = sums / np.maximum(weights, 1e-300)  # before any time has passed both are 0
    out[:3] = rates[:3]
    out[3] = rates[0] / max(rates[1], 1e-9)
    out[4] = rates[3]
    out[5] = rates[4] / max(rates[5], 1e-9)
