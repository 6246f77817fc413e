from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulators.cluster.bounds import batch_work
from simulators.cluster.tpch import TPCH_DECIMA, TpchScale, read_tpch
from simulators.traces import DataRootError, TraceError


def _query() -> dict[str, Any]:
    return {
        "edges": [[0, 2], [1, 2]],
        "stages": [
            {
                "num_tasks": 4,
                "first_wave": {"2": [900, 1100], "10": [2000.0]},
                "rest_wave": {"2": [100, 300], "5": [400, 600], "10": []},
            },
            {"num_tasks": 200, "first_wave": {"2": [50]}, "rest_wave": {"2": [10, 10]}},
            {"num_tasks": 1, "first_wave": {"2": [700]}, "rest_wave": {"2": []}},
        ],
    }


def _write(root: Path, content: Any) -> Path:
    path = root / TPCH_DECIMA
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    return root


def test_stages_become_jobs_with_the_measured_tasks_and_times(tmp_path: Path) -> None:
    root = _write(tmp_path, {"2g": {"7": _query()}})
    scale = TpchScale(batch_records=1000, time_factor=0.1, executors=10, max_tasks=50)
    application, profile = read_tpch(root, "2g", "7", scale)
    assert application.name == profile.application == "tpch-2g-7"
    assert application.edges == (("stage_0", "stage_2"), ("stage_1", "stage_2"))
    assert application.class_counts == (2, 1)
    assert [job.stages[0].task_count(1000) for job in application.jobs] == [4, 50, 1]
    assert "time factor 0.1" in profile.origin
    # Nearest to 10 executors with rest-wave tasks is 5: 400 and 600 ms, a tenth of it simulated.
    cost = profile.costs["stage_0", "main"]
    assert cost.mean_task_s(250) == pytest.approx(0.05)
    assert cost.fixed_s == pytest.approx(0.2 * 0.05)
    assert cost.residual.mean() == pytest.approx(1.0)
    assert cost.residual[0] == pytest.approx(0.8, abs=0.01)
    assert cost.residual[-1] == pytest.approx(1.2, abs=0.01)
    # 200 tasks of 10 ms merged into 50 of 40 ms; no rest wave: first wave.
    assert profile.costs["stage_1", "main"].mean_task_s(20) == pytest.approx(0.004)
    assert profile.costs["stage_2", "main"].mean_task_s(1000) == pytest.approx(0.07)
    work = batch_work(application, profile, 1000)
    assert work == pytest.approx((4 * 0.05 + 200 * 0.001, 0.07))


@pytest.mark.parametrize("tasks", [1, 3, 7, 64, 295])
@pytest.mark.parametrize("records", [1, 10, 1000, 1001])
def test_the_nominal_batch_gives_exactly_the_measured_tasks(
    tmp_path: Path, tasks: int, records: int
) -> None:
    query = {
        "edges": [],
        "stages": [{"num_tasks": tasks, "first_wave": {"2": [100]}, "rest_wave": {}}],
    }
    scale = TpchScale(batch_records=records, time_factor=1.0, max_tasks=300)
    application, profile = read_tpch(_write(tmp_path, {"2g": {"1": query}}), "2g", "1", scale)
    assert application.jobs[0].stages[0].task_count(records) == tasks
    assert batch_work(application, profile, records).total == pytest.approx(0.1 * tasks)


def test_unknown_sizes_and_queries_are_refused(tmp_path: Path) -> None:
    root = _write(tmp_path, {"10g": {"7": _query()}, "20g": {}})
    with pytest.raises(TraceError, match=r"size '1g' is not there; did you mean '10g'\?"):
        read_tpch(root, "1g", "7", TpchScale())
    with pytest.raises(TraceError, match=r"size 10g, query '17' is not there; did you mean '7'"):
        read_tpch(root, "10g", "17", TpchScale())
    with pytest.raises(DataRootError, match="no data root is set"):
        read_tpch(None, "10g", "7", TpchScale())


def _broken(**changes: Any) -> dict[str, Any]:
    return _query() | changes


def _broken_stage(**changes: Any) -> dict[str, Any]:
    query = _query()
    query["stages"][1] |= changes
    return query


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            _broken(edges=[[0, 3]]),
            r"query 7: edge \[0, 3\]; expected \[parent, child\] from 0 to 2",
        ),
        (_broken(edges=[[0, 1], [1, 0]]), r"has a cycle: stage_\d -> stage_\d -> stage_\d"),
        (_broken(edges=None), r"edges is NoneType; expected list"),
        (_broken(stages={}), r"stages is dict; expected list"),
        (_broken(stages=[], edges=[]), r"has no jobs"),
        (_broken_stage(num_tasks=0), r"stage 1: num_tasks is 0"),
        (_broken_stage(num_tasks="4"), r"stage 1: num_tasks is str; expected int"),
        (_broken_stage(rest_wave=[1]), r"stage 1: rest_wave is list; expected dict"),
        (_broken_stage(rest_wave={"2": [10, -1]}), r"stage 1, rest_wave, 2 executors: expected"),
        (_broken_stage(rest_wave={"2": ["x"]}), r"expected a list of durations in milliseconds"),
        (_broken_stage(rest_wave={}, first_wave={"2": []}), r"stage 1: no task was measured"),
        ([], r"query 7: stages is|found list; expected an object"),
    ],
)
def test_malformed_queries_are_refused_with_their_place(
    tmp_path: Path, query: Any, message: str
) -> None:
    with pytest.raises(TraceError, match=message):
        read_tpch(_write(tmp_path, {"2g": {"7": query}}), "2g", "7", TpchScale())


def test_files_that_are_no_gzipped_json_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, {})
    path = tmp_path / TPCH_DECIMA
    for content in (b"{}", gzip.compress(b"{"), gzip.compress(b'{"2g": {}}')[:-5]):
        path.write_bytes(content)
        with pytest.raises(TraceError, match="not a readable gzipped JSON file"):
            read_tpch(tmp_path, "2g", "7", TpchScale())


@pytest.mark.parametrize(
    ("field", "value"),
    [("batch_records", 0), ("executors", 0), ("max_tasks", 0), ("time_factor", 0.0),
     ("time_factor", float("nan")), ("fixed_share", 1.0)],
)  # fmt: skip
def test_impossible_scales_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} is"):
        TpchScale(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "query"), [("2g", "6"), ("10g", "7"), ("80g", "18")])
def test_real_queries_become_applications(data_root: Path, size: str, query: str) -> None:
    with gzip.open(data_root / TPCH_DECIMA, "rt") as file:
        measured = json.load(file)[size][query]
    application, profile = read_tpch(data_root, size, query, TpchScale(max_tasks=1000))
    ends = {(f"stage_{a}", f"stage_{b}") for a, b in measured["edges"]}
    assert set(application.edges) == ends
    tasks = [job.stages[0].task_count(1000) for job in application.jobs]
    assert tasks == [stage["num_tasks"] for stage in measured["stages"]]
    with_rest_wave = [i for i, s in enumerate(measured["stages"]) if s["rest_wave"]["10"]]
    assert with_rest_wave
    for i in with_rest_wave:
        job, stage = application.jobs[i], measured["stages"][i]
        records = job.stages[0].stage_records(1000) / stage["num_tasks"]
        mean_s = profile.costs[job.name, "main"].mean_task_s(records)
        assert mean_s == pytest.approx(np.mean(stage["rest_wave"]["10"]) / 1000 * 0.01)
