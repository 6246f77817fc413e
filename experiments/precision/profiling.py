"""From a bank to the profile that its simulation is made with: real answers, measured costs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from experiments.precision.answers import HELD_OUT, Answers, exact_answers, modelled_answers
from experiments.precision.banks import TrainedBank, inputs
from experiments.precision.calibration import CalibrationNode
from experiments.precision.data import Part
from experiments.precision.latencies import BucketLatencies, served_stage_s, switch_beyond_s
from experiments.training import Report
from runtime.precision.bank import Bank
from runtime.precision.corruptions import corrupt
from runtime.precision.machine import sqnr_db
from runtime.precision.properties import PROPERTY_NAMES, input_properties
from runtime.precision.shadow import MOST_DB
from simulators.precision.profile import PrecisionProfile

POWER_ACTIVE_W, POWER_IDLE_W = 20.0, 40.0
"""Declared power of one busy core over rest, and of a small server at rest: a model, no meter."""
_PROBED = 64
"""Samples that clip rates and SQNRs are measured on."""


def build_profile(
    trained: TrainedBank,
    measured: Sequence[BucketLatencies],
    part: Part,
    node: CalibrationNode,
    origin: str,
    report: Report,
) -> PrecisionProfile:
    """Find the answers of every assignment on every sample under every condition.

    A stage that lacks a level counts with the next higher one (`TrainedBank.runnable`).

    Args:
        trained: The bank.
        measured: Latencies at every batch size.
        part: Samples: of the calibration part to train agents, held-out ones to report.
        node: Conditions, and up to how many assignments every one is run; where there are more,
            most are modelled, see `experiments.precision.answers`.
        origin: How it came about.
        report: Told about progress.
    """
    bank, conditions = trained.bank, tuple(node.names(part.x))
    exact = node.is_exact(trained)
    inputs_of = [shown(part, condition, seed=k) for k, condition in enumerate(conditions)]
    answers = _answers(trained, inputs_of, part.y, exact, report)
    observed = [_observed(trained, x[:_PROBED]) for x in inputs_of]
    return PrecisionProfile(
        network=trained.name,
        stages=bank.stages,
        levels=tuple(level.name for level in bank.levels),
        emulated=tuple(level.emulated for level in bank.levels),
        buckets=tuple(at.bucket for at in measured),
        conditions=conditions,
        property_names=PROPERTY_NAMES,
        fixed_s=np.array([at.overhead.serving_s.min() for at in measured]),
        decision_s=np.array([at.overhead.decision_s for at in measured]),
        switch_s=np.array([max(switch_beyond_s(at), 0.0) for at in measured]),
        latency_s=np.stack([served_stage_s(at) for at in measured]),
        transition_s=np.stack([at.fit.transition_s for at in measured]),
        residual=np.stack([at.overhead.residual for at in measured]),
        bytes=_bytes(trained),
        truth=part.y.astype(np.uint8),
        label=np.stack([answer.label for answer in answers]),
        margin=np.stack([answer.margin for answer in answers]),
        properties=np.stack([input_properties(x.numpy()) for x in inputs_of]),
        clip_rate=np.stack([clip for clip, _ in observed]),
        sqnr_db=np.stack([noise for _, noise in observed]),
        power_active_w=POWER_ACTIVE_W,
        power_idle_w=POWER_IDLE_W,
        origin=f"{origin}; answers {_said(answers)}{_declared(bank)}",
    )


def shown(part: Part, condition: str, seed: int) -> Tensor:
    """Return samples under a condition, float32 [n, ...].

    Args:
        part: The samples.
        condition: As profiles name it: "clean", or a corruption and its severity, as "noise-3".
        seed: Of the corruption: the place of the condition in the profile.
    """
    name, _, severity = condition.rpartition("-")
    if not name:
        return inputs(part.x)
    return inputs(corrupt(part.x, name, int(severity), np.random.default_rng(seed)))


def _answers(
    trained: TrainedBank,
    inputs_of: Sequence[Tensor],
    truth: NDArray[np.int64],
    exact: bool,
    report: Report,
) -> list[Answers]:
    """Return the answers under each condition; exact ones use all cores."""
    if exact:
        told = partial(report, f"answers of all assignments, {len(inputs_of)} conditions")
        return exact_answers(trained, inputs_of, told)
    return [
        modelled_answers(
            trained, x, truth, np.random.default_rng(0), partial(report, f"answers, condition {k}")
        )
        for k, x in enumerate(inputs_of, 1)
    ]


def _said(answers: Sequence[Answers]) -> str:
    """Say how the answers came about, and how far modelled ones are off."""
    errors = [answer.error for answer in answers if answer.error is not None]
    if not errors:
        return "exact"
    mean, worst = np.mean([e.mean for e in errors]), max(e.worst for e in errors)
    return (
        f"modelled from single stages, accuracy off by {100 * mean:.2f} points in the mean and "
        f"{100 * worst:.2f} at most over {HELD_OUT} held-out assignments a condition"
    )


def _declared(bank: Bank) -> str:
    """Say of which levels the costs are declared."""
    names = [level.name for level in bank.levels if level.emulated]
    return f"; costs of {', '.join(names)} declared from int8's" if names else ""


def _observed(trained: TrainedBank, x: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return clip rates and local SQNRs, each float32 [S, P]."""
    bank = trained.bank
    shape = (len(bank.stages), len(bank.levels))
    clip, noise = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    reference = bank.probe(x, (0,) * shape[0]).stages
    borders = [x, *reference[:-1]]
    for level in range(shape[1]):
        own = trained.runnable((level,) * shape[0])
        clip[:, level] = bank.clip_rates(x, own)
        for stage in range(shape[0]):
            result = bank.run_stage(stage, own[stage], borders[stage])
            noise[stage, level] = np.clip(sqnr_db(reference[stage], result), -MOST_DB, MOST_DB)
    return clip, noise


def _bytes(trained: TrainedBank) -> NDArray[np.int64]:
    bank = trained.bank
    shape = (len(bank.stages), len(bank.levels))
    rows = [trained.runnable((level,) * shape[0]) for level in range(shape[1])]
    sizes = [[bank.bytes(k, rows[level][k]) for level in range(shape[1])] for k in range(shape[0])]
    return np.array(sizes, dtype=np.int64)
