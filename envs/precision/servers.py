"""N precision servers behind one step function: the core of all faces of the environment."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from envs.precision.config import StagedPrecisionConfig
from envs.precision.reward import PrecisionReward
from runtime.precision.guards import PrecisionGuards
from runtime.precision.observation import PrecisionCodec
from simulators.precision.engine import PrecisionEngine


class Servers:
    """Engine, codec, guards and reward of N servers.

    A step of a server is one batch, so servers reach the horizon at different steps: `reset` and
    `begin` take the ones that start anew.

    Attributes:
        engine: The simulated servers.
        codec: What turns their snapshots into observations.
        plans: float64 [N, 2 * S + 1], plans in force.
        terms: Terms of the last reward by name, each float64 [N].
        cost: float64 [N], cost of the accuracy constraint in the last step.
        causes: int64 [N], why guards changed the last proposals (bits of `PrecisionCause`).
        keys: uint64 [N], key of each present episode.
        starts: int64 [N], its first tick in the arrivals.
        factors: float64 [N], its factor of the arrival rate.
    """

    def __init__(self, config: StagedPrecisionConfig, n: int, *, observe: bool = True) -> None:
        """Allocate N servers; `reset` must be called first.

        Args:
            config: What each consists of.
            n: Number of servers N, at least 1.
            observe: False: observations are left out, float32 [N, 0]. They are most of the work,
                and whoever decides by signals does not look at them.
        """
        self.config, self.n, self._observes = config, n, observe
        self.engine = PrecisionEngine(
            config.profile, config.serving, n, n_segments=config.n_segments
        )
        self.codec = PrecisionCodec(config.scale(), n)
        self.guards = PrecisionGuards(
            config.guards, config.bank_tables(), config.safe_plan, self.engine.layout, n
        )
        serving = config.serving
        self.reward = PrecisionReward(
            config.reward, serving.deadline_s, serving.max_batch, config.profile.energy
        )
        self.plans = np.tile(config.safe_plan.to_row(), (n, 1))
        self.terms: dict[str, NDArray[np.float64]] = {}
        self.cost = np.zeros(n)
        self.causes = np.zeros(n, dtype=np.int64)
        self.keys = np.zeros(n, dtype=np.uint64)
        self.starts = np.zeros(n, dtype=np.int64)
        self.factors = np.ones(n)
        self._all = np.arange(n)

    def reset(
        self,
        rngs: Sequence[np.random.Generator],
        which: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """Start an episode in some servers; server k draws from `rngs[k]` alone.

        Args:
            rngs: One generator for each of the N servers.
            which: int64 [M], the servers that start anew; None means all.

        Returns:
            Observations float32 [N, codec.size]; those of the other servers are unchanged.
        """
        chosen = self._all if which is None else which
        first, last = self.config.starts
        for k in chosen.tolist():
            self.keys[k] = rngs[k].integers(0, 2**64, dtype=np.uint64)
            self.starts[k] = rngs[k].integers(first, last + 1)
            self.factors[k] = rngs[k].choice(self.config.load_factors)
        return self._start(chosen)

    def begin(
        self,
        keys: NDArray[np.uint64],
        starts: NDArray[np.int64],
        factors: NDArray[np.float64] | None = None,
    ) -> NDArray[np.float32]:
        """Start the episodes with these keys, first ticks and rate factors (each [N])."""
        self.keys[:], self.starts[:] = keys, starts
        self.factors[:] = 1.0 if factors is None else factors
        return self._start(self._all)

    def _start(self, chosen: NDArray[np.int64]) -> NDArray[np.float32]:
        config = self.config
        segments = config.workload.conditions.segments(self.keys[chosen], config.horizon_s)
        self.engine.reset(
            self.keys[chosen],
            self.counts(chosen),
            config.workload.arrivals.tick_s,
            segments,
            config.safe_plan,
            chosen,
        )
        self.codec.reset(chosen)
        self.guards.reset(chosen)
        self.plans[chosen] = config.safe_plan.to_row()
        # What has been encoded before comes out the same: the others lose nothing.
        return self._observation()

    def _observation(self) -> NDArray[np.float32]:
        if not self._observes:
            return np.zeros((self.n, 0), dtype=np.float32)
        return self.codec.encode(self.engine.signals)

    def counts(self, chosen: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Return the arrivals of the present episodes of some servers, int64 [M, n_ticks]."""
        which = self._all if chosen is None else chosen
        arrivals, n_ticks = self.config.workload.arrivals, self.config.n_ticks
        result = np.zeros((len(which), n_ticks), dtype=np.int64)
        for factor in np.unique(self.factors[which]):
            own = np.nonzero(self.factors[which] == factor)[0]
            scaled = arrivals if factor == 1.0 else arrivals.scaled(float(factor))
            k = which[own]
            result[own] = scaled.counts(self.keys[k], self.starts[k], n_ticks)
        return result

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_]]:
        """Decode actions, int64 [N, dims], and serve a batch everywhere; see `step_rows`."""
        return self.step_rows(self.config.actions.decode(actions, self.plans))

    def serve_rows(self, proposed: NDArray[np.float64]) -> NDArray[np.float32]:
        """Apply proposed plans and serve one batch in every server; nobody learns from it.

        Args:
            proposed: float64 [N, 2 * S + 1].

        Returns:
            Observations float32 [N, codec.size].
        """
        self.plans, self.causes = self.guards.apply_rows(proposed, self.engine.signals)
        self.engine.step(self.plans)
        return self._observation()

    def step_rows(
        self, proposed: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_]]:
        """Apply proposed plans and serve one batch in every server.

        Args:
            proposed: float64 [N, 2 * S + 1].

        Returns:
            Observations float32 [N, codec.size], rewards float64 [N], and bool [N], whether the
            horizon of each is reached.
        """
        signals, reports = self.engine.signals, self.engine.reports
        before_s = signals[:, 0].copy()
        observation = self.serve_rows(proposed)
        self.terms = self.reward.terms(reports, signals[:, 0] - before_s)
        self.cost = self.reward.cost(reports)
        reward: NDArray[np.float64] = reduce(np.add, self.terms.values())
        over = (signals[:, 0] >= self.config.horizon_s) | self.engine.finished
        return observation, reward, np.asarray(over)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions hold the guards' floors and targets now, bool [N, sum(nvec)]."""
        return self.guards.masks(self.config.actions, self.plans, self.engine.signals)
