"""Applications made of measured TPC-H queries: Spark stages with their edges and task times.

The profiles are Decima's (Mao et al., "Learning Scheduling Algorithms for Data Processing
Clusters", SIGCOMM 2019). Each stage of a query becomes a job with one stage, because it is between
jobs that an application has edges.
"""

from __future__ import annotations

import difflib
import gzip
import json
import math
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from runtime.application import Application, Job, Stage
from simulators.cluster.profile import Profile, StageCost
from simulators.traces import TraceError, find_data_file

TPCH_DECIMA: Final = Path("tpch_decima/tpch_decima.json.gz")
RESIDUAL_QUANTILES = 64

_MS_PER_S = 1000.0


@dataclass(frozen=True)
class TpchScale:
    """How a query that ran once over stored data becomes what every batch starts.

    Attributes:
        batch_records: Records of the nominal batch, for which every stage has exactly the measured
            number of tasks (at most `max_tasks`).
        time_factor: Seconds of simulation per measured second, above 0.
        executors: Task durations are taken as measured with this many executors, or the nearest
            number that the stage was measured with.
        max_tasks: More tasks than this are merged into fewer, longer ones: n tasks become
            `max_tasks` of n / max_tasks times the duration, with the spread of single ones.
        fixed_share: Fraction of a task's duration in [0, 1) that does not depend on how many
            records it takes. The measurements do not tell; it matters for other batch sizes only.
    """

    batch_records: int = 1000
    time_factor: float = 0.01
    executors: int = 10
    max_tasks: int = 64
    fixed_share: float = 0.2

    def __post_init__(self) -> None:
        """Refuse values that give no tasks or no time.

        Raises:
            ValueError: Names the field.
        """
        for name in ("batch_records", "executors", "max_tasks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not (math.isfinite(self.time_factor) and self.time_factor > 0.0):
            raise ValueError(f"time_factor is {self.time_factor}; expected a number above 0")
        if not 0.0 <= self.fixed_share < 1.0:
            raise ValueError(f"fixed_share is {self.fixed_share}; expected [0, 1)")


def read_tpch(
    data_root: Path | None, size: str, query: str, scale: TpchScale
) -> tuple[Application, Profile]:
    """Read one query.

    Task durations are those of a stage's *rest wave*: tasks that an executor runs after its first
    one of the stage. First-wave tasks include starting up and warming up, which a stream that runs
    on the same slots for hours does not pay per batch; they are used only for stages that have no
    others. Durations become a table of `RESIDUAL_QUANTILES` equally likely quantiles; slowdown by
    busy slots is 1, since the durations were measured with busy executors.

    Args:
        data_root: Folder that holds tpch_decima/.
        size: Input size as in the file, for instance "10g".
        query: Number of the query, for instance "7".
        scale: Batch size, time factor and so on; recorded in the profile's origin.

    Raises:
        DataRootError: No data root, or the file is not there.
        TraceError: No such size or query, or a malformed file; names the place.
    """
    path = find_data_file(data_root, TPCH_DECIMA)
    content = _read_json(path)
    queries = content[_choice(size, content, f"{path}: size")]
    where = f"{path}, size {size}, query"
    chosen = _mapping(queries, where)[_choice(query, _mapping(queries, where), where)]
    where = f"{where} {query}"
    stages = _field(chosen, "stages", list, where)
    names = [f"stage_{i}" for i in range(len(stages))]
    jobs: list[Job] = []
    costs: dict[tuple[str, str], StageCost] = {}
    for i, stage in enumerate(stages):
        place = f"{where}, stage {i}"
        tasks = _field(stage, "num_tasks", int, place)
        if tasks < 1:
            raise TraceError(f"{place}: num_tasks is {tasks}; expected at least 1")
        durations_s = _durations_s(stage, scale.executors, place)
        structure = _stage(tasks, scale)
        jobs.append(Job(names[i], (structure,)))
        costs[names[i], structure.name] = _cost(durations_s, tasks, structure, scale)
    application = _application(f"tpch-{size}-{query}", jobs, chosen, where)
    origin = (
        f"tpch_decima {size} query {query}, {scale.executors} executors, time factor "
        f"{scale.time_factor}, batch of {scale.batch_records} records, at most {scale.max_tasks} "
        f"tasks a stage, fixed share {scale.fixed_share}"
    )
    return application, Profile(
        application.name, costs, slots=scale.executors, cores=scale.executors, origin=origin
    )


def _application(name: str, jobs: list[Job], query: Any, where: str) -> Application:
    edges: list[tuple[str, str]] = []
    for edge in _field(query, "edges", list, where):
        if not (
            isinstance(edge, list)
            and len(edge) == 2
            and all(isinstance(end, int) and 0 <= end < len(jobs) for end in edge)
        ):
            raise TraceError(
                f"{where}: edge {edge!r}; expected [parent, child] from 0 to {len(jobs) - 1}"
            )
        edges.append((jobs[edge[0]].name, jobs[edge[1]].name))
    try:
        return Application(name, tuple(jobs), tuple(edges))
    except ValueError as error:
        raise TraceError(f"{where}: {error}") from error


def _stage(tasks: int, scale: TpchScale) -> Stage:
    """Return a stage whose nominal batch gives exactly min(tasks, max_tasks) full tasks."""
    merged = min(tasks, scale.max_tasks)
    records_per_task = max(scale.batch_records // merged, 1)
    return Stage(
        "main",
        records_per_task=records_per_task,
        max_tasks=merged,
        selectivity=merged * records_per_task / scale.batch_records,
    )


def _cost(
    durations_s: NDArray[np.float64], tasks: int, stage: Stage, scale: TpchScale
) -> StageCost:
    mean_s = float(durations_s.mean()) * scale.time_factor * tasks / stage.max_tasks
    places = (np.arange(RESIDUAL_QUANTILES) + 0.5) / RESIDUAL_QUANTILES
    residual = np.quantile(durations_s, places)
    return StageCost(
        wait_s=0.0,
        fixed_s=scale.fixed_share * mean_s,
        per_record_s=(1.0 - scale.fixed_share) * mean_s / stage.records_per_task,
        residual=residual / residual.mean(),
    )


def _durations_s(stage: Any, executors: int, where: str) -> NDArray[np.float64]:
    """Return the measured durations of a stage's tasks with about as many executors, seconds."""
    for wave in ("rest_wave", "first_wave"):
        by_executors = _mapping(_field(stage, wave, dict, where), f"{where}, {wave}")
        measured = {
            int(number): _milliseconds(values, f"{where}, {wave}, {number} executors")
            for number, values in by_executors.items()
            if number.isdigit() and values
        }
        if measured:
            nearest = min(measured, key=lambda number: (abs(number - executors), number))
            return measured[nearest] / _MS_PER_S
    raise TraceError(f"{where}: no task was measured; expected durations in a wave")


def _milliseconds(values: Any, where: str) -> NDArray[np.float64]:
    if not isinstance(values, list) or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) and v > 0
        for v in values
    ):
        raise TraceError(f"{where}: expected a list of durations in milliseconds above 0")
    return np.array(values, dtype=np.float64)


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise TraceError(f"{path} is not a readable gzipped JSON file ({error})") from error
    return _mapping(content, str(path))


def _mapping(content: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(content, dict):
        raise TraceError(f"{where}: found {type(content).__name__}; expected an object")
    return content


def _field(content: Any, key: str, kind: type, where: str) -> Any:
    value = _mapping(content, where).get(key)
    if not isinstance(value, kind):
        raise TraceError(f"{where}: {key} is {type(value).__name__}; expected {kind.__name__}")
    return value


def _choice(value: str, names: Collection[str], where: str) -> str:
    if value in names:
        return value
    close = difflib.get_close_matches(value, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise TraceError(f"{where} {value!r} is not there; {hint}expected one of {', '.join(names)}")
