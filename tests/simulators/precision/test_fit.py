from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.precision.measure import covering_assignments
from simulators.precision.fit import fit_latency, held_out_error


def _every(n_stages: int, n_levels: int) -> NDArray[np.int64]:
    return np.array(list(itertools.product(range(n_levels), repeat=n_stages)), dtype=np.int64)


def _true_seconds(assignments: NDArray[np.int64], n_levels: int, seed: int) -> NDArray[np.float64]:
    """Latencies of a chain that is additive, times in the range of real ones."""
    rng = np.random.default_rng(seed)
    n_stages = assignments.shape[1]
    stage = rng.uniform(1e-5, 1e-3, size=(n_stages, n_levels))
    change = rng.uniform(0.0, 1e-4, size=(n_stages - 1, n_levels, n_levels))
    change[:, np.arange(n_levels), np.arange(n_levels)] = 0.0
    return np.array(
        [
            sum(stage[k, p] for k, p in enumerate(a))
            + sum(change[k, p, q] for k, (p, q) in enumerate(itertools.pairwise(a)))
            for a in assignments
        ]
    )


@given(n_stages=st.integers(1, 4), n_levels=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_an_additive_chain_is_recovered(n_stages: int, n_levels: int, seed: int) -> None:
    assignments = _every(n_stages, n_levels)
    seconds = _true_seconds(assignments, n_levels, seed)
    fit = fit_latency(assignments, seconds, n_levels)
    np.testing.assert_allclose(fit.predict_s(assignments), seconds, rtol=1e-9)
    assert np.abs(fit.error).max() < 1e-9


def test_time_divides_among_stages_as_stated() -> None:
    assignments = _every(3, 2)
    seconds = _true_seconds(assignments, 2, seed=5)
    share = np.array([0.5, 0.3, 0.2])
    fit = fit_latency(assignments, seconds, 2, share)
    equal = fit_latency(assignments, seconds, 2)
    np.testing.assert_allclose(fit.stage_s[:, 0], share * seconds[0])
    np.testing.assert_allclose(equal.stage_s[:, 0], seconds[0] / 3)
    np.testing.assert_allclose(fit.predict_s(assignments), equal.predict_s(assignments))
    np.testing.assert_allclose(np.diff(fit.stage_s), np.diff(equal.stage_s))


def test_no_stage_costs_less_than_nothing_where_levels_save_more_than_its_share() -> None:
    """The first stage saves all but 0.1 of its 30 ms; a third of the whole is 11 ms."""
    stage = np.array([[30e-3, 1e-4], [1e-3, 9e-4], [1e-3, 9e-4]])
    assignments = _every(3, 2)
    seconds = stage[np.arange(3), assignments].sum(axis=1)
    for share in (None, np.array([0.2, 0.3, 0.5])):
        fit = fit_latency(assignments, seconds, 2, share)
        assert fit.stage_s.min() >= -1e-12
        np.testing.assert_allclose(fit.predict_s(assignments), seconds)
        assert np.abs(fit.error).max() < 1e-9


def test_the_shortest_assignment_is_the_shortest_of_all() -> None:
    assignments = _every(4, 3)
    fit = fit_latency(assignments, _true_seconds(assignments, 3, seed=2), 3)
    assert fit.shortest_s() == pytest.approx(fit.predict_s(assignments).min())


@pytest.mark.parametrize("saved_s", [1e-3, 6e-3])
def test_a_fit_that_leaves_a_chain_no_time_is_bounded(saved_s: float) -> None:
    """Two changes that save time were measured apart; nobody ran the chain that has both."""
    assignments = np.array([[0, 0, 0], [1, 1, 1], [0, 1, 1], [1, 1, 0]])
    seconds = np.array([10e-3, 10e-3, 10e-3 - saved_s, 10e-3 - saved_s])
    fit = fit_latency(assignments, seconds, 2)
    believed = 10e-3 - 2.0 * saved_s > 0.5 * seconds.min()
    assert (np.abs(fit.error).max() < 1e-9) == believed
    # The error is of what the costs say, bounded or not.
    np.testing.assert_allclose(fit.error, fit.predict_s(assignments) / seconds - 1.0)
    assert fit.shortest_s() > 0.0
    saving = np.minimum(fit.stage_s[:-1, :, None], fit.stage_s[1:, None, :])
    assert (fit.transition_s >= -0.45 * saving - 1e-12).all()


def test_held_out_assignments_are_predicted_from_some() -> None:
    uniform = np.repeat(np.arange(3)[:, None], 4, axis=1)
    mixed = [a for a in _every(4, 3) if len(set(a.tolist())) > 1]
    assignments = np.concatenate([uniform, mixed])
    seconds = _true_seconds(assignments, 3, seed=1)
    error = held_out_error(assignments, seconds, 3, 60, np.random.default_rng(0))
    assert error.shape == (21,)
    assert np.abs(error).max() < 1e-6
    noisy = seconds * np.random.default_rng(2).lognormal(0.0, 0.02, size=len(seconds))
    error = held_out_error(assignments, noisy, 3, 60, np.random.default_rng(0))
    assert 0.005 < np.abs(error).mean() < 0.08


def test_noise_of_measurements_is_not_taken_for_costs_of_changes() -> None:
    """A chain of 84 costs whose changes are free, from 78 runs: what is left is their noise."""
    assignments = np.array(covering_assignments(5, 4, 400, np.random.default_rng(0)))
    rng = np.random.default_rng(1)
    stage_s = rng.uniform(1e-4, 1e-3, size=(5, 4))
    seconds = stage_s[np.arange(5), assignments].sum(axis=1)
    noisy = seconds[:78] * rng.lognormal(0.0, 0.02, size=78)
    error = fit_latency(assignments[:78], noisy, 4).predict_s(assignments[78:]) / seconds[78:] - 1.0
    assert np.abs(error).mean() < 0.01  # not shrunk: 0.027
    dear = _true_seconds(assignments, 4, seed=4)
    predicted_s = fit_latency(assignments[:300], dear[:300], 4).predict_s(assignments[300:])
    np.testing.assert_allclose(predicted_s, dear[300:], rtol=1e-6)


def test_what_is_not_additive_shows_in_the_error() -> None:
    assignments = _every(3, 2)
    seconds = _true_seconds(assignments, 2, seed=3)
    seconds[np.all(assignments == 1, axis=1)] *= 1.5  # three low levels together interact
    fit = fit_latency(assignments, seconds, 2)
    assert np.abs(fit.error).max() > 0.02


@pytest.mark.parametrize(
    ("assignments", "seconds", "message"),
    [
        ([[0, 0], [0, 1]], [1.0, 1.0], "stage 0 was never measured at level 1"),
        ([[0, 0], [1, 2]], [1.0, 1.0], "levels 0 to 2; expected 0 to 1"),
        ([[0, 1], [1, 0]], [1.0, 0.0], "not a number above 0"),
        ([[0, 1], [1, 0]], [1.0], r"seconds \(1,\)"),
    ],
)
def test_measurements_that_do_not_fit_are_refused(
    assignments: list[list[int]], seconds: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_latency(np.array(assignments), np.array(seconds), 2)
