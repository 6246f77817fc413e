"""Counter-based random numbers: a number is a pure function of a key and of what it is for.

splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators") as a
finaliser over a linear combination of key and counters. Because nothing is drawn in sequence, a
result cannot depend on how many environments there are or in which order they run. The compiled
and the plain-Python form give the same bits.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from simulators.compiled import jit

_STREAM = 0x2545F4914F6CDD1D
_COUNTER = 0x9E3779B97F4A7C15
_DRAW = 0xD1B54A32D192ED03
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1
_TO_UNIT = 1.0 / 9007199254740992.0  # 2**-53

_STREAM_U, _COUNTER_U, _DRAW_U = np.uint64(_STREAM), np.uint64(_COUNTER), np.uint64(_DRAW)
_MIX_1_U, _MIX_2_U = np.uint64(_MIX_1), np.uint64(_MIX_2)


@jit
def uniform(key: int, stream: int, counter: int, draw: int) -> float:
    """Return a number in [0, 1) that depends on the arguments only (compiled).

    Args:
        key: Key of the environment.
        stream: What the number is for, for instance a stage.
        counter: Which one, for instance a record.
        draw: Distinguishes several numbers for the same thing.
    """
    x = (
        (nb.uint64(key) ^ (nb.uint64(stream) * _STREAM_U))
        + nb.uint64(counter) * _COUNTER_U
        + nb.uint64(draw) * _DRAW_U
    )
    x = (x ^ (x >> nb.uint64(30))) * _MIX_1_U
    x = (x ^ (x >> nb.uint64(27))) * _MIX_2_U
    x = x ^ (x >> nb.uint64(31))
    return nb.float64(nb.int64(x >> nb.uint64(11))) * _TO_UNIT


def uniform_reference(key: int, stream: int, counter: int, draw: int) -> float:
    """Return the same number as `uniform`, in plain Python."""
    x = ((key & _MASK) ^ (stream * _STREAM & _MASK)) + counter * _COUNTER + draw * _DRAW
    x &= _MASK
    x = ((x ^ (x >> 30)) * _MIX_1) & _MASK
    x = ((x ^ (x >> 27)) * _MIX_2) & _MASK
    x ^= x >> 31
    return (x >> 11) * _TO_UNIT
