"""A bank judged on calibration data: what the training mode searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.precision.training_mode import Assignment, fidelity


class Result(StrEnum):
    """What judges a stage."""

    LOCAL = "local"
    """How much of the energy of the stage's first output it keeps; needs no labels."""

    END_TO_END = "end-to-end"
    """Accuracy of the whole chain with the stages behind it at their first levels."""


class BankLike(Protocol):
    """What is needed of a bank (`runtime.precision.bank.Bank`)."""

    levels: Any
    buckets: tuple[int, ...]

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages."""

    def run(self, x: Tensor, assignment: Assignment) -> Tensor:
        """Return the outputs of a batch."""

    def probe(self, x: Tensor, assignment: Assignment) -> Any:
        """Return a result whose `stages` are the fp32 outputs of all stages."""

    def refusal(self, stage: int, level: int) -> str:
        """Return why a stage cannot run at a level, empty if it can."""

    def bytes(self, stage: int, level: int) -> int:
        """Return the memory of a variant."""


class JudgedBank:
    """Runs a bank on labelled data; the answers of an assignment are computed once.

    Implements `runtime.precision.training_mode.Stages`.
    """

    def __init__(
        self,
        bank: BankLike,
        inputs: Tensor,
        truth: NDArray[np.int64],
        stage_s: NDArray[np.float64],
        result: Result = Result.LOCAL,
    ) -> None:
        """Take data and times.

        Args:
            bank: The bank.
            inputs: float32 [n, ...].
            truth: int64 [n], true labels.
            stage_s: float64 [S, P], time of every stage at every level, measured inside the
                running chain, seconds.
            result: What judges a stage.

        Raises:
            ValueError: Shapes that do not fit.
        """
        expected = (len(bank.stages), len(bank.levels))
        if stage_s.shape != expected:
            raise ValueError(f"stage_s has shape {stage_s.shape}; expected {expected}")
        if truth.shape != (len(inputs),) or len(inputs) == 0:
            raise ValueError(
                f"truth has shape {truth.shape} for {len(inputs)} inputs; expected one label each"
            )
        self._bank, self._inputs, self._truth = bank, inputs, truth
        self._stage_s, self.result = stage_s, Result(result)
        self._answers: dict[Assignment, NDArray[np.int64]] = {}
        self._first: dict[Assignment, list[Tensor]] = {}

    @property
    def stage_names(self) -> Sequence[str]:
        """Names of the stages."""
        return self._bank.stages

    @property
    def level_names(self) -> Sequence[str]:
        """Names of the levels."""
        return tuple(level.name for level in self._bank.levels)

    def refusal(self, stage: int, level: int) -> str | None:
        """Return why a stage cannot run at a level."""
        return self._bank.refusal(stage, level) or None

    def time_s(self, stage: int, level: int) -> float:
        """Return the measured time of a stage, seconds."""
        return float(self._stage_s[stage, level])

    def n_bytes(self, stage: int, level: int) -> int:
        """Return the memory of a variant, bytes."""
        return self._bank.bytes(stage, level)

    def answers(self, assignment: Assignment) -> NDArray[np.int64]:
        """Return the label with the highest output for every input, int64 [n]."""
        if assignment not in self._answers:
            parts = [self._bank.run(x, assignment).argmax(dim=1) for x in self._batches()]
            self._answers[assignment] = torch.cat(parts).numpy()
        return self._answers[assignment]

    def know(self, answers: Mapping[Assignment, NDArray[np.int64]]) -> None:
        """Take answers that were found elsewhere, each int64 [n]: they are not found again."""
        self._answers |= answers

    def accuracy(self, assignment: Assignment) -> float:
        """Return the share of right answers."""
        return float((self.answers(assignment) == self._truth).mean())

    def chain_result(self, assignment: Assignment) -> float:
        """Return the accuracy of the whole chain."""
        return self.accuracy(assignment)

    def stage_result(self, stage: int, level: int, upstream: Assignment) -> float:
        """Run one stage behind stages at the levels `upstream`; see `Result`."""
        rest = (0,) * (len(self._bank.stages) - stage - 1)
        if self.result is Result.END_TO_END:
            return self.accuracy((*upstream, level, *rest))
        if upstream not in self._first:
            self._first = {upstream: self._outputs(stage, (*upstream, 0, *rest))}
        first = self._first[upstream]
        outputs = first if level == 0 else self._outputs(stage, (*upstream, level, *rest))
        return fidelity(torch.cat(outputs), torch.cat(first))

    def _outputs(self, stage: int, assignment: Assignment) -> list[Tensor]:
        return [self._bank.probe(x, assignment).stages[stage] for x in self._batches()]

    def _batches(self) -> Sequence[Tensor]:
        return torch.split(self._inputs, self._bank.buckets[-1])
