"""Compiled draws from the Poisson and Gamma laws out of counter-based uniforms.

Every draw is a pure function of (key, stream, counter); several uniforms of one draw are told
apart by their draw number.
"""

from __future__ import annotations

import math

from simulators.compiled import jit
from simulators.noise import uniform

# Below this mean the search through the distribution function needs few steps; above it
# Hoermann's rejection needs a constant number. 10 is also where PTRS is proven to be valid.
_INVERSION_BELOW = 10.0
# With a mean below 10 more than 200 records have a probability under 1e-180: only rounding at the
# upper end of the unit interval could get there.
_INVERSION_LAST = 200


@jit
def poisson(mean: float, key: int, stream: int, counter: int) -> int:
    """Return a Poisson count (exact up to float64).

    Inversion by sequential search below a mean of 10; transformed rejection with squeeze (PTRS,
    W. Hoermann 1993, "The transformed rejection method for generating Poisson random variables",
    Insurance: Mathematics and Economics 12) above.

    Args:
        mean: Expected count, at least 0.
        key: Key of the environment.
        stream: What the number is for.
        counter: Which one, for instance a tick.
    """
    if mean <= 0.0:
        return 0
    if mean < _INVERSION_BELOW:
        rest = uniform(key, stream, counter, 0)
        term = math.exp(-mean)
        count = 0
        while rest >= term and count < _INVERSION_LAST:
            rest -= term
            count += 1
            term *= mean / count
        return count
    large: int = _poisson_ptrs(mean, key, stream, counter)
    return large


@jit
def _poisson_ptrs(mean: float, key: int, stream: int, counter: int) -> int:
    """Draw by rejection; constants and names as in Hoermann's algorithm PTRS (mean >= 10)."""
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    v_r = 0.9277 - 3.6224 / (b - 2.0)
    draw = 0
    while True:
        u = uniform(key, stream, counter, draw) - 0.5
        v = 1.0 - uniform(key, stream, counter, draw + 1)  # in (0, 1]
        draw += 2
        us = 0.5 - abs(u)
        k = math.floor((2.0 * a / us + b) * u + mean + 0.43) if us > 0.0 else -1.0
        if us >= 0.07 and v <= v_r:
            return int(k)
        if k < 0.0 or (us < 0.013 and v > us):
            continue
        inverse_alpha = 1.1239 + 1.1328 / (b - 3.4)
        accept = math.log(v * inverse_alpha / (a / (us * us) + b))
        if accept <= k * math.log(mean) - mean - math.lgamma(k + 1.0):
            return int(k)


@jit
def unit_gamma(shape: float, key: int, stream: int, counter: int) -> float:
    """Return a Gamma number with mean 1 and variance 1/shape.

    Marsaglia and Tsang 2000, "A simple method for generating gamma variables", ACM TOMS 26(3),
    with their power correction for a shape below 1. Normals by Box and Muller.

    Args:
        shape: Shape of the law, above 0.
        key: Key of the environment.
        stream: What the number is for.
        counter: Which one, for instance a block of ticks.
    """
    boosted = shape if shape >= 1.0 else shape + 1.0
    d = boosted - 1.0 / 3.0
    c = 1.0 / math.sqrt(9.0 * d)
    power = 1.0
    if shape < 1.0:
        power = (1.0 - uniform(key, stream, counter, 0)) ** (1.0 / shape)
    draw = 1
    while True:
        radius = math.sqrt(-2.0 * math.log(1.0 - uniform(key, stream, counter, draw)))
        x = radius * math.cos(2.0 * math.pi * uniform(key, stream, counter, draw + 1))
        u = 1.0 - uniform(key, stream, counter, draw + 2)
        draw += 3
        v = (1.0 + c * x) ** 3
        if v > 0.0 and math.log(u) < 0.5 * x * x + d - d * v + d * math.log(v):
            return d * v * power / shape
