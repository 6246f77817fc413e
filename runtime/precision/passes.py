"""Passes through a chain of lowered stages: each call goes by its level and the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from threading import RLock
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from runtime.precision import quantise
from runtime.precision.assignments import Assignment
from runtime.precision.calibration import Calibration
from runtime.precision.formats import Format, Grid, Placed, Rounded, ScaledFp8, convert
from runtime.precision.gpu_calls import Arena, GpuCall
from runtime.precision.lowering import LoweredStage, StageCall, bind
from runtime.precision.staging import StagedNetwork

Variants = Mapping[tuple[int, int], LoweredStage]
"""Prepared stages by stage and level; combinations that cannot run are missing."""


class Counts(NamedTuple):
    """Of each stage's input: values at the ends of its calibrated range, and all values.

    Counts of clipped values are tensors where they were counted on a GPU.
    """

    clipped: list[int | Tensor]
    values: list[int]


def ordered(x: Tensor) -> Tensor:
    """Return a batch as the kernels want it: images with channels last in memory."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


class Passes:
    """Runs batches of prepared sizes through any mix of variants.

    Each variant takes one format and hands over the format that the next stage's variant takes.

    Attributes:
        builds: How many graphs have been lowered.
    """

    def __init__(
        self, network: StagedNetwork, variants: Variants, n_levels: int, calibration: Calibration
    ) -> None:
        """Lower every variant for every format that may follow it.

        Args:
            network: The stages.
            variants: What was prepared.
            n_levels: Number of levels.
            calibration: Ranges of all tensors.
        """
        self.builds = 0
        self._n_stages, self._n_levels, self._variants = len(network.stages), n_levels, variants
        self._calibration, self._is_image = calibration, len(network.input_shape) == 3
        self._arena = Arena()
        stages, levels = range(self._n_stages), range(n_levels)
        self._calls = [self._row(stage) for stage in stages]
        self._entries = [self._entry(level) for level in levels]
        self._ends = [[self._ends_of(stage, level) for level in levels] for stage in stages]

    def _formats(self, stage: int) -> list[Format | None]:
        """Return what each level of a stage takes; past the last stage, fp32 once."""
        if stage == self._n_stages:
            return [torch.float32]
        known = (self._variants.get((stage, level)) for level in range(self._n_levels))
        return [None if variant is None else variant.native for variant in known]

    def _row(self, stage: int) -> list[list[StageCall | None] | None]:
        """Return calls of a stage by its level and the next stage's level."""
        rows: list[list[StageCall | None] | None] = []
        for level in range(self._n_levels):
            variant = self._variants.get((stage, level))
            if variant is None:
                rows.append(None)
                continue
            made: dict[Format, StageCall] = {}
            for form in self._formats(stage + 1):
                if form is not None and form not in made:
                    made[form] = self._bound(variant, stage, form)
                    self.builds += 1
            rows.append([made.get(f) if f else None for f in self._formats(stage + 1)])
        return rows

    def _bound(self, variant: LoweredStage, stage: int, form: Format) -> StageCall:
        """Return a stage that hands over a format, whatever it runs on."""
        call, native = bind(variant.lower(form)), variant.native
        if isinstance(native, Placed):
            return GpuCall(call, stage, (native, form), self._arena)
        if isinstance(form, Placed) and isinstance(form.form, ScaledFp8):
            return lambda x: convert(call(x), form.carried, form)
        return call  # where the next stage runs on a GPU, it fetches what it takes

    def _entry(self, level: int) -> Callable[[Tensor], Tensor] | None:
        """Return what brings an fp32 input into the format of the first stage's level."""
        variant = self._variants.get((0, level))
        if variant is None:
            return None
        # A stage on a GPU fetches fp32 and turns it into what it takes there.
        form = torch.float32 if variant.on_gpu else variant.native

        def enter(x: Tensor) -> Tensor:
            if self._is_image:
                x = x.contiguous(memory_format=torch.channels_last)
            return x if form is torch.float32 else convert(x, torch.float32, form)

        return enter

    def _ends_of(self, stage: int, level: int) -> tuple[float, float]:
        """Return the values at and beyond which a stage's input counts as clipped."""
        variant = self._variants.get((stage, level))
        form = None if variant is None else variant.entry
        grid = form.grid if isinstance(form, Rounded) else self._calibration.border_grid(stage)
        if isinstance(form, Grid) and not (stage == 0 and variant and variant.on_gpu):
            return form.ends
        low = grid.low + grid.scale / 2 if grid.zero_point > 0 else -np.inf
        return low, grid.high - grid.scale / 2 if grid.zero_point < grid.top else np.inf

    def run(self, x: Tensor, levels: Assignment) -> Tensor:
        """Return the result of a pass."""
        level = levels[0]
        x = self._entries[level](x)  # type: ignore[misc]
        at = 0
        for calls in self._calls:
            at += 1
            following = levels[at] if at < len(levels) else 0
            x = calls[level][following](x)  # type: ignore[index, misc]
            level = following
        return x

    def counted(self, x: Tensor, rows: int, levels: Assignment, counts: Counts) -> Tensor:
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

    def walk(self, x: Tensor, levels: Assignment) -> Iterator[tuple[Format, Tensor]]:
        """Yield what each stage takes, and the result; format and a tensor to read at once.

        A stage may overwrite what it takes, so read before going on.
        """
        x = convert(ordered(x), torch.float32, self._variants[0, levels[0]].native)
        for stage, level in enumerate(levels):
            yield self._variants[stage, level].native, x
            following = levels[stage + 1] if stage + 1 < len(levels) else 0
            x = self._calls[stage][level][following](x)  # type: ignore[index, misc]
        yield torch.float32, x

    def every(self, x: Tensor) -> Iterator[tuple[Assignment, Tensor]]:
        """Yield the result under every assignment that can run, in ascending order."""
        for level, enter in enumerate(self._entries):
            if enter is not None:
                yield from self._branches((level,), enter(x))

    def _branches(self, levels: Assignment, value: Tensor) -> Iterator[tuple[Assignment, Tensor]]:
        """Yield what follows from a value that stage `len(levels) - 1` takes at its last level."""
        calls = self._calls[len(levels) - 1][levels[-1]]
        assert calls is not None  # the way here led over variants that exist
        if len(levels) == self._n_stages:
            # A stage may overwrite what it takes, and other branches take it too.
            yield levels, calls[0](value.clone())  # type: ignore[misc]
            return
        # Levels that take the same format share the call, hence its result.
        distinct = {id(call): call for call in calls if call is not None}
        handed = {key: call(value.clone()) for key, call in distinct.items()}
        for following, call in enumerate(calls):
            if call is not None:
                yield from self._branches((*levels, following), handed[id(call)])

    def settle(self) -> None:
        """Wait until all that was begun is done; here it is."""

    def hand_over(self, value: Tensor, stage: int, level: int) -> tuple[Tensor, Format]:
        """Return what a stage hands over to the next one's first level, and its format.

        Args:
            value: In the format that the variant takes; may be overwritten.
            stage: Place of the stage.
            level: Place of its level, which can run.
        """
        form = self._formats(stage + 1)[0]
        assert form is not None  # every stage has the first level
        return self._calls[stage][level][0](value), form  # type: ignore[index, misc]

    def calls_of(self, stage: int, level: int) -> list[StageCall]:
        """Return the different calls of a variant, one per format that it may hand over."""
        calls = self._calls[stage][level] or []
        return list({id(call): call for call in calls if call is not None}.values())


class SharedPasses(Passes):
    """Passes one after the other, whoever asks: stages on a GPU share the memory between them."""

    def __init__(
        self, network: StagedNetwork, variants: Variants, n_levels: int, calibration: Calibration
    ) -> None:
        """Lower every variant; see `Passes`."""
        super().__init__(network, variants, n_levels, calibration)
        self._lock = RLock()

    def run(self, x: Tensor, levels: Assignment) -> Tensor:
        """Return the result of a pass."""
        with self._lock:
            return super().run(x, levels)

    def counted(self, x: Tensor, rows: int, levels: Assignment, counts: Counts) -> Tensor:
        """Return the result of a pass for its first rows, and count; see `Passes.counted`."""
        with self._lock:
            return super().counted(x, rows, levels, counts)

    def walk(self, x: Tensor, levels: Assignment) -> Iterator[tuple[Format, Tensor]]:
        """Yield what each stage takes, and the result; nobody else passes until it is over."""
        with self._lock:
            yield from super().walk(x, levels)

    def every(self, x: Tensor) -> Iterator[tuple[Assignment, Tensor]]:
        """Yield the result under every assignment; nobody else passes until it is over."""
        with self._lock:
            yield from super().every(x)

    def hand_over(self, value: Tensor, stage: int, level: int) -> tuple[Tensor, Format]:
        """Return a copy of what a stage hands over, and its format; see `Passes.hand_over`."""
        with self._lock:
            handed, form = super().hand_over(value, stage, level)
            return handed.clone(), form

    def settle(self) -> None:
        """Wait for what a GPU still computes."""
        torch.cuda.synchronize()


def make_passes(
    network: StagedNetwork, variants: Variants, n_levels: int, calibration: Calibration
) -> Passes:
    """Return passes through variants, see `Passes`."""
    kind = SharedPasses if any(v.on_gpu for v in variants.values()) else Passes
    return kind(network, variants, n_levels, calibration)
