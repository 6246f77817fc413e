from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.distributions import MultiCategoricalDistribution

from agents.distributions import PaddedMultiCategorical

DIMS = st.lists(st.integers(1, 6), min_size=1, max_size=5)


@given(DIMS, st.integers(0, 2**31), st.sampled_from([0.1, 3.0, 60.0]))
def test_it_is_the_distribution_of_stable_baselines3(
    dims: list[int], seed: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    preferences = scale * torch.randn(7, sum(dims), generator=generator)
    columns = [torch.randint(0, n, (7,), generator=generator) for n in dims]
    actions = torch.stack(columns, dim=1)
    found = []
    for distribution in (MultiCategoricalDistribution(dims), PaddedMultiCategorical(dims)):
        logits = preferences.clone().requires_grad_()
        distribution.proba_distribution(logits)
        log_prob, entropy = distribution.log_prob(actions), distribution.entropy()
        (log_prob.sum() + 0.5 * entropy.sum()).backward()
        assert logits.grad is not None
        found.append((log_prob.detach(), entropy.detach(), logits.grad, distribution.mode()))
    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_samples_have_the_frequencies_of_the_probabilities() -> None:
    torch.manual_seed(0)
    n = 40_000
    p = torch.tensor([0.7, 0.2, 0.1, 0.05, 0.95])
    distribution = PaddedMultiCategorical([3, 2]).proba_distribution(p.log().repeat(n, 1))
    samples = distribution.sample()
    counts = [torch.bincount(samples[:, 0], minlength=3), torch.bincount(samples[:, 1])]
    # Five standard deviations of a frequency over 40,000 draws.
    torch.testing.assert_close(torch.cat(counts) / n, p, rtol=0.0, atol=5 * 0.5 / n**0.5)
