"""A declared model of power, shared by the metrics of all domains."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class EnergyModel:
    """Power of a machine: a constant part and one per busy slot. A model, not a meter.

    Attributes:
        name: What figures made with it are labelled with.
        idle_w: Power with no slot busy, watts.
        active_w_per_slot: Additional power of each busy slot, watts.
    """

    name: str
    idle_w: float
    active_w_per_slot: float

    def __post_init__(self) -> None:
        """Refuse negative powers.

        Raises:
            ValueError: Names the field.
        """
        for field in ("idle_w", "active_w_per_slot"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= 0.0):
                raise ValueError(f"{field} is {value}; expected finite watts >= 0")

    def energy_j(self, duration_s: float, busy_slot_s: float) -> float:
        """Return the energy of a stretch of time, joules.

        Args:
            duration_s: Its length.
            busy_slot_s: Slot-seconds used in it.
        """
        return self.idle_w * duration_s + self.active_w_per_slot * busy_slot_s
