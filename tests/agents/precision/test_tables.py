from __future__ import annotations

import pytest

from agents.precision.known import Known
from agents.precision.tables import verified_tables

LEVELS = ("fine", "mid", "coarse")


def test_tables_are_uniforms_cascades_and_the_frontier(known: Known) -> None:
    plans = verified_tables(known, LEVELS, (0.3,)).plans
    assert {name: plans[name].levels for name in LEVELS} == {
        name: (k, k) for k, name in enumerate(LEVELS)
    }
    cascade = plans["coarse then fine below 0.3"]
    assert (cascade.levels, cascade.escalate_below, cascade.escalate_levels) == (
        *((2, 2), 0.3),
        (0, 0),
    )
    # By hand: seconds and loss of the mixes; the uniform tables among the best are listed already.
    assert [name for name in plans if "/" in name] == ["coarse/mid", "fine/mid"]
    assert len(plans) == 3 + 3 + 2


def test_a_long_frontier_is_thinned_with_its_ends_kept(known: Known) -> None:
    assert len(verified_tables(known, LEVELS, (), most=4).plans) == 4
    every = [n for n in verified_tables(known, LEVELS, ()).plans if "/" in n]
    two = [n for n in verified_tables(known, LEVELS, (), most=5).plans if "/" in n]
    assert two == [every[0], every[-1]]


def test_mistakes_are_refused(known: Known) -> None:
    with pytest.raises(ValueError, match="most is 65"):
        verified_tables(known, LEVELS, (), most=65)
    with pytest.raises(ValueError, match="give fewer margins"):
        verified_tables(known, LEVELS, (0.1, 0.2, 0.3), most=10)
    with pytest.raises(ValueError, match=r"margins is \[1\.5\]"):
        verified_tables(known, LEVELS, (1.5,))
