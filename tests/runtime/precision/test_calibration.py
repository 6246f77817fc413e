from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from runtime.precision.bank import Bank, BankOptions
from runtime.precision.calibration import Calibration, calibrate
from runtime.precision.staging import StagedNetwork
from runtime.precision.variant_cache import VariantCache
from tests.runtime.precision import nets


def _network() -> StagedNetwork:
    modules, shape = nets.narrowable()
    return StagedNetwork.from_modules(modules, shape)


def test_ranges_are_the_extremes_of_each_tensor() -> None:
    modules, shape = nets.residual()
    network, x = StagedNetwork.from_modules(modules, shape), nets.inputs(shape, 100)
    found = calibrate(network, x)
    for k in range(len(modules) + 1):
        border = nets.plain(modules[:k], x)
        extremes = float(border.min()), float(border.max())
        assert found.borders[k] == pytest.approx(extremes, rel=1e-4)


def test_a_border_behind_a_selection_has_the_range_of_what_it_selects_from() -> None:
    pool = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))
    flat: nets.Modules = [("scale", pool), ("flat", nn.Flatten()), ("head", nn.Linear(8, 2))]
    network = StagedNetwork.from_modules(flat, (2, 4, 4))
    x = nets.inputs((2, 4, 4), 20)
    found = calibrate(network, x)
    # Max-pooling takes some of the smallest values away, but integers pass through it unchanged.
    assert found.borders[1] == found.borders[2] == (0.0, float(x.max()))


def test_the_order_of_the_data_does_not_matter() -> None:
    network = _network()
    x = nets.inputs(network.input_shape, 130)
    assert calibrate(network, x).ranges == calibrate(network, x.flip(0)).ranges


def test_a_percentile_leaves_outliers_out() -> None:
    network = StagedNetwork.from_modules([("a", nn.Linear(50, 4))], (50,))
    x = torch.linspace(-1.0, 1.0, 64 * 50).view(64, 50)
    x[0, 0] = 1000.0
    low, high = calibrate(network, x, percentile=99.0).borders[0]
    expected = np.percentile(x.numpy(), [1.0, 99.0])
    assert (low, high) == pytest.approx(tuple(expected), rel=1e-6)
    assert calibrate(network, x).borders[0][1] == 1000.0


def test_values_that_are_not_finite_name_stage_and_tensor() -> None:
    class Log(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log(x)

    modules: nets.Modules = [("first", nn.Linear(3, 2)), ("second", Log())]
    network = StagedNetwork.from_modules(modules, (3,))
    with pytest.raises(ValueError, match=r"stage 'second', tensor 'log': \d+ of 20 values are not"):
        calibrate(network, nets.inputs((3,), 10))
    x = nets.inputs((3,), 10)
    x[4, 1] = float("inf")
    with pytest.raises(ValueError, match=r"stage 'first', tensor 'x': 1 of 30 values"):
        calibrate(network, x)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(4, 3, 8, 8), r"has shape \[4, 3, 8, 8\]; the input of stage 'a' is \[n, 2"),
        (torch.zeros(2, 8, 8), r"has shape \[2, 8, 8\]"),
        (torch.zeros(4, 2, 8, 8, dtype=torch.float64), r"is torch.float64; stage 'a' takes"),
        (torch.zeros(0, 2, 8, 8), "is empty"),
    ],
)
def test_data_of_another_kind_is_refused(data: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(_network(), data)
    with pytest.raises(ValueError, match="percentile 20"):
        calibrate(_network(), torch.zeros(1, 2, 8, 8), percentile=20)


def test_calibrations_survive_as_tensors() -> None:
    found = calibrate(_network(), nets.inputs((2, 8, 8), 8))
    assert Calibration.from_tensors(found.to_tensors(), found.key) == found


OPTIONS = ("fp32", "int8", "int8_half", "int4_emulated")


def _bank(folder: Path, **options: float) -> Bank:
    network = _network()
    settings = BankOptions(OPTIONS, cache=folder, **options)
    return Bank(network, nets.inputs(network.input_shape, 32), settings)


def test_a_bank_from_the_cache_is_the_same_bank(tmp_path: Path) -> None:
    first = _bank(tmp_path)
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    # Weights of 3 stages at int8 and int4, of 2 at half width, and the calibration.
    assert len(files) == 3 + 3 + 2 + 1
    assert all(name.endswith(".safetensors") and not name.startswith(".") for name in files)
    second = _bank(tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files
    assert second.calibration == first.calibration
    x = nets.inputs((2, 8, 8), 16)
    for level in (0, 1, 3):
        assert torch.equal(first.run(x, (level,) * 3), second.run(x, (level,) * 3))


def test_other_weights_data_or_percentile_are_other_entries(tmp_path: Path) -> None:
    _bank(tmp_path)
    before = len(list(tmp_path.iterdir()))
    _bank(tmp_path, percentile=99.9)
    assert len(list(tmp_path.iterdir())) == before + 1


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "exchanged"])
def test_damaged_entries_are_reported_and_rebuilt(tmp_path: Path, damage: str) -> None:
    expected = _bank(tmp_path)
    files = sorted(tmp_path.iterdir())
    contents = [path.read_bytes() for path in files]
    for i, path in enumerate(files):
        content = bytearray(contents[i])
        if damage == "flipped":
            content[-3] ^= 16
        elif damage == "exchanged":
            content = bytearray(contents[i - 1])
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else content)
        if damage == "empty":
            path.write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="is ignored and built anew") as reports:
        bank = _bank(tmp_path)
    assert len(reports) == len(files)
    x = nets.inputs((2, 8, 8), 16)
    assert torch.equal(bank.run(x, (1, 1, 1)), expected.run(x, (1, 1, 1)))
    # Mended on disk as well: a warning would be an error here.
    _bank(tmp_path)
    assert sorted(tmp_path.iterdir()) == files


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = VariantCache(tmp_path)

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("runtime.precision.variant_cache.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        cache.store({"what": "x"}, {"a": torch.zeros(3)})
    assert list(tmp_path.iterdir()) == []
    assert cache.load({"what": "x"}) is None
