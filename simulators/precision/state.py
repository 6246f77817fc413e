"""The state of many simulated servers: its rows, its arrays, their allocation."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runtime.precision.plan import plan_columns
from runtime.precision.serving import Serving
from runtime.precision.snapshot import REPORT_COLUMNS, SignalLayout

SERVER = np.dtype(
    [
        ("now_s", np.float64),  # time of the decision
        ("busy_s", np.float64),
        ("key", np.uint64),  # random key of the environment
        ("head", np.int64),  # first request of the batch
        ("batch", np.int64),  # requests of the batch; 0 once the stream is over
        ("tick", np.int64),  # tick that holds the head, or an earlier one
        ("segment", np.int64),  # stretch of the condition schedule that holds the head
        ("batches", np.int64),  # batches served so far
        ("version", np.int64),  # of the plan in force, -1 before the first
        ("ran", np.int64),  # assignment of the last pass
        ("served", np.int64),
        ("late", np.int64),
        ("dropped", np.int64),
        ("window_next", np.int64),  # place in the window that is written next
        ("window_size", np.int64),
        ("window_sum", np.int64),  # disagreements in the window
        ("pending_first", np.int64),  # place of the oldest pending check
        ("pending", np.int64),
    ],
    align=True,
)
REQUEST = np.dtype(
    [
        ("arrival_s", np.float64),
        ("sample", np.uint32),
        ("condition", np.uint16),
        ("checked", np.uint8),  # whether it is shadow-checked
        ("escalated", np.uint8),  # whether it is run again
    ],
    align=True,
)
PENDING = np.dtype(
    [
        ("ready_s", np.float64),
        ("disagrees", np.uint64),  # a bit for each checked request, in order
        ("count", np.int32),  # checked requests
        ("assignment", np.int32),
        ("condition", np.int32),  # of the last checked request
    ],
    align=True,
)


class State(NamedTuple):
    """Arrays of all environments (first axis N), or views of one environment without it.

    Attributes:
        server: SERVER [N, 1].
        request: REQUEST [N, max_batch], the batch that is about to be dispatched.
        pending: PENDING [N, shadow_queue], a ring of batches whose checks are under way.
        window: uint8 [N, shadow_window], a ring of the last known checks; 1 is a disagreement.
        segment_s: float64 [N, n_segments], start of each stretch of the condition schedule.
        segment_condition: int64 [N, n_segments].
        plan: float64 [N, 2 * S + 1], the plan in force.
        signals: float64 [N, layout.size].
        report: float64 [N, len(REPORT_COLUMNS)], of the last batch.
    """

    server: Any
    request: Any
    pending: Any
    window: NDArray[np.uint8]
    segment_s: NDArray[np.float64]
    segment_condition: NDArray[np.int64]
    plan: NDArray[np.float64]
    signals: NDArray[np.float64]
    report: NDArray[np.float64]


def allocate_state(n_envs: int, layout: SignalLayout, serving: Serving, n_segments: int) -> State:
    """Allocate zeroed state.

    Args:
        n_envs: Number of environments N.
        layout: Columns of the signals.
        serving: Rules of serving.
        n_segments: Stretches of a condition schedule.
    """
    return State(
        server=np.zeros((n_envs, 1), dtype=SERVER),
        request=np.zeros((n_envs, serving.max_batch), dtype=REQUEST),
        pending=np.zeros((n_envs, serving.shadow_queue), dtype=PENDING),
        window=np.zeros((n_envs, serving.shadow_window), dtype=np.uint8),
        segment_s=np.zeros((n_envs, n_segments)),
        segment_condition=np.zeros((n_envs, n_segments), dtype=np.int64),
        plan=np.zeros((n_envs, len(plan_columns(layout.n_stages)))),
        signals=np.zeros((n_envs, layout.size)),
        report=np.zeros((n_envs, len(REPORT_COLUMNS))),
    )
