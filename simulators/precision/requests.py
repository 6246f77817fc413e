"""The requests that a simulated stream consists of, for whoever serves the same ones for real."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulators.compiled import jit
from simulators.noise import uniform
from simulators.precision.metrics import arrival_times_s
from simulators.precision.model import SAMPLE_STREAM
from simulators.precision.workload import Segments

_STREAM = int(SAMPLE_STREAM)


class Requests(NamedTuple):
    """Requests in order of arrival.

    Attributes:
        arrival_s: float64 [n], seconds.
        sample: int64 [n], which sample of the profile each is.
        condition: int64 [n], the condition it is shown under.
    """

    arrival_s: NDArray[np.float64]
    sample: NDArray[np.int64]
    condition: NDArray[np.int64]


def requests_of(
    key: np.uint64,
    counts: NDArray[np.int64],
    tick_s: float,
    segments: Segments,
    n_samples: int,
) -> Requests:
    """Return the requests that `simulators.precision.engine` draws for one environment.

    Args:
        key: Its random key.
        counts: int64 [n_ticks], its arrivals in each tick.
        tick_s: Length of a tick, seconds.
        segments: Its conditions over time: the rows of one environment.
        n_samples: Samples of the profile.
    """
    arrival_s = arrival_times_s(counts, tick_s)
    start_s, condition = segments.start_s[0], segments.condition[0]
    place = np.searchsorted(start_s[1:], arrival_s, side="right")
    sample = np.empty(len(arrival_s), dtype=np.int64)
    _draw_samples(key, n_samples, sample)
    return Requests(arrival_s, sample, condition[place])


@jit
def _draw_samples(key: int, n_samples: int, sample: NDArray[np.int64]) -> None:
    for i in range(len(sample)):
        sample[i] = int(uniform(key, _STREAM, i, 0) * n_samples)
