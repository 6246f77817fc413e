"""Banks of trained networks, ready to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from experiments.cli import data_root
from experiments.precision.data import DataSet, load_data
from experiments.precision.declared import costed
from experiments.precision.training import NETWORK, train_network
from experiments.record import results_root
from experiments.schema import read_node
from experiments.training import Report, silent
from runtime.precision.bank import Bank
from runtime.precision.bank_builder import BankOptions
from runtime.precision.checkpoint import load_network
from runtime.precision.levels import find_levels, real_levels, require_runnable
from runtime.precision.machine import has_matrix_units
from runtime.precision.memory import keep_memory
from runtime.precision.names import unknown
from runtime.precision.staging import StagedNetwork
from runtime.precision.training_mode import Assignment

FIRST_LEVELS = {"cpu": "fp32", "cuda": "cuda_fp32"}
"""The reference of each device, which any machine with such a device runs."""
CALIBRATED_ON = 512
"""Samples that the ranges of activations are measured on."""


@dataclass(frozen=True)
class BankNode:
    """The node `bank` of a configuration.

    Attributes:
        device: "cpu" or "cuda": which levels are offered where none are named.
        levels: Names of the levels, the highest first, whatever they run on; None: all that are
            real, worth it on this machine (see `trained_levels`) and that the network was trained
            for.
        buckets: Batch sizes that are prepared and measured.
        percentile: Share of activations inside the calibrated ranges, per cent.
    """

    device: str
    levels: list[str] | None
    buckets: list[int]
    percentile: float

    def __post_init__(self) -> None:
        """Refuse devices that there are not.

        Raises:
            ValueError: Names the device.
        """
        if self.device not in FIRST_LEVELS:
            raise unknown("device (bank.device)", self.device, FIRST_LEVELS)


@dataclass(frozen=True, eq=False)
class TrainedBank:
    """A bank with what it was made from.

    Attributes:
        name: Name of the network.
        bank: All variants.
        plain: The network at full width as it was trained, in fp32.
        data: Its data set.
    """

    name: str
    bank: Bank
    plain: nn.Module
    data: DataSet

    @property
    def on_gpu(self) -> bool:
        """Whether the first level runs on a GPU, and with it what a bank is compared with."""
        return self.bank.levels[0].device == "cuda"

    def runnable(self, assignment: Assignment) -> Assignment:
        """Return what runs in place of an assignment, see the function `runnable`."""
        return runnable(self.bank, assignment)

    def run(self, x: Tensor, assignment: Assignment) -> Tensor:
        """Return the outputs float32 [n, classes] of a batch at an assignment, see `runnable`."""
        return self.bank.run(x, self.runnable(assignment))


def runnable(bank: Bank, assignment: Assignment) -> Assignment:
    """Return an assignment with levels that a stage lacks replaced by the next higher one.

    A stage without an interior to narrow runs `int8` where others run `int8_half`.
    """
    levels = []
    for stage, wanted in enumerate(assignment):
        level = wanted
        while bank.refusal(stage, level):
            level -= 1
        levels.append(level)
    return tuple(levels)


class StandInBank:
    """A bank in which every stage has every level, as in its profile.

    Where a stage lacks one, the next higher one runs (`runnable`).
    """

    def __init__(self, bank: Bank) -> None:
        """Keep the bank."""
        self._bank = bank
        self._own: dict[Assignment, Assignment] = {}

    def _runnable(self, assignment: Assignment) -> Assignment:
        own = self._own.get(assignment)
        if own is None:
            own = self._own[assignment] = runnable(self._bank, assignment)
        return own

    def run(self, x: Tensor, assignment: Assignment) -> Tensor:
        """Return the outputs of a batch; see `runtime.precision.bank.Bank`."""
        return self._bank.run(x, self._runnable(assignment))

    def observe(self, x: Tensor, assignment: Assignment) -> Any:
        """Run a batch and count clipped values; see `runtime.precision.bank.Bank`."""
        return self._bank.observe(x, self._runnable(assignment))

    def probe(self, x: Tensor, assignment: Assignment) -> Any:
        """Return the result of every stage; see `runtime.precision.bank.Bank`."""
        return self._bank.probe(x, self._runnable(assignment))

    def run_stage(self, stage: int, level: int, border: Tensor) -> Tensor:
        """Run one stage; see `runtime.precision.bank.Bank`."""
        own = self._runnable((level,) * len(self._bank.stages))
        return self._bank.run_stage(stage, own[stage], border)


def open_bank(config: DictConfig, report: Report = silent) -> TrainedBank:
    """Prepare the bank of the configured network, training the network if need be.

    Raises:
        ConfigError: A wrong configuration or data.
        ValueError: A level that this machine or a stage cannot run, or an emulated one whose costs
            cannot be declared.
    """
    node = read_node(BankNode, config.bank, "bank")
    # Training may take an hour: mistakes show before it.
    wanted = find_levels(node.levels or [FIRST_LEVELS[node.device]])
    require_runnable(wanted)
    costed(wanted)
    keep_memory()
    trained = train_network(config, report)
    network, _ = load_network(trained.path / NETWORK)
    torch.set_num_threads(1)
    data = load_data(str(config.network.data), data_root(config))
    report("preparing variants", 0, 1)
    staged = StagedNetwork.from_modules(
        zip(network.stage_names, network.stages(), strict=True), network.input_shape
    )
    options = BankOptions(
        levels=tuple(node.levels or trained_levels(network.widths, node.device)),
        buckets=tuple(node.buckets),
        percentile=node.percentile,
        cache=results_root(config) / "variants",
    )
    bank = Bank(staged, inputs(data.calibration.x[:CALIBRATED_ON]), options)
    bank.warm_up()
    report("preparing variants", 1, 1)
    return TrainedBank(network.name, bank, nn.Sequential(*network.plain_stages()).eval(), data)


def trained_levels(widths: Sequence[float], device: str = "cpu") -> list[str]:
    """Return the names of the real levels worth offering here, at some interior widths.

    Without matrix units bf16 is slower than fp32 (measured on a Xeon with AVX-512), and
    each level that cannot be the best multiplies the assignments to try.
    """
    wide = [level for level in real_levels() if level.width in widths and level.device == device]
    has_bf16 = device == "cuda" or has_matrix_units()
    return [level.name for level in wide if level.kind != "bf16" or has_bf16]


def inputs(x: object) -> Tensor:
    """Return samples as a float32 tensor, images with channels last."""
    tensor = torch.as_tensor(x, dtype=torch.float32)
    if tensor.dim() == 4:
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return cast("Tensor", tensor)


class SampleRows:
    """Samples any of which are taken as a batch, as requests come.

    Images keep their channels last in memory, as banks want them: `torch.index_select` of images
    kept in the usual way puts channels first, and a bank would spend 0.15 ms on turning 16 images
    of 64x64 around.
    """

    def __init__(self, x: Tensor) -> None:
        """Keep float32 samples [n, ...]."""
        self._images = x.dim() == 4
        self._rows = x.movedim(1, -1).contiguous() if self._images else x

    def take(self, place: Tensor) -> Tensor:
        """Return the samples at some places (int64 [m]), float32 [m, ...]."""
        rows = self._rows.index_select(0, place)
        return rows.movedim(-1, 1) if self._images else rows
