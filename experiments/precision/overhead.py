"""What serving a batch costs beyond the pass itself: forming, properties, deciding, reporting."""

from __future__ import annotations

import math
import time
from itertools import cycle, pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.deciders import Constant
from agents.precision.api import PrecisionAgent
from experiments.precision.banks import SampleRows, StandInBank, TrainedBank
from experiments.precision.declared import costed
from runtime.networks import Network
from runtime.precision.actions import TableActions
from runtime.precision.guard_tables import BankTables, PrecisionLimits
from runtime.precision.guards import PrecisionGuards
from runtime.precision.observation import PrecisionCodec, PrecisionScale
from runtime.precision.plan import PrecisionPlan
from runtime.precision.policy import PrecisionBundle, PrecisionBundlePolicy
from runtime.precision.properties import PROPERTY_NAMES
from runtime.precision.server import PrecisionServer
from runtime.precision.serving import Drop, Serving
from runtime.precision.shadow import ShadowCheck
from runtime.precision.snapshot import REPORT_INDEX, PrecisionSnapshot
from runtime.precision.streams import RequestStream
from simulators.precision.profile import residual_cells

_BATCHES = 12
_HIDDEN, _TABLES = 64, 64
"""Units of both hidden layers and actions of the policy whose decisions are timed: those that
agents are trained with by default."""


class Overhead(NamedTuple):
    """What a batch costs beyond the pass, seconds, at least 0.

    Attributes:
        serving_s: float64 [P], under a plan of one level that never changes, from one batch to the
            next, passes taken off. It differs: what is done between two passes pushes weights and
            activations out of the cache, and wide levels have more of them to lose (0.29 ms at the
            fastest level and 0.63 at fp32 for 16 images of 64x64).
        decision_s: What a policy network each of whose plans is a new one takes beyond that, from a
            formed batch to its pass. The difference between whole batches would be lost in how
            much passes differ: 178 us were found for batches of 16 that take 6 ms, 67 for 8.
        residual: float64 [RESIDUAL_CELLS], how long served batches take over the median of their
            plan, as `PrecisionProfile.residual` has it. Medians of passes do not show how seldom
            ones are late: one batch in a hundred took 1.2 to 1.7 times as long.
    """

    serving_s: NDArray[np.float64]
    decision_s: float
    residual: NDArray[np.float64]


def untrained(inputs: int, outputs: int) -> Network:
    """Return a policy network of the usual size with random weights."""
    rng = np.random.default_rng(0)
    layers = tuple(
        (rng.normal(0.0, 0.1, (n, m)).astype(np.float32), np.zeros(n, np.float32))
        for m, n in pairwise((inputs, _HIDDEN, _HIDDEN, outputs))
    )
    return Network(layers)


class _Restless:
    """Asks a policy, and gives two plans of the same levels in turn: margins mean nothing then."""

    name = "restless"

    def __init__(self, policy: PrecisionBundlePolicy, plan: PrecisionPlan) -> None:
        self._policy = policy
        both = (PrecisionPlan(plan.levels, margin, plan.levels) for margin in (0.25, 0.5))
        self._plans = cycle(both)

    def reset(self) -> None:
        self._policy.reset()

    def decide(self, snapshot: PrecisionSnapshot) -> PrecisionPlan:
        self._policy.decide(snapshot)
        return next(self._plans)


class ServedBatches:
    """Serves batches of a bank, all of them the same one."""

    def __init__(self, trained: TrainedBank, batch: Tensor) -> None:
        """Describe the server.

        Args:
            trained: The bank.
            batch: float32 [n, ...], n a prepared batch size.
        """
        bank, n = trained.bank, len(batch)
        self.n_stages, self.n_levels = len(bank.stages), len(bank.levels)
        self._bank, self._batch, self._rows = StandInBank(bank), batch, SampleRows(batch)
        self._names = bank.stages, tuple(level.name for level in bank.levels)
        self._serving = Serving(deadline_s=1e6, max_batch=n, drop=Drop.NEVER)
        count = self.n_levels**self.n_stages
        accuracy, latency_s = np.ones(count), np.full((count, 1), math.ulp(0.0))
        self._tables = BankTables(self.n_stages, self.n_levels, (n,), accuracy, latency_s)
        ones = (1.0,) * len(PROPERTY_NAMES)
        self._scale = PrecisionScale(
            n_stages=self.n_stages,
            n_levels=self.n_levels,
            properties=PROPERTY_NAMES,
            property_low=(0.0,) * len(ones),
            property_high=ones,
            deadline_s=self._serving.deadline_s,
            rate_per_s=1.0,
            max_batch=n,
        )

    def plan(self, level: int) -> PrecisionPlan:
        """Return the plan of one level everywhere."""
        return PrecisionPlan((level,) * self.n_stages)

    def policy(self, plan: PrecisionPlan) -> PrecisionAgent:
        """Return a policy network whose every decision is another plan with the same levels."""
        actions = TableActions({str(k): plan for k in range(_TABLES)})
        bundle = PrecisionBundle(
            name="policy",
            policy=untrained(PrecisionCodec(self._scale).size, _TABLES),
            stages=self._names[0],
            levels=self._names[1],
            scale=self._scale,
            actions=actions,
            guards=PrecisionLimits(),
            tables=self._tables,
            safe=plan,
            serving=self._serving,
        )
        return _Restless(PrecisionBundlePolicy(bundle), plan)

    def served_s(self, agent: PrecisionAgent, safe: PrecisionPlan) -> np.ndarray:
        """Return what the batches but the first took, float64 [2, _BATCHES - 1].

        Returns:
            From the start of each batch to that of the next one, and from its start to its pass.
        """
        n, layout = len(self._batch), self._scale.signals
        places = torch.arange(n).repeat(_BATCHES)
        stream = RequestStream(
            np.zeros(n * _BATCHES),
            lambda first, last: self._rows.take(places[first:last]),
        )
        guards = PrecisionGuards(PrecisionLimits(), self._tables, safe, layout)
        with ShadowCheck(self._bank, self.n_stages, 0.0) as shadow:
            server = PrecisionServer(self._bank, agent, guards, self._serving, shadow)
            served = server.serve(stream, layout)
        whole_s = np.diff(served.reports[:, REPORT_INDEX["start_s"]])
        return np.stack([whole_s, served.decision_s[1:]])

    def bare_s(self, plan: PrecisionPlan) -> np.ndarray:
        """Return the time of passes one after the other, the first left out."""
        at = []
        for _ in range(_BATCHES):
            self._bank.run(self._batch, plan.levels)
            at.append(time.perf_counter())
        return np.diff(at)


def serving_overhead(trained: TrainedBank, batch: Tensor, rounds: int) -> Overhead:
    """Return how much longer a served batch takes than a pass through the bank.

    From one batch formed to the next one. Bare passes, batches under a constant plan and batches
    under a policy that always comes to those levels take turns, at every level; medians count.

    Args:
        trained: The bank.
        batch: float32 [n, ...], n a prepared batch size.
        rounds: How often a row of batches is served at each level, at least 1.

    Returns:
        Serving by level, of emulated ones as of int8; the decision's time as the median over
        levels; the residual over all.
    """
    server = ServedBatches(trained, batch)
    measured = costed(trained.bank.levels)
    plans = [server.plan(level) for level in measured.real.tolist()]
    deciders = [server.policy(plan) for plan in plans]
    bare = np.zeros((len(plans), rounds, _BATCHES - 1))
    constant, decided = np.zeros((2, len(plans), rounds, 2, _BATCHES - 1))
    with torch.inference_mode():
        for r in range(rounds):
            for level, plan in enumerate(plans):
                bare[level, r] = server.bare_s(plan)
                constant[level, r] = server.served_s(Constant("", plan), plan)
                decided[level, r] = server.served_s(deciders[level], plan)
    bare_s = np.median(bare, axis=(1, 2))
    constant_s, decided_s = (np.median(each, axis=(1, 3)) for each in (constant, decided))
    serving_s = np.maximum(constant_s[:, 0] - bare_s, 0.0)[measured.like]
    decision_s = float(np.median(decided_s[:, 1] - constant_s[:, 1]))
    whole = np.stack([constant[:, :, 0], decided[:, :, 0]])
    relative = whole / np.median(whole, axis=(2, 3), keepdims=True)
    return Overhead(serving_s, max(decision_s, 0.0), np.quantile(relative, residual_cells()))
