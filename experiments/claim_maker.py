"""Claims of one reproduction: what they have in common is said once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from experiments.claims import Claim
from experiments.files import file_sha256
from experiments.provenance import machine_summary
from experiments.statistics import Estimate


@dataclass(frozen=True)
class ClaimMaker:
    """Makes claims from estimates.

    Attributes:
        reference: Folder that sources are relative to.
        command: What reproduces the figures.
        data: The traces or data sets behind them.
        seeds: The seeds behind them.
        unit: Of the figures.
        reasons: Why aims were missed, by claim.
    """

    reference: Path
    command: str
    data: str
    seeds: tuple[int, ...] = ()
    unit: str = "%"
    reasons: Mapping[str, str] = field(default_factory=dict)

    def __call__(
        self,
        identity: str,
        what: str,
        value: Estimate | float,
        source: str,
        aim: str | None = None,
        why: str = "",
    ) -> Claim:
        """Return a claim of today and of this machine.

        Args:
            identity: See `Claim.id`.
            what: What was measured.
            value: The figure, with its interval where it has one.
            source: The table behind it, relative to `reference`.
            aim: What was aimed at.
            why: Why the aim was missed, where `reasons` says nothing; kept only if it was.
        """
        if not isinstance(value, Estimate):
            value = Estimate(float(value), float("nan"), float("nan"))
        finite = bool(np.isfinite(value.low))
        claim = Claim(
            id=identity,
            what=what,
            value=value.value,
            low=value.low if finite else None,
            high=value.high if finite else None,
            unit=self.unit,
            aim=aim,
            why=self.reasons.get(identity, why),
            command=self.command,
            seeds=self.seeds,
            data=self.data,
            machine=machine_summary(),
            date=datetime.now(UTC).date().isoformat(),
            source=source,
            source_sha256=file_sha256(self.reference / source),
        )
        return claim if claim.met is False else replace(claim, why="")
