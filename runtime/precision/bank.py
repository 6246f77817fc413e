"""The bank: every stage prepared for every level, and passes through any mix of them.

Levels change between two calls by looking at another place of a table: nothing is built, compiled
or loaded. Each variant takes one format and hands over the format that the next stage's variant
takes, so between stages nothing happens at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.precision.assignments import Assignment, Assignments
from runtime.precision.bank_builder import BankOptions, build_variants
from runtime.precision.calibration import Calibration
from runtime.precision.formats import convert, describe
from runtime.precision.gpu_calls import GpuCall
from runtime.precision.kernel_log import Kernel, executed_kernels, executed_on_gpu
from runtime.precision.levels import Level
from runtime.precision.lowering import LoweredStage
from runtime.precision.passes import Counts, make_passes, ordered
from runtime.precision.staging import StagedNetwork


class Probe(NamedTuple):
    """What a pass looked like inside.

    Attributes:
        output: fp32 [n, ...], the network's result.
        stages: fp32 result of each stage as it was handed over, the last one the output.
    """

    output: Tensor
    stages: tuple[Tensor, ...]


class Observed(NamedTuple):
    """A pass with the share of values at the ends of the calibrated ranges.

    Attributes:
        output: fp32 [n, ...], the network's result.
        clip_rates: float32 [stages], see `Bank.clip_rates`.
    """

    output: Tensor
    clip_rates: NDArray[np.float32]


class Bank:
    """All variants of a network, and passes through them.

    `run`, `probe`, `observe` and `clip_rates` may be called from several threads at once.

    Attributes:
        network: The stages.
        levels: On offer, in the order in which assignments count them.
        calibration: Ranges of all tensors.
        buckets: Batch sizes that are run as they are; others are padded to the next one.
    """

    def __init__(
        self, network: StagedNetwork, data: Tensor, options: BankOptions | None = None
    ) -> None:
        """Calibrate and prepare all variants.

        Args:
            network: In fp32.
            data: Calibration inputs, float32 [n, *network.input_shape].
            options: Levels and so on; by default fp32, bf16 and int8.

        Raises:
            ValueError: A level that is unknown, or that this machine or every stage cannot run;
                calibration data of the wrong shape or type, or that leads to values that are not
                finite.
        """
        options = options or BankOptions()
        self.network = network
        self.buckets = options.sorted_buckets()
        self.levels, self.calibration, self._variants, self._refusals = build_variants(
            network, data, options
        )
        self._assignments = Assignments(self.stages, self.levels, self._refusals)
        self._passes = make_passes(network, self._variants, len(self.levels), self.calibration)
        self._bucket_set = frozenset(self.buckets)
        self._shape = torch.Size(network.input_shape)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages."""
        return self.network.names

    @property
    def builds(self) -> int:
        """How many graphs have been lowered so far; passes never change it."""
        return self._passes.builds

    # Passing

    def run(self, x: Tensor, assignment: Sequence[int] | int) -> Tensor:
        """Return the network's result.

        Args:
            x: float32 [n, *input_shape], any n >= 1. Sizes that are no bucket are padded with
                zeros to the next one, larger ones cut into parts.
            assignment: Level of each stage as places in `levels`, or the number of `encode`.

        Returns:
            float32 [n, ...].

        Raises:
            ValueError: Wrong shape or type, or an assignment that does not exist.
        """
        if type(assignment) is tuple:
            levels = assignment
            self._assignments.check(levels)
        else:
            levels = self._assignments.read(assignment)
        is_plain = x.dtype is torch.float32 and x.shape[1:] == self._shape and not x.requires_grad
        if is_plain and x.shape[0] in self._bucket_set:
            return self._passes.run(x, levels)
        return self._run_any(x, levels)

    def _run_any(self, x: Tensor, levels: Assignment) -> Tensor:
        self._check_input(x)
        parts = [self._passes.run(part, levels)[:rows] for part, rows in self._padded(x.detach())]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _padded(self, x: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Yield parts of a batch padded to a bucket, with the rows that count."""
        for part in torch.split(x, self.buckets[-1]):
            rows = len(part)
            size = next(bucket for bucket in self.buckets if bucket >= rows)
            if size > rows:
                padding = part.new_zeros(size - rows, *part.shape[1:])
                part = torch.cat([part, padding])  # noqa: PLW2901 (the padded part)
            yield part, rows

    def every_output(self, x: Tensor) -> Iterator[tuple[Assignment, Tensor]]:
        """Yield the output of a batch under every assignment that can run.

        Assignments with the same first levels share the work of those stages: a chain of S stages
        with P levels costs little more than P**S runs of its last stages. Results are those of
        `run`.

        Args:
            x: float32 [n, *input_shape], n at most the largest bucket.

        Yields:
            Assignments in ascending order of their numbers, each with its float32 [n, ...].

        Raises:
            ValueError: Wrong shape or type, or more samples than the largest bucket.
        """
        self._check_input(x)
        if len(x) > self.buckets[-1]:
            raise ValueError(f"{len(x)} samples; expected at most {self.buckets[-1]}")
        part, rows = next(self._padded(x.detach()))
        for assignment, output in self._passes.every(part):
            yield assignment, output[:rows]

    def stage_times(self, x: Tensor, assignment: Sequence[int] | int) -> NDArray[np.float64]:
        """Return how long each stage took in one pass, float64 [stages], seconds.

        Args:
            x: float32 [n, *input_shape]; run as one batch, not padded.
            assignment: As for `run`.
        """
        levels = self._assignments.read(assignment)
        self._check_input(x)
        at = []
        for _ in self._passes.walk(x.detach(), levels):
            self._passes.settle()
            at.append(time.perf_counter())
        return np.diff(at)

    def probe(self, x: Tensor, assignment: Sequence[int] | int) -> Probe:
        """Return the result of every stage in fp32, as it was handed over.

        Args:
            x: float32 [n, *input_shape]; run as one batch, not padded.
            assignment: As for `run`.
        """
        levels = self._assignments.read(assignment)
        self._check_input(x)
        borders = [
            convert(value, form, torch.float32).clone()
            for form, value in self._passes.walk(x.detach(), levels)
        ]
        return Probe(borders[-1], tuple(borders[1:]))

    def run_stage(self, stage: int, level: int, border: Tensor) -> Tensor:
        """Run one stage by itself on what another pass handed over to it.

        Args:
            stage: Place of the stage.
            level: Place of the level.
            border: fp32 [n, ...], input of the stage; run as one batch, not padded.

        Returns:
            fp32 [n, ...], the stage's result as the first level of the next stage takes it.

        Raises:
            ValueError: The stage has no such variant.
        """
        native = self.variant(stage, level).native
        value = convert(ordered(border), torch.float32, native)
        handed, form = self._passes.hand_over(value.clone(), stage, level)
        return convert(handed, form, torch.float32)

    def observe(self, x: Tensor, assignment: Sequence[int] | int) -> Observed:
        """Run a batch and count clipped values on the way; see `run` and `clip_rates`."""
        levels = self._assignments.read(assignment)
        self._check_input(x)
        # Plain numbers: so few, array operations would cost more than counting does.
        counts = Counts([0] * len(levels), [0] * len(levels))
        if x.shape[0] in self._bucket_set:
            output = self._passes.counted(x.detach(), x.shape[0], levels, counts)
        else:
            parts = self._padded(x.detach())
            output = torch.cat([self._passes.counted(p, n, levels, counts) for p, n in parts])
        rates = [float(some) / every for some, every in zip(*counts, strict=True)]
        return Observed(output, np.array(rates, dtype=np.float32))

    def clip_rates(self, x: Tensor, assignment: Sequence[int] | int) -> NDArray[np.float32]:
        """Return for each stage the share of its input's values at or past the calibrated range.

        A value counts if it rounds to an end of the border's grid, where larger values would be
        clipped; at an end that is 0, where rectified values lie by design, none counts.

        Args:
            x: float32 [n, *input_shape].
            assignment: As for `run`.

        Returns:
            float32 [stages], 0 to 1.
        """
        return self.observe(x, assignment).clip_rates

    def warm_up(self, buckets: Sequence[int] | None = None) -> None:
        """Run every variant once per batch size, so that oneDNN has its kernels ready.

        Stages on a GPU are captured for these batch sizes; others run kernel by kernel.

        Args:
            buckets: Batch sizes; by default all buckets.
        """
        for size in buckets or self.buckets:
            for stage, level in self._variants:
                for call in self._passes.calls_of(stage, level):
                    if isinstance(call, GpuCall):
                        for x in self._arrivals(stage, level, size):
                            call.capture(x)
                    call(self._blank(stage, level, size))

    def _blank(self, stage: int, level: int, size: int) -> Tensor:
        """Return zeros in the format that a variant takes."""
        x = ordered(torch.zeros(size, *self.network.stages[stage].input_shape))
        return convert(x, torch.float32, self.variant(stage, level).native).clone()

    def _arrivals(self, stage: int, level: int, size: int) -> Iterator[Tensor]:
        """Yield zeros as they come to a stage on a GPU: from another one there, or in fp32."""
        if stage > 0:
            yield self._blank(stage, level, size)
        before = (self._variants.get((stage - 1, k)) for k in range(len(self.levels)))
        if stage == 0 or any(variant and not variant.on_gpu for variant in before):
            yield ordered(torch.zeros(size, *self.network.stages[stage].input_shape))

    # Assignments

    def encode(self, levels: Sequence[int]) -> int:
        """Return an assignment as one number, stage 0 the most significant digit."""
        return self._assignments.encode(levels)

    def decode(self, number: int) -> Assignment:
        """Return the assignment with a number; ValueError if there is none."""
        return self._assignments.decode(number)

    def assignment(self, *names: str) -> Assignment:
        """Return an assignment from names of levels: one for all stages, or one per stage."""
        return self._assignments.named(*names)

    def level_index(self, name: str) -> int:
        """Return the place of a level in `levels`; ValueError if it is not on offer."""
        return self._assignments.level_index(name)

    def refusal(self, stage: int, level: int) -> str:
        """Return why a stage cannot run at a level, or nothing."""
        return self._refusals.get((stage, level), "")

    def _check_input(self, x: Tensor) -> None:
        if x.dtype is not torch.float32 or x.shape[1:] != self._shape or not x.shape[0]:
            expected = ", ".join(map(str, ("n >= 1", *self._shape)))
            raise ValueError(
                f"input is {x.dtype} {list(x.shape)}; expected torch.float32 [{expected}]"
            )

    # Looking inside

    def variant(self, stage: int, level: int) -> LoweredStage:
        """Return a stage prepared for a level.

        Raises:
            ValueError: It does not exist; the message says why.
        """
        found = self._variants.get((stage, level))
        if found is None:
            reason = self.refusal(stage, level) or "no such stage or level"
            raise ValueError(f"no variant of stage {stage} at level {level}: {reason}")
        return found

    def bytes(self, stage: int, level: int) -> int:
        """Return the memory of a variant's weights; of an emulated level as it would be."""
        return self.variant(stage, level).nbytes()

    def format(self, stage: int, level: int) -> str:
        """Return in words the format that a variant takes."""
        return describe(self.variant(stage, level).native)

    def kernels(self, stage: int, level: int, batch: int = 1) -> tuple[Kernel, ...]:
        """Return the oneDNN primitives, or kernels of a GPU, that a variant executes, for checks.

        Args:
            stage: Place of the stage.
            level: Place of the level.
            batch: Batch size.
        """
        call, x = self._passes.calls_of(stage, level)[0], self._blank(stage, level, batch)
        executed = executed_on_gpu if self.variant(stage, level).on_gpu else executed_kernels
        return executed(lambda: call(x))


__all__ = ["Assignment", "Bank", "BankOptions", "Calibration", "Level", "Observed", "Probe"]
