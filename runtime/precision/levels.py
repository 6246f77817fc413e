"""Levels of precision: what they are called, what they mean, and which this machine can run.

This module imports no torch; only asking what the machine can run does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.precision.names import closest

EMULATED = "_emulated"
"""End of the names of emulated levels, which are so marked wherever they appear."""


@dataclass(frozen=True)
class Level:
    """One degree of approximation of a stage.

    Attributes:
        name: What it is called in configurations and tables.
        bits: Bits of a weight, and of an activation between two layers.
        width: Share of a stage's interior that is kept, of its channels or of channels and
            resolution; borders keep their shape.
        emulated: Computed by rounding in fp32: its accuracy is real, its time is not, so it never
            enters a measured latency.
        device: Kind of device it runs on: "cpu" or "cuda".
        number: "fp16" or "fp8" where bits alone would mean bf16 or int8.
    """

    name: str
    bits: int
    width: float = 1.0
    emulated: bool = False
    device: str = "cpu"
    number: str = ""

    def __post_init__(self) -> None:
        """Refuse levels that mean nothing.

        Raises:
            ValueError: Bits, width, device or number out of range, or a name that does not say
                whether the level is emulated.
        """
        if self.emulated != self.name.endswith(EMULATED):
            raise ValueError(
                f"level {self.name!r} {'is' if self.emulated else 'is not'} emulated; expected a "
                f"name that ends in {EMULATED!r} if and only if it is"
            )
        if not 2 <= self.bits <= 32:
            raise ValueError(f"level {self.name!r} has {self.bits} bits; expected 2 to 32")
        if not 0.0 < self.width <= 1.0:
            raise ValueError(
                f"level {self.name!r} keeps a share of {self.width} of the width; "
                "expected more than 0 and at most 1"
            )
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"level {self.name!r} is for {self.device!r}; expected cpu or cuda")
        if self.number and _NUMBERS.get(self.number) != self.bits:
            raise ValueError(
                f"level {self.name!r} has numbers {self.number!r} of {self.bits} bits; expected "
                "fp16 of 16 or fp8 of 8"
            )

    @property
    def kind(self) -> str:
        """How it is computed: fp32, fp16, bf16, int8, fp8 or emulated."""
        if self.emulated:
            return "emulated"
        return self.number or {32: "fp32", 16: "bf16", 8: "int8"}.get(self.bits, "unknown")


_NUMBERS = {"fp16": 16, "fp8": 8}

LEVELS = (
    Level("fp32", 32),
    Level("bf16", 16),
    Level("int8", 8),
    Level("int8_half", 8, width=0.5),
    Level("int8_quarter", 8, width=0.25),
    Level("int8_sixteenth", 8, width=0.0625),
    Level("int6_emulated", 6, emulated=True),
    Level("int4_emulated", 4, emulated=True),
    Level("cuda_fp32", 32, device="cuda"),
    Level("cuda_fp16", 16, device="cuda", number="fp16"),
    Level("cuda_bf16", 16, device="cuda"),
    Level("cuda_int8", 8, device="cuda"),
    Level("cuda_fp8", 8, device="cuda", number="fp8"),
    Level("cuda_int8_half", 8, width=0.5, device="cuda"),
    Level("cuda_int8_quarter", 8, width=0.25, device="cuda"),
    Level("cuda_int8_sixteenth", 8, width=0.0625, device="cuda"),
)
"""All levels, those of each device highest first."""


def find_level(name: str) -> Level:
    """Return the level of that name.

    Raises:
        ValueError: There is none; the message lists all and names the closest.
    """
    by_name = {level.name: level for level in LEVELS}
    if name not in by_name:
        known = ", ".join(by_name)
        raise ValueError(f"no level {name!r}; expected of {known}{closest(name, by_name)}")
    return by_name[name]


def find_levels(names: Sequence[str | Level]) -> tuple[Level, ...]:
    """Return levels in the order given, names looked up and levels taken as they are.

    Raises:
        ValueError: None or an unknown name given, or one given twice.
    """
    levels = tuple(n if isinstance(n, Level) else find_level(n) for n in names)
    if not levels:
        raise ValueError("no levels given; give at least one, for example ('fp32', 'int8')")
    seen = [level.name for level in levels]
    twice = {name for name in seen if seen.count(name) > 1}
    if twice:
        raise ValueError(f"levels given twice: {', '.join(sorted(twice))}; give each once")
    return levels


def refusals(levels: Sequence[Level] = LEVELS) -> Mapping[str, str]:
    """Return why this machine cannot run them, by name, for those levels that it cannot run.

    The first call runs small self-tests of the private torch operators that the levels are made
    of, against fp32 (well under a second).
    """
    # Imported late: simulators use this module and must stay free of torch.
    from runtime.precision import machine

    reasons = {level.name: machine.refusal(level.kind, level.device) for level in levels}
    return {name: reason for name, reason in reasons.items() if reason}


def runnable_levels() -> tuple[Level, ...]:
    """Return the levels that this machine can run, in the order of `LEVELS`."""
    refused = refusals()
    return tuple(level for level in LEVELS if level.name not in refused)


def real_levels() -> tuple[Level, ...]:
    """Return the levels that this machine can run with kernels of their own, as `LEVELS` orders."""
    return tuple(level for level in runnable_levels() if not level.emulated)


def require_runnable(levels: Sequence[Level]) -> None:
    """Refuse levels that this machine cannot run.

    Raises:
        ValueError: Names the first of them, the reason, and what can be run.
    """
    refused = refusals(levels)
    for level in levels:
        if level.name in refused:
            can = ", ".join(other.name for other in runnable_levels())
            raise ValueError(
                f"this machine cannot run level {level.name!r}: {refused[level.name]}; "
                f"it can run {can}"
            )
