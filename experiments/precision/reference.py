"""Staged precision in results/reference: tables, figures and claims (only with record=true).

A folder per kind of processor and network: `precision/avx512_vnni/fashion_cnn`, or
`precision/sm_90/fashion_cnn` for banks on GPUs of that compute capability. Figures of one kind of
processor say little about another.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from experiments.claim_maker import ClaimMaker
from experiments.claims import REFERENCE, is_recorded, record_claims
from experiments.precision.bank_claims import bank_claims
from experiments.precision.banks import FIRST_LEVELS
from experiments.precision.calibration import (
    CHOSEN,
    FIT,
    FRONT,
    KERNELS,
    LEVELS,
    MODELLED,
    RIVALS,
    TRIALS,
)
from experiments.precision.commands import bank_command, stream_command
from experiments.precision.stream_claims import (
    LOADS,
    headroom_claims,
    prediction_claims,
    stream_claims,
)
from experiments.record import RunFolder
from runtime.precision.gpu import gpu_family
from runtime.precision.levels import find_level
from runtime.precision.machine import kernel_family

FOLDER = "precision"
LOADS_FIGURE = "loads.png"
_KINDS = (".csv", ".md", ".png")
_TABLES = (LEVELS, CHOSEN, TRIALS, RIVALS, FIT, MODELLED, KERNELS, FRONT, f"{Path(FRONT).stem}.md")


def record_bank(config: DictConfig, calibrated: RunFolder) -> None:
    """Copy the tables of a calibration to results/reference and write its claims, if asked to.

    Args:
        config: With `record`, `size.name`, `network` and `calibration.batch`.
        calibrated: The calibration.

    Raises:
        ConfigError: Recording was asked for at another size than paper.
    """
    if not is_recorded(config):
        return
    folder = _folder(config)
    _copy([path for name in _TABLES if (path := calibrated.path / name).exists()], folder)
    make = ClaimMaker(
        reference=REFERENCE,
        command=bank_command(config),
        data=str(config.network.data),
    )
    claims = bank_claims(folder, config.calibration, make)
    record_claims(claims, record=True, reference=REFERENCE)


def record_streams(config: DictConfig, tables: Path) -> None:
    """Copy tables and figures of streams to results/reference and write their claims, if asked to.

    Args:
        config: With `record`, `size`, `network` and `workload`.
        tables: Folder of the joint tables and figures of a network's streams.

    Raises:
        ConfigError: Recording was asked for at another size than paper.
    """
    if not is_recorded(config):
        return
    folder = _folder(config)
    _copy([path for path in tables.iterdir() if path.suffix in _KINDS], folder)
    make = ClaimMaker(
        reference=REFERENCE,
        command=stream_command(config),
        data=f"{config.network.data}, {config.workload.name}",
        seeds=tuple(range(int(config.size.precision.headline_seeds))),
        unit="points",
    )
    claims = [
        *stream_claims(folder, make),
        *prediction_claims(folder, replace(make, seeds=())),
    ]
    record_claims(claims, record=True, reference=REFERENCE)


def record_headroom(config: DictConfig, tables: Path) -> None:
    """Copy what adapting can win to results/reference and write its claims, if asked to.

    Args:
        config: With `record`, `size`, `network` and `workload`.
        tables: Folder with `LOADS` of all streams and its figure.

    Raises:
        ConfigError: Recording was asked for at another size than paper.
    """
    if not is_recorded(config):
        return
    folder = _folder(config)
    caption = Path(LOADS_FIGURE).with_suffix(".md").name
    _copy([tables / name for name in (LOADS, LOADS_FIGURE, caption)], folder)
    make = ClaimMaker(
        reference=REFERENCE,
        command=stream_command(config, "headroom"),
        data=f"{config.network.data}, {config.workload.name}",
        unit="points",
    )
    claims = headroom_claims(folder, float(config.workload.load), make)
    record_claims(claims, record=True, reference=REFERENCE)


def _folder(config: DictConfig) -> Path:
    first = (config.bank.levels or [FIRST_LEVELS[config.bank.device]])[0]
    family = gpu_family() if find_level(first).device == "cuda" else kernel_family()
    return REFERENCE / FOLDER / family / str(config.network.name)


def _copy(paths: Iterable[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        shutil.copy2(path, folder / path.name)
