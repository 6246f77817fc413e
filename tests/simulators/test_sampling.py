from __future__ import annotations

import numba as nb
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from simulators.sampling import poisson, unit_gamma


@nb.njit
def _poissons(mean: float, key: int, n: int) -> NDArray[np.int64]:
    return np.array([poisson(mean, key, 3, k) for k in range(n)])


@nb.njit
def _gammas(shape: float, key: int, n: int) -> NDArray[np.float64]:
    return np.array([unit_gamma(shape, key, 3, k) for k in range(n)])


@pytest.mark.parametrize("mean", [0.03, 1.0, 9.99, 10.0, 30.0, 1000.0])
def test_poisson_has_the_poisson_law(mean: float) -> None:
    n = 200_000
    counts = _poissons(mean, 11, n)
    law = stats.poisson(mean)
    assert counts.mean() == pytest.approx(mean, abs=4.5 * (mean / n) ** 0.5)
    variance_error = (mean / n + 2 * mean**2 / n) ** 0.5
    assert counts.var() == pytest.approx(mean, abs=4.5 * variance_error)
    # Chi-square over cells of at least ~100 expected counts, both tails merged.
    low, high = int(law.ppf(1e-3)), int(law.ppf(1 - 1e-3))
    width = max((high - low) // 40, 1)
    edges = np.arange(low, high + width, width)
    observed = np.bincount(np.searchsorted(edges, counts, side="left"), minlength=len(edges) + 1)
    cumulative = np.concatenate([[0.0], law.cdf(edges), [1.0]])
    expected = n * np.diff(cumulative)
    used = expected > 5
    chi2 = ((observed - expected)[used] ** 2 / expected[used]).sum()
    assert stats.chi2.sf(chi2, int(used.sum()) - 1) > 1e-4


def test_poisson_of_nothing_is_zero() -> None:
    assert not _poissons(0.0, 1, 100).any()


@pytest.mark.parametrize("mean", [1e6, 1e9])
def test_poisson_of_a_huge_mean(mean: float) -> None:
    z = (_poissons(mean, 5, 20_000) - mean) / mean**0.5
    assert stats.kstest(z, "norm").pvalue > 1e-4


@pytest.mark.parametrize("shape", [0.2, 1.0, 4.0, 100.0])
def test_unit_gamma_has_the_gamma_law(shape: float) -> None:
    values = _gammas(shape, 7, 50_000)
    assert stats.kstest(values, stats.gamma(shape, scale=1.0 / shape).cdf).pvalue > 1e-4


def test_different_keys_and_counters_are_uncorrelated() -> None:
    a, b = _poissons(4.0, 1, 50_000), _poissons(4.0, 2, 50_000)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02
    assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < 0.02
