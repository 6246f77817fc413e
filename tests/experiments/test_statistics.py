from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import statistics
from experiments.statistics import (
    Estimate,
    Floats,
    interquartile_mean,
    mean,
    paired_change,
    stratified_bootstrap,
)


def test_interquartile_mean_leaves_out_a_quarter_at_each_end() -> None:
    # 8 scores: the 2 lowest and the 2 highest go, (3 + 4 + 5 + 6) / 4 stays.
    scores = np.array([1e6, 6.0, 3.0, 1.0, 5.0, 2.0, 4.0, 7.0])
    assert interquartile_mean(scores) == 4.5
    # 5 scores: floor(5 / 4) = 1 goes at each end.
    assert interquartile_mean(np.array([0.0, 1.0, 2.0, 6.0, 100.0])) == 3.0
    assert interquartile_mean(np.array([7.0])) == 7.0


def test_interquartile_mean_works_on_the_last_axis() -> None:
    scores = np.random.default_rng(0).standard_normal((3, 4, 9))
    result = interquartile_mean(scores)
    assert result.shape == (3, 4)
    assert result[1, 2] == pytest.approx(np.sort(scores[1, 2])[2:-2].mean())


def test_bootstrap_standard_error_of_the_mean_has_its_closed_form() -> None:
    # Resampled means have the variance (1/n) * population variance of the scores.
    scores = np.random.default_rng(1).standard_normal(40)
    estimate = stratified_bootstrap([scores], mean, np.random.default_rng(2), resamples=20_000)
    half_width = 1.959964 * scores.std() / math.sqrt(scores.size)
    assert estimate.value == pytest.approx(scores.mean())
    assert estimate.high - estimate.value == pytest.approx(half_width, rel=0.05)
    assert estimate.value - estimate.low == pytest.approx(half_width, rel=0.05)


def test_strata_are_resampled_apart() -> None:
    # Constant strata far apart: resampling within them always gives the same pooled mean.
    strata = [np.zeros(5), np.full(15, 100.0)]
    estimate = stratified_bootstrap(strata, mean, np.random.default_rng(0), resamples=200)
    assert estimate == Estimate(75.0, 75.0, 75.0)


@pytest.mark.parametrize("statistic", [mean, interquartile_mean])
def test_interval_covers_the_truth(
    statistic: Callable[[Floats], Floats],
) -> None:
    # Two strata of 20 normal scores around -1 and 1; the pooled mean and IQM are 0 by symmetry.
    rng = np.random.default_rng(3)
    trials, hits = 400, 0
    for _ in range(trials):
        strata = [rng.normal(-1.0, 1.0, 20), rng.normal(1.0, 1.0, 20)]
        estimate = stratified_bootstrap(strata, statistic, rng, resamples=300)
        hits += estimate.low <= 0.0 <= estimate.high
    # Nominal 0.95; the percentile bootstrap with 20 runs falls a little short (about 0.93), and
    # the binomial error of 400 trials is 0.012.
    assert 0.89 <= hits / trials <= 0.985


def test_same_generator_same_interval_and_other_generator_another() -> None:
    scores = [np.random.default_rng(0).standard_normal(10)]
    first, again, other = (
        stratified_bootstrap(scores, mean, np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert first == again
    assert first.low != other.low


def test_chunks_change_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [np.random.default_rng(0).standard_normal(10)]
    whole = stratified_bootstrap(scores, mean, np.random.default_rng(1), resamples=500)
    monkeypatch.setattr(statistics, "_CHUNK_SCORES", 70)
    assert stratified_bootstrap(scores, mean, np.random.default_rng(1), resamples=500) == whole


def test_a_higher_level_gives_a_wider_interval() -> None:
    scores = [np.random.default_rng(0).standard_normal(12)]
    wide, narrow = (
        stratified_bootstrap(scores, mean, np.random.default_rng(1), level=level)
        for level in (0.99, 0.5)
    )
    assert wide.low < narrow.low < narrow.high < wide.high


def test_single_runs_have_no_interval() -> None:
    estimate = stratified_bootstrap([[2.0], [4.0]], mean, np.random.default_rng(0))
    assert estimate.value == 3.0
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)
    change = paired_change([[2.0]], [[1.0]], np.random.default_rng(0))
    assert change.value == -50.0
    assert math.isnan(change.low)


@given(
    factor=st.floats(0.1, 10.0),
    scores=st.lists(st.floats(0.01, 100.0), min_size=2, max_size=8),
)
def test_paired_change_of_proportional_scores_is_exact(factor: float, scores: list[float]) -> None:
    # Whatever seeds are drawn, the candidate's mean is `factor` times the baseline's.
    baseline = np.array(scores)
    estimate = paired_change([baseline], [factor * baseline], np.random.default_rng(0), 100)
    expected = pytest.approx(100.0 * (factor - 1.0), abs=1e-9)
    assert (estimate.value, estimate.low, estimate.high) == (expected, expected, expected)


def test_paired_change_is_of_means_within_strata_and_averaged_over_them() -> None:
    baseline = [[1.0, 3.0], [100.0, 100.0]]
    candidate = [[1.0, 1.0], [110.0, 110.0]]
    estimate = paired_change(baseline, candidate, np.random.default_rng(0))
    # -50 % (mean 2 to 1) and +10 %; a mean of ratios would give -33.3 % in the first.
    assert estimate.value == pytest.approx(-20.0)


def test_pairing_cancels_what_seeds_share() -> None:
    rng = np.random.default_rng(0)
    baseline = rng.lognormal(0.0, 1.0, 30)
    candidate = baseline * rng.normal(0.8, 0.02, 30)
    paired = paired_change([baseline], [candidate], np.random.default_rng(1))
    shuffled = paired_change([baseline], [rng.permutation(candidate)], np.random.default_rng(1))
    assert paired.high < -15.0
    assert shuffled.high - shuffled.low > 5 * (paired.high - paired.low)


def test_paired_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(4)
    trials, hits = 300, 0
    for _ in range(trials):
        baseline = rng.gamma(9.0, 1.0, 30)
        candidate = baseline * rng.normal(0.9, 0.1, 30)
        estimate = paired_change([baseline], [candidate], rng, resamples=300)
        hits += estimate.low <= -10.0 <= estimate.high
    assert 0.88 <= hits / trials <= 0.99


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rng: stratified_bootstrap([], mean, rng), "strata is empty"),
        (lambda rng: stratified_bootstrap([[]], mean, rng), r"strata\[0\] has shape \(0,\)"),
        (lambda rng: stratified_bootstrap([[[1.0]]], mean, rng), r"has shape \(1, 1\)"),
        (lambda rng: stratified_bootstrap([[1.0], [math.nan]], mean, rng), r"strata\[1\] holds"),
        (lambda rng: stratified_bootstrap([[1.0]], mean, rng, 10), "expected at least 100"),
        (lambda rng: stratified_bootstrap([[1.0]], mean, rng, level=95), "between 0 and 1"),
        (lambda rng: paired_change([[1.0, 2.0]], [[1.0]], rng), "need the same seeds in both"),
        (lambda rng: paired_change([[1.0, 0.0]], [[1.0, 1.0]], rng), "needs positive ones"),
    ],
)
def test_bad_input_is_refused(
    call: Callable[[np.random.Generator], Estimate], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0))
