"""Costs of emulated levels: declared, since rounding in fp32 takes as long as fp32.

A level of b bits is declared to take b / 8 of what its stage takes in int8, and as long as int8 at
its borders: arithmetic whose time is proportional to the bits of a number, as in bit-serial
accelerators (Stripes; Judd et al., MICRO 2016). Its answers are real; its costs never enter a
measured figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.errors import ConfigError
from runtime.precision.bank import Bank
from runtime.precision.levels import Level, find_level
from simulators.precision.fit import LatencyFit


class Costed(NamedTuple):
    """Where the costs of P levels come from.

    Attributes:
        real: int64 [R], the levels that are measured.
        like: int64 [P], place in `real` of the level whose costs count: its own, or int8's.
        share: float64 [P], what of a stage's time at that level counts.
    """

    real: NDArray[np.int64]
    like: NDArray[np.int64]
    share: NDArray[np.float64]


def costed(levels: Sequence[Level]) -> Costed:
    """Return where the costs of some levels come from.

    Raises:
        ValueError: The first level is emulated, or one is and int8 is missing.
    """
    if levels[0].emulated:
        raise ValueError(
            f"the first level, {levels[0].name}, is emulated; expected a real one, which the "
            "others are compared with"
        )
    real = [k for k, level in enumerate(levels) if not level.emulated]
    like = [_like(levels, level) for level in levels]
    share = [level.bits / levels[k].bits for level, k in zip(levels, like, strict=True)]
    return Costed(np.array(real), np.array([real.index(k) for k in like]), np.array(share))


def _like(levels: Sequence[Level], level: Level) -> int:
    if not level.emulated:
        return levels.index(level)
    for k, other in enumerate(levels):
        if (other.kind, other.width, other.device) == ("int8", level.width, level.device):
            return k
    raise ValueError(
        f"level {level.name} is emulated, and its time declared as {level.bits}/8 of int8's; add "
        "int8 to bank.levels"
    )


def with_declared(fit: LatencyFit, bank: Bank) -> LatencyFit:
    """Return a fit to the real levels of a bank as one of all its levels.

    Args:
        fit: Costs at the R real levels.
        bank: With P levels; a stage that lacks an emulated one counts with the next higher level.
    """
    _, like, share = costed(bank.levels)
    stage_s = fit.stage_s[:, like] * share
    for level in np.flatnonzero([level.emulated for level in bank.levels]).tolist():
        for stage in range(len(stage_s)):
            if bank.refusal(stage, level):
                stage_s[stage, level] = stage_s[stage, level - 1]
    return replace(fit, stage_s=stage_s, transition_s=fit.transition_s[:, like][:, :, like])


def names_emulated(assignment: str) -> bool:
    """Return whether the latency of an assignment, as tables have it, is declared.

    Args:
        assignment: Names of levels, joined by "/".
    """
    return bool(emulated_of(assignment.split("/")))


def emulated_of(names: Iterable[str]) -> list[str]:
    """Return the names of emulated levels among those of levels."""
    return [name for name in names if find_level(name).emulated]


def refuse_emulated(names: Iterable[str], what: str) -> None:
    """Refuse emulated levels where time is real.

    Args:
        names: Of levels.
        what: What serves for real.

    Raises:
        ConfigError: Names the first of them.
    """
    for name in emulated_of(names):
        raise ConfigError(
            f"{what} serves in real time, and {name} is emulated: how long it takes says nothing. "
            "Leave it out of bank.levels, or look at it in simulation alone (calibrate, headroom, "
            "train, compare)"
        )
