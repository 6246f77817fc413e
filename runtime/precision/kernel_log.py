"""Which kernels a call runs: oneDNN's primitives as it reports them itself, or those of a GPU."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Kernel:
    """One executed primitive.

    Attributes:
        primitive: Its kind: convolution, matmul, reorder, ...; "gpu" for all of a GPU.
        implementation: The kernel that oneDNN picked, such as brg_conv_fwd:avx512_core_amx.
        types: Element types of source, weights and result, as far as reported.
    """

    primitive: str
    implementation: str
    types: tuple[str, ...]


def executed_kernels(call: Callable[[], object]) -> tuple[Kernel, ...]:
    """Run a call and return the oneDNN primitives that it executed, in order.

    oneDNN writes its log to the process's standard output, which is redirected meanwhile: for
    checks, not for serving.
    """
    verbose: Any = torch.backends.mkldnn.verbose
    library = ctypes.CDLL(None)
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 1)
            try:
                with verbose(torch.backends.mkldnn.VERBOSE_ON):
                    call()
            finally:
                # oneDNN writes through C's buffer, which must be empty before the way back.
                library.fflush(None)
                os.dup2(kept, 1)
            file.seek(0)
            lines = file.read().decode(errors="replace").splitlines()
    finally:
        os.close(kept)
    kernels = (_parse(line.split(",")) for line in lines)
    return tuple(kernel for kernel in kernels if kernel is not None)


def executed_on_gpu(call: Callable[[], object]) -> tuple[Kernel, ...]:
    """Run a call and return the kernels that a GPU executed, in order, by their names."""
    from torch.profiler import ProfilerActivity, profile

    call()  # Triton builds its kernels in the first one
    torch.cuda.synchronize()
    kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=kinds, acc_events=True) as found:
        call()
        torch.cuda.synchronize()
    events = [event for event in found.events() if "CUDA" in str(event.device_type)]
    names = [event.name for event in sorted(events, key=lambda event: event.time_range.start)]
    return tuple(Kernel("gpu", name, ()) for name in names if not name.startswith("Mem"))


def _parse(fields: list[str]) -> Kernel | None:
    if "exec" not in fields or fields[0] != "onednn_verbose":
        return None
    at = fields.index("exec")
    if len(fields) < at + 6:
        return None
    descriptors = fields[at + 5].split()
    types = tuple(part.split(":")[1] for part in descriptors if part.count(":") >= 2)
    return Kernel(fields[at + 2], fields[at + 3], types)
