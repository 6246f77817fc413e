"""Preparing the variants of a bank: capture widths, calibrate, quantise, with what is cached."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx

from runtime.precision import machine
from runtime.precision.calibration import Calibration, calibrate, data_key
from runtime.precision.kernels import Int8Weights
from runtime.precision.levels import Level, find_levels, real_levels, require_runnable
from runtime.precision.lowering import Borders, LoweredStage, layers_of, rounded_weights
from runtime.precision.staging import StagedNetwork, WidthError, fingerprint
from runtime.precision.variant_cache import VariantCache

Graphs = dict[tuple[int, float], fx.GraphModule]
Variants = dict[tuple[int, int], LoweredStage]
Refusals = dict[tuple[int, int], str]


@dataclass(frozen=True)
class BankOptions:
    """What a bank offers.

    Attributes:
        levels: Names, or levels of your own; None: those of fp32, bf16 and int8 that this machine's
            processor can run.
        buckets: Batch sizes that are run as they are.
        percentile: Of calibration, see `calibration.calibrate`.
        rest: Type in which stages of 8 bits compute what are not layers: bf16, fp32, or auto, which
            is bf16 on a GPU or a processor with AMX and fp32 on others. Without AMX both take the
            same time (measured: transformer of width 192, batch 1 and 16), so the exacter one is
            taken.
        cache: Folder of the variant cache, or None.
    """

    levels: tuple[str | Level, ...] | None = None
    buckets: tuple[int, ...] = (1, 2, 4, 8, 16, 64)
    percentile: float = 100.0
    rest: str = "auto"
    cache: Path | None = None

    def __post_init__(self) -> None:
        """Refuse options that mean nothing.

        Raises:
            ValueError: Buckets or `rest` out of range.
        """
        if not self.buckets or min(self.buckets) < 1:
            raise ValueError(f"buckets {self.buckets} given; expected batch sizes of at least 1")
        if self.rest not in ("auto", "bf16", "fp32"):
            raise ValueError(f"rest is {self.rest!r}; expected auto, bf16 or fp32")

    def found_levels(self) -> tuple[Level, ...]:
        """Return the levels that `levels` means on this machine.

        Raises:
            ValueError: A name is unknown or given twice.
        """
        if self.levels is not None:
            return find_levels(self.levels)
        whole = (level for level in real_levels() if level.width == 1.0)
        return tuple(level for level in whole if level.device == "cpu")

    def sorted_buckets(self) -> tuple[int, ...]:
        """Return the buckets in order, each once."""
        return tuple(sorted(set(self.buckets)))

    def rest_type(self, on: str) -> torch.dtype:
        """Return the type that `rest` means on a device of this machine, see `Level.device`."""
        slow = on == "cpu" and not machine.has_matrix_units()
        wide = self.rest == "fp32" or (self.rest == "auto" and slow)
        return torch.float32 if wide else torch.bfloat16


def build_variants(
    network: StagedNetwork, data: Tensor, options: BankOptions
) -> tuple[tuple[Level, ...], Calibration, Variants, Refusals]:
    """Prepare every stage for every level.

    Returns:
        Levels, calibration, variants by (stage, level), and why those that are missing are.

    Raises:
        ValueError: See `Bank`.
    """
    levels = options.found_levels()
    require_runnable(levels)
    graphs, refusals = _widths(network, levels)
    cache = None if options.cache is None else VariantCache(options.cache)
    prints = {key: fingerprint(graph) for key, graph in graphs.items()}
    calibration = _calibration(network, data, options, graphs, prints, cache)
    variants: Variants = {}
    for k in range(len(network.stages)):
        borders = Borders(calibration.borders[k], calibration.borders[k + 1])
        for at, level in enumerate(levels):
            if (k, at) in refusals:
                continue
            key = (k, level.width)
            ranges = calibration.ranges[key]
            if level.kind == "fp16" and (reason := _beyond_fp16(ranges)):
                refusals[k, at] = reason
                continue
            weights = None
            if level.bits <= 8 and cache is not None:
                weights = _rounded_weights(graphs[key], level, prints[key], cache)
            rest = options.rest_type(level.device)
            variants[k, at] = LoweredStage(graphs[key], level, ranges, borders, rest, weights)
    return levels, calibration, variants, refusals


def _widths(network: StagedNetwork, levels: tuple[Level, ...]) -> tuple[Graphs, Refusals]:
    graphs: Graphs = {(k, 1.0): stage.graph for k, stage in enumerate(network.stages)}
    refusals: Refusals = {}
    for at, level in enumerate(levels):
        for k, stage in enumerate(network.stages):
            try:
                if (k, level.width) not in graphs:
                    graphs[k, level.width] = stage.narrowed(level.width)
            except WidthError as error:
                refusals[k, at] = str(error)
        if all((k, at) in refusals for k in range(len(network.stages))):
            raise ValueError(
                f"no stage can run at level {level.name!r}: {refusals[0, at]}; leave the level out"
            )
    return graphs, refusals


def _beyond_fp16(ranges: Mapping[str, tuple[float, float]]) -> str:
    """Return why a stage's values do not fit fp16, or nothing if they do."""
    top = torch.finfo(torch.float16).max
    for name, (low, high) in ranges.items():
        if max(-low, high) > top:
            found = f"{low:.3g} to {high:.3g}"
            return f"tensor {name!r} reaches from {found}; fp16 ends at {top:.0f}, bf16 does not"
    return ""


def _environment() -> dict[str, str]:
    return {"torch": torch.__version__, "instructions": machine.instruction_set()}


def _calibration(
    network: StagedNetwork,
    data: Tensor,
    options: BankOptions,
    graphs: Graphs,
    prints: Mapping[tuple[int, float], str],
    cache: VariantCache | None,
) -> Calibration:
    if cache is None:
        return calibrate(network, data, options.percentile, graphs)
    whole = hashlib.sha256("".join(f"{k} {p};" for k, p in sorted(prints.items())).encode())
    key = {
        "what": "calibration",
        "weights": whole.hexdigest(),
        "data": data_key(data, options.percentile),
        **_environment(),
    }
    known = cache.load(key)
    if known is not None:
        return Calibration.from_tensors(known, key["data"])
    calibration = calibrate(network, data, options.percentile, graphs)
    cache.store(key, calibration.to_tensors())
    return calibration


def _rounded_weights(
    graph: fx.GraphModule, level: Level, print_: str, cache: VariantCache
) -> dict[str, Int8Weights]:
    """Return weights of a graph's layers in 8 bits from the cache, made and kept if missing."""
    bits = machine.weight_bits(level)
    key = {"what": "weights", "weights": print_, "bits": str(bits), "level": level.name}
    key |= _environment()
    known = cache.load(key)
    if known is None:
        made = rounded_weights(graph, level)
        stored = {f"{name}.integers": w.integers for name, w in made.items()}
        stored |= {f"{name}.scales": w.scales for name, w in made.items()}
        cache.store(key, stored)
        return made
    return {
        name: Int8Weights(layer, known[f"{name}.integers"], known[f"{name}.scales"], bits)
        for name, layer in layers_of(graph).items()
    }
