from __future__ import annotations

import numpy as np
import pytest

from experiments.precision.latencies import BucketLatencies
from experiments.precision.overhead import Overhead
from experiments.precision.profiling import stage_costs
from simulators.precision.fit import LatencyFit

STAGE_S = np.array([[4e-3, 1e-3], [4e-3, 2e-3]])


def _measured(change_s: float) -> BucketLatencies:
    """Return a fit in which going from level 1 to level 0 costs something, or saves it."""
    transition_s = np.zeros((1, 2, 2))
    transition_s[0, 1, 0] = change_s
    nothing = np.zeros(0)
    return BucketLatencies(
        bucket=1,
        assignments=np.zeros((1, 2), dtype=np.int64),
        steady_s=np.array([8e-3, 3e-3]),
        switch_s=np.array([8e-3, 3e-3]),
        sigma=0.0,
        rivals_s={},
        rivals_accuracy={},
        fit=LatencyFit(STAGE_S, transition_s, nothing),
        held_out=nothing,
        overhead=Overhead(0.0, 0.0),
    )


@pytest.mark.parametrize("change_s", [5e-4, 0.0, -3e-3])
def test_a_profile_costs_what_was_fitted(change_s: float) -> None:
    """Saving 3 ms of 5 leaves 2, more than half of the shortest that was measured."""
    stage_s, transition_s = stage_costs(_measured(change_s))
    np.testing.assert_array_equal(stage_s, STAGE_S)
    assert transition_s[0, 1, 0] == change_s


def test_a_fit_that_leaves_a_chain_no_time_is_bounded() -> None:
    stage_s, transition_s = stage_costs(_measured(-4.9e-3))
    np.testing.assert_array_equal(stage_s, STAGE_S)
    assert transition_s[0, 1, 0] == pytest.approx(-0.45e-3)
