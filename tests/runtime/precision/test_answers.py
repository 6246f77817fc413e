from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.precision.answers import Outcome, answers_of, not_finite, tally
from runtime.precision.snapshot import LOW_MARGIN


def test_margins_are_leads_in_probability() -> None:
    output = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.45, 0.45]]))
    classes, margin = answers_of(output)
    assert classes[0] == 0
    np.testing.assert_allclose(margin, [0.5, 0.0], atol=1e-6)


@given(st.integers(1, 20), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_answers_are_those_of_torch(n: int, classes: int, seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0.0, 5.0, (n, classes)).astype(np.float32)
    output = torch.from_numpy(logits)
    likely, expected = torch.softmax(output, dim=1).topk(2, dim=1)
    found, margin = answers_of(output)
    np.testing.assert_array_equal(found, expected[:, 0])
    np.testing.assert_allclose(margin, likely[:, 0] - likely[:, 1], atol=1e-5)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_leaves_no_margin(broken: float) -> None:
    output = torch.tensor([[1.0, 0.0, 3.0], [1.0, broken, 3.0]])
    classes, margin = answers_of(output)
    assert classes[0] == 2
    assert np.isnan(margin).tolist() == [False, broken != -math.inf]


@pytest.mark.parametrize("shape", [(5, 3), (5, 1, 40), (5, 3, 6, 7)])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_samples_with_a_broken_value_are_found(shape: tuple[int, ...], broken: float) -> None:
    x = torch.rand(shape) - 0.5
    x[1].view(-1)[0] = 3e38  # large, and finite
    x[2].view(-1)[-1] = broken
    x[4].view(-1)[1] = broken
    expected = [False, False, True, False, True]
    assert not_finite(x).tolist() == expected
    if x.dim() == 4:
        assert not_finite(x.to(memory_format=torch.channels_last)).tolist() == expected
        assert not_finite(x.transpose(2, 3)).tolist() == expected


@given(st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_the_tally_counts_what_arrays_say(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    answers, truth = rng.integers(-1, 3, (2, n))
    outcome = Outcome(answers, rng.random(n), rng.random(n) < 0.3)
    arrival_s, end_s, deadline_s = np.sort(rng.random(n)), 1.2, 0.6
    late = end_s - arrival_s > deadline_s
    found = tally(outcome, arrival_s, truth, end_s, deadline_s)
    assert (found.late, found.correct) == (late.sum(), (answers == truth).sum())
    assert found.in_time == ((answers == truth) & ~late).sum()
    assert found.escalated == outcome.again.sum()
    means = (arrival_s.mean(), outcome.margins.mean(), (outcome.margins < LOW_MARGIN).mean())
    np.testing.assert_allclose((found.arrival_s, found.margin, found.low_margin), means)
    unknown = tally(outcome, arrival_s, None, end_s, deadline_s)
    assert unknown.late == found.late
    assert math.isnan(unknown.correct)
    assert math.isnan(unknown.in_time)
