"""One episode on real slots, and the same episode in the simulator."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agents.api import Episodes, Rollout, Separately, run_episodes
from agents.heuristics.constant import ConstantAgent
from envs.cluster.config import StreamClusterConfig
from experiments.roster import Driver
from runtime.cluster.executor import LocalExecutor
from runtime.cluster.source import Source
from runtime.cluster.stream_jobs import StreamJobs
from runtime.controller import Controller, Decision
from runtime.guards import Guards
from runtime.snapshot import REPORT_COLUMNS, SIGNAL_INDEX, Report, Snapshot
from simulators.replay import EventReplay

DEADLINE_S = 0.5
PATIENCE_S = 60.0
"""How long after the horizon the last batch may end; what is left then is counted as unfinished."""


class Watch(Protocol):
    """What wants to see real runs while they go on."""

    def begins(self, title: str, executor: LocalExecutor, horizon_s: float) -> None:
        """Be told that a stream has started."""

    def decided(self, decision: Decision) -> None:
        """Be told a decision."""

    def ended(self, measured: dict[str, Any], simulated: dict[str, Any]) -> None:
        """Be told the rows of the run that has ended."""


class Unwatched:
    """Looks at nothing."""

    def begins(self, title: str, executor: LocalExecutor, horizon_s: float) -> None:
        """Look away."""

    def decided(self, decision: Decision) -> None:
        """Look away."""

    def ended(self, measured: dict[str, Any], simulated: dict[str, Any]) -> None:
        """Look away."""


@dataclass(frozen=True, eq=False)
class RealRun:
    """What happened in one episode on real slots.

    Attributes:
        reports: float64 [batches, len(REPORT_COLUMNS)], ordered by end.
        signals: float64 [steps, len(SIGNALS)], at the end of every decision's period.
        decisions: All decisions; the first one comes with the first record.
        unfinished: Records that had not left when waiting was given up.
    """

    reports: NDArray[np.float64]
    signals: NDArray[np.float64]
    decisions: tuple[Decision, ...]
    unfinished: int


def episode_world(
    world: StreamClusterConfig, counts: NDArray[np.int64], seconds: float
) -> StreamClusterConfig:
    """Return the world in which exactly these records arrive.

    Args:
        world: The world that they were drawn in.
        counts: int64 [n_ticks], records in each tick of it.
        seconds: Length of the episode; rounded up to whole periods.
    """
    short = replace(world, horizon_s=seconds, starts=(0, 0), load_factors=(1.0,))
    padded = np.zeros(max(short.n_ticks, len(counts)), dtype=np.int64)
    padded[: len(counts)] = counts
    return replace(short, arrivals=EventReplay(world.arrivals.tick_s, padded))


def run_for_real(
    jobs: StreamJobs,
    world: StreamClusterConfig,
    driver: Driver,
    title: str,
    watch: Watch,
    passive: bool = False,
) -> RealRun:
    """Run an episode on the worker slots of this process and wait until all records have left.

    Args:
        jobs: The real jobs.
        world: Made by `episode_world`.
        driver: Decides; as in the simulator its first decision comes at time 0.
        title: What the run is called on the screen.
        watch: Sees the run while it goes on.
        passive: Whether decisions are computed and kept, but not applied.

    Raises:
        RuntimeError: The counts of records do not add up, or the executor broke down.
    """
    horizon_s = world.steps * world.period_s
    source = Source(arriving(world), world.arrivals.tick_s)
    expected = source.records
    executor = LocalExecutor(jobs, source, driver.plan, world.slots, world.max_open)
    guards = Guards(world.guards, driver.plan)
    deadline_s = min(DEADLINE_S, world.period_s)
    controller = Controller(driver.agent, executor, guards, world.period_s, deadline_s, passive)
    driver.agent.reset()
    with executor:
        watch.begins(title, executor, horizon_s)
        watch.decided(controller.step())
        controller.run(horizon_s - 0.5 * world.period_s, watch.decided)
        time.sleep(max(horizon_s - executor.time_s, 0.0))
        at_horizon = executor.snapshot()
        executor.wait(PATIENCE_S)
    last, reports = executor.snapshot(), executor.reports
    check_counts(last, reports, expected)
    decisions = tuple(controller.decisions)
    seen = [decision.snapshot for decision in decisions[1:]] + [at_horizon]
    empty = np.zeros((0, len(REPORT_COLUMNS)))
    return RealRun(
        reports=np.concatenate([empty, *(report.to_row()[None] for report in reports)]),
        signals=np.stack([snapshot.signals for snapshot in seen]),
        decisions=decisions,
        unfinished=round(last["records_pending"] + last["records_uncut"]),
    )


def predict(
    world: StreamClusterConfig, driver: Driver, key: np.uint64, passive: bool = False
) -> Rollout:
    """Run the same episode in the simulator: one cluster, the same agent and the same arrivals.

    Args:
        world: Made by `episode_world`.
        driver: Decides.
        key: Key of the simulated task times.
        passive: Whether the plan at the start stays in force.
    """
    agent = ConstantAgent(driver.name, driver.plan) if passive else driver.agent
    own = replace(world, initial_plan=driver.plan)
    episodes = Episodes(np.array([key], dtype=np.uint64), np.zeros(1, dtype=np.int64))
    return run_episodes(own, Separately(lambda k: agent), episodes, PATIENCE_S)


def arriving(world: StreamClusterConfig) -> NDArray[np.int64]:
    """Return the records per tick of the only episode of an episode's world, int64 [n_ticks]."""
    counts: NDArray[np.int64] = world.arrivals.counts([0], [0], world.n_ticks)[0]
    return counts


def check_counts(last: Snapshot, reports: tuple[Report, ...], expected: int) -> None:
    """Refuse a run that lost or doubled a record.

    Args:
        last: Taken when the executor had stopped.
        reports: Of all batches.
        expected: How many records were sent.

    Raises:
        RuntimeError: Says which counts disagree.
    """
    names = ("records_in", "records_out", "records_failed", "records_pending", "records_uncut")
    arrived, out, failed, pending, uncut = (round(last.signals[SIGNAL_INDEX[n]]) for n in names)
    reported = sum(report.records for report in reports)
    if arrived != expected or arrived != out + failed + pending + uncut:
        raise RuntimeError(
            f"{expected} records were sent and {arrived} arrived; {out} left, {failed} failed, "
            f"{pending} are pending and {uncut} uncut: the counts do not add up"
        )
    if reported != out + failed:
        raise RuntimeError(f"{out + failed} records left, but the reports hold {reported}")
