"""What this machine's GPU can run, found out by trying; see `machine` for the processor."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch

from runtime.precision import device, gpu_layers, kernels
from runtime.precision.formats import Grid, ScaledFp8
from runtime.precision.gpu_calls import exact_floats
from runtime.precision.gpu_layers import GpuPacked
from runtime.precision.kernels import Added, Int8Weights

_CAPABILITY = {"fp32": (7, 0), "fp16": (7, 0), "bf16": (8, 0), "int8": (8, 0), "fp8": (8, 9)}
"""Compute capability from which on there are instructions for products of such numbers."""
LEAST_DB = {"fp32": 100.0, "fp16": 50.0, "bf16": 35.0, "int8": 25.0, "fp8": 20.0}
"""Signal to noise that a working kernel exceeds by far on the self-tests' Gaussian data."""


def gpu_family() -> str:
    """Return the compute capability that kernels are built for, such as "sm_90"."""
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


@cache
def refusal(kind: str) -> str:
    """Return why levels of a kind cannot run on a GPU here, or nothing if they can.

    Args:
        kind: As in `Level.kind`.
    """
    if kind not in _CAPABILITY:
        return f"no kernels for levels of kind {kind!r} are built in for device 'cuda'"
    if not torch.cuda.is_available():
        return "it is for device 'cuda', and torch finds no GPU here"
    least, found = _CAPABILITY[kind], torch.cuda.get_device_capability()
    if found < least:
        has, needs = (".".join(map(str, version)) for version in (found, least))
        return f"the GPU's compute capability is {has}; its numbers need {needs} at least"
    if kind in ("int8", "fp8") and find_spec("triton") is None:
        return "its kernels are written in Triton, which is not installed (pip install triton)"
    # Here, not above: it asks this module about GPUs.
    from runtime.precision.machine import failure

    return failure(lambda: worst_db(kind), LEAST_DB[kind], "kernels for GPUs")


def worst_db(kind: str) -> float:
    """Return the least signal to noise of a convolution and a linear layer against fp32."""
    from runtime.precision.machine import self_test_layers, sqnr_db

    least = []
    for weights, x, other, exact in self_test_layers():
        total = exact + other
        with exact_floats(), torch.no_grad():
            if kind in ("int8", "fp8"):
                grid_kind = ScaledFp8 if kind == "fp8" else Grid
                grid, on, out = (grid_kind.of_tensor(value) for value in (x, other, total))
                packed = _packed(weights, grid)
                entry = grid.quantise(x).to(device.CUDA)
                plain = packed.run(entry)
                added = Added(on.quantise(other).to(device.CUDA), on)
                summed = out.dequantise(packed.run(entry, added, out).cpu())
            else:
                dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(kind, torch.float32)
                packed = gpu_layers.prepack_float(weights, dtype, x.shape).to(device.CUDA)
                entry, value = x.to(device.CUDA, dtype), other.to(device.CUDA, dtype)
                plain, summed = packed.run(entry), packed.run(entry, Added(value)).cpu()
        least += [sqnr_db(exact, plain.float().cpu()), sqnr_db(total, summed.float())]
    return min(least)


def _packed(weights: kernels.Weights, grid: Grid) -> GpuPacked:
    stored: Int8Weights
    if isinstance(grid, ScaledFp8):
        stored = kernels.weights_in_fp8(weights)
    else:
        stored = kernels.quantise_weights(weights)
    return gpu_layers.prepack_stored(stored, grid, ()).to(device.CUDA)
