from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from runtime.precision import gpu, levels, machine
from runtime.precision.formats import Grid
from runtime.precision.levels import LEVELS, Level, find_level, find_levels


def test_levels_are_looked_up_by_name() -> None:
    assert [level.name for level in LEVELS[:3]] == ["fp32", "bf16", "int8"]
    assert find_level("int8_half").width == 0.5
    assert [level.name for level in LEVELS if level.emulated] == ["int6_emulated", "int4_emulated"]
    with pytest.raises(ValueError, match=r"no level 'int8_hlf'.*did you mean 'int8_half'"):
        find_level("int8_hlf")
    with pytest.raises(ValueError, match="levels given twice: int8"):
        find_levels(["int8", "fp32", "int8"])
    with pytest.raises(ValueError, match="no levels given"):
        find_levels([])


@pytest.mark.parametrize(
    "change", [{"bits": 1}, {"width": 0.0}, {"device": "tpu"}, {"number": "fp16"}]
)
def test_levels_that_mean_nothing_are_refused(change: dict[str, float | str]) -> None:
    with pytest.raises(ValueError, match="level 'odd'"):
        Level(**{"name": "odd", "bits": 8, **change})


@pytest.mark.parametrize(("name", "emulated"), [("int5", True), ("int5_emulated", False)])
def test_the_name_of_a_level_says_whether_it_is_emulated(name: str, emulated: bool) -> None:
    with pytest.raises(ValueError, match=rf"level '{name}' .*ends in '_emulated' if and only if"):
        Level(name, 5, emulated=emulated)


def test_what_the_machine_cannot_run_is_named_with_what_it_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.refusal.cache_clear()
    machine.refusal.cache_clear()
    with pytest.raises(ValueError, match=r"cannot run level 'fp8'.*'cuda'.*it can run fp32"):
        levels.require_runnable([Level("fp8", 8, device="cuda")])
    gpu.refusal.cache_clear()

    def broken(*arguments: object) -> None:
        raise RuntimeError("no such operator\nand a stack")

    machine.refusal.cache_clear()
    monkeypatch.setattr(machine.kernels, "prepack_int8", broken)
    with pytest.raises(ValueError, match=r"cannot run level 'int8': .*no such operator; it can"):
        levels.require_runnable([find_level("int8")])
    machine.refusal.cache_clear()


def test_a_kernel_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    machine.refusal.cache_clear()
    real = machine.kernels.quantise_weights

    def wrong(layer: machine.kernels.Weights, bits: int = 8) -> machine.kernels.Int8Weights:
        made = real(layer, bits)
        made.scales[3] *= 1.7
        return made

    monkeypatch.setattr(machine.kernels, "quantise_weights", wrong)
    assert "differ from fp32 more than rounding explains" in machine.refusal("int8")
    machine.refusal.cache_clear()


@pytest.mark.parametrize("shape", [(32, 64, 3, 3), (48, 128, 1, 1), (40, 256)])
def test_the_largest_sums_of_int8_kernels_do_not_saturate(shape: tuple[int, ...]) -> None:
    weight = torch.ones(shape)
    conv = len(shape) == 4
    layer: machine.kernels.Weights = machine.kernels.LinearWeights(weight, None)
    x = torch.full((8, shape[1]), 255, dtype=torch.uint8)
    if conv:
        layer = machine.kernels.ConvWeights(weight, None, (1, 1), (0, 0), (1, 1), 1)
        x = torch.full((2, shape[1], 6, 6), 255, dtype=torch.uint8)
        x = x.contiguous(memory_format=torch.channels_last)
    bits = machine.weight_bits(find_level("int8"))
    integers = machine.kernels.quantise_weights(layer, bits)
    call = machine.kernels.prepack_int8(integers, Grid(1.0 / 255.0, 0), x.shape)
    assert torch.allclose(call.run(x), weight[0].sum(), rtol=1e-4)


def test_a_kernel_that_saturates_gets_weights_of_seven_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine.int8_weight_bits.cache_clear()
    monkeypatch.setattr(machine, "_sums_exactly", lambda weights: False)
    assert machine.weight_bits(find_level("int8")) == 7
    assert machine.weight_bits(find_level("int6_emulated")) == 6
    machine.int8_weight_bits.cache_clear()


def test_the_signal_to_noise_ratio_has_its_closed_form() -> None:
    x = torch.tensor([3.0, 4.0])
    assert machine.sqnr_db(x, x + torch.tensor([0.3, 0.4])) == pytest.approx(20.0, abs=1e-4)


def test_levels_import_no_torch() -> None:
    code = "import sys, runtime.precision.levels; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
