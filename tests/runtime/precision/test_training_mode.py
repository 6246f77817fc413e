from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.precision.training_mode import (
    Assignment,
    Outcome,
    Upstream,
    fidelity,
    find_levels,
    hold_chain,
)

LEVELS = ("fp32", "bf16", "int8", "int8_half")


class Table:
    """Stages whose results and times stand in tables; counts its runs."""

    def __init__(
        self,
        results: list[list[float]],
        times: list[list[float]],
        chain: Callable[[Assignment], float] | None = None,
        cannot: frozenset[tuple[int, int]] = frozenset(),
    ) -> None:
        self.results, self.times, self.cannot = results, times, cannot
        self.chain = chain or (lambda a: sum(results[k][level] for k, level in enumerate(a)))
        self.stage_names = [f"s{k}" for k in range(len(results))]
        self.level_names = LEVELS[: len(results[0])]
        self.upstreams: list[Assignment] = []
        self.chain_runs: list[Assignment] = []

    def refusal(self, stage: int, level: int) -> str | None:
        return "no such kernel" if (stage, level) in self.cannot else None

    def time_s(self, stage: int, level: int) -> float:
        return self.times[stage][level]

    def n_bytes(self, stage: int, level: int) -> int:
        return 4 >> level

    def stage_result(self, stage: int, level: int, upstream: Assignment) -> float:
        assert (stage, level) not in self.cannot
        self.upstreams.append(upstream)
        return self.results[stage][level]

    def chain_result(self, assignment: Assignment) -> float:
        self.chain_runs.append(assignment)
        return self.chain(assignment)


FASTER = [4.0, 3.0, 2.0, 1.0]


def test_each_stage_goes_down_to_the_last_level_inside_its_threshold() -> None:
    table = Table(
        [[1.0, 0.99, 0.95, 0.5], [1.0, 0.999, 0.998, 0.997], [1.0, 0.8, 1.0, 1.0]], [FASTER] * 3
    )
    found = find_levels(table, [0.1, 0.01, 0.1], Upstream.CASCADE)
    # the third stage stops at bf16 though int8 would be inside again
    assert found.assignment == (2, 3, 0)
    assert found.runs == len(table.upstreams) == 4 + 4 + 2
    outcomes = [trial.outcome.name for trial in found.trials]
    assert outcomes[:4] == ["FIRST", "ACCEPTED", "ACCEPTED", "OUTSIDE"]
    assert outcomes[8:] == ["FIRST", "OUTSIDE", "NOT_TRIED", "NOT_TRIED"]
    assert [trial.result for trial in found.trials[8:]] == [1.0, 0.8, None, None]
    assert (found.trials[2].time_s, found.trials[2].n_bytes) == (2.0, 1)


def test_always_compared_with_the_first_result_not_with_the_last_accepted_one() -> None:
    # Every step down loses 0.06, inside the threshold against the step before.
    table = Table([[1.0, 0.94, 0.88, 0.82]], [FASTER])
    assert find_levels(table, [0.07], Upstream.CASCADE).assignment == (1,)


def test_a_level_that_is_not_faster_is_skipped_and_no_stop() -> None:
    table = Table([[1.0, 1.0, 1.0, 1.0]], [[4.0, 4.0, 5.0, 3.0]])
    found = find_levels(table, [0.0], Upstream.CASCADE)
    assert found.assignment == (3,)
    assert [t.outcome for t in found.trials[1:3]] == [Outcome.NOT_FASTER] * 2
    assert found.runs == 2


def test_what_cannot_run_is_named_and_passed_over() -> None:
    table = Table([[1.0] * 4], [FASTER], cannot=frozenset({(0, 2)}))
    found = find_levels(table, [0.0], Upstream.CASCADE)
    assert found.assignment == (3,)
    assert (found.trials[2].outcome, found.trials[2].time_s) == (Outcome.CANNOT_RUN, None)
    table = Table([[1.0] * 4], [FASTER], cannot=frozenset({(0, 0)}))
    with pytest.raises(ValueError, match="'s0' cannot run at its first level 'fp32': no such"):
        find_levels(table, [0.0], Upstream.CASCADE)


def test_upstream_stages_are_as_accepted_or_as_first() -> None:
    results = [[1.0, 1.0, 0.0, 0.0]] * 3
    cascade, reference = Table(results, [FASTER] * 3), Table(results, [FASTER] * 3)
    find_levels(cascade, [0.1] * 3, Upstream.CASCADE)
    find_levels(reference, [0.1] * 3, Upstream.REFERENCE)
    assert set(cascade.upstreams) == {(), (1,), (1, 1)}
    assert set(reference.upstreams) == {(), (0,), (0, 0)}


unit = st.floats(0.0, 1.0)
row = st.lists(unit, min_size=4, max_size=4)


@given(results=st.lists(row, min_size=1, max_size=4), times=st.data(), threshold=unit)
def test_exhaustive_search_of_the_same_rule_agrees(
    results: list[list[float]], times: st.DataObject, threshold: float
) -> None:
    all_times = [times.draw(row) for _ in results]
    table = Table(results, all_times)
    found = find_levels(table, [threshold] * len(results), Upstream.REFERENCE)
    assert found.runs <= len(results) * 4

    def obeys(stage: int, level: int) -> bool:
        """Whether a level is what the rule ends with, checked from its definition."""
        tried = [0]
        for lower in range(1, 4):
            if all_times[stage][lower] < all_times[stage][tried[-1]]:
                if results[stage][lower] < results[stage][0] - threshold:
                    break
                tried.append(lower)
        return tried[-1] == level

    every = itertools.product(range(4), repeat=len(results))
    agreeing = [a for a in every if all(obeys(k, level) for k, level in enumerate(a))]
    assert agreeing == [found.assignment]


def test_thresholds_of_stages_do_not_compose_so_the_chain_is_checked() -> None:
    # Two stages that are each harmless alone and ruinous together; raising the second is cheaper.
    def chain(a: Assignment) -> float:
        return 0.5 if a[0] > 0 and a[1] > 0 else 1.0

    table = Table([[1.0, 1.0], [1.0, 1.0]], [[4.0, 1.0], [2.0, 1.0]], chain)
    found = find_levels(table, [0.0, 0.0], Upstream.REFERENCE)
    assert found.assignment == (1, 1)
    held = hold_chain(table, found.assignment, 0.1)
    assert (held.first, held.before, held.result) == (1.0, 0.5, 1.0)
    assert held.assignment == (1, 0)
    assert [(r.stage, r.level) for r in held.raises] == [(1, 0)]


def test_least_time_per_accuracy_brought_back_goes_first() -> None:
    losses = [[0.0, 0.30], [0.0, 0.08], [0.0, 0.02]]
    table = Table(
        [[1.0, 1.0]] * 3,
        [[4.0, 1.0], [2.0, 1.0], [1.1, 1.0]],  # seconds saved: 3, 1, 0.1
        lambda a: 1.0 - sum(losses[k][level] for k, level in enumerate(a)),
    )
    held = hold_chain(table, (1, 1, 1), 0.05)
    # per accuracy: 3/0.30 = 10, 1/0.08 = 12.5, 0.1/0.02 = 5; the third goes first, then the first
    assert [r.stage for r in held.raises] == [2, 0, 1]
    assert held.assignment == (0, 0, 0)
    held = hold_chain(table, (1, 1, 1), 0.1)
    assert [r.stage for r in held.raises] == [2, 0]
    assert held.assignment == (0, 1, 0)
    assert held.result == pytest.approx(0.92)


@given(st.lists(unit, min_size=27, max_size=27), unit)
def test_the_chain_always_holds_in_the_end(values: list[float], threshold: float) -> None:
    results = np.array(values).reshape(3, 3, 3)
    table = Table([[1.0] * 3] * 3, [FASTER[:3]] * 3, lambda a: float(results[a]))
    held = hold_chain(table, (2, 2, 2), threshold)
    assert held.result >= held.first - threshold
    assert held.result == results[held.assignment]
    assert len(held.raises) <= 6


def test_nothing_is_run_where_nothing_is_lowered() -> None:
    table = Table([[1.0, 0.0]] * 2, [FASTER[:2]] * 2)
    held = hold_chain(table, (0, 0), 0.0)
    assert (held.assignment, held.raises, len(table.chain_runs)) == ((0, 0), (), 1)


@pytest.mark.parametrize("bad", [-0.1, math.nan])
def test_impossible_thresholds_are_refused(bad: float) -> None:
    table = Table([[1.0, 1.0]] * 2, [FASTER[:2]] * 2)
    with pytest.raises(ValueError, match="threshold of stage 's1' is"):
        find_levels(table, [0.0, bad], Upstream.CASCADE)
    with pytest.raises(ValueError, match="chain's threshold is"):
        hold_chain(table, (1, 1), bad)
    with pytest.raises(ValueError, match="1 thresholds for 2 stages"):
        find_levels(table, [0.0], Upstream.CASCADE)


def test_a_result_that_is_no_number_is_refused() -> None:
    table = Table([[1.0, math.nan]], [FASTER[:2]])
    with pytest.raises(ValueError, match="'s0' at 'bf16' is nan"):
        find_levels(table, [0.0], Upstream.CASCADE)


def test_fidelity_is_one_minus_noise_over_signal() -> None:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(100, 100))
    noise = rng.normal(size=(100, 100)) * 0.1  # 20 dB below
    assert fidelity(signal, signal) == 1.0
    assert fidelity(signal + noise, signal) == pytest.approx(0.99, abs=5e-4)
