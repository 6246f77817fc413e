"""Prepared stages as CUDA graphs: a stage is one launch, whatever its number of kernels.

A captured graph reads and writes fixed addresses. Stages of a bank that meet at a border in one
format use the same memory there, so nothing is copied between them. One pass has to be over before
the next one begins: `SharedPasses` sees to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from runtime.precision import device
from runtime.precision.formats import Format, Placed, convert
from runtime.precision.lowering import StageCall

_WARM_UPS = 3
"""Runs before a capture, in which libraries choose kernels and Triton builds its own."""


class Arena:
    """Memory that the captured stages of a bank share."""

    def __init__(self) -> None:
        self._borders: dict[Any, Tensor] = {}
        self._pool: Any = None

    def border(self, at: int, form: Placed, shape: Sequence[int]) -> Tensor:
        """Return the memory of what stage `at` takes in a format, not initialised."""
        key = at, form, tuple(shape)
        if key not in self._borders:
            order = torch.channels_last if len(shape) == 4 else torch.contiguous_format
            self._borders[key] = torch.empty(
                *shape, dtype=form.dtype, device=device.CUDA, memory_format=order
            )
        return self._borders[key]

    def pool(self) -> Any:
        """Return the memory for what lives only within a graph."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool


class _Captured(NamedTuple):
    """A graph with what it reads and writes."""

    graph: torch.cuda.CUDAGraph
    entry: Tensor
    result: Tensor


class GpuCall:
    """A stage at a level with a format handed over, captured for some batch sizes.

    Other sizes run kernel by kernel.
    """

    def __init__(
        self, compute: StageCall, stage: int, forms: tuple[Placed, Format], arena: Arena
    ) -> None:
        """Keep what is called.

        Args:
            compute: The lowered stage, on the GPU from end to end.
            stage: Its place.
            forms: What it takes, and what it hands over; formats that are not placed come back to
                the processor.
            arena: Shared with the other stages.
        """
        self._compute, self._stage, self._arena = compute, stage, arena
        self._takes, self._stays = forms[0], isinstance(forms[1], Placed)
        self._hands = forms[1]
        self._captured: dict[tuple[int, torch.dtype], _Captured] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Return the stage's result; on the GPU it is valid until the next pass.

        Args:
            x: In the format that the stage takes, or fp32; on the GPU or still on the processor.
        """
        captured = self._captured.get((x.shape[0], x.dtype))
        if captured is None:
            result = self._from(x.to(device.CUDA, non_blocking=True))
            return result if self._stays else result.cpu()
        if x.data_ptr() != captured.entry.data_ptr():
            captured.entry.copy_(x, non_blocking=True)
        captured.graph.replay()
        if self._stays:
            return captured.result
        torch.cuda.current_stream().synchronize()
        return captured.result.clone()

    def _from(self, x: Tensor) -> Tensor:
        """Return the stage's result from what it takes, or from fp32."""
        with exact_floats():
            if x.dtype != self._takes.dtype:
                x = convert(x, torch.float32, self._takes.form)
            return self._compute(x)

    def capture(self, x: Tensor) -> None:
        """Capture the stage for a batch size.

        Args:
            x: A batch in the format that the stage takes, or in fp32, wherever it is.
        """
        if (x.shape[0], x.dtype) in self._captured:
            return
        with torch.inference_mode(False), torch.no_grad():
            takes = self._takes if x.dtype == self._takes.dtype else Placed(torch.float32)
            entry = self._arena.border(self._stage, takes, x.shape)
            entry.copy_(x)
            stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    example = self._from(entry)
            stream.synchronize()
            result = self._target(example)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph, pool=self._arena.pool(), capture_error_mode="thread_local"
            ):
                result.copy_(self._from(entry), non_blocking=True)
            self._captured[x.shape[0], x.dtype] = _Captured(graph, entry, result)

    def _target(self, example: Tensor) -> Tensor:
        """Return where results go: to the next stage, or to memory that the GPU can write."""
        if isinstance(self._hands, Placed):
            return self._arena.border(self._stage + 1, self._hands, example.shape)
        return torch.empty_like(example, device="cpu").pin_memory()


def exact_floats() -> Any:
    """Let convolutions of fp32 be fp32: PyTorch's default rounds their operands to TF32."""
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=False, allow_tf32=False
    )
