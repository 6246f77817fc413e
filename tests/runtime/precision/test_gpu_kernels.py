"""Kernels for a GPU, on one where there is one, else step by step in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

pytest.importorskip("triton")

from runtime.precision import device, gpu, gpu_kernels, gpu_layers, kernels, quantise
from runtime.precision.formats import FP8, Format, Grid, ScaledFp8
from runtime.precision.kernels import Added, ConvWeights, LinearWeights, Weights

ROOT = Path(__file__).parents[3]
ON_GPU = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def _anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    if not ON_GPU:
        monkeypatch.setattr(device, "CUDA", torch.device("cpu"))


def _normal(seed: int, *shape: int) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _conv(inside: int, outside: int, kernel: int, **more: int) -> ConvWeights:
    options = {"stride": 1, "padding": kernel // 2, "dilation": 1, "groups": 1} | more
    weight = _normal(1, outside, inside // options["groups"], kernel, kernel)
    pairs = [(options[name], options[name]) for name in ("stride", "padding", "dilation")]
    return ConvWeights(weight, _normal(2, outside), *pairs, options["groups"])


LAYERS: dict[str, tuple[Weights, tuple[int, ...]]] = {
    "3x3": (_conv(32, 24, 3), (2, 32, 7, 6)),
    "3x3, three channels": (_conv(3, 16, 3), (2, 3, 9, 9)),
    "3x3, strided": (_conv(16, 40, 3, stride=2), (3, 16, 8, 7)),
    "1x1, strided": (_conv(64, 16, 1, stride=2), (1, 64, 5, 5)),
    "3x3, dilated": (_conv(8, 16, 3, dilation=2, padding=2), (1, 8, 8, 8)),
    "3x3, groups": (_conv(32, 48, 3, groups=2), (2, 32, 5, 5)),
    "5x5, unpadded": (_conv(4, 10, 5, padding=0), (2, 4, 8, 8)),
    "linear": (LinearWeights(_normal(3, 20, 96), _normal(4, 20)), (5, 96)),
    "linear, tokens": (LinearWeights(_normal(5, 48, 40), None), (2, 7, 40)),
}


def _exact(layer: Weights, weight: Tensor, x: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.double()
    if isinstance(layer, LinearWeights):
        return functional.linear(x.double(), weight.double(), bias)
    geometry = layer.stride, layer.padding, layer.dilation, layer.groups
    return functional.conv2d(x.double(), weight.double(), bias, *geometry)


@pytest.mark.parametrize("kind", [Grid, ScaledFp8])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_compute_what_their_numbers_stand_for(name: str, kind: type[Grid]) -> None:
    layer, shape = LAYERS[name]
    x = _normal(6, *shape)
    grid = kind.of_tensor(x)
    fp8 = kind is ScaledFp8
    weights = kernels.weights_in_fp8(layer) if fp8 else kernels.quantise_weights(layer)
    packed = gpu_layers.prepack_stored(weights, grid, shape).to(device.CUDA)
    stored = grid.quantise(x)
    exact = _exact(layer, weights.dequantised(), grid.dequantise(stored))
    found = packed.run(stored.to(device.CUDA)).cpu()
    # Tensor cores add products of fp8 with 14 bits, those of integers exactly.
    size = float(exact.abs().max())
    torch.testing.assert_close(
        found.double(), exact, rtol=1e-5, atol=size * (2e-3 if fp8 else 1e-5)
    )
    # It is near the layer itself, too.
    first = _exact(layer, layer.weight, x)
    noise = ((found - first).square().mean() / first.square().mean()).sqrt()
    assert noise < (0.08 if fp8 else 0.02)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")  # of numpy
@pytest.mark.parametrize("act", kernels.ACTIVATIONS)
@pytest.mark.parametrize("other", ["none", "floats", "integers", "fp8"])
def test_what_follows_a_layer_is_part_of_its_kernel(act: str, other: str) -> None:
    layer, shape = LAYERS["3x3"]
    x = _normal(7, *shape)
    grid = Grid.of_tensor(x)
    weights = kernels.quantise_weights(layer)
    packed = gpu_layers.prepack_stored(weights, grid, shape).to(device.CUDA)
    stored = grid.quantise(x)
    sums = _exact(layer, weights.dequantised(), grid.dequantise(stored))
    value = _normal(8, *sums.shape) * 5.0
    added, more = None, torch.zeros(())
    if other == "floats":
        added, more = Added(value.to(device.CUDA)), value
    elif other != "none":
        on = (Grid if other == "integers" else ScaledFp8).of_tensor(value)
        kept = on.quantise(value)
        added, more = Added(kept.to(device.CUDA), on), on.dequantise(kept)
    expected = kernels.ACTIVATIONS[act][2](sums + more)
    found = packed.run(stored.to(device.CUDA), added, torch.float32, act).cpu()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    half = packed.run(stored.to(device.CUDA), added, torch.float16, act).cpu()
    torch.testing.assert_close(half.double(), expected, rtol=2e-3, atol=2e-3)
    out = Grid.of_tensor(expected.float())
    steps = packed.run(stored.to(device.CUDA), added, out, act).cpu().int()
    assert int((steps - out.quantise(expected.float()).int()).abs().max()) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_are_stored_and_read_by_the_rule(dtype: torch.dtype) -> None:
    odd = torch.tensor([0.5, 1.5, 2.5, -3.0, 300.0, float("nan"), float("inf"), -float("inf")])
    x = torch.cat([odd, 40.0 * _normal(9, 3000)]).to(dtype)
    there = x.to(device.CUDA)
    inverse = float(np.float32(1.0))
    found = gpu_kernels.store(there, inverse, 3.0, torch.uint8).cpu()
    assert torch.equal(found, quantise.quantise_eager(x, inverse, 3.0))
    numbers = gpu_kernels.store(there, 0.25, 0.0, FP8).cpu()
    same = float((numbers.float() == quantise.to_fp8(x, 0.25).float()).float().mean())
    # The interpreter (Triton 3.7) forgets to carry where rounding reaches the next power of 2.
    assert same == 1.0 if ON_GPU else same > 0.9
    back = gpu_kernels.read(found.to(device.CUDA), 0.5, 3.0, dtype).cpu()
    assert torch.equal(back, quantise.dequantise_eager(found, 0.5, 3.0, dtype))
    back = gpu_kernels.read(numbers.to(device.CUDA), 4.0, 0.0, dtype).cpu()
    assert torch.equal(back, quantise.from_fp8(numbers, 4.0, dtype))


@pytest.mark.parametrize("kind", gpu.LEAST_DB)
def test_kernels_pass_their_self_tests(kind: str) -> None:
    assert gpu.worst_db(kind) > gpu.LEAST_DB[kind]


def test_kernels_that_compute_something_else_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = gpu_layers.prepack_stored

    def wrong(
        weights: kernels.Int8Weights, grid: Grid, shape: tuple[int, ...]
    ) -> gpu_layers.GpuPacked:
        packed = real(weights, grid, shape)
        packed.tensors["scales"][3] *= 1.7
        return packed

    monkeypatch.setattr(gpu_layers, "prepack_stored", wrong)
    assert gpu.worst_db("int8") < gpu.LEAST_DB["int8"]


def test_formats_say_what_they_keep() -> None:
    form: Format = ScaledFp8.of_range(-2.0, 8.96)
    assert isinstance(form, ScaledFp8)
    assert (form.high, form.dtype) == (pytest.approx(8.96), FP8)
    assert form != Grid(form.scale, 0)


def test_layers_are_built_for_tensor_cores_of_8_bits(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.runtime.precision.gpu_ptx"]
    said = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    integers, fp8 = said.stdout.splitlines()
    assert integers.endswith(".s32.s8.s8")
    assert fp8.endswith(".f32.e4m3.e4m3")
