"""The bank: every stage prepared for every level, and passes through any mix of them.

Levels change between two calls by looking at another place of a table: nothing is built, compiled
or loaded. Each variant takes one format and hands over the format that the next stage's variant
takes, so between stages nothing happens at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.precision import quantise
from runtime.precision.assignments import Assignment, Assignments
from runtime.precision.bank_builder import BankOptions, build_variants
from runtime.precision.calibration import Calibration
from runtime.precision.formats import Format, Grid, Rounded, convert, describe
from runtime.precision.kernel_log import Kernel, executed_kernels
from runtime.precision.levels import Level
from runtime.precision.lowering import LoweredStage, StageCall, bind
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


class _Counts(NamedTuple):
    """Of each stage's input: values at the ends of its range, and all values."""

    clipped: list[int]
    values: list[int]


class Bank:
    """All variants of a network, and passes through them.

    `run`, `probe`, `observe` and `clip_rates` may be called from several threads at once.

    Attributes:
        network: The stages.
        levels: On offer, in the order in which assignments count them.
        calibration: Ranges of all tensors.
        buckets: Batch sizes that are run as they are; others are padded to the next one.
        builds: How many graphs have been lowered so far; passes never change it.
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
        self.builds = 0
        stages = range(len(network.stages))
        self._calls = [self._row(k) for k in stages]
        self._entries = [self._entry(level) for level in range(len(self.levels))]
        self._ends = [[self._ends_of(k, p) for p in range(len(self.levels))] for k in stages]
        self._bucket_set = frozenset(self.buckets)
        self._shape = torch.Size(network.input_shape)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages."""
        return self.network.names

    # Preparing

    def _formats(self, stage: int) -> list[Format | None]:
        """Return what each level of a stage takes; past the last stage, fp32 once."""
        if stage == len(self.network.stages):
            return [torch.float32]
        known = (self._variants.get((stage, level)) for level in range(len(self.levels)))
        return [None if variant is None else variant.native for variant in known]

    def _row(self, stage: int) -> list[list[StageCall | None] | None]:
        """Return calls of a stage by its level and the next stage's level."""
        rows: list[list[StageCall | None] | None] = []
        for level in range(len(self.levels)):
            variant = self._variants.get((stage, level))
            if variant is None:
                rows.append(None)
                continue
            made: dict[Format, StageCall] = {}
            for form in self._formats(stage + 1):
                if form is not None and form not in made:
                    made[form] = bind(variant.lower(form))
                    self.builds += 1
            rows.append([made.get(f) if f else None for f in self._formats(stage + 1)])
        return rows

    def _entry(self, level: int) -> Callable[[Tensor], Tensor] | None:
        """Return what brings an fp32 input into the format of the first stage's level."""
        variant = self._variants.get((0, level))
        if variant is None:
            return None
        form = variant.native
        is_image = len(self.network.input_shape) == 3

        def enter(x: Tensor) -> Tensor:
            if is_image:
                x = x.contiguous(memory_format=torch.channels_last)
            return x if form is torch.float32 else convert(x, torch.float32, form)

        return enter

    def _ends_of(self, stage: int, level: int) -> tuple[float, float]:
        """Return the values at and beyond which a stage's input counts as clipped."""
        variant = self._variants.get((stage, level))
        form = None if variant is None else variant.native
        if isinstance(form, Grid):
            low = 0.0 if form.zero_point > 0 else -np.inf
            return low, float(form.top) if form.zero_point < form.top else np.inf
        grid = form.grid if isinstance(form, Rounded) else self.calibration.border_grid(stage)
        low = grid.low + grid.scale / 2 if grid.zero_point > 0 else -np.inf
        return low, grid.high - grid.scale / 2 if grid.zero_point < grid.top else np.inf

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
            return self._pass(x, levels)
        return self._run_any(x, levels)

    def _pass(self, x: Tensor, levels: Assignment) -> Tensor:
        level = levels[0]
        x = self._entries[level](x)  # type: ignore[misc]
        at = 0
        for calls in self._calls:
            at += 1
            following = levels[at] if at < len(levels) else 0
            x = calls[level][following](x)  # type: ignore[index, misc]
            level = following
        return x

    def _run_any(self, x: Tensor, levels: Assignment) -> Tensor:
        self._check_input(x)
        parts = [self._pass(part, levels)[:rows] for part, rows in self._padded(x.detach())]
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

    def _walk(self, x: Tensor, levels: Assignment) -> Iterator[tuple[Format, Tensor]]:
        """Yield what each stage takes, and the result; format and a tensor to read at once.

        A stage may overwrite what it takes, so read before going on.
        """
        for stage, level in enumerate(levels):
            form = self._variants[stage, level].native
            if stage == 0:
                x = convert(self._ordered(x), torch.float32, form)
                # The caller's own tensor is never handed to a stage that may overwrite it.
            yield form, x
            following = levels[stage + 1] if stage + 1 < len(levels) else 0
            x = self._calls[stage][level][following](x)  # type: ignore[index, misc]
        yield torch.float32, x

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
        for level, enter in enumerate(self._entries):
            if enter is not None:
                for assignment, output in self._branches((level,), enter(part)):
                    yield assignment, output[:rows]

    def _branches(self, levels: Assignment, value: Tensor) -> Iterator[tuple[Assignment, Tensor]]:
        """Yield what follows from a value that stage `len(levels) - 1` takes at its last level."""
        calls = self._calls[len(levels) - 1][levels[-1]]
        assert calls is not None  # the way here led over variants that exist
        if len(levels) == len(self.stages):
            # A stage may overwrite what it takes, and other branches take it too.
            yield levels, calls[0](value.clone())  # type: ignore[misc]
            return
        # Levels that take the same format share the call, hence its result.
        distinct = {id(call): call for call in calls if call is not None}
        handed = {key: call(value.clone()) for key, call in distinct.items()}
        for following, call in enumerate(calls):
            if call is not None:
                yield from self._branches((*levels, following), handed[id(call)])

    def _ordered(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

    def stage_times(self, x: Tensor, assignment: Sequence[int] | int) -> NDArray[np.float64]:
        """Return how long each stage took in one pass, float64 [stages], seconds.

        Args:
            x: float32 [n, *input_shape]; run as one batch, not padded.
            assignment: As for `run`.
        """
        levels = self._assignments.read(assignment)
        self._check_input(x)
        at = [time.perf_counter() for _ in self._walk(x.detach(), levels)]
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
            for form, value in self._walk(x.detach(), levels)
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
        value = convert(self._ordered(border), torch.float32, native)
        handed = self._calls[stage][level][0](value.clone())  # type: ignore[index, misc]
        return convert(handed, self._formats(stage + 1)[0], torch.float32)  # type: ignore[arg-type]

    def observe(self, x: Tensor, assignment: Sequence[int] | int) -> Observed:
        """Run a batch and count clipped values on the way; see `run` and `clip_rates`."""
        levels = self._assignments.read(assignment)
        self._check_input(x)
        # Plain numbers: so few, array operations would cost more than counting does.
        counts = _Counts([0] * len(levels), [0] * len(levels))
        if x.shape[0] in self._bucket_set:
            output = self._counted_pass(x.detach(), x.shape[0], levels, counts)
        else:
            parts = self._padded(x.detach())
            output = torch.cat([self._counted_pass(p, n, levels, counts) for p, n in parts])
        rates = [some / every for some, every in zip(*counts, strict=True)]
        return Observed(output, np.array(rates, dtype=np.float32))

    def _counted_pass(self, x: Tensor, rows: int, levels: Assignment, counts: _Counts) -> Tensor:
        """Return the result of a pass for its first rows, the others padding; add to the counts."""
        x = self._entries[levels[0]](x)  # type: ignore[misc]
        for stage, level in enumerate(levels):
            # Padding is no data; a slice of the first rows is dense memory.
            own = x if rows == x.shape[0] else x[:rows]
            low, high = self._ends[stage][level]
            counts.clipped[stage] += quantise.count_outside(own, low, high)
            counts.values[stage] += own.numel()
            del own  # memory that is free again at once is still in the cache
            following = levels[stage + 1] if stage + 1 < len(levels) else 0
            x = self._calls[stage][level][following](x)  # type: ignore[index, misc]
        return x[:rows]

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

        Args:
            buckets: Batch sizes; by default all buckets.
        """
        for size in buckets or self.buckets:
            for stage, row in enumerate(self._calls):
                shape = (size, *self.network.stages[stage].input_shape)
                x = self._ordered(torch.zeros(shape))
                for level, calls in enumerate(row):
                    if calls is None:
                        continue
                    form = self._variants[stage, level].native
                    for call in {id(call): call for call in calls if call is not None}.values():
                        call(convert(x, torch.float32, form).clone())

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
        """Return the oneDNN primitives that a variant executes, for checks.

        Args:
            stage: Place of the stage.
            level: Place of the level.
            batch: Batch size.
        """
        variant = self.variant(stage, level)
        x = self._ordered(torch.rand(batch, *self.network.stages[stage].input_shape))
        rows = self._calls[stage][level] or []
        call = next(call for call in rows if call is not None)
        given = convert(x, torch.float32, variant.native).clone()
        return executed_kernels(lambda: call(given))


__all__ = ["Assignment", "Bank", "BankOptions", "Calibration", "Level", "Observed", "Probe"]
