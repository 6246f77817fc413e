"""Answers of every assignment of a bank: exact where all can be run, modelled where not."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.precision.banks import TrainedBank, inputs
from experiments.precision.recipes import multiplications
from runtime.precision.answers import answers_of
from simulators.precision.perturbation import (
    PerturbationError,
    PerturbationModel,
    fit_perturbations,
    perturbation_error,
)
from simulators.precision.profile import MARGIN_STEPS

Told = Callable[[int, int], None]
"""Told how much is done, and how much there is."""

FITTED, HELD_OUT = 64, 64
"""Assignments that a model is fitted to, and that its error is stated on."""
MODELLED_SAMPLES = 400
"""Samples of modelled answers, at most: a model needs some 150 runs on all of them."""


class Answers(NamedTuple):
    """What a bank answers. A assignments (all P**S), n samples.

    Attributes:
        label: uint8 [A, n].
        margin: uint8 [A, n], in steps of 1 / `MARGIN_STEPS`.
        error: Of a model; None where every assignment was run.
    """

    label: NDArray[np.uint8]
    margin: NDArray[np.uint8]
    error: PerturbationError | None


def shared_multiplications(trained: TrainedBank) -> int:
    """Return multiplications of one sample under all assignments, run as `exact_answers` runs them.

    Stage s runs P**s times at each of its levels; narrower levels count as the whole.
    """
    x = inputs(trained.data.calibration.x[:1])
    total, passes = 0, 1
    with torch.inference_mode():
        for stage in trained.plain.children():
            passes *= len(trained.bank.levels)
            total += passes * multiplications(stage, x)
            x = stage(x)
    return total


def runnable_numbers(trained: TrainedBank) -> NDArray[np.int64]:
    """Return for every assignment the number of the one that runs in its place, int64 [A].

    See `TrainedBank.runnable`: a level that a stage lacks counts as the next higher one.
    """
    bank = trained.bank
    n_stages, n_levels = len(bank.stages), len(bank.levels)
    uniform = [trained.runnable((level,) * n_stages) for level in range(n_levels)]
    number = np.zeros(1, dtype=np.int64)
    for stage in range(n_stages):
        own = np.array([levels[stage] for levels in uniform])
        number = (number[:, None] * n_levels + own).reshape(-1)
    return number


def exact_answers(trained: TrainedBank, inputs_of: Sequence[Tensor], told: Told) -> list[Answers]:
    """Run every assignment on every sample, batches side by side on all cores.

    Args:
        trained: The bank; its passes use one thread each.
        inputs_of: Samples under each condition, each float32 [n, ...].
        told: Told about progress, in batches.
    """
    bank, numbers = trained.bank, runnable_numbers(trained)
    shape = len(bank.levels) ** len(bank.stages), len(inputs_of[0])
    label, margin = np.zeros((2, len(inputs_of), *shape), dtype=np.uint8)
    places = list(product(range(len(inputs_of)), range(0, shape[1], bank.buckets[-1])))

    def answer(place: tuple[int, int]) -> None:
        condition, first = place
        own = slice(first, first + bank.buckets[-1])
        with torch.inference_mode():
            for assignment, output in bank.every_output(inputs_of[condition][own]):
                at = condition, bank.encode(assignment), own
                label[at], margin[at] = stored(output)

    # Threads of PyTorch are a setting of each thread that calls it.
    with ThreadPoolExecutor(os.cpu_count(), "answers", torch.set_num_threads, (1,)) as pool:
        for done, _ in enumerate(pool.map(answer, places)):
            told(done, len(places))
    told(len(places), len(places))
    return [Answers(label[k, numbers], margin[k, numbers], None) for k in range(len(inputs_of))]


def modelled_answers(
    trained: TrainedBank,
    x: Tensor,
    truth: NDArray[np.int64],
    rng: np.random.Generator,
    told: Told,
) -> Answers:
    """Run each level of each stage alone and some mixes, and model the rest.

    Args:
        trained: The bank.
        x: float32 [n, ...].
        truth: int64 [n], right answers, for the error of the model.
        rng: Draws the mixes.
        told: Told about progress, in assignments run.
    """
    bank = trained.bank
    n_stages, n_levels = len(bank.stages), len(bank.levels)
    runs = n_stages * n_levels + FITTED + HELD_OUT
    done = 0

    def outputs(assignment: tuple[int, ...]) -> NDArray[np.float32]:
        nonlocal done
        told(done, runs)
        done += 1
        batches = torch.split(x, bank.buckets[-1])
        return torch.cat([trained.run(batch, assignment) for batch in batches]).numpy()

    reference = (0,) * n_stages
    first = outputs(reference)
    alone = np.stack([_alone(outputs, stage, n_stages, n_levels) for stage in range(n_stages)])
    mixes = rng.integers(0, n_levels, size=(FITTED + HELD_OUT, n_stages))
    real = np.stack([outputs(tuple(levels)) for levels in mixes.tolist()])
    model = fit_perturbations(first, alone, mixes[:FITTED], real[:FITTED])
    error = perturbation_error(model, mixes[FITTED:], real[FITTED:], truth)
    told(runs, runs)
    return _all_of(model, error, n_stages, n_levels)


def _alone(
    outputs: Callable[[tuple[int, ...]], NDArray[np.float32]],
    stage: int,
    n_stages: int,
    n_levels: int,
) -> NDArray[np.float32]:
    """Return the outputs with one stage at each level, float32 [P, n, K]."""
    rows = []
    for level in range(n_levels):
        rows.append(outputs(tuple(level if k == stage else 0 for k in range(n_stages))))
    return np.stack(rows)


def _all_of(
    model: PerturbationModel, error: PerturbationError, n_stages: int, n_levels: int
) -> Answers:
    count, n = n_levels**n_stages, len(model.first)
    label = np.zeros((count, n), dtype=np.uint8)
    margin = np.zeros_like(label)
    for number, levels in enumerate(np.ndindex(*(n_levels,) * n_stages)):
        label[number], margin[number] = stored(torch.from_numpy(model.outputs(levels)))
    return Answers(label, margin, error)


def stored(output: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return labels and margins as profiles store them, each uint8 [n], from logits [n, K]."""
    classes, margin = answers_of(output)
    return classes.astype(np.uint8), np.rint(MARGIN_STEPS * margin).astype(np.uint8)
