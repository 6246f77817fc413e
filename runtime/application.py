"""Applications: the jobs that every batch starts, with the edges between them.

Structure only. What a task costs is measured and lives in a profile
(`simulators.cluster.profile`); what it computes on a real machine lives in `runtime.cluster.jobs`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property


class Classification(StrEnum):
    """When a job counts as dependent."""

    IN_EDGE = "in-edge"
    """It waits for another job."""

    ANY_EDGE = "any-edge"
    """It touches an edge at either end."""


@dataclass(frozen=True)
class Stage:
    """A set of equal tasks.

    Attributes:
        name: Unique within its job.
        records_per_task: Records that one task takes at most, unless `max_tasks` binds.
        max_tasks: Upper limit on the number of tasks; 1 makes a single-task stage.
        selectivity: Records that reach the stage per record of the batch, above 0.
        parents: Names of the stages of the same job that must end first. None means the stage
            declared before this one (a chain).
    """

    name: str
    records_per_task: int = 64
    max_tasks: int = 1024
    selectivity: float = 1.0
    parents: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse impossible values.

        Raises:
            ValueError: A field is outside its range.
        """
        if self.records_per_task < 1 or self.max_tasks < 1:
            raise ValueError(
                f"stage {self.name!r}: records_per_task is {self.records_per_task} and max_tasks "
                f"is {self.max_tasks}; expected both at least 1"
            )
        if not (math.isfinite(self.selectivity) and self.selectivity > 0.0):
            raise ValueError(
                f"stage {self.name!r}: selectivity is {self.selectivity}; expected a finite "
                "number of records per record of the batch, above 0"
            )

    def stage_records(self, batch_records: int) -> int:
        """Return how many records of a batch reach the stage (half rounds up)."""
        return math.floor(batch_records * self.selectivity + 0.5)

    def task_count(self, batch_records: int) -> int:
        """Return the number of tasks for a batch, from 1 to `max_tasks`."""
        records = self.stage_records(batch_records)
        whole = (records + self.records_per_task - 1) // self.records_per_task
        return min(max(whole, 1), self.max_tasks)


def task_slice(stage_records: int, tasks: int, index: int) -> tuple[int, int]:
    """Return first record (counted from 0 in the stage) and number of records of one task.

    The first `stage_records % tasks` tasks take one record more than the others.
    """
    base, extra = divmod(stage_records, tasks)
    return index * base + min(index, extra), base + (1 if index < extra else 0)


@dataclass(frozen=True)
class Job:
    """One output of the application.

    Attributes:
        name: Unique within the application.
        stages: Its stages; every parent is declared before its children.
        stateful: Whether batch k of the job may only start after batch k-1 of it ended.
    """

    name: str
    stages: tuple[Stage, ...]
    stateful: bool = False

    def __post_init__(self) -> None:
        """Refuse a job without stages, duplicate stage names and unknown parents.

        Raises:
            ValueError: One of these; the message names job and stage.
        """
        if not self.stages:
            raise ValueError(f"job {self.name!r} has no stages; expected at least one")
        seen: list[str] = []
        for stage in self.stages:
            if stage.name in seen:
                raise ValueError(f"job {self.name!r}: two stages are called {stage.name!r}")
            for parent in stage.parents or ():
                if parent not in seen:
                    raise ValueError(
                        f"job {self.name!r}: stage {stage.name!r} waits for {parent!r}, which is "
                        f"not declared before it (declared so far: {seen})"
                    )
            seen.append(stage.name)

    def stage_parents(self) -> tuple[tuple[int, ...], ...]:
        """Return the positions of each stage's parents, chains made explicit."""
        position = {stage.name: i for i, stage in enumerate(self.stages)}
        result: list[tuple[int, ...]] = []
        for i, stage in enumerate(self.stages):
            if stage.parents is None:
                result.append((i - 1,) if i else ())
            else:
                result.append(tuple(position[name] for name in stage.parents))
        return tuple(result)


@dataclass(frozen=True)
class Application:
    """Jobs and the edges between them, instantiated once a batch.

    Attributes:
        name: What it is called in configurations and tables.
        jobs: At least one job.
        edges: Pairs (before, after) of job names.
        classification: When a job counts as dependent.
    """

    name: str
    jobs: tuple[Job, ...]
    edges: tuple[tuple[str, str], ...] = ()
    classification: Classification = Classification.IN_EDGE

    def __post_init__(self) -> None:
        """Refuse unknown or duplicate names and cycles.

        Raises:
            ValueError: One of these; a cycle is named job by job.
        """
        if not self.jobs:
            raise ValueError(f"application {self.name!r} has no jobs; expected at least one")
        names = [job.name for job in self.jobs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"application {self.name!r}: two jobs are called {name!r}")
        for edge in self.edges:
            for end in edge:
                if end not in names:
                    raise ValueError(
                        f"application {self.name!r}: edge {edge[0]} -> {edge[1]} names the "
                        f"unknown job {end!r}; jobs are {names}"
                    )
        cycle = _find_cycle(self.predecessors)
        if cycle:
            path = " -> ".join(names[j] for j in cycle)
            raise ValueError(
                f"application {self.name!r} has a cycle: {path}; no job of it could ever start"
            )

    @cached_property
    def predecessors(self) -> tuple[tuple[int, ...], ...]:
        """Positions of the jobs that each job waits for."""
        position = {job.name: i for i, job in enumerate(self.jobs)}
        waits: list[set[int]] = [set() for _ in self.jobs]
        for before, after in self.edges:
            waits[position[after]].add(position[before])
        return tuple(tuple(sorted(w)) for w in waits)

    @cached_property
    def dependent(self) -> tuple[bool, ...]:
        """Whether each job is dependent under the application's classification."""
        waits = [bool(p) for p in self.predecessors]
        if self.classification is Classification.IN_EDGE:
            return tuple(waits)
        ends = {name for edge in self.edges for name in edge}
        return tuple(job.name in ends for job in self.jobs)

    @property
    def class_counts(self) -> tuple[int, int]:
        """Numbers of independent and of dependent jobs."""
        n_dependent = sum(self.dependent)
        return len(self.jobs) - n_dependent, n_dependent

    @cached_property
    def width(self) -> int:
        """Largest number of jobs of one batch of which none waits for another.

        By Dilworth's theorem the number of jobs minus a maximum matching of the transitive
        closure.
        """
        n = len(self.jobs)
        reach: list[set[int]] = [set() for _ in range(n)]
        for j in _topological_order(self.predecessors):
            for p in self.predecessors[j]:
                reach[j] |= {p} | reach[p]
        return n - _maximum_matching(reach)


def default_parallelism(application: Application, slots: int) -> int:
    """Return the parallelism to start with: the width of the graph, within [1, slots]."""
    return min(max(application.width, 1), slots)


def count_share(application: Application) -> float:
    """Return the share given by job counts alone: N_independent / N_jobs."""
    n_independent, n_dependent = application.class_counts
    return n_independent / (n_independent + n_dependent)


def _topological_order(predecessors: Sequence[Iterable[int]]) -> list[int]:
    """Order job positions so that every job comes after those it waits for (acyclic input)."""
    order: list[int] = []
    done: set[int] = set()
    while len(order) < len(predecessors):
        for j, waits in enumerate(predecessors):
            if j not in done and all(p in done for p in waits):
                order.append(j)
                done.add(j)
    return order


def _find_cycle(predecessors: Sequence[Sequence[int]]) -> list[int]:
    """Return positions along one cycle in edge direction (first repeated at the end), or []."""
    state = [0] * len(predecessors)  # 0 unseen, 1 on the path, 2 finished
    for root in range(len(predecessors)):
        if state[root]:
            continue
        path = [root]
        state[root] = 1
        iterators = [iter(predecessors[root])]
        while path:
            step = next(iterators[-1], None)
            if step is None:
                state[path.pop()] = 2
                iterators.pop()
            elif state[step] == 1:
                return [step, *reversed(path[path.index(step) :])]
            elif state[step] == 0:
                state[step] = 1
                path.append(step)
                iterators.append(iter(predecessors[step]))
    return []


def _maximum_matching(reach: Sequence[Iterable[int]]) -> int:
    """Return the size of a maximum bipartite matching (augmenting paths)."""
    match: dict[int, int] = {}

    def augment(j: int, seen: set[int]) -> bool:
        for p in reach[j]:
            if p in seen:
                continue
            seen.add(p)
            if p not in match or augment(match[p], seen):
                match[p] = j
                return True
        return False

    return sum(augment(j, set()) for j in range(len(reach)))
