from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.cluster.actions import (
    MAX_LISTED,
    ActionCodec,
    FieldActions,
    ListedActions,
    MoveActions,
    action_codec,
)
from runtime.plan import PLAN_COLUMNS, Plan, Policy, Pools

FIELDS = FieldActions(
    pools=(Pools.SOFT, Pools.SINGLE),
    share=(0.2, 0.5, 0.8),
    parallelism=(1, 4, 16),
    interval_s=(0.5, 1.0, 4.0),
    idle_batches=(0, 2),
)
PLANS = {
    "calm": Plan(parallelism=2, batch_interval_s=4.0),
    "busy": Plan(Pools.HARD, 0.7, Policy.FAIR, Policy.FIFO, 8, 0.5, per_pool_parallelism=True),
}
CODECS: dict[str, Callable[[], ActionCodec]] = {
    "fields": lambda: FIELDS,
    "plans": lambda: ListedActions(PLANS),
    "moves": lambda: MoveActions(FIELDS),
}


def _rows(*plans: Plan) -> NDArray[np.float64]:
    return np.stack([plan.to_row() for plan in plans])


def test_each_field_has_its_own_choice() -> None:
    assert FIELDS.nvec == (2, 3, 2, 2, 3, 3, 2)
    actions = np.array([[0, 2, 1, 0, 1, 2, 1], [1, 0, 0, 1, 2, 0, 0]])
    decoded = [Plan.from_row(row) for row in FIELDS.decode(actions, np.zeros((2, 8)))]
    assert decoded == [
        Plan(Pools.SOFT, 0.8, Policy.FAIR, Policy.FIFO, 4, 4.0, idle_batches=2),
        Plan(Pools.SINGLE, 0.2, Policy.FIFO, Policy.FAIR, 16, 0.5),
    ]
    assert FIELDS.masks(np.zeros((5, 8))).shape == (5, 17)
    assert FIELDS.names == ()


def test_the_nearest_choice_decodes_to_the_nearest_levels() -> None:
    plan = Plan(Pools.SINGLE, 0.7, Policy.FAIR, Policy.FAIR, 3, 0.9, idle_batches=2)
    nearest = Plan.from_row(FIELDS.decode(FIELDS.nearest(plan)[None], np.zeros((1, 8)))[0])
    assert nearest == Plan(Pools.SINGLE, 0.8, Policy.FAIR, Policy.FAIR, 4, 1.0, idle_batches=2)


def test_listed_plans_keep_their_order_and_every_field() -> None:
    codec = ListedActions(PLANS)
    assert (codec.nvec, codec.names) == ((2,), ("calm", "busy"))
    decoded = codec.decode(np.array([[1], [0], [1]]), np.zeros((3, 8)))
    assert [Plan.from_row(row) for row in decoded] == [PLANS[n] for n in ("busy", "calm", "busy")]
    # What the caller does with the rows leaves the list alone.
    decoded[:] = 0.0
    assert Plan.from_row(codec.decode(np.array([[1]]), np.zeros((1, 8)))[0]) == PLANS["busy"]


def test_moves_step_from_the_nearest_level() -> None:
    codec = MoveActions(FIELDS)
    assert codec.names == (
        "keep",
        "share_down",
        "share_up",
        "parallelism_down",
        "parallelism_up",
        "interval_s_down",
        "interval_s_up",
    )
    current = Plan(Pools.HARD, 0.55, Policy.FAIR, Policy.FIFO, 5, 1.1, 1)
    rows = codec.decode(np.arange(7)[:, None], _rows(*[current] * 7))
    moved = [
        {
            name: float(value)
            for name, value, old in zip(PLAN_COLUMNS, row, current.to_row(), strict=True)
            if value != old
        }
        for row in rows
    ]
    assert moved == [
        {},
        {"share": 0.2},
        {"share": 0.8},
        {"parallelism": 1.0},
        {"parallelism": 16.0},
        {"batch_interval_s": 0.5},
        {"batch_interval_s": 4.0},
    ]


@given(
    st.sampled_from(Pools),
    st.sampled_from(FIELDS.share),
    st.sampled_from(FIELDS.parallelism),
    st.sampled_from(FIELDS.interval_s),
)
def test_a_mask_hides_exactly_the_moves_that_change_nothing(
    pools: Pools, share: float, parallelism: int, interval_s: float
) -> None:
    codec = MoveActions(FIELDS)
    plan = Plan(pools, share, parallelism=parallelism, batch_interval_s=interval_s)
    current = _rows(*[plan] * 7)
    changed = (codec.decode(np.arange(7)[:, None], current) != current).any(axis=1)
    if pools is Pools.SINGLE:
        changed[1:3] = False  # a share that nobody looks at
    mask = codec.masks(current[:1])[0]
    assert mask[0]
    np.testing.assert_array_equal(mask[1:], changed[1:])


@pytest.mark.parametrize("kind", CODECS)
def test_codecs_survive_json(kind: str) -> None:
    codec = CODECS[kind]()
    content = json.loads(json.dumps(codec.to_mapping(), allow_nan=False))
    assert content["kind"] == kind
    again = action_codec(content)
    assert type(again) is type(codec)
    assert (again.nvec, again.names) == (codec.nvec, codec.names)
    assert again.to_mapping() == codec.to_mapping()
    rng = np.random.default_rng(0)
    actions = rng.integers(0, codec.nvec, size=(50, len(codec.nvec)))
    current = _rows(*[PLANS["busy"]] * 50)
    np.testing.assert_array_equal(again.decode(actions, current), codec.decode(actions, current))
    np.testing.assert_array_equal(again.masks(current), codec.masks(current))


def test_every_combination_is_a_plan() -> None:
    codec = FieldActions()
    rng = np.random.default_rng(0)
    actions = rng.integers(0, codec.nvec, size=(2000, len(codec.nvec)))
    rows = codec.decode(actions, np.zeros((2000, 8)))
    for row in rows:
        np.testing.assert_array_equal(Plan.from_row(row).to_row(), row)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "unknown kind of actions None; expected 'fields', 'plans' or 'moves'"),
        ({"kind": "field"}, "unknown kind of actions 'field'"),
        ({"kind": "fields"}, "not a description of actions of kind 'fields'"),
        (FIELDS.to_mapping() | {"pools": ["sof"]}, "of kind 'fields': 'SOF'"),
        (FIELDS.to_mapping() | {"shares": [0.5]}, "unexpected keyword argument 'shares'"),
        (FIELDS.to_mapping() | {"share": []}, "has no levels"),
        (FIELDS.to_mapping() | {"share": [0.5, 1.5]}, "plan.share is 1.5"),
        (FIELDS.to_mapping() | {"parallelism": [0]}, "plan.parallelism is 0"),
        ({"kind": "plans", "plans": {}}, f"0 plans are listed; expected 1 to {MAX_LISTED}"),
        ({"kind": "plans", "plans": ["calm"]}, "of kind 'plans'"),
        ({"kind": "plans", "plans": {"a": {"shar": 1}}}, "unknown plan field 'shar'"),
        ({"kind": "moves", "levels": {"kind": "plans", "plans": {"a": {}}}}, "unknown kind"),
    ],
)
def test_descriptions_that_are_none_are_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        action_codec(content)


def test_lists_are_short() -> None:
    plans = {str(k): Plan(parallelism=k + 1) for k in range(MAX_LISTED + 1)}
    with pytest.raises(ValueError, match="65 plans are listed"):
        ListedActions(plans)
    plans.popitem()
    assert ListedActions(plans).nvec == (MAX_LISTED,)
