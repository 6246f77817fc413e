"""Workloads of the configuration (conf/workload/*.yaml): when records arrive.

A workload is split by time into an earlier part (tune and train there) and a later one (report
there). A load refers to the capacity of the cluster that it is offered to.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from experiments.cli import CONF
from experiments.errors import ConfigError, unknown_name
from experiments.schema import plain_node, read_node
from simulators.arrivals import ArrivalProcess, PoissonArrivals
from simulators.rate_factors import (
    FlashCrowds,
    GammaBursts,
    MarkovLevels,
    RateFactor,
    Sine,
    Steps,
)
from simulators.replay import TrailingLoad, replay_at_load
from simulators.traces import (
    EventTrace,
    RateTrace,
    read_alibaba_genai_2026,
    read_azure_llm_2023,
    read_worldcup98,
)

READERS: dict[str, Callable[[Path | None], RateTrace | EventTrace]] = {
    "worldcup98": read_worldcup98,
    "azure_llm_2023": read_azure_llm_2023,
    "alibaba_genai_2026": read_alibaba_genai_2026,
}
FACTORS: dict[str, type[RateFactor]] = {
    "flash_crowds": FlashCrowds,
    "gamma_bursts": GammaBursts,
    "markov_levels": MarkovLevels,
    "sine": Sine,
    "steps": Steps,
}


class Part(Enum):
    """A part of a workload's time."""

    TRAIN = "train"
    HELD_OUT = "held_out"


class Stretch(NamedTuple):
    """Arrivals and the ticks of them that an episode may use.

    Attributes:
        arrivals: The process, at the load asked for.
        first_tick: First tick of the part.
        end_tick: Tick after its last one.
    """

    arrivals: ArrivalProcess
    first_tick: int
    end_tick: int


@dataclass(frozen=True)
class Workload(ABC):
    """What all kinds of workloads have in common.

    Attributes:
        name: What it is called in tables.
        kind: Key in `KINDS`.
        load: Mean arrival rate over the capacity of the cluster, above 0.
        tick_s: Length of a tick of the arrivals, seconds.
        train_fraction: Share of the time that is the earlier part, in (0, 1).
        load_factors: Every training episode draws one and multiplies its rate by it.
        factors: What makes the rate vary (see `FACTORS`), each {kind: ..., ...}.
    """

    name: str
    kind: str
    load: float
    tick_s: float
    train_fraction: float
    load_factors: list[float] = field(default_factory=lambda: [1.0])
    factors: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse loads, fractions and factors out of range."""
        if not (math.isfinite(self.load) and self.load > 0.0):
            raise ValueError(f"load is {self.load}; expected a number above 0")
        if not 0.0 < self.train_fraction < 1.0:
            raise ValueError(f"train_fraction is {self.train_fraction}; expected one in (0, 1)")
        if not self.load_factors or not all(
            math.isfinite(x) and x > 0.0 for x in self.load_factors
        ):
            raise ValueError(f"load_factors is {self.load_factors}; expected numbers above 0")

    @abstractmethod
    def stretch(self, part: Part, capacity_per_s: float, data_root: Path | None) -> Stretch:
        """Return a part of the workload at its load.

        Args:
            part: Which part.
            capacity_per_s: What a load of 1 means, records per second.
            data_root: Folder of measured traces, None if there is none.
        """

    def rate_factors(self) -> tuple[RateFactor, ...]:
        """Build the factors.

        Raises:
            ConfigError: An unknown kind or key, or a value out of range.
        """
        return tuple(
            _rate_factor(node, f"workload.factors[{i}]") for i, node in enumerate(self.factors)
        )


@dataclass(frozen=True)
class SyntheticWorkload(Workload):
    """A Poisson process with factors.

    Attributes:
        span_s: Time that is split into the two parts, seconds. The process never ends, and every
            episode has its own key; the parts only keep training from ever seeing what is reported.
    """

    span_s: float = 200_000.0

    def stretch(self, part: Part, capacity_per_s: float, data_root: Path | None) -> Stretch:
        """Return the process and the ticks of a part; see `Workload.stretch`."""
        arrivals = PoissonArrivals(self.tick_s, self.load * capacity_per_s, self.rate_factors())
        end = int(self.span_s / self.tick_s)
        cut = round(self.train_fraction * end)
        return Stretch(arrivals, *((0, cut) if part is Part.TRAIN else (cut, end)))


@dataclass(frozen=True)
class TraceReplay:
    """How a measured trace is replayed.

    Attributes:
        reader: Key in `READERS`.
        interval_s: Seconds of simulation per interval of the trace.
        window: Intervals of the trailing mean that the load refers to.
        bin_s: Length of an interval in seconds of the trace, for traces of single arrivals.
    """

    reader: str
    interval_s: float
    window: int
    bin_s: float | None = None


@dataclass(frozen=True)
class TraceWorkload(Workload):
    """A measured trace, rescaled by a trailing mean to the load.

    Attributes:
        trace: How it is replayed.
        fallback: Synthetic workload that stands in where there is no data root; None: an error.
    """

    trace: TraceReplay = field(default_factory=lambda: TraceReplay("???", 1.0, 1))
    fallback: str | None = None

    def stretch(self, part: Part, capacity_per_s: float, data_root: Path | None) -> Stretch:
        """Return the replay of a part; the held-out one knows its past. See `Workload.stretch`.

        Raises:
            ConfigError: An unknown reader, or a bin length that does not fit the trace.
            DataRootError: No data root, or no such file in it.
            TraceError: A part is not longer than the window.
        """
        window = self.trace.window
        train, held_out = self._rates(data_root).split(self.train_fraction, lead_in=window)
        replay = replay_at_load(
            train if part is Part.TRAIN else held_out,
            self.tick_s,
            self.trace.interval_s,
            TrailingLoad(self.load, capacity_per_s, window),
            self.rate_factors(),
        )
        return Stretch(replay, 0, replay.length_ticks)

    def _rates(self, data_root: Path | None) -> RateTrace:
        trace, bin_s = _read_trace(self.trace.reader, data_root), self.trace.bin_s
        if isinstance(trace, EventTrace):
            if bin_s is None:
                raise ConfigError(
                    f"workload.trace.bin_s is null, but {trace.name} is a trace of single "
                    "arrivals; give the seconds of the trace that make an interval"
                )
            return trace.binned(bin_s)
        if bin_s is not None:
            raise ConfigError(
                f"workload.trace.bin_s is {bin_s}, but {trace.name} is a trace of counts per "
                f"{trace.interval_s:g} s; set it to null"
            )
        return trace


KINDS: dict[str, type[Workload]] = {"synthetic": SyntheticWorkload, "trace": TraceWorkload}


def read_workload(node: Any) -> Workload:
    """Build the workload that a configuration's `workload` node describes.

    Raises:
        ConfigError: An unknown kind or key, a missing key, or a value out of range.
    """
    plain = plain_node(node, "workload")
    kind = str(plain.get("kind"))
    if kind not in KINDS:
        raise unknown_name("workload.kind", kind, KINDS)
    workload = read_node(KINDS[kind], plain, "workload")
    workload.rate_factors()
    return workload


def shipped_workload(name: str) -> dict[str, Any]:
    """Return the content of a file of conf/workload.

    Raises:
        ConfigError: There is no such file.
    """
    folder = CONF / "workload"
    known = [path.stem for path in folder.glob("*.yaml")]
    if name not in known:
        raise unknown_name("workload", name, known)
    return plain_node(OmegaConf.load(folder / f"{name}.yaml"), name)


@lru_cache(maxsize=4)
def _read_trace(reader: str, data_root: Path | None) -> RateTrace | EventTrace:
    if reader not in READERS:
        raise unknown_name("workload.trace.reader", reader, READERS)
    return READERS[reader](data_root)


def _rate_factor(node: Any, where: str) -> RateFactor:
    if not isinstance(node, Mapping):
        raise ConfigError(f"{where} is {node!r}; expected keys with values")
    kind = str(node.get("kind"))
    if kind not in FACTORS:
        raise unknown_name(f"{where}.kind", kind, FACTORS)
    values = {key: value for key, value in node.items() if key != "kind"}
    return read_node(FACTORS[kind], values, where)
