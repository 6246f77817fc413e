from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from runtime.precision.bank import Bank, BankOptions
from runtime.precision.levels import Level, refusals
from runtime.precision.lowering import bind
from runtime.precision.machine import sqnr_db
from runtime.precision.staging import StagedNetwork
from tests.runtime.precision import nets

FAKE_INT8 = Level("int8_emulated", 8, emulated=True)
LEVELS = tuple(
    n for n in ("fp32", "bf16", "int8", "int6_emulated", "int4_emulated") if n not in refusals()
)
REAL = LEVELS[:-2]
LEVELS += (FAKE_INT8,)
"""Not every processor has kernels for bf16."""

LEAST_DB = {"fp32": 90.0, "bf16": 35.0, "int8": 28.0, "int6_emulated": 16.0, "int4_emulated": 4.0}
LEAST_DB = {name: LEAST_DB[name] for name in LEVELS[:-1]}
"""Signal to noise of the whole small net, decibels; each bit is worth about 6."""


class Case(NamedTuple):
    bank: Bank
    modules: nets.Modules
    x: Tensor
    expected: Tensor


@cache
def case(name: str) -> Case:
    modules, shape = nets.NETS[name]()
    torch.set_num_threads(1)
    network = StagedNetwork.from_modules(modules, shape)
    bank = Bank(network, nets.inputs(shape, 96, seed=8), BankOptions(LEVELS))
    x = nets.inputs(shape, 16)
    return Case(bank, modules, x, nets.plain(modules, x))


@pytest.mark.parametrize("name", nets.NETS)
@pytest.mark.parametrize("level", LEAST_DB)
def test_each_level_is_as_near_to_the_modules_as_its_bits_say(name: str, level: str) -> None:
    bank, _, x, expected = case(name)
    y = bank.run(x, bank.assignment(level))
    assert y.dtype == torch.float32
    assert sqnr_db(expected, y) > LEAST_DB[level]


@pytest.mark.parametrize("name", nets.NETS)
def test_fp32_is_exact_but_for_the_order_of_sums(name: str) -> None:
    bank, _, x, expected = case(name)
    torch.testing.assert_close(bank.run(x, bank.assignment("fp32")), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", nets.NETS)
def test_rounding_in_fp32_says_what_the_int8_kernels_say(name: str) -> None:
    bank, _, _, _ = case(name)
    x = nets.inputs(bank.network.input_shape, 64, seed=10)
    real = bank.run(x, bank.assignment("int8"))
    rounded = bank.run(x, bank.assignment("int8_emulated"))
    assert torch.equal(real.argmax(1), rounded.argmax(1))
    # Far nearer to each other than either is to fp32: the same roundings, not similar ones.
    exact = bank.run(x, bank.assignment("fp32"))
    assert sqnr_db(real, rounded) > sqnr_db(exact, real) + 3.0


@pytest.mark.parametrize("name", nets.NETS)
def test_every_mix_of_levels_runs(name: str) -> None:
    bank, _, x, expected = case(name)
    real = [bank.level_index(level) for level in REAL]
    for levels in itertools.product(real, repeat=len(bank.stages)):
        y = bank.run(x, levels)
        assert y.shape == expected.shape
        assert sqnr_db(expected, y) > 20.0, [bank.levels[level].name for level in levels]


def test_emulated_levels_mix_with_real_ones() -> None:
    bank, _, x, expected = case("residual")
    for levels in itertools.product(range(len(bank.levels)), repeat=2):
        y = bank.run(x, (levels[0], levels[1], levels[0], levels[1]))
        assert sqnr_db(expected, y) > 4.0


@pytest.mark.parametrize("name", nets.NETS)
def test_calls_repeat_and_change_nothing(name: str) -> None:
    bank, modules, x, expected = case(name)
    given, built = x.clone(), bank.builds
    for level in LEVELS[:-1]:
        first = bank.run(x, bank.assignment(level))
        for _ in range(3):
            assert torch.equal(bank.run(x, bank.assignment(level)), first)
    assert torch.equal(x, given)
    assert torch.equal(nets.plain(modules, x), expected)
    assert bank.builds == built


class Odd(nn.Module):
    """Operators that no kernel is made for, around layers that some are made for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, padding=1)
        self.squeeze, self.excite = nn.Linear(8, 4), nn.Linear(4, 8)
        self.up, self.grow = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(8, 32, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([functional.relu6(self.a(x)), functional.relu(self.b(x))], dim=1)
        weight = torch.sigmoid(self.excite(functional.relu(self.squeeze(x.mean((2, 3))))))
        x = x * weight[:, :, None, None] + x.flip(-1)
        return functional.pixel_shuffle(self.grow(x), 2) + self.up(x)


def test_stages_without_kernels_of_their_own_run_in_floats() -> None:
    torch.manual_seed(7)
    circular = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
    pools = (nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(2), nn.GroupNorm(2, 8), nn.SiLU())
    modules: nets.Modules = [
        ("stem", nn.Conv2d(3, 8, 3, padding=1)),
        ("same", nn.Identity()),
        ("odd", Odd()),
        ("pools", nn.Sequential(*pools, circular)),
        ("flat", nn.Flatten()),
        ("head", nn.Sequential(nn.ReLU(), nn.Linear(8 * 9, 4))),
    ]
    x = nets.inputs((3, 6, 6), 32)
    options = BankOptions(REAL, rest="bf16" if "bf16" in REAL else "fp32")
    bank = Bank(StagedNetwork.from_modules(modules, (3, 6, 6)), x, options)
    expected = nets.plain(modules, x)
    for number in range(0, len(REAL) ** 6, 13):
        assert sqnr_db(expected, bank.run(x, number)) > 25.0, bank.decode(number)


def test_training_the_modules_on_does_not_change_the_bank() -> None:
    modules, shape = nets.narrowable()
    bank = Bank(StagedNetwork.from_modules(modules, shape), nets.inputs(shape, 8))
    x = nets.inputs(shape, 4)
    before = bank.run(x, bank.assignment("fp32"))
    with torch.no_grad():
        for _, module in modules:
            for parameter in module.parameters():
                parameter.add_(1.0)
    assert torch.equal(bank.run(x, bank.assignment("fp32")), before)


def test_a_residual_that_is_read_again_is_not_overwritten() -> None:
    # Both convolutions add x; an int8 convolution overwrites what it adds.
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(4, 4, 3, padding=1)
            self.b = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.a(x) + x)
            z = torch.relu(self.b(y) + x)
            return torch.cat([x, y, z], dim=1)

    torch.manual_seed(0)
    modules: nets.Modules = [("relu", nn.ReLU()), ("twice", Twice())]
    x = nets.inputs((4, 6, 6), 8)
    bank = Bank(StagedNetwork.from_modules(modules, (4, 6, 6)), x)
    assert sqnr_db(nets.plain(modules, x), bank.run(x, bank.assignment("int8"))) > 35.0


@pytest.mark.parametrize("level", REAL)
def test_any_batch_size_gives_what_single_inputs_give(level: str) -> None:
    bank, _, _, _ = case("cnn")
    x = nets.inputs(bank.network.input_shape, 150)
    levels = bank.assignment(level)
    whole = bank.run(x, levels)
    assert len(whole) == 150
    alone = torch.cat([bank.run(x[i : i + 1], levels) for i in (0, 63, 64, 149)])
    # Kernels may sum in another order at another batch size.
    assert sqnr_db(alone, whole[[0, 63, 64, 149]]) > 45.0
    assert len(bank.run(x[:3], levels)) == 3


def test_concurrent_calls_give_what_single_calls_give() -> None:
    bank, _, x, _ = case("residual")
    plans = [bank.assignment(level) for level in REAL]
    plans.append(bank.assignment("int8", "fp32", "int8", REAL[1]))
    expected = [bank.run(x, plan) for plan in plans]
    wrong: list[int] = []

    def call(offset: int) -> None:
        for i in range(24):
            at = (i + offset) % len(plans)
            if not torch.equal(bank.run(x, plans[at]), expected[at]):
                wrong.append(at)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", nets.NETS)
def test_a_probe_shows_the_pass_itself(name: str) -> None:
    bank, modules, x, _ = case(name)
    exact = [nets.plain(modules[: i + 1], x) for i in range(len(modules))]
    for level in REAL:
        least = min(LEAST_DB[level], 20.0) if level == "int8" else LEAST_DB[level]
        probe = bank.probe(x, bank.assignment(level))
        assert torch.equal(probe.output, bank.run(x, bank.assignment(level)))
        assert all(sqnr_db(a, b) > least for a, b in zip(exact, probe.stages, strict=True))


@pytest.mark.parametrize("level", [*REAL, "int6_emulated"])
def test_clip_rates_count_what_lies_past_the_calibrated_range(level: str) -> None:
    bank, _, _, _ = case("cnn")
    levels = bank.assignment(level)
    x = nets.inputs(bank.network.input_shape, 96, seed=8)
    low, high = bank.calibration.borders[0]
    inside = bank.clip_rates(x, levels)
    assert inside.shape == (4,)
    # On the calibration data itself only the extremes round to an end of the grid.
    assert inside.max() < 0.01
    bad = x.clone()
    bad[:, :, 0] = high * 2
    bad[:, :, 1] = low * 2
    expected = float(((bad >= high) | (bad <= low)).float().mean())
    assert bank.clip_rates(bad, levels)[0] == pytest.approx(expected, abs=0.01)
    # Padding to a bucket is not data.
    assert bank.clip_rates(bad[:3], levels)[0] == pytest.approx(2 / 14, abs=0.01)
    observed = bank.observe(bad, levels)
    assert torch.allclose(observed.output, bank.run(bad, levels), atol=1e-2)


def test_each_level_runs_kernels_of_its_own() -> None:
    bank, _, _, _ = case("residual")
    types = {
        level: {kernel.types[0] for kernel in bank.kernels(1, bank.level_index(level))}
        for level in REAL
    }
    expected = {"fp32": {"f32"}, "bf16": {"bf16"}, "int8": {"u8"}}
    assert types == {level: expected[level] for level in REAL}
    used = {
        level: {k.implementation for k in bank.kernels(1, bank.level_index(level), batch=4)}
        for level in REAL
    }
    for one, other in itertools.combinations(REAL, 2):
        assert not used[one] & used[other]
    # All four convolutions of the stage, and nothing that reorders between them.
    primitives = [k.primitive for k in bank.kernels(1, bank.level_index("int8"), batch=4)]
    assert primitives == ["convolution"] * 4


def test_bytes_shrink_with_the_bits() -> None:
    torch.manual_seed(6)
    modules: nets.Modules = [("wide", nn.Linear(512, 512))]
    bank = Bank(
        StagedNetwork.from_modules(modules, (512,)), nets.inputs((512,), 4), BankOptions(LEVELS)
    )
    size = {level.name: bank.bytes(0, i) for i, level in enumerate(bank.levels)}
    weights = 512 * 512
    assert size["fp32"] == pytest.approx(4 * weights, rel=0.02)
    if "bf16" in size:
        assert size["bf16"] == pytest.approx(2 * weights, rel=0.02)
    assert size["int8"] == pytest.approx(weights, rel=0.05)
    assert size["int4_emulated"] == pytest.approx(weights / 2, rel=0.05)


def test_assignments_have_numbers() -> None:
    bank, _, x, _ = case("cnn")
    levels = bank.assignment("int8", "fp32", "int4_emulated", "int6_emulated")
    count, int8, int4, int6 = (
        len(bank.levels),
        *map(bank.level_index, ("int8", "int4_emulated", "int6_emulated")),
    )
    assert bank.encode(levels) == ((int8 * count + 0) * count + int4) * count + int6
    assert bank.decode(bank.encode(levels)) == levels
    y = bank.run(x, levels)
    assert torch.equal(bank.run(x, bank.encode(levels)), y)
    assert torch.equal(bank.run(x, np.array(levels)), y)


def test_narrow_levels_keep_the_borders() -> None:
    modules, shape = nets.narrowable()
    options = BankOptions(("fp32", "int8", "int8_half"))
    bank = Bank(StagedNetwork.from_modules(modules, shape), nets.inputs(shape, 64), options)
    x = nets.inputs(shape, 16)
    half = [(name, m.narrow(0.5) if hasattr(m, "narrow") else m) for name, m in modules]
    expected = nets.plain([half[0], modules[1], modules[2]], x)
    assert sqnr_db(expected, bank.run(x, bank.assignment("int8_half", "fp32", "fp32"))) > 30.0
    assert bank.bytes(0, 2) < bank.bytes(0, 1)
    with pytest.raises(ValueError, match=r"'head' cannot run at 'int8_half'.*narrow"):
        bank.run(x, bank.assignment("int8_half"))
    with pytest.raises(ValueError, match=r"no variant of stage 2 at level 2.*narrow"):
        bank.bytes(2, 2)
    assert "narrow" in bank.refusal(2, 2)


def test_a_width_that_one_stage_lacks_is_refused_for_it_alone() -> None:
    modules, shape = nets.narrowable()
    options = BankOptions(("fp32", "int8_quarter"))
    bank = Bank(StagedNetwork.from_modules(modules, shape), nets.inputs(shape, 8), options)
    assert not bank.refusal(0, 1)
    assert "no width 0.25" in bank.refusal(1, 1)
    assert bank.run(nets.inputs(shape, 4), (1, 0, 0)).shape == (4, 4)


def test_levels_that_no_stage_can_run_are_refused() -> None:
    modules, shape = nets.cnn()
    network = StagedNetwork.from_modules(modules, shape)
    with pytest.raises(ValueError, match=r"no stage can run at level 'int8_half'"):
        Bank(network, nets.inputs(shape, 4), BankOptions(("fp32", "int8_half")))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ((0, 0, 0), r"3 levels given for 4 stages \(stem, pool"),
        ((0, 0, 9, 0), r"stage 'mixed' given level 9; expected of 0 = fp32"),
        ((0, -1, 0, 0), r"stage 'pool' given level -1"),
        (6**4, r"no assignment 1296"),
    ],
)
def test_assignments_that_do_not_exist_are_refused(levels: tuple[int, ...], message: str) -> None:
    bank, _, x, _ = case("cnn")
    with pytest.raises(ValueError, match=message):
        bank.run(x, levels)


def test_inputs_of_another_shape_or_type_are_refused() -> None:
    bank, _, x, _ = case("cnn")
    for bad in (x[:, :, :-1], x.double(), x[:0], x[0]):
        with pytest.raises(ValueError, match=r"expected torch.float32 \[n >= 1, 1, 14, 14\]"):
            bank.run(bad, bank.assignment("fp32"))
    with pytest.raises(ValueError, match=r"no level 'int7' in this bank.*did you mean 'int"):
        bank.assignment("int7")


def test_warming_up_leaves_no_kernel_to_make() -> None:
    bank, _, x, _ = case("chain")
    built = bank.builds
    bank.warm_up((4,))
    assert bank.builds == built
    assert bank.run(x[:4], bank.assignment("int8")).shape == (4, 5)


@pytest.mark.parametrize("name", nets.NETS)
def test_the_tree_of_all_assignments_gives_what_single_runs_give(name: str) -> None:
    modules, shape = nets.NETS[name]()
    network = StagedNetwork.from_modules(modules, shape)
    bank = Bank(
        network, nets.inputs(shape, 32, seed=8), BankOptions(("fp32", "int8", "int4_emulated"))
    )
    x = nets.inputs(shape, 5)
    given = x.clone()
    found = {assignment: output.clone() for assignment, output in bank.every_output(x)}
    everything = list(itertools.product(range(3), repeat=len(bank.stages)))
    assert list(found) == everything
    for assignment in everything:
        assert torch.equal(found[assignment], bank.run(x, assignment)), assignment
    assert torch.equal(x, given)


def test_the_tree_runs_a_stage_once_for_each_format_that_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = 0

    def counted(module: fx.GraphModule) -> Callable[[Tensor], Tensor]:
        call = bind(module)

        def run(x: Tensor) -> Tensor:
            nonlocal runs
            runs += 1
            return call(x)

        return run

    monkeypatch.setattr("runtime.precision.passes.bind", counted)
    modules, shape = nets.narrowable()
    options = BankOptions(("fp32", "int8", "int8_half"))
    network = StagedNetwork.from_modules(modules, shape)
    bank = Bank(network, nets.inputs(shape, 32, seed=8), options)
    levels = [
        [level for level in range(3) if not bank.refusal(stage, level)]
        for stage in range(len(bank.stages))
    ]
    formats = [{bank.format(s, level) for level in own} for s, own in enumerate(levels)]
    assert len(formats[1]) == 2 < len(levels[1])  # both int8 levels take the same
    runs, prefixes, expected = 0, 1, 0
    for own, taken in zip(levels, [*formats[1:], {"fp32"}], strict=True):
        prefixes *= len(own)
        expected += prefixes * len(taken)
    assert len(list(bank.every_output(nets.inputs(shape, 3)))) == prefixes
    assert runs == expected


def test_the_tree_leaves_out_what_a_stage_cannot_run() -> None:
    modules, shape = nets.narrowable()
    network = StagedNetwork.from_modules(modules, shape)
    options = BankOptions(("fp32", "int8", "int8_half"))
    bank = Bank(network, nets.inputs(shape, 32, seed=8), options)
    refused = [(s, lv) for s in range(len(bank.stages)) for lv in range(3) if bank.refusal(s, lv)]
    runnable = [
        levels
        for levels in itertools.product(range(3), repeat=len(bank.stages))
        if not any((stage, level) in refused for stage, level in enumerate(levels))
    ]
    x = nets.inputs(shape, 3)
    assert refused
    assert [levels for levels, _ in bank.every_output(x)] == runnable
    with pytest.raises(ValueError, match="at most"):
        next(bank.every_output(nets.inputs(shape, bank.buckets[-1] + 1)))
