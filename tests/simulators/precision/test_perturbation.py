from __future__ import annotations

import numpy as np
import pytest

from simulators.precision.perturbation import (
    PerturbationModel,
    fit_perturbations,
    perturbation_error,
)

S, P, N, K = 3, 3, 40, 5


def additive(
    seed: int, noise: float = 0.0
) -> tuple[PerturbationModel, np.ndarray, np.ndarray, np.ndarray]:
    """A chain whose outputs are additive by construction, and outputs of 20 assignments."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(N, K)).astype(np.float32)
    shift = rng.normal(size=(S, P, N, K)).astype(np.float32)
    shift[:, 0] = 0.0
    weight = rng.uniform(0.5, 1.0, size=(S, P))
    model = PerturbationModel(first, shift, weight)
    assignments = rng.integers(0, P, size=(20, S))
    outputs = np.stack([model.outputs(tuple(a)) for a in assignments.tolist()])
    outputs += noise * rng.normal(size=outputs.shape).astype(np.float32)
    return model, first + shift, assignments, outputs


def test_an_additive_chain_is_found_exactly() -> None:
    model, alone, assignments, outputs = additive(0)
    fitted = fit_perturbations(model.first, alone, assignments[:14], outputs[:14])
    np.testing.assert_allclose(fitted.weight[:, 1:], model.weight[:, 1:], rtol=2e-2)
    truth = outputs[0].argmax(axis=1)
    error = perturbation_error(fitted, assignments[14:], outputs[14:], truth)
    assert error.agreement > 0.98
    assert error.worst <= 0.05


def test_the_first_assignment_is_never_changed() -> None:
    model, alone, assignments, outputs = additive(1, noise=0.5)
    fitted = fit_perturbations(model.first, alone, assignments, outputs)
    np.testing.assert_array_equal(fitted.outputs((0,) * S), model.first)


def test_levels_that_were_not_run_count_as_they_do_alone() -> None:
    model, alone, _, _ = additive(2)
    only = np.zeros((1, S), dtype=np.int64)
    fitted = fit_perturbations(model.first, alone, only, model.first[None])
    np.testing.assert_allclose(fitted.weight, 1.0)
    np.testing.assert_allclose(fitted.outputs((0, 2, 0)), alone[1, 2], rtol=1e-5, atol=1e-6)


def test_the_error_counts_labels_and_accuracy() -> None:
    first = np.array([[1.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    model = PerturbationModel(first, np.zeros((1, 1, 2, 2), np.float32), np.ones((1, 1)))
    real = np.array([[[1.0, 0.0], [0.0, 1.0]]], dtype=np.float32)
    error = perturbation_error(model, np.zeros((1, 1), dtype=np.int64), real, np.array([0, 1]))
    assert error == (0.5, 0.5, 0.5)


def test_shapes_that_do_not_fit_are_refused() -> None:
    model, alone, assignments, outputs = additive(3)
    with pytest.raises(ValueError, match="expected"):
        fit_perturbations(model.first, alone, assignments[:3], outputs)
