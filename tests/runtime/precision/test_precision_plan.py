from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.precision.actions import LevelActions, TableActions, action_codec
from runtime.precision.plan import (
    PrecisionPlan,
    all_assignments,
    assignment_index,
    assignment_levels,
    plan_columns,
)
from runtime.precision.snapshot import (
    PrecisionSnapshot,
    SignalLayout,
    bucket_of,
    wilson_interval,
)

plans = st.integers(1, 5).flatmap(
    lambda s: st.builds(
        PrecisionPlan,
        st.tuples(*[st.integers(0, 9)] * s),
        st.floats(0, 1),
        st.tuples(*[st.integers(0, 9)] * s),
        st.integers(0, 99),
    )
)


@given(plans)
def test_plans_survive_rows_and_json(plan: PrecisionPlan) -> None:
    row = plan.to_row()
    assert len(row) == len(plan_columns(len(plan.levels)))
    assert PrecisionPlan.from_row(row, plan.version) == plan
    text = json.dumps(plan.to_mapping(), allow_nan=False)
    assert PrecisionPlan.from_mapping(json.loads(text)) == plan


def test_without_levels_of_its_own_the_second_pass_runs_nothing_again() -> None:
    assert PrecisionPlan((1, 2)).escalate_levels == (1, 2)
    assert PrecisionPlan.from_mapping({"levels": [1, 2]}) == PrecisionPlan((1, 2))


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "plan.levels is missing"),
        ({"levels": []}, r"plan.levels is \(\)"),
        ({"levels": [0, -1]}, "one level >= 0 per stage"),
        ({"levels": [0, 1], "escalate_levels": [0]}, "expected 2 levels"),
        ({"levels": [0], "escalate_below": 1.5}, r"escalate_below is 1\.5"),
        ({"levels": [0], "escalate_below": math.nan}, "escalate_below is nan"),
        ({"levels": [0], "level": 1}, "unknown plan field 'level'"),
        ({"levels": 3}, "not a precision plan"),
    ],
)
def test_impossible_plans_are_refused(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrecisionPlan.from_mapping(mapping)


@pytest.mark.parametrize("row", [[0.0, 0.0], [0.5, 0.0, 1.0], [0.0, np.nan, 0.0]])
def test_impossible_rows_are_refused(row: list[float]) -> None:
    with pytest.raises(ValueError, match="plan row is"):
        PrecisionPlan.from_row(np.array(row))


@given(st.integers(1, 5), st.integers(1, 4))
def test_assignments_count_in_mixed_radix(n_stages: int, n_levels: int) -> None:
    table = all_assignments(n_stages, n_levels)
    assert table.shape == (n_levels**n_stages, n_stages)
    for index in {0, len(table) // 2, len(table) - 1}:
        levels = assignment_levels(index, n_stages, n_levels)
        assert tuple(table[index].tolist()) == levels
        assert assignment_index(levels, n_levels) == index
    assert assignment_index((1, 0, 2), 3) == (1 * 3 + 0) * 3 + 2
    with pytest.raises(ValueError, match="level of stage 1 is 3"):
        assignment_index((0, 3), 3)
    with pytest.raises(ValueError, match="assignment is 8; expected 0 to 7"):
        assignment_levels(8, 3, 2)


def test_wilson_interval_against_published_and_direct_values() -> None:
    # R. G. Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    low, high = wilson_interval(0, 20)
    z2 = 1.959963984540054**2
    assert (low, high) == pytest.approx((0.0, z2 / (20 + z2)))
    assert wilson_interval(20, 20)[1] == pytest.approx(1.0)


@given(st.integers(1, 500), st.data())
def test_wilson_bounds_solve_the_score_equation(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    low, high = wilson_interval(k, n)
    assert 0.0 <= low <= k / n + 1e-12
    assert k / n - 1e-12 <= high <= 1.0
    for bound in (low, high):
        if 1e-9 < bound < 1.0 - 1e-9:
            z = (k / n - bound) / math.sqrt(bound * (1.0 - bound) / n)
            assert abs(z) == pytest.approx(1.959963984540054, rel=1e-6)


def test_buckets_hold_their_batches() -> None:
    assert [bucket_of(n, (1, 4, 16)) for n in (0, 1, 2, 4, 5, 16)] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match=r"17 requests do not fit the largest bucket \(16\)"):
        bucket_of(17, (1, 4, 16))


def test_the_layout_names_every_column_once() -> None:
    layout = SignalLayout(3, ("noise", "contrast"))
    assert len(set(layout.names)) == layout.size == 18 + 2 + 3 + 3 + 7
    assert layout.names[layout.property_columns] == ("property_noise", "property_contrast")
    assert layout.names[layout.clip_columns][0] == "clip_rate_0"
    assert layout.names[layout.sqnr_columns][-1] == "sqnr_db_2"
    assert layout.names[layout.plan_columns] == plan_columns(3)
    assert not any("correct" in name or "condition" in name for name in layout.names)
    snapshot = PrecisionSnapshot(layout, np.arange(33.0), PrecisionPlan((0, 0, 0)))
    assert snapshot["property_noise"] == 18.0
    with pytest.raises(ValueError, match=r"shape \(32,\); expected \(33,\)"):
        PrecisionSnapshot(layout, np.zeros(32), PrecisionPlan((0, 0, 0)))


def test_level_actions_decode_to_plans() -> None:
    actions = LevelActions(3, 4, (0.0, 0.5), (0, 1, 0))
    assert actions.nvec == (4, 4, 4, 2)
    rows = actions.decode(np.array([[3, 0, 2, 1]]), np.zeros((1, 7)))
    plan = PrecisionPlan((3, 0, 2), 0.5, (0, 1, 0))
    assert PrecisionPlan.from_row(rows[0]) == plan
    assert actions.nearest(plan).tolist() == [3, 0, 2, 1]
    assert actions.nearest(PrecisionPlan((9, 0, 0), 0.2)).tolist() == [3, 0, 0, 0]
    plain = LevelActions(2, 3)
    assert plain.nvec == (3, 3)
    rows = plain.decode(np.array([[2, 1]]), np.zeros((1, 5)))
    assert PrecisionPlan.from_row(rows[0]) == PrecisionPlan((2, 1), 0.0, (0, 0))
    assert plain.masks(np.zeros((5, 5))).shape == (5, 6)


def test_tables_are_named_plans() -> None:
    tables = {"fine": PrecisionPlan((0, 0)), "mixed": PrecisionPlan((2, 1), 0.3, (0, 0))}
    actions = TableActions(tables)
    assert (actions.nvec, actions.names) == ((2,), ("fine", "mixed"))
    rows = actions.decode(np.array([[1], [0]]), np.zeros((2, 5)))
    assert PrecisionPlan.from_row(rows[0]) == tables["mixed"]
    with pytest.raises(ValueError, match="65 plans are listed; expected 1 to 64"):
        TableActions({str(k): PrecisionPlan((0,)) for k in range(65)})


@pytest.mark.parametrize(
    "actions",
    [LevelActions(3, 4, (0.0, 0.5)), TableActions({"a": PrecisionPlan((1, 0), 0.2, (0, 0))})],
)
def test_actions_survive_json(actions: LevelActions | TableActions) -> None:
    again = action_codec(json.loads(json.dumps(actions.to_mapping())))
    assert again.to_mapping() == actions.to_mapping()
    assert type(again) is type(actions)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"kind": "plans"}, "unknown kind of actions 'plans'; expected 'levels' or 'tables'"),
        ({"kind": "levels", "n_stages": 2}, "not a description of actions of kind 'levels'"),
        ({"kind": "levels", "n_stages": 0, "n_levels": 2}, "n_stages is 0"),
        ({"kind": "levels", "n_stages": 1, "n_levels": 2, "escalate_below": []}, "is empty"),
        (
            {"kind": "levels", "n_stages": 1, "n_levels": 2, "escalate_levels": [2]},
            "expected levels below 2",
        ),
        ({"kind": "tables"}, "not a description of actions of kind 'tables'"),
    ],
)
def test_impossible_actions_are_refused(mapping: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        action_codec(mapping)
