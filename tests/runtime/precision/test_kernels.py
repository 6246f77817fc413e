from __future__ import annotations

import threading

import pytest
import torch
from torch.nn import functional

from runtime.precision import kernels, machine
from runtime.precision.formats import Grid
from runtime.precision.kernels import ConvWeights
from runtime.precision.levels import find_level


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("zero_point", [0, 128])
def test_strided_int8_convolutions_give_the_same_from_every_thread(
    kernel: int, zero_point: int
) -> None:
    torch.manual_seed(0)
    weight, padding = torch.randn(16, 8, kernel, kernel), kernel // 2
    layer = ConvWeights(weight, None, (2, 2), (padding, padding), (1, 1), 1)
    integers = kernels.quantise_weights(layer, machine.weight_bits(find_level("int8")))
    grid, shape = Grid(0.01, zero_point), (16, 8, 12, 12)
    x = torch.randint(0, 256, shape, dtype=torch.uint8)
    x = x.contiguous(memory_format=torch.channels_last)
    call = kernels.prepack_int8(integers, grid, shape)
    expected = functional.conv2d(grid.dequantise(x), integers.dequantised(), None, 2, padding)
    wrong: list[float] = []

    def run() -> None:
        for _ in range(4):
            off = float((call.run(x) - expected).abs().max())
            if off > 1e-3:
                wrong.append(off)

    for _ in range(40):
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
