"""What serving a batch costs beyond the pass itself: forming, properties, deciding, reporting."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor

from agents.deciders import Constant
from experiments.precision.banks import StandInBank, TrainedBank
from runtime.precision.guard_tables import BankTables, PrecisionLimits
from runtime.precision.guards import PrecisionGuards
from runtime.precision.plan import PrecisionPlan
from runtime.precision.properties import PROPERTY_NAMES
from runtime.precision.server import PrecisionServer
from runtime.precision.serving import Serving
from runtime.precision.shadow import ShadowCheck
from runtime.precision.snapshot import REPORT_INDEX, SignalLayout
from runtime.precision.streams import RequestStream

_BATCHES = 12


def serving_overhead_s(trained: TrainedBank, batch: Tensor, rounds: int) -> float:
    """Return how much longer a served batch takes than a pass through the bank, seconds.

    From one batch formed to the next one, under a constant plan: what an agent needs to decide is
    not in it. Served and bare batches take turns, at every level; medians count.

    Args:
        trained: The bank.
        batch: float32 [n, ...], n a prepared batch size.
        rounds: How often a row of batches is served at each level, at least 1.

    Returns:
        The median over levels, at least 0.
    """
    bank = StandInBank(trained.bank)
    n_stages, n_levels = len(trained.bank.stages), len(trained.bank.levels)
    plans = [PrecisionPlan((level,) * n_stages) for level in range(n_levels)]
    served, bare = np.zeros((2, n_levels, rounds, _BATCHES - 1))
    with torch.inference_mode():
        for r in range(rounds):
            for level, plan in enumerate(plans):
                served[level, r] = _served_s(bank, plan, n_levels, batch)
                bare[level, r] = _bare_s(bank, plan, batch)
    beyond = np.median(served, axis=(1, 2)) - np.median(bare, axis=(1, 2))
    return max(float(np.median(beyond)), 0.0)


def _served_s(bank: StandInBank, plan: PrecisionPlan, n_levels: int, batch: Tensor) -> np.ndarray:
    """Return the time from each served batch to the next one, float64 [_BATCHES - 1]."""
    n, layout = len(batch), SignalLayout(len(plan.levels), PROPERTY_NAMES)
    places = torch.arange(n).repeat(_BATCHES)
    stream = RequestStream(
        np.zeros(n * _BATCHES), lambda first, last: batch.index_select(0, places[first:last])
    )
    count = n_levels**layout.n_stages
    tables = BankTables(
        layout.n_stages, n_levels, (n,), np.ones(count), np.full((count, 1), math.ulp(0.0))
    )
    guards = PrecisionGuards(PrecisionLimits(), tables, plan, layout)
    serving = Serving(deadline_s=1e6, max_batch=n, drop_expired=False)
    with ShadowCheck(bank, layout.n_stages, 0.0) as shadow:
        server = PrecisionServer(bank, Constant("", plan), guards, serving, shadow)
        reports = server.serve(stream, layout).reports
    return np.diff(reports[:, REPORT_INDEX["start_s"]])


def _bare_s(bank: StandInBank, plan: PrecisionPlan, batch: Tensor) -> np.ndarray:
    """Return the time of passes one after the other, the first left out."""
    at = []
    for _ in range(_BATCHES):
        bank.run(batch, plan.levels)
        at.append(time.perf_counter())
    return np.diff(at)
