"""From the outputs of a batch to answers, margins and the figures of its report.

Compiled: on a batch of a few requests a dozen array operations cost more in calls than in work,
the more so right after a pass, which has taken the caches. 16 requests of 10 classes: three calls
of a few microseconds, where tensor and array operations took 0.14 ms between two passes (measured
in the running server, AMD EPYC with AVX-512).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Final, NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from runtime.precision.snapshot import LOW_MARGIN

_NO_SIGN: Final = np.uint32(0x7FFFFFFF)
_INFINITE: Final = np.uint32(0x7F800000)

_compiled = njit(cache=True)


def answers_of(output: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the most likely class of each sample and by how much it leads.

    Args:
        output: float32 [n, classes], logits of at least two classes.

    Returns:
        Classes int64 [n], and the difference of the two largest softmax probabilities, float64
        [n]: NaN for a sample with a logit that is not finite.
    """
    n = output.shape[0]
    classes, margin = np.empty(n, np.int64), np.empty(n)
    _answer(output.numpy(), classes, margin)
    return classes, margin


def not_finite(x: Tensor) -> NDArray[np.bool_]:
    """Return which samples of a batch hold infinities or NaN, bool [n].

    Integer kernels would clip an infinity, and answer as if nothing was wrong.

    Args:
        x: float32 [n, ...].
    """
    values = x.numpy()
    if values.ndim == 4 and not values.flags.c_contiguous:
        values = values.transpose(0, 2, 3, 1)  # as banks and streams keep images
    result = np.empty(len(values), np.bool_)
    _not_finite(values.reshape(len(values), -1).view(np.uint32), result)
    return result


@cache
def warm_up() -> None:
    """Have everything here compiled, or read from the cache, before a batch waits for it."""
    x = torch.zeros(1, 2)
    classes, margins = answers_of(x)
    tally(Outcome(classes, margins, not_finite(x)), margins, classes, 0.0, 0.0)


class Tally(NamedTuple):
    """Figures of a served batch.

    Attributes:
        late: Requests whose latency exceeded the deadline.
        correct: Requests answered correctly; NaN without labels.
        in_time: Correct ones within the deadline; NaN without labels.
        arrival_s: Mean arrival time.
        margin: Mean output margin of the first pass.
        low_margin: Share of margins below `LOW_MARGIN`.
        escalated: Requests that were run again.
    """

    late: int
    correct: float
    in_time: float
    arrival_s: float
    margin: float
    low_margin: float
    escalated: int


class Outcome(NamedTuple):
    """What came out of the passes of a batch of n requests.

    Attributes:
        answers: int64 [n].
        margins: float64 [n], of the first pass.
        again: bool [n], which were run again.
    """

    answers: NDArray[np.int64]
    margins: NDArray[np.float64]
    again: NDArray[np.bool_]


def tally(
    outcome: Outcome,
    arrival_s: NDArray[np.float64],
    truth: NDArray[np.int64] | None,
    end_s: float,
    deadline_s: float,
) -> Tally:
    """Count what is reported of a batch.

    Args:
        outcome: Of n requests, at least 1.
        arrival_s: float64 [n].
        truth: int64 [n], right answers; None where nobody knows them.
        end_s: When the answers were there.
        deadline_s: Latency up to which an answer is in time.
    """
    known = outcome.answers[:0] if truth is None else truth
    # numba keeps compiled code when another file changes: its constants come as arguments.
    figures = Tally(*_tally(outcome, arrival_s, known, end_s, deadline_s, LOW_MARGIN))
    return figures if truth is not None else figures._replace(correct=math.nan, in_time=math.nan)


@_compiled
def _answer(
    logits: NDArray[np.float32], classes: NDArray[np.int64], margin: NDArray[np.float64]
) -> None:
    n, k = logits.shape
    for i in range(n):
        best = 0
        for j in range(1, k):
            if logits[i, j] > logits[i, best]:
                best = j
        total, second = 0.0, 0.0
        for j in range(k):
            part = math.exp(np.float64(logits[i, j]) - np.float64(logits[i, best]))
            total += part
            if j != best and part > second:
                second = part
        classes[i] = best
        margin[i] = (1.0 - second) / total


@_compiled
def _not_finite(bits: NDArray[np.uint32], result: NDArray[np.bool_]) -> None:
    for i in range(len(bits)):
        row, largest = bits[i], np.uint32(0)
        for t in range(len(row)):  # as integers: a maximum of floats would not be vectorised
            largest = max(largest, row[t] & _NO_SIGN)
        result[i] = largest >= _INFINITE


@_compiled
def _tally(
    outcome: Outcome,
    arrival_s: NDArray[np.float64],
    truth: NDArray[np.int64],
    end_s: float,
    deadline_s: float,
    low_margin: float,
) -> tuple[int, int, int, float, float, float, int]:
    late, correct, in_time, low, escalated = 0, 0, 0, 0, 0
    arrived_s, margin = 0.0, 0.0
    n = len(arrival_s)
    for i in range(n):
        over = end_s - arrival_s[i] > deadline_s
        late += over
        arrived_s += arrival_s[i]
        margin += outcome.margins[i]
        low += outcome.margins[i] < low_margin
        escalated += outcome.again[i]
        if len(truth) and outcome.answers[i] == truth[i]:
            correct += 1
            in_time += not over
    return late, correct, in_time, arrived_s / n, margin / n, low / n, escalated
