"""Banks with levels for a GPU; without one they run on the processor, kernels interpreted."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from runtime.precision import device, gpu, machine
from runtime.precision.bank import Bank, BankOptions
from runtime.precision.levels import find_level, require_runnable
from runtime.precision.machine import sqnr_db
from runtime.precision.staging import StagedNetwork
from tests.runtime.precision import nets

ON_GPU = torch.cuda.is_available()
LEVELS = ("fp32", "int8", "cuda_fp32", "cuda_fp16", "cuda_bf16", "cuda_int8", "cuda_fp8")
LEAST_DB = {"cuda_fp32": 90.0, "cuda_fp16": 45.0, "cuda_bf16": 30.0, "cuda_int8": 27.0}
LEAST_DB["cuda_fp8"] = 18.0
NETS = ("residual", "transformer")


def _forget() -> None:
    gpu.refusal.cache_clear()
    machine.refusal.cache_clear()


def test_without_a_gpu_its_levels_are_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _forget()
    gpu_level = find_level("cuda_fp8")
    said = r"cannot run level 'cuda_fp8': .*torch finds no GPU here; it can run fp32"
    with pytest.raises(ValueError, match=said):
        require_runnable([gpu_level])
    _forget()


def test_an_old_gpu_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    gpu.refusal.cache_clear()
    assert "compute capability is 8.0; its numbers need 8.9" in gpu.refusal("fp8")
    assert "no kernels for levels of kind 'unknown'" in gpu.refusal("unknown")
    gpu.refusal.cache_clear()


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Levels for a GPU, offered whether there is one or not."""
    pytest.importorskip("triton")
    if not ON_GPU:
        monkeypatch.setattr(gpu, "refusal", lambda kind: "")
        monkeypatch.setattr(device, "CUDA", torch.device("cpu"))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    machine.refusal.cache_clear()
    yield
    machine.refusal.cache_clear()


def _bank(name: str, levels: tuple[str, ...] = LEVELS) -> tuple[Bank, torch.Tensor, torch.Tensor]:
    modules, shape = nets.NETS[name]()
    network = StagedNetwork.from_modules(modules, shape)
    bank = Bank(network, nets.inputs(shape, 64, seed=8), BankOptions(levels, (1, 4), rest="fp32"))
    x = nets.inputs(shape, 4)
    return bank, x, nets.plain(modules, x)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("name", NETS)
def test_each_level_is_as_near_to_the_modules_as_its_numbers_say(name: str) -> None:
    bank, x, expected = _bank(name)
    for level, least in LEAST_DB.items():
        y = bank.run(x, bank.assignment(level))
        assert (y.dtype, y.device.type) == (torch.float32, "cpu")
        assert sqnr_db(expected, y) > least, level
    # The same integers, the same rule: nearer to each other than to fp32.
    own, other = (bank.run(x, bank.assignment(level)) for level in ("cuda_int8", "int8"))
    assert sqnr_db(other, own) > sqnr_db(expected, own) + 3.0


@pytest.mark.usefixtures("anywhere")
def test_levels_of_both_devices_meet_at_any_border() -> None:
    bank, x, expected = _bank("residual")
    n_stages, rng = len(bank.stages), np.random.default_rng(0)
    # Latin: each level in each stage; more where nothing is interpreted.
    every = np.tile(np.arange(len(LEVELS)), (n_stages, 1))
    mixes = [mix for _ in range(8 if ON_GPU else 1) for mix in rng.permuted(every, axis=1).T]
    for mixed in (tuple(mix.tolist()) for mix in mixes):
        y = bank.run(x, mixed)
        assert sqnr_db(expected, y) > 18.0, [LEVELS[k] for k in mixed]
        observed = bank.observe(x, mixed)
        torch.testing.assert_close(observed.output, y)
        assert observed.clip_rates.dtype == np.float32
        assert np.all((observed.clip_rates >= 0.0) & (observed.clip_rates < 0.1))
        stages = bank.probe(x, mixed).stages
        assert all(value.device.type == "cpu" for value in stages)
        torch.testing.assert_close(stages[-1], y)
    assert len(bank.stage_times(x, mixed)) == n_stages


@pytest.mark.usefixtures("anywhere")
def test_every_assignment_gives_what_it_gives_by_itself() -> None:
    bank, x, _ = _bank("residual", ("cuda_fp16", "cuda_int8"))
    x = x[:1]
    found = dict(bank.every_output(x))
    assert len(found) == 2 ** len(bank.stages)
    for assignment in list(found)[::3]:
        torch.testing.assert_close(found[assignment], bank.run(x, assignment))


@pytest.mark.usefixtures("anywhere")
def test_weights_of_a_gpu_level_take_the_bytes_of_their_numbers() -> None:
    bank, _, _ = _bank("residual")
    sizes = {
        level: sum(bank.bytes(k, bank.level_index(level)) for k in range(len(bank.stages)))
        for level in LEVELS
    }
    assert 1.9 < sizes["cuda_fp32"] / sizes["cuda_fp16"] < 2.1
    assert 1.5 < sizes["cuda_fp16"] / sizes["cuda_int8"] < 2.1
    assert "on the GPU" in bank.format(1, bank.level_index("cuda_fp8"))


@pytest.mark.usefixtures("anywhere")
def test_values_beyond_fp16_refuse_its_level() -> None:
    class Loud(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 1e6

    stages = [("loud", Loud()), ("last", nn.Linear(8, 4))]
    network = StagedNetwork.from_modules(stages, (8,))
    bank = Bank(network, torch.ones(4, 8), BankOptions(("fp32", "cuda_bf16", "cuda_fp16")))
    assert "fp16 ends at 65504" in bank.refusal(0, 2)
    assert not bank.refusal(0, 1)


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
@pytest.mark.parametrize("name", NETS)
def test_captured_stages_give_what_their_kernels_give(name: str) -> None:
    bank, x, _ = _bank(name)
    rng = np.random.default_rng(0)
    mixes = [tuple(int(v) for v in rng.integers(0, len(LEVELS), len(bank.stages))) for _ in "12345"]
    mixes += [bank.assignment(level) for level in LEAST_DB]
    before = [bank.run(x, mix) for mix in mixes]
    builds = bank.builds
    bank.warm_up()
    for mix, expected in zip(mixes, before, strict=True):
        for _ in range(2):
            torch.testing.assert_close(bank.run(x, mix), expected)
        torch.testing.assert_close(bank.observe(x, mix).output, expected)
        torch.testing.assert_close(bank.run(x[:3], mix), expected[:3], rtol=1e-3, atol=1e-3)
    assert bank.builds == builds


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_passes_of_several_threads_do_not_meet() -> None:
    bank, x, _ = _bank("residual")
    bank.warm_up()
    mixes = [bank.assignment(level) for level in LEAST_DB]
    expected = [bank.run(x, mix) for mix in mixes]
    wrong: list[str] = []

    def passes(own: int) -> None:
        for _ in range(200):
            if not torch.equal(bank.run(x, mixes[own]), expected[own]):
                wrong.append(LEVELS[own])

    threads = [threading.Thread(target=passes, args=(k,)) for k in range(len(mixes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_each_level_runs_kernels_of_its_own() -> None:
    bank, _, _ = _bank("residual")
    bank.warm_up()
    for level, name in (("cuda_int8", "layer_int8"), ("cuda_fp8", "layer_fp8")):
        used = [kernel.implementation for kernel in bank.kernels(1, bank.level_index(level), 4)]
        assert any(name in kernel for kernel in used), used
    halves = bank.kernels(1, bank.level_index("cuda_fp16"), 4)
    assert not any("layer_" in kernel.implementation for kernel in halves)
