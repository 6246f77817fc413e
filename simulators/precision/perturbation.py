"""Answers of assignments that nobody ran: how the errors of single stages add up in the outputs.

Each level of each stage is run alone, the other stages at the first level. What it changes in the
outputs of a sample is its shift; an assignment's outputs are taken to be the first level's plus the
weighted shifts of its stages, sample by sample and class by class. The weights, one for each stage
and level, are fitted to assignments that were run; others state the error. S * (P - 1) + 1 runs,
and those of the fit, stand for P**S.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class PerturbationError(NamedTuple):
    """How far modelled answers are from real ones, over assignments that were not fitted to.

    Attributes:
        agreement: Share of samples with the same label, mean over assignments.
        mean: Mean absolute error of an assignment's accuracy, a share.
        worst: Largest one.
    """

    agreement: float
    mean: float
    worst: float


@dataclass(frozen=True, eq=False)
class PerturbationModel:
    """Modelled outputs of a chain. S stages, P levels, n samples, K classes.

    Attributes:
        first: float32 [n, K], outputs with every stage at the first level.
        shift: float32 [S, P, n, K], change of the outputs by one stage's level; 0 at the first.
        weight: float64 [S, P], what each shift counts beside others.
    """

    first: NDArray[np.float32]
    shift: NDArray[np.float32]
    weight: NDArray[np.float64]

    def outputs(self, levels: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the modelled outputs of an assignment, float32 [n, K]."""
        result = self.first.astype(np.float64)
        for stage, level in enumerate(levels):
            result += self.weight[stage, level] * self.shift[stage, level]
        return result.astype(np.float32)


def fit_perturbations(
    first: NDArray[np.float32],
    alone: NDArray[np.float32],
    assignments: NDArray[np.int64],
    outputs: NDArray[np.float32],
) -> PerturbationModel:
    """Fit the weights of the shifts by least squares over all outputs.

    Args:
        first: float32 [n, K], outputs with every stage at the first level.
        alone: float32 [S, P, n, K], outputs with one stage at a level, the others at the first.
        assignments: int64 [m, S], assignments that were run.
        outputs: float32 [m, n, K], their outputs.

    Returns:
        The model. A level that no assignment uses has the weight 1.

    Raises:
        ValueError: Shapes that do not fit together.
    """
    n_stages, n_levels = alone.shape[:2]
    if alone.shape[2:] != first.shape or outputs.shape != (len(assignments), *first.shape):
        raise ValueError(
            f"outputs have shapes {first.shape}, {alone.shape} and {outputs.shape}; expected "
            f"[n, K], [S, P, n, K] and [{len(assignments)}, n, K]"
        )
    shift = alone - first
    size = n_stages * n_levels
    gram, moment = np.zeros((size, size)), np.zeros(size)
    for levels, own in zip(assignments, outputs, strict=True):
        places = np.arange(n_stages) * n_levels + levels
        features = shift[np.arange(n_stages), levels].reshape(n_stages, -1).astype(np.float64)
        gram[np.ix_(places, places)] += features @ features.T
        moment[places] += features @ (own - first).reshape(-1).astype(np.float64)
    # Drawn towards 1, so that a level that is rarely seen, or changes nothing, stays near it.
    pull = 1e-3 * max(float(np.trace(gram)) / size, 1e-12)
    gram[np.diag_indices(size)] += pull
    weight = np.linalg.solve(gram, moment + pull).reshape(n_stages, n_levels)
    return PerturbationModel(first, shift, weight)


def perturbation_error(
    model: PerturbationModel,
    assignments: NDArray[np.int64],
    outputs: NDArray[np.float32],
    truth: NDArray[np.int64],
) -> PerturbationError:
    """Return how well a model answers for assignments that it was not fitted to.

    Args:
        model: The model.
        assignments: int64 [m, S], m >= 1.
        outputs: float32 [m, n, K], what they really put out.
        truth: int64 [n], right answers.
    """
    agreements, errors = [], []
    for levels, real in zip(assignments, outputs, strict=True):
        modelled = model.outputs(tuple(levels.tolist())).argmax(axis=1)
        actual = real.argmax(axis=1)
        agreements.append(float((modelled == actual).mean()))
        errors.append(abs(float((modelled == truth).mean()) - float((actual == truth).mean())))
    return PerturbationError(float(np.mean(agreements)), float(np.mean(errors)), max(errors))
