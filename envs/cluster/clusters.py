"""N stream clusters behind one step function: the core of all faces of the environment."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from envs.cluster.config import StreamClusterConfig
from envs.cluster.reward import ClusterReward
from runtime.cluster.observation import ClusterCodec
from runtime.guards import Guards
from runtime.snapshot import SIGNAL_INDEX
from simulators.cluster.engine import ClusterEngine

_FAILED = SIGNAL_INDEX["records_failed"]
_SHORTEST_CUT_S = 0.05


class Clusters:
    """Engine, codec, guards and reward of N clusters in step.

    Attributes:
        engine: The simulated clusters.
        codec: What turns their snapshots into observations.
        plans: float64 [N, len(PLAN_COLUMNS)], plans in force.
        terms: Terms of the last reward by name, each float64 [N].
        causes: int64 [N], why guards changed the last proposals (bits of `Cause`).
        keys: uint64 [N], key of each present episode.
        starts: int64 [N], its first tick in the arrivals.
        factors: float64 [N], its factor of the arrival rate.
    """

    def __init__(self, config: StreamClusterConfig, n: int) -> None:
        """Allocate N clusters; `reset` must be called first."""
        self.config, self.n = config, n
        report_rows = int(config.period_s / _SHORTEST_CUT_S) + config.max_open
        self.engine = ClusterEngine(
            config.application,
            config.profile,
            config.slots,
            n,
            max_open=config.max_open,
            report_rows=report_rows,
        )
        self.codec = ClusterCodec(config.scale(), n)
        self.guards = Guards(config.guards, config.initial_plan, n)
        self.reward = ClusterReward(
            config.reward, config.capacity_per_s, config.slots, config.period_s
        )
        self.plans = np.tile(config.initial_plan.to_row(), (n, 1))
        self.terms: dict[str, NDArray[np.float64]] = {}
        self.causes = np.zeros(n, dtype=np.int64)
        self.keys = np.zeros(n, dtype=np.uint64)
        self.starts = np.zeros(n, dtype=np.int64)
        self.factors = np.ones(n)
        self._step = 0

    def reset(self, rngs: Sequence[np.random.Generator]) -> NDArray[np.float32]:
        """Start an episode in every cluster; cluster k draws from `rngs[k]` alone.

        Returns:
            Observations float32 [N, codec.size].
        """
        first, last = self.config.starts
        for k, rng in enumerate(rngs):
            self.keys[k] = rng.integers(0, 2**64, dtype=np.uint64)
            self.starts[k] = rng.integers(first, last + 1)
            self.factors[k] = rng.choice(self.config.load_factors)
        return self.begin(self.keys, self.starts, self.factors)

    def begin(
        self,
        keys: NDArray[np.uint64],
        starts: NDArray[np.int64],
        factors: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float32]:
        """Start the episodes with these keys, first ticks and rate factors (each [N])."""
        config = self.config
        self.keys[:], self.starts[:] = keys, starts
        self.factors[:] = 1.0 if factors is None else factors
        self.engine.reset(self.keys, self.counts(), config.arrivals.tick_s, config.initial_plan)
        self.codec.reset()
        self.guards.reset()
        self.plans[:] = config.initial_plan.to_row()
        self._step = 0
        return self.codec.encode(self.engine.signals)

    def counts(self) -> NDArray[np.int64]:
        """Return the arrivals of the present episodes, int64 [N, n_ticks]."""
        config = self.config
        result = np.zeros((self.n, config.n_ticks), dtype=np.int64)
        for factor in np.unique(self.factors):
            chosen = np.nonzero(self.factors == factor)[0]
            arrivals = config.arrivals if factor == 1.0 else config.arrivals.scaled(float(factor))
            result[chosen] = arrivals.counts(self.keys[chosen], self.starts[chosen], config.n_ticks)
        return result

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], bool]:
        """Decode actions, int64 [N, dims], and advance by one period; see `step_rows`."""
        return self.step_rows(self.config.actions.decode(actions, self.plans))

    def step_rows(
        self, proposed: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], bool]:
        """Apply proposed plans and advance by one period.

        Args:
            proposed: float64 [N, len(PLAN_COLUMNS)].

        Returns:
            Observations float32 [N, codec.size], rewards float64 [N], whether the horizon is
            reached (the same for all).
        """
        signals = self.engine.signals
        rows, self.causes = self.guards.apply_rows(proposed, signals)
        changed = (rows != self.plans).any(axis=1)
        failed_before = signals[:, _FAILED].copy()
        self.plans = rows
        self._step += 1
        until_s = np.full(self.n, self._step * self.config.period_s)
        self.engine.advance(rows, until_s)
        self.terms = self.reward.terms(signals, failed_before, changed)
        reward: NDArray[np.float64] = reduce(np.add, self.terms.values())
        return self.codec.encode(signals), reward, self._step >= self.config.steps
