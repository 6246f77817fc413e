"""What a task costs: measured (or declared) task-time parameters per stage.

A task of `n` records that starts when it makes `k` slots busy takes

    wait_s + (fixed_s + per_record_s * n) * residual * slowdown[k]

where `wait_s` is a declared wait that needs no core (reading from a store), `residual` is drawn
from a table of equally likely values with mean 1, and the slowdown by busy slots is fixed at the
start of the task. Without the slowdown concurrency would be free and parallelism would have no
optimum.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.application import Application

FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class StageCost:
    """Task-time parameters of one stage.

    Attributes:
        wait_s: Declared wait per task, seconds >= 0.
        fixed_s: Cost per task, seconds >= 0.
        per_record_s: Cost per record, seconds >= 0.
        residual: float64 [n_quantiles], equally likely factors > 0 with mean 1.
        slowdown: float64 [max busy + 1]; entry k applies when k slots are busy, the starting task
            included (entry 0 is never used). More busy slots than entries use the last one.
        failure_probability: Probability in [0, 1) that one attempt of a task fails.
    """

    wait_s: float
    fixed_s: float
    per_record_s: float
    residual: NDArray[np.float64] = field(default_factory=lambda: np.ones(1))
    slowdown: NDArray[np.float64] = field(default_factory=lambda: np.ones(2))
    failure_probability: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values that are no task times.

        Raises:
            ValueError: A field is outside its range.
        """
        for name in ("wait_s", "fixed_s", "per_record_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{name} is {value}; expected finite seconds >= 0")
        if self.wait_s + self.fixed_s + self.per_record_s <= 0.0:
            raise ValueError("wait_s, fixed_s and per_record_s are all 0; a task must take time")
        for name in ("residual", "slowdown"):
            table = getattr(self, name)
            if table.ndim != 1 or not len(table) or not np.all(np.isfinite(table) & (table > 0)):
                raise ValueError(f"{name} must be a non-empty list of finite factors > 0")
        if len(self.slowdown) < 2:
            raise ValueError("slowdown needs at least 2 entries: for 0 and for 1 busy slot")
        if abs(float(self.residual.mean()) - 1.0) > 1e-6:
            raise ValueError(
                f"residual has mean {self.residual.mean():.6g}; expected 1 (divide by its mean and "
                "scale fixed_s and per_record_s instead)"
            )
        if not 0.0 <= self.failure_probability < 1.0:
            raise ValueError(f"failure_probability is {self.failure_probability}; expected [0, 1)")

    def mean_task_s(self, records: float, busy: int = 1) -> float:
        """Return the mean time of a task, seconds.

        Args:
            records: Records the task takes.
            busy: Busy slots when it starts, itself included.
        """
        slow = float(self.slowdown[min(busy, len(self.slowdown) - 1)])
        return self.wait_s + (self.fixed_s + self.per_record_s * records) * slow


@dataclass(frozen=True, eq=False)
class Profile:
    """The costs of all stages of an application on one machine.

    Attributes:
        application: Name of the application that was measured.
        costs: Cost by (job name, stage name).
        slots: Worker slots that were measured.
        cores: Cores that stood behind them.
        origin: How the numbers came about ("declared", or machine, date and command).
    """

    application: str
    costs: dict[tuple[str, str], StageCost]
    slots: int
    cores: int
    origin: str = "declared"

    def check_covers(self, application: Application) -> None:
        """Refuse an application with a stage that has no cost here.

        Raises:
            ValueError: Names the first such stage.
        """
        for job in application.jobs:
            for stage in job.stages:
                if (job.name, stage.name) not in self.costs:
                    raise ValueError(
                        f"the profile of {self.application!r} has no cost for stage "
                        f"{stage.name!r} of job {job.name!r}; measure the application again"
                    )

    def save(self, path: Path) -> None:
        """Write the profile as JSON (temporary file, then rename)."""
        stages = [
            {
                "job": job,
                "stage": stage,
                "wait_s": cost.wait_s,
                "fixed_s": cost.fixed_s,
                "per_record_s": cost.per_record_s,
                "failure_probability": cost.failure_probability,
                "residual": cost.residual.tolist(),
                "slowdown": cost.slowdown.tolist(),
            }
            for (job, stage), cost in self.costs.items()
        ]
        content = {
            "format_version": FORMAT_VERSION,
            "application": self.application,
            "slots": self.slots,
            "cores": self.cores,
            "origin": self.origin,
            "stages": stages,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> Profile:
        """Read a profile written by `save`.

        Raises:
            ValueError: Not such a file, another format version, or impossible values; the message
                names the file.
        """
        try:
            content = json.loads(path.read_text())
            if content["format_version"] != FORMAT_VERSION:
                raise ValueError(
                    f"format version {content['format_version']}; expected {FORMAT_VERSION}"
                )
            costs = {(s["job"], s["stage"]): _stage_cost(s) for s in content["stages"]}
            return cls(
                application=content["application"],
                costs=costs,
                slots=int(content["slots"]),
                cores=int(content["cores"]),
                origin=content["origin"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is not a usable profile ({error}); make one with "
                "`python -m experiments.measure`"
            ) from error


def _stage_cost(content: dict[str, Any]) -> StageCost:
    """Build a cost from its JSON form."""
    return StageCost(
        wait_s=float(content["wait_s"]),
        fixed_s=float(content["fixed_s"]),
        per_record_s=float(content["per_record_s"]),
        residual=np.asarray(content["residual"], dtype=np.float64),
        slowdown=np.asarray(content["slowdown"], dtype=np.float64),
        failure_probability=float(content["failure_probability"]),
    )
