"""Training mode: for every stage the lowest level whose accuracy result stays within a threshold.

Stage by stage, in order, as in claim 1 of US20200042287A1: run the stage at its first (highest)
level and take its accuracy result; run the same stage at the next lower level and accept that if
its result is within the stage's threshold of the *first* result; stop at the first level that is
not. Thresholds of stages do not compose, so `hold_chain` then raises stages again until the whole
chain is accurate enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

Assignment = tuple[int, ...]
"""One level per stage, by its position in the levels; 0 is the highest."""


class Stages(Protocol):
    """A staged computation that can be run and judged; higher accuracy results are better."""

    @property
    def stage_names(self) -> Sequence[str]:
        """Names of the S stages, in order."""

    @property
    def level_names(self) -> Sequence[str]:
        """Names of the P levels, the highest first."""

    def refusal(self, stage: int, level: int) -> str | None:
        """Return why the stage cannot run at the level, None if it can."""

    def time_s(self, stage: int, level: int) -> float:
        """Return the measured time of the stage at the level, seconds."""

    def n_bytes(self, stage: int, level: int) -> int:
        """Return the memory that the stage takes at the level, bytes."""

    def stage_result(self, stage: int, level: int, upstream: Assignment) -> float:
        """Run one stage behind stages at the levels `upstream` and return its accuracy result."""

    def chain_result(self, assignment: Assignment) -> float:
        """Run all stages and return the accuracy result of the whole chain."""


class Upstream(StrEnum):
    """What a stage under test is fed with."""

    CASCADE = "cascade"
    """The stages before it at the levels that were accepted for them."""

    REFERENCE = "reference"
    """The stages before it at their first levels."""


class Outcome(StrEnum):
    """What became of a level of a stage."""

    FIRST = "first"
    ACCEPTED = "accepted"
    OUTSIDE = "outside threshold"
    NOT_FASTER = "not faster"
    CANNOT_RUN = "cannot run"
    NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True)
class Trial:
    """One row of the calibration table.

    Attributes:
        stage: Name of the stage.
        level: Name of the level.
        outcome: What became of it.
        result: Accuracy result; None if the stage was not run.
        time_s: Measured time, seconds; None where the level cannot run.
        n_bytes: Memory of the variant; None likewise.
    """

    stage: str
    level: str
    outcome: Outcome
    result: float | None
    time_s: float | None
    n_bytes: int | None


@dataclass(frozen=True, slots=True)
class StageSearch:
    """What the search over stages found.

    Attributes:
        trials: A row per stage and level.
        assignment: Accepted level of every stage.
        runs: How often a stage was run; at most S * P.
    """

    trials: tuple[Trial, ...]
    assignment: Assignment
    runs: int


def find_levels(stages: Stages, thresholds: Sequence[float], upstream: Upstream) -> StageSearch:
    """Find the lowest acceptable level of every stage.

    A level that is not faster than the one accepted so far is skipped; that is no stop.

    Args:
        stages: What is searched.
        thresholds: Per stage how far a result may lie below the stage's first result, >= 0.
        upstream: What a stage under test is fed with.

    Raises:
        ValueError: Not one threshold per stage, a threshold that is negative or not a number, a
            first level that cannot run, or a result that is not finite.
    """
    _check_thresholds(stages, thresholds)
    chosen: list[int] = []
    trials: list[Trial] = []
    runs = 0
    for stage in range(len(stages.stage_names)):
        before = tuple(chosen) if upstream is Upstream.CASCADE else (0,) * stage
        rows, level = _search_stage(stages, stage, before, thresholds[stage])
        runs += sum(row.result is not None for row in rows)
        trials += rows
        chosen.append(level)
    return StageSearch(tuple(trials), tuple(chosen), runs)


def _search_stage(
    stages: Stages, stage: int, before: Assignment, threshold: float
) -> tuple[list[Trial], int]:
    """Return the rows of one stage and its accepted level."""
    if refusal := stages.refusal(stage, 0):
        raise ValueError(
            f"stage {stages.stage_names[stage]!r} cannot run at its first level "
            f"{stages.level_names[0]!r}: {refusal}"
        )
    first = _result(stages, stage, 0, before)
    rows = [_trial(stages, stage, 0, Outcome.FIRST, first)]
    accepted, stopped = 0, False
    for level in range(1, len(stages.level_names)):
        outcome, result = Outcome.NOT_TRIED, None
        if stages.refusal(stage, level):
            outcome = Outcome.CANNOT_RUN
        elif stopped:
            pass
        elif stages.time_s(stage, level) >= stages.time_s(stage, accepted):
            outcome = Outcome.NOT_FASTER
        else:
            result = _result(stages, stage, level, before)
            stopped = result < first - threshold
            outcome = Outcome.OUTSIDE if stopped else Outcome.ACCEPTED
            accepted = accepted if stopped else level
        rows.append(_trial(stages, stage, level, outcome, result))
    return rows, accepted


@dataclass(frozen=True, slots=True)
class Raise:
    """One stage raised by the check of the whole chain.

    Attributes:
        stage: Position of the stage.
        level: Level after.
        result: Accuracy result of the whole chain after.
    """

    stage: int
    level: int
    result: float


@dataclass(frozen=True, slots=True)
class ChainCheck:
    """What the check of the whole chain did.

    Attributes:
        first: Accuracy result with all stages at their first levels.
        before: Accuracy result of the assignment that came in.
        raises: Stages raised, in order.
        assignment: The assignment that holds.
        result: Its accuracy result.
    """

    first: float
    before: float
    raises: tuple[Raise, ...]
    assignment: Assignment
    result: float


def hold_chain(stages: Stages, assignment: Assignment, threshold: float) -> ChainCheck:
    """Raise stages until the whole chain is within a threshold of its first result.

    Each time the stage goes up one level whose raise costs least time per accuracy that it brings
    back; where no single raise brings any back, the cheapest raise. With every stage at its first
    level the chain holds by definition, so this ends.

    Args:
        stages: What was searched.
        assignment: Where to start.
        threshold: How far the chain's result may lie below that of all first levels, >= 0.

    Raises:
        ValueError: A threshold that is negative or not a number.
    """
    if not threshold >= 0.0:
        raise ValueError(f"the chain's threshold is {threshold}; expected a number >= 0")
    first = stages.chain_result((0,) * len(assignment))
    before = now = stages.chain_result(assignment) if any(assignment) else first
    raises: list[Raise] = []
    while now < first - threshold and any(assignment):
        options = []
        for stage in (k for k, level in enumerate(assignment) if level > 0):
            raised = _raised(stages, assignment, stage)
            cost_s = stages.time_s(stage, raised[stage]) - stages.time_s(stage, assignment[stage])
            # All first levels are not run again: theirs is the result to come back to.
            result = stages.chain_result(raised) if any(raised) else first
            gain = result - now
            # First those that bring accuracy back, by price; then the rest, by cost.
            order = (0, cost_s / gain) if gain > 0.0 else (1, cost_s)
            options.append((order, stage, raised, result))
        _, stage, assignment, now = min(options)
        raises.append(Raise(stage, assignment[stage], now))
    return ChainCheck(first, before, tuple(raises), assignment, now)


def _raised(stages: Stages, assignment: Assignment, stage: int) -> Assignment:
    """Return an assignment with one stage at the next higher level that it can run at."""
    level = assignment[stage] - 1
    while level > 0 and stages.refusal(stage, level):
        level -= 1
    return (*assignment[:stage], level, *assignment[stage + 1 :])


def _result(stages: Stages, stage: int, level: int, before: Assignment) -> float:
    result = stages.stage_result(stage, level, before)
    if not math.isfinite(result):
        raise ValueError(
            f"the accuracy result of stage {stages.stage_names[stage]!r} at "
            f"{stages.level_names[level]!r} is {result}; expected a finite number: are there "
            "non-finite activations?"
        )
    return result


def _trial(stages: Stages, stage: int, level: int, outcome: Outcome, result: float | None) -> Trial:
    runs = outcome is not Outcome.CANNOT_RUN
    return Trial(
        stage=stages.stage_names[stage],
        level=stages.level_names[level],
        outcome=outcome,
        result=result,
        time_s=stages.time_s(stage, level) if runs else None,
        n_bytes=stages.n_bytes(stage, level) if runs else None,
    )


def _check_thresholds(stages: Stages, thresholds: Sequence[float]) -> None:
    if len(thresholds) != len(stages.stage_names):
        raise ValueError(
            f"{len(thresholds)} thresholds for {len(stages.stage_names)} stages "
            f"({', '.join(stages.stage_names)}); expected one each"
        )
    for name, threshold in zip(stages.stage_names, thresholds, strict=True):
        if not threshold >= 0.0:
            raise ValueError(f"the threshold of stage {name!r} is {threshold}; expected one >= 0")


def fidelity(output: Any, first: Any) -> float:
    """Return how much of the first output's energy an output keeps, a local accuracy result.

    1 - |output - first|^2 / |first|^2, that is 1 - 10^(-SQNR / 10) with the ratio of signal to
    quantisation noise in decibels: 1 for the first output itself, 0.99 at 20 dB. It needs no
    labels and no other stage.

    Args:
        output: Tensor or array of any shape, floating point.
        first: The stage's output at its first level for the same input, of the same shape.
    """
    error = output - first
    return 1.0 - float((error * error).sum()) / max(float((first * first).sum()), 1e-30)
