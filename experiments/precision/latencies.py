"""What a bank costs: latencies measured inside the running chain, and the additive fit of them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.precision.banks import CALIBRATED_ON, TrainedBank, inputs
from experiments.precision.data import Part
from experiments.precision.declared import costed, with_declared
from experiments.precision.overhead import Overhead, serving_overhead
from experiments.precision.rivals import gpu_rival_calls, rival_calls
from experiments.training import Report
from runtime.precision.bank import Bank
from runtime.precision.measure import (
    CALLS_PER_ROUND,
    Call,
    LatencyRounds,
    covering_assignments,
    interleaved,
)
from simulators.precision.fit import LatencyFit, fit_latency, held_out_error
from simulators.precision.profile import residual_cells

OVERHEAD, DECISION = "serving overhead, {}", "decision of a policy"
"""Of a level, and of any plan."""
_TIMED_PASSES = 15
_RIVAL_SAMPLES = 1024
LEAST_ROUNDS = 3
"""Of which the medians are still of nine calls each."""
HELD_OUT_SHARE = 0.35
"""Share of the measured assignments that the fit's error is stated on."""


@dataclass(frozen=True)
class LatencySettings:
    """The node `size.latencies` of a configuration.

    Attributes:
        assignments: How many assignments are measured at each batch size.
        rounds: Counted rounds, at most.
        most_s: Seconds that a batch size may take: single calls scatter by some per cent and small
            batches get many rounds; large ones of large networks few, down to `LEAST_ROUNDS`.
    """

    assignments: int
    rounds: int
    most_s: float = math.inf

    def rounds_of(self, round_s: float) -> int:
        """Return how many rounds are counted where one takes so long, seconds."""
        affordable = self.most_s / max(round_s, 1e-9)
        return int(min(self.rounds, max(LEAST_ROUNDS, affordable)))


@dataclass(frozen=True, eq=False)
class BucketLatencies:
    """Latencies at one batch size.

    Attributes:
        bucket: Batch size.
        assignments: int64 [n, S], of real levels.
        steady_s: float64 [n].
        switch_s: float64 [n], first calls after another assignment.
        sigma: Standard deviation of the logarithm of single calls, median over assignments.
        rivals_s: Latency of the whole network by other means, seconds, by name; see
            `experiments.precision.rivals`.
        rivals_accuracy: Their share of right answers on held-out samples.
        fit: The additive model, of emulated levels declared.
        held_out: float64 [m], its relative errors on assignments that it was not fitted to.
        overhead: What serving a batch costs beyond the pass.
    """

    bucket: int
    assignments: NDArray[np.int64]
    steady_s: NDArray[np.float64]
    switch_s: NDArray[np.float64]
    sigma: float
    rivals_s: dict[str, float]
    rivals_accuracy: dict[str, float]
    fit: LatencyFit
    held_out: NDArray[np.float64]
    overhead: Overhead


def measure_bank(
    trained: TrainedBank, x: Tensor, settings: LatencySettings, report: Report
) -> list[BucketLatencies]:
    """Measure mixed assignments at every batch size, beside the rivals that can run here.

    Batch sizes take turns: all of them meet the machine as it is in the course of the measurement.
    Of emulated levels nothing is measured: see `experiments.precision.declared`.

    Args:
        trained: What is measured.
        x: float32 [n, ...], at least the largest batch size.
        settings: How much to measure.
        report: Told about progress.
    """
    with torch.no_grad():
        begun = [_begin(trained, x, bucket, settings) for bucket in trained.bank.buckets]
        turns = interleaved([at.rounds for at in begun])
        for done, k in enumerate(turns):
            begun[k].measured.run()
            report("latencies of passes", done + 1, len(turns))
        return [_finish(trained, at) for at in begun]


@dataclass(frozen=True, eq=False)
class _Begun:
    """What is measured at one batch size, in how many rounds."""

    batch: Tensor
    assignments: NDArray[np.int64]
    rivals: dict[str, Call]
    measured: LatencyRounds
    rounds: int
    rng: np.random.Generator


def _begin(trained: TrainedBank, x: Tensor, bucket: int, settings: LatencySettings) -> _Begun:
    bank = trained.bank
    rng = np.random.default_rng(bucket)
    real = costed(bank.levels).real
    chosen = [
        tuple(real[list(levels)].tolist())
        for levels in covering_assignments(len(bank.stages), len(real), settings.assignments, rng)
    ]
    batch = x[:bucket].pin_memory() if trained.on_gpu else x[:bucket]
    rivals = _rivals(trained, batch)
    # Looked up before: nothing but the bank's own call is timed.
    calls: list[Call] = [partial(bank.run, assignment=trained.runnable(a)) for a in chosen]
    calls += list(rivals.values())
    measured = LatencyRounds(calls, batch, rng)
    rounds = settings.rounds_of(round_s(calls, batch))
    return _Begun(batch, np.array(chosen, dtype=np.int64), rivals, measured, rounds, rng)


def _finish(trained: TrainedBank, at: _Begun) -> BucketLatencies:
    bank, bucket, assignments = trained.bank, len(at.batch), at.assignments
    found, n, real = at.measured.latencies(), len(assignments), costed(bank.levels).real
    seconds, places = found.steady_s[:n], np.searchsorted(real, assignments)
    fitted = round(n * (1.0 - HELD_OUT_SHARE))
    fit = fit_latency(places, seconds, len(real), _first_share(bank, at.batch))
    return BucketLatencies(
        bucket=bucket,
        assignments=assignments,
        steady_s=seconds,
        switch_s=found.switch_s[:n],
        sigma=float(np.median(found.sigma[:n])),
        rivals_s=dict(zip(at.rivals, found.steady_s[n:].tolist(), strict=True)),
        rivals_accuracy={
            name: _accuracy(call, trained.data.validation, bucket)
            for name, call in at.rivals.items()
        },
        fit=with_declared(fit, bank),
        held_out=held_out_error(places, seconds, len(real), fitted, at.rng),
        overhead=serving_overhead(trained, at.batch, at.rounds),
    )


def _rivals(trained: TrainedBank, batch: Tensor) -> dict[str, Call]:
    if trained.on_gpu:
        return gpu_rival_calls(trained.plain, batch)
    data = inputs(trained.data.calibration.x[:CALIBRATED_ON])
    return rival_calls(trained.plain, batch, data)


def round_s(calls: Sequence[Call], batch: Tensor) -> float:
    """Return about how long a round of a measurement takes, seconds."""
    start = time.perf_counter()
    for call in calls:
        call(batch)
    return CALLS_PER_ROUND * (time.perf_counter() - start)


def _accuracy(call: Call, part: Part, bucket: int) -> float:
    """Return the share of right answers on the whole batches of the first samples."""
    n = min(len(part), _RIVAL_SAMPLES) // bucket * bucket
    batches = torch.split(inputs(part.x[:n]), bucket)
    answers = torch.cat([call(batch).argmax(dim=1) for batch in batches]).numpy()
    return float((answers == part.y[:n]).mean())


def _first_share(bank: Bank, batch: Tensor) -> NDArray[np.float64]:
    """Return the share of each stage in a pass at the first level, from timers inside it."""
    first = (0,) * len(bank.stages)
    times = np.median([bank.stage_times(batch, first) for _ in range(_TIMED_PASSES)], axis=0)
    share: NDArray[np.float64] = times / times.sum()
    return share


def latency_table(measured: list[BucketLatencies], bank: Bank) -> pd.DataFrame:
    """Return a row per batch size and measured assignment, rival, and overhead of serving."""
    names = [level.name for level in bank.levels]
    rows = []
    for at in measured:
        predicted = at.fit.predict_s(at.assignments)
        for k, levels in enumerate(at.assignments):
            rows.append(
                {
                    "batch": at.bucket,
                    "assignment": "/".join(names[level] for level in levels),
                    "steady_s": at.steady_s[k],
                    "switch_s": at.switch_s[k],
                    "predicted_s": predicted[k],
                }
            )
        served = zip(bank.levels, at.overhead.serving_s, strict=True)
        beyond = {OVERHEAD.format(lv.name): s for lv, s in served if not lv.emulated}
        beyond[DECISION] = at.overhead.decision_s
        for name, seconds in (at.rivals_s | beyond).items():
            rows.append({"batch": at.bucket, "assignment": name, "steady_s": seconds})
    return pd.DataFrame(rows)


def served_stage_s(at: BucketLatencies) -> NDArray[np.float64]:
    """Return what each stage costs at each level in service, float64 [S, P], seconds.

    Serving costs some levels more than others (`Overhead`): what it costs a level beyond the level
    that it costs least is divided among the stages as they divide a pass at that level.
    """
    stage_s, serving_s = at.fit.stage_s, at.overhead.serving_s
    pass_s = np.maximum(stage_s.sum(axis=0), np.finfo(np.float64).tiny)
    result: NDArray[np.float64] = stage_s * (1.0 + (serving_s - serving_s.min()) / pass_s)
    return result


def switch_beyond_s(at: BucketLatencies) -> float:
    """Return how much longer first calls after another assignment take, median, seconds."""
    return float(np.median(at.switch_s - at.steady_s))


def rival_table(measured: list[BucketLatencies]) -> pd.DataFrame:
    """Return a row per rival and batch size: latency and accuracy on held-out samples."""
    rows = [
        {"rival": name, "batch": at.bucket, "ms": 1e3 * at.rivals_s[name], "held_out": accuracy}
        for at in measured
        for name, accuracy in at.rivals_accuracy.items()
    ]
    return pd.DataFrame(rows)


def fit_table(measured: list[BucketLatencies]) -> pd.DataFrame:
    """Return a row per batch size: how far the additive model is off where it was not fitted."""
    rows = [
        {
            "batch": at.bucket,
            "assignments": len(at.held_out),
            "mean": float(np.abs(at.held_out).mean()),
            "worst": float(np.abs(at.held_out).max()),
            "sigma": at.sigma,
            "served_p99_over_median": float(
                np.interp(0.99, residual_cells(), at.overhead.residual)
            ),
            "switch_over_steady_us": 1e6 * switch_beyond_s(at),
        }
        for at in measured
    ]
    return pd.DataFrame(rows)
