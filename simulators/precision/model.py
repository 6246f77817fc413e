"""A profile and the rules of serving, flattened into the tables that the compiled engine reads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.precision.plan import all_assignments
from runtime.precision.serving import Drop, Serving
from runtime.precision.snapshot import LOW_MARGIN, WILSON_Z, bucket_of
from simulators.precision.profile import MARGIN_STEPS, PrecisionProfile

SAMPLE_STREAM, SERVICE_STREAM, SCHEDULE_STREAM = range(3)
"""Streams of the counter-based random numbers: by request, by batch, by stretch of a schedule."""
CORRECT_BIT, AGREES_BIT = 8, 9


class Model(NamedTuple):
    """Static description of a server. A assignments, B buckets, C conditions, n samples.

    Attributes:
        base_s: float64 [A, B], mean service time of one pass.
        decision_s: float64 [B], time in which an agent decides for a batch.
        switch_s: float64 [B], how much longer the first pass after one at other levels takes.
        residual: float64 [B, cells], equally likely factors of it.
        bucket_of: int64 [max_batch + 1], bucket of each batch size.
        outcome: uint16 [C, A, n]: margin, then a bit for a correct answer (`CORRECT_BIT`) and one
            for an answer equal to the reference assignment's (`AGREES_BIT`).
        properties: float64 [C, n, F].
        clip_rate: float64 [C, S, P].
        sqnr_db: float64 [C, S, P].
        levels: int64 [A, S], the levels of each assignment.
        n_levels: Number of levels P.
        deadline_s: See `Serving`, as the rest.
        max_batch: Largest batch.
        drops: Whether requests leave unserved.
        drops_late: Whether those do that the plan in force would answer late.
        shadow_fraction: Share of checked requests.
        shadow_delay_s: Delay of the results.
        low_margin: Margins below this (in steps) count as low.
        wilson_z: Normal quantile of the interval.
    """

    base_s: NDArray[np.float64]
    decision_s: NDArray[np.float64]
    switch_s: NDArray[np.float64]
    residual: NDArray[np.float64]
    bucket_of: NDArray[np.int64]
    outcome: NDArray[np.uint16]
    properties: NDArray[np.float64]
    clip_rate: NDArray[np.float64]
    sqnr_db: NDArray[np.float64]
    levels: NDArray[np.int64]
    n_levels: int
    deadline_s: float
    max_batch: int
    drops: bool
    drops_late: bool
    shadow_fraction: float
    shadow_delay_s: float
    low_margin: float
    wilson_z: float


def build_model(profile: PrecisionProfile, serving: Serving) -> Model:
    """Flatten a profile and the rules of serving.

    Raises:
        ValueError: `max_batch` exceeds the largest prepared batch.
    """
    if serving.max_batch > profile.buckets[-1]:
        raise ValueError(
            f"max_batch is {serving.max_batch}; the profile's largest bucket is "
            f"{profile.buckets[-1]}"
        )
    sizes = range(serving.max_batch + 1)
    correct = (profile.label == profile.truth).astype(np.uint16) << CORRECT_BIT
    agrees = (profile.label == profile.label[:, :1]).astype(np.uint16) << AGREES_BIT
    return Model(
        base_s=profile.latency_table_s(),
        decision_s=profile.decision_s,
        switch_s=profile.switch_s,
        residual=profile.residual,
        bucket_of=np.array([bucket_of(size, profile.buckets) for size in sizes]),
        outcome=profile.margin.astype(np.uint16) | correct | agrees,
        properties=profile.properties.astype(np.float64),
        clip_rate=profile.clip_rate.astype(np.float64),
        sqnr_db=profile.sqnr_db.astype(np.float64),
        levels=all_assignments(len(profile.stages), len(profile.levels)),
        n_levels=len(profile.levels),
        deadline_s=float(serving.deadline_s),
        max_batch=serving.max_batch,
        drops=serving.drop is not Drop.NEVER,
        drops_late=serving.drop is Drop.LATE,
        shadow_fraction=float(serving.shadow_fraction),
        shadow_delay_s=float(serving.shadow_delay_s),
        low_margin=LOW_MARGIN * MARGIN_STEPS,
        wilson_z=WILSON_Z,
    )
