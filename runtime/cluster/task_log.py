"""Measured task times: the table that the cost model is fitted to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.application import Application


def task_time_dtype(application: Application) -> np.dtype[np.void]:
    """Return the row type of a table of task times.

    Fields: `job` and `stage` (names), `batch`, `records` (of the task), `busy` (slots at its
    start, its own included), `attempts`, `failed`, `start_s` and `duration_s` (its time in the
    slot, waits and overhead included).
    """
    job = max(len(job.name) for job in application.jobs)
    stage = max(len(stage.name) for job in application.jobs for stage in job.stages)
    return np.dtype(
        [
            ("job", f"U{job}"),
            ("stage", f"U{stage}"),
            ("batch", np.int64),
            ("records", np.int64),
            ("busy", np.int64),
            ("attempts", np.int64),
            ("failed", np.bool_),
            ("start_s", np.float64),
            ("duration_s", np.float64),
        ]
    )


Row = tuple[str, str, int, int, int, int, bool, float, float]
"""One row of the table, in the order of its fields."""


def task_time_table(application: Application, rows: list[Row]) -> NDArray[np.void]:
    """Return rows as a structured array [n] of `task_time_dtype`."""
    return np.array(rows, dtype=task_time_dtype(application))
