"""Builds the kernels of layers for compute capability 9.0, without a GPU, and prints what they use.

A process of its own: Triton decides between building and interpreting when it is imported.
"""

from __future__ import annotations

import re
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from runtime.precision import gpu_kernels

POINTERS = {
    1: {"x": "*u8", "weight": "*i8", "offsets": "*i32", "other": "*u8", "y": "*u8"},
    2: {"x": "*fp8e4nv", "weight": "*fp8e4nv", "other": "*fp8e4nv", "y": "*fp8e4nv"},
}
SHARED = {"scales": "*fp32", "bias": "*fp32"}
ALIGNED = {"channels", "depth", "outputs", "group_outputs"}
FLOATS = {"other_scale", "other_zero", "out_inverse", "out_zero"}


def products(kind: int) -> list[str]:
    """Return the instructions that multiply matrices in a layer on whole blocks."""
    kernel = gpu_kernels._layer_kernel
    names = list(kernel.arg_names)
    constants = {"KIND": kind, "ADDED": kind, "FORM": kind, "HAS_BIAS": True, "ACTIVATION": 1}
    constants |= {"MIXED": False, "ROWS": 64, "COLUMNS": 64, "DEPTH": 64}
    if kind == 2:
        constants["offsets"] = None
    pointers = POINTERS[kind] | SHARED
    signature = {}
    for name in names:
        number = "fp32" if name in FLOATS else "i32"
        signature[name] = "constexpr" if name in constants else pointers.get(name, number)
    aligned = [k for k, name in enumerate(names) if name in ALIGNED | set(pointers)]
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(k,): [["tt.divisibility", 16]] for k in aligned},
    )
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    return sorted(set(re.findall(r"wgmma\.mma_async\S*", built.asm["ptx"])))


if __name__ == "__main__":
    sys.stdout.writelines(f"{' '.join(products(kind))}\n" for kind in POINTERS)
