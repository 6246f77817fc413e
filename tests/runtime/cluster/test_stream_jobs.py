from __future__ import annotations

import pytest

from runtime.application import Application, Job, Stage
from runtime.cluster.stream_jobs import StageCode, StreamJobs

CODE = StageCode(lambda task: task.records)


def application() -> Application:
    return Application(
        "app", (Job("count", (Stage("main"),)), Job("total", (Stage("sum"),), stateful=True))
    )


def test_code_is_found_by_position() -> None:
    other = StageCode(lambda task: None)
    jobs = StreamJobs(application(), {("total", "sum"): other, ("count", "main"): CODE})
    assert jobs.code(0, 0) is CODE
    assert jobs.code(1, 0) is other


def test_a_stage_without_code_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"'main' of job 'count'.*did you mean 'cuont/main'"):
        StreamJobs(application(), {("cuont", "main"): CODE, ("total", "sum"): CODE})


def test_code_without_a_stage_is_refused() -> None:
    code = {("count", "main"): CODE, ("total", "sum"): CODE, ("total", "sun"): CODE}
    with pytest.raises(ValueError, match=r"total/sun.*lacks; did you mean 'total/sum'"):
        StreamJobs(application(), code)


@pytest.mark.parametrize("name", ["count", "total", "nobody"])
def test_only_stateful_jobs_that_end_in_one_task_have_a_state(name: str) -> None:
    code = {("count", "main"): CODE, ("total", "sum"): CODE}
    with pytest.raises(ValueError, match=f"job '{name}' has an initial state; expected a stateful"):
        StreamJobs(application(), code, {name: 0})


def test_an_impossible_wait_is_refused() -> None:
    with pytest.raises(ValueError, match=r"wait_s is -1\.0"):
        StageCode(lambda task: None, wait_s=-1.0)
