"""A small trained bank with profiles of declared costs, as calibration would leave them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from experiments.precision.banks import TrainedBank, open_bank
from experiments.precision.calibration import CalibrationNode
from experiments.precision.latencies import BucketLatencies
from experiments.precision.overhead import Overhead
from experiments.precision.profiling import build_profile
from experiments.schema import read_node
from experiments.training import silent
from simulators.precision.fit import LatencyFit
from simulators.precision.profile import RESIDUAL_CELLS

LEVELS = ("fp32", "int8", "int8_quarter")
SMALL = (
    "env=staged_precision",
    "size=smoke",
    "network=digits_cnn",
    "data.root=null",
    f"bank.levels=[{','.join(LEVELS)}]",
    "bank.buckets=[1,8]",
    "calibration.conditions=[clean,noise-4]",
    "calibration.profiled=48",
)


def _declared(trained: TrainedBank, bucket: int) -> BucketLatencies:
    """Return latencies that nobody measured: 2 ms a request at fp32, half and a quarter below."""
    s, p = len(trained.bank.stages), len(trained.bank.levels)
    stage_s = np.tile(2e-3 * bucket / s * 0.5 ** np.arange(p), (s, 1))
    nothing = np.zeros(0)
    fit = LatencyFit(stage_s, np.zeros((s - 1, p, p)), nothing)
    return BucketLatencies(
        bucket=bucket,
        assignments=np.zeros((1, s), dtype=np.int64),
        steady_s=stage_s[:, 0].sum(keepdims=True),
        switch_s=stage_s[:, 0].sum(keepdims=True) + 5e-5,
        sigma=0.01,
        rivals_s={},
        rivals_accuracy={},
        fit=fit,
        held_out=nothing,
        overhead=Overhead(np.array([3e-4, 2e-4, 1e-4]), 2e-5, np.ones(RESIDUAL_CELLS)),
    )


def calibrated_bank(config: DictConfig, folder: Path) -> TrainedBank:
    """Train the network of a configuration; write profiles and a calibration of its bank.

    Args:
        config: Composed with `SMALL`.
        folder: Where to write profile.npz, held_out.npz and calibration.json.
    """
    trained = open_bank(config)
    node = read_node(CalibrationNode, config.calibration, "calibration")
    measured = [_declared(trained, bucket) for bucket in trained.bank.buckets]
    parts = {"profile": trained.data.calibration, "held_out": trained.data.validation}
    for name, part in parts.items():
        own = part.first(node.profiled)
        build_profile(trained, measured, own, node, "declared", silent).save(folder / f"{name}.npz")
    chosen = {"training mode, local": [0, 1, 1, 1]}
    (folder / "calibration.json").write_text(json.dumps({"chosen": chosen}))
    return trained


def profiles(folder: Path) -> list[str]:
    """Return the overrides that name what `calibrated_bank` wrote."""
    return [
        f"env.profile='{folder / 'profile.npz'}'",
        f"env.held_out_profile='{folder / 'held_out.npz'}'",
    ]
