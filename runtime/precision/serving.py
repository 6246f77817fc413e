"""How a server treats its requests, simulated or real."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Drop(StrEnum):
    """Which of the requests that wait leave unserved whenever the server is free.

    What is late anyway makes what comes after it late: under a load beyond its capacity a server
    that drops no more than what has expired answers everything just too late, for as long as that
    load lasts. To drop what cannot be answered in time is the "early drop" of Nexus (Shen et al.,
    SOSP 2019), there as here by the measured time of the batch that would be formed. The plan in
    force says how long that takes, so an agent decides with its plans whether to answer less
    accurately or fewer requests, and one that never changes its plan can do what all others can.
    """

    NEVER = "never"
    EXPIRED = "expired"
    """Those whose deadline has passed."""
    LATE = "late"
    """Those too that the plan in force would answer late."""


@dataclass(frozen=True)
class Serving:
    """How one server treats its requests.

    Attributes:
        deadline_s: Latency up to which an answer is in time, seconds > 0.
        max_batch: Largest batch, at most the profile's largest bucket.
        drop: Which requests leave unserved.
        shadow_fraction: Share of the requests that are checked at the reference level, off the
            critical path; 0 checks none.
        shadow_delay_s: Time from the end of a batch until the results of its checks are known.
        shadow_window: Number of checked requests that the estimate looks back on.
        shadow_queue: Batches whose checks may be under way; beyond it checks are skipped.
    """

    deadline_s: float
    max_batch: int
    drop: Drop = Drop.LATE
    shadow_fraction: float = 0.02
    shadow_delay_s: float = 0.1
    shadow_window: int = 128
    shadow_queue: int = 16

    def __post_init__(self) -> None:
        """Refuse rules under which nothing could be served.

        Raises:
            ValueError: Names the field and its range.
        """
        object.__setattr__(self, "drop", Drop(self.drop))
        if not 0.0 < self.deadline_s < math.inf:
            raise ValueError(f"deadline_s is {self.deadline_s}; expected finite seconds > 0")
        if not 0.0 <= self.shadow_fraction <= 1.0:
            raise ValueError(f"shadow_fraction is {self.shadow_fraction}; expected [0, 1]")
        if not 0.0 <= self.shadow_delay_s < math.inf:
            raise ValueError(f"shadow_delay_s is {self.shadow_delay_s}; expected finite seconds")
        for name in ("max_batch", "shadow_window", "shadow_queue"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
