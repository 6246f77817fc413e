from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from runtime.application import Classification, count_share
from simulators.cluster.application_config import (
    ApplicationError,
    Machine,
    lognormal_residual,
    parse_application,
)
from simulators.cluster.bounds import balanced_share, batch_work, capacity_per_s

CONF = Path(__file__).parents[3] / "conf" / "application"
# tpch.yaml names measurements instead of declaring costs; experiments.worlds builds it.
SHIPPED = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "tpch")


def _shipped(name: str) -> dict[str, Any]:
    content = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    assert isinstance(content, dict)
    return content


def _example() -> dict[str, Any]:
    return {
        "name": "example",
        "machine": {"slots": 4, "cores": 2},
        "jobs": {
            "parse": {"stages": {"main": {"records_per_task": 32, "wait_s": 0.5, "cv": 0.3}}},
            "alert": {
                "after": ["parse"],
                "stateful": True,
                "stages": {
                    "left": {"fixed_s": 1, "parents": []},
                    "right": {"fixed_s": 1.5, "parents": []},
                    "both": {"per_record_s": 1e-3, "max_tasks": 1, "parents": ["left", "right"]},
                },
            },
        },
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_application_parses_and_is_not_mutated(name: str) -> None:
    content = _shipped(name)
    before = copy.deepcopy(content)
    application, profile = parse_application(content)
    assert content == before
    assert application.name == profile.application == name
    profile.check_covers(application)
    # A few hundred to a few thousand records a second at intervals of one second or so.
    assert 200 < capacity_per_s(application, profile, profile.slots, 1.0) < 10_000
    work = batch_work(application, profile, 1000, profile.slots)
    assert abs(balanced_share(work) - count_share(application)) > 0.01


def test_the_shipped_applications_are_known() -> None:
    assert SHIPPED == ["deep_dependent", "security_events", "wide_independent"]


def test_security_events_has_the_promised_shape() -> None:
    content = _shipped("security_events")
    application, profile = parse_application(content)
    assert application.class_counts == (5, 3)
    assert application.edges == (
        ("normalise", "score"),
        ("score", "correlate"),
        ("correlate", "alert"),
    )
    assert [job.name for job in application.jobs if job.stateful] == ["alert"]
    single = {job.name for job in application.jobs for s in job.stages if s.max_tasks == 1}
    assert single == {"spectral_features", "similarity_join", "correlate", "alert"}
    assert (profile.slots, profile.cores) == (8, 2)
    assert all(cost.wait_s > 0 for cost in profile.costs.values())
    any_edge, _ = parse_application(content | {"classification": "any-edge"})
    assert any_edge.class_counts == (4, 4)
    # By job counts the independent pool gets 5/8, by work about four fifths.
    assert count_share(application) == 5 / 8
    assert balanced_share(batch_work(application, profile, 1000, 8)) == pytest.approx(0.8, abs=0.02)


def test_values_reach_stage_and_cost() -> None:
    application, profile = parse_application(_example())
    parse, alert = application.jobs
    assert parse.stages[0].records_per_task == 32
    assert alert.stateful
    assert application.classification is Classification.IN_EDGE
    assert alert.stage_parents() == ((), (), (0, 1))
    cost = profile.costs["parse", "main"]
    assert cost.wait_s == 0.5
    assert cost.residual.std() == pytest.approx(0.3)
    assert cost.slowdown.tolist() == [1.0, 1.0, 1.0, 1.5, 2.0]
    assert profile.costs["alert", "left"].fixed_s == 1.0


def _set(path: str, value: Any) -> dict[str, Any]:
    content = _example()
    section: Any = content
    *parents, last = path.split(".")
    for key in parents:
        section = section[key]
    section[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("jbos", {}, r"application: unknown key 'jbos'; did you mean 'jobs'\?"),
        ("jobs.parse.stages.main.fixd_s", 1.0, r"stage 'main': unknown key 'fixd_s'; did you mean"),
        ("jobs.alert.after", ["prase"], r"after: unknown name 'prase'; did you mean 'parse'\?"),
        ("jobs.alert.after", "parse", r"after is 'parse'; expected a list of names"),
        ("jobs.parse.after", ["alert"], r"has a cycle: parse -> alert -> parse"),
        ("jobs.alert.stages.both.parents", ["lef"], r"parents: unknown name 'lef'; did you mean"),
        ("jobs.parse.stages.main.wait_s", "long", r"wait_s is 'long'; expected a number"),
        ("jobs.parse.stages.main.wait_s", -1.0, r"job 'parse', stage 'main': wait_s is -1"),
        ("jobs.parse.stages.main.wait_s", float("nan"), r"wait_s is nan"),
        ("jobs.parse.stages.main.records_per_task", 1.5, r"is 1.5; expected a whole number"),
        ("jobs.parse.stages.main.records_per_task", True, r"is True; expected a whole number"),
        ("jobs.parse.stages.main.records_per_task", 0, r"records_per_task is 0"),
        ("jobs.parse.stages.main.selectivity", 0.0, r"selectivity is 0.0"),
        ("jobs.parse.stages.main.cv", 9.0, r"cv is 9.0; expected 0 to 3.97"),
        ("jobs.parse.stages.main.failure_probability", 1, r"failure_probability is 1.0"),
        ("jobs.parse.stages.main.slowdown", [1.0, "x"], r"slowdown is \[1.0, 'x'\]; expected"),
        ("jobs.parse.stages.main.slowdown", [1.0], r"slowdown needs at least 2"),
        ("jobs.parse.stages.main", {}, r"a task must take time"),
        ("jobs.parse.stages", {}, r"job 'parse' has no stages"),
        ("jobs.parse", [], r"job 'parse' is \[\]; expected keys"),
        ("jobs", {}, r"'example' has no jobs"),
        ("jobs.alert.stateful", "yes", r"stateful is 'yes'; expected true or false"),
        ("classification", "inedge", r"unknown name 'inedge'; did you mean 'in-edge'\?"),
        ("machine.slots", 0, r"machine: slots is 0"),
        ("machine.active_share", 1.5, r"machine: active_share is 1.5"),
        ("machine", {"slots": 2}, r"machine lacks the key 'cores'"),
        ("name", 5, r"name is 5; expected a text"),
    ],
)
def test_mistakes_are_refused_with_their_place(path: str, value: Any, message: str) -> None:
    with pytest.raises(ApplicationError, match=message):
        parse_application(_set(path, value))


def test_a_missing_key_and_a_key_that_is_no_text_are_refused() -> None:
    content = _example()
    del content["machine"]
    with pytest.raises(ApplicationError, match="application lacks the key 'machine'"):
        parse_application(content)
    with pytest.raises(ApplicationError, match="has the key 3; expected a name"):
        parse_application(_set("jobs", {3: {}}))


@given(st.floats(0.001, 3.9), st.integers(2, 200))
def test_lognormal_tables_have_mean_one_and_exactly_the_cv(cv: float, size: int) -> None:
    if cv > 0.5 * (size - 1) ** 0.5:
        with pytest.raises(ValueError, match="cv is"):
            lognormal_residual(cv, size)
        return
    table = lognormal_residual(cv, size)
    assert table.mean() == pytest.approx(1.0)
    assert table.std() == pytest.approx(cv, rel=1e-6)
    assert np.all(np.diff(table) >= 0)
    assert np.all(table > 0)


def test_slowdown_is_processor_sharing() -> None:
    # Slots that always compute: k tasks on c cores.
    np.testing.assert_allclose(Machine(6, 2).slowdown(), [1, 1, 1, 1.5, 2, 2.5, 3])
    assert Machine(6, 8).slowdown().tolist() == [1.0] * 7
    assert Machine(6, 1, active_share=0.0).slowdown().tolist() == [1.0] * 7
    # One core, one other slot that computes half of the time: half of the time twice as slow.
    assert Machine(2, 1, active_share=0.5).slowdown().tolist() == [1.0, 1.0, 1.5]


@given(st.integers(1, 12), st.integers(1, 8), st.floats(0.0, 1.0))
def test_slowdown_never_falls_with_busy_slots(slots: int, cores: int, share: float) -> None:
    table = Machine(slots, cores, share).slowdown()
    assert np.all(np.diff(table) >= -1e-12)
    assert table[-1] <= max(1.0, slots / cores) + 1e-12


def test_security_events_is_the_application_that_runs_for_real() -> None:
    jobs = pytest.importorskip("runtime.cluster.jobs", reason="needs torch")
    application, profile = parse_application(_shipped("security_events"))
    assert application == jobs.SECURITY_EVENTS
    assert {key: cost.wait_s for key, cost in profile.costs.items()} == dict(jobs.WAIT_S)
