"""Mean waiting times of M/M/1, M/D/1 and M/M/c against their closed forms.

Every record is its own batch of one task: the idle trigger cuts at each arrival, parallelism
equals the number of servers, so that a job waits for its token exactly as a customer waits for a
server. Two discretisations stand between the engine and the theory, and both are bounded:

- Arrivals are counts per tick, spread evenly over it. An arrival is moved by less than a tick, and
  so a difference of two arrivals, and by Lindley's equation the waiting time, by less than two.
- Exponential service is a table of the means of 4096 equally likely cells. It has the right mean;
  its second moment, which the waiting time of M/G/1 is proportional to, is too small by less than
  0.2 %.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from runtime.application import Application, Job, Stage
from runtime.plan import Plan
from runtime.snapshot import SIGNAL_INDEX
from simulators.cluster.engine import ClusterEngine
from simulators.cluster.profile import Profile, StageCost

N_ENVS, WARM_UP_S, PERIOD_S, N_PERIODS, TICK_S = 96, 200.0, 100.0, 18, 0.02


def exponential_cells(n: int = 4096) -> np.ndarray:
    """Return the conditional means of n equally likely cells of a unit exponential."""
    edges = -np.log1p(-np.arange(n) / n)
    mass_above = np.append((edges + 1.0) * np.exp(-edges), 0.0)  # integral of x exp(-x) above
    return n * (mass_above[:-1] - mass_above[1:])


def erlang_c_wait(rate: float, servers: int) -> float:
    """Return the mean waiting time of M/M/c with unit service time."""
    terms = [rate**k / math.factorial(k) for k in range(servers)]
    last = rate**servers / math.factorial(servers) * servers / (servers - rate)
    return last / (sum(terms) + last) / (servers - rate)


def simulate(
    rate: float, servers: int, residual: np.ndarray, seed: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean waiting time and busy servers of each environment after the warm-up."""
    stage = Stage("serve", max_tasks=1)
    application = Application("queue", (Job("customer", (stage,)),))
    cost = StageCost(0.0, 1.0, 0.0, residual)
    profile = Profile("queue", {("customer", "serve"): cost}, servers, servers)
    engine = ClusterEngine(application, profile, servers, N_ENVS, max_open=512, report_rows=1024)
    plan = Plan(parallelism=servers, batch_interval_s=0.0, idle_batches=512)
    n_ticks = round((WARM_UP_S + PERIOD_S * N_PERIODS) / TICK_S)
    rng = np.random.default_rng([seed, servers])
    counts = rng.poisson(rate * TICK_S, (N_ENVS, n_ticks))
    keys = rng.integers(2**64, size=N_ENVS, dtype=np.uint64)
    engine.reset(keys, counts, TICK_S, plan)
    rows = np.tile(plan.to_row(), (N_ENVS, 1))
    engine.advance(rows, np.full(N_ENVS, WARM_UP_S))
    total = np.zeros_like(engine.signals)
    for k in range(N_PERIODS):
        engine.advance(rows, np.full(N_ENVS, WARM_UP_S + (k + 1) * PERIOD_S))
        total += engine.signals
        assert engine.signals[:, SIGNAL_INDEX["records_uncut"]].max() == 0
    served = total[:, SIGNAL_INDEX["report_records"]]
    assert np.array_equal(served, total[:, SIGNAL_INDEX["reports"]])  # one record a batch
    queueing_s = total[:, SIGNAL_INDEX["queueing_record_s"]]
    busy = total[:, SIGNAL_INDEX["busy_independent_s"]] / (PERIOD_S * N_PERIODS)
    return queueing_s / served, busy


def assert_mean(values: np.ndarray, expected: float, slack: float, precision: float) -> None:
    """Demand the expected mean within a 99.9 % interval that is itself narrow."""
    half_width = stats.t.ppf(0.9995, len(values) - 1) * stats.sem(values)
    assert half_width < precision * expected  # otherwise the check could not fail
    assert abs(values.mean() - expected) < half_width + slack


def test_table_of_exponential_cells() -> None:
    cells = exponential_cells()
    assert cells.mean() == pytest.approx(1.0, abs=1e-12)
    second_moment = float(np.mean(cells**2))
    assert 0.998 * 2.0 < second_moment < 2.0
    assert exponential_cells(1)[0] == pytest.approx(1.0)
    assert exponential_cells(2)[0] == pytest.approx(1.0 - math.log(2.0))


@pytest.mark.parametrize("rate", [0.6, 0.7])
def test_m_m_1(rate: float) -> None:
    wait_s, busy = simulate(rate, 1, exponential_cells())
    expected = rate / (1.0 - rate)
    assert_mean(wait_s, expected, 2 * TICK_S + 0.002 * expected, precision=0.1)
    assert_mean(busy, rate, 0.0, precision=0.02)


@pytest.mark.parametrize("rate", [0.7, 0.85])
def test_m_d_1(rate: float) -> None:
    wait_s, busy = simulate(rate, 1, np.ones(1))
    assert_mean(wait_s, rate / (2.0 * (1.0 - rate)), 2 * TICK_S, precision=0.1)
    assert_mean(busy, rate, 0.0, precision=0.02)


@pytest.mark.parametrize(("rate", "servers"), [(1.4, 2), (4.0, 5)])
def test_m_m_c(rate: float, servers: int) -> None:
    expected = erlang_c_wait(rate, servers)
    wait_s, busy = simulate(rate, servers, exponential_cells())
    assert_mean(wait_s, expected, 2 * TICK_S + 0.002 * expected, precision=0.1)
    assert_mean(busy, rate, 0.0, precision=0.02)


def test_erlangs_formula_contains_the_single_server() -> None:
    assert erlang_c_wait(0.7, 1) == pytest.approx(0.7 / 0.3)
    assert erlang_c_wait(1.0, 2) == pytest.approx(1.0 / 3.0)
