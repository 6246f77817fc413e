"""How a server treats its requests, simulated or real."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Serving:
    """How one server treats its requests.

    Attributes:
        deadline_s: Latency up to which an answer is in time, seconds > 0.
        max_batch: Largest batch, at most the profile's largest bucket.
        drop_expired: Whether requests whose deadline has passed leave unserved.
        shadow_fraction: Share of the requests that are checked at the reference level, off the
            critical path; 0 checks none.
        shadow_delay_s: Time from the end of a batch until the results of its checks are known.
        shadow_window: Number of checked requests that the estimate looks back on.
        shadow_queue: Batches whose checks may be under way; beyond it checks are skipped.
    """

    deadline_s: float
    max_batch: int
    drop_expired: bool = True
    shadow_fraction: float = 0.02
    shadow_delay_s: float = 0.1
    shadow_window: int = 128
    shadow_queue: int = 16

    def __post_init__(self) -> None:
        """Refuse rules under which nothing could be served.

        Raises:
            ValueError: Names the field and its range.
        """
        if not 0.0 < self.deadline_s < math.inf:
            raise ValueError(f"deadline_s is {self.deadline_s}; expected finite seconds > 0")
        if not 0.0 <= self.shadow_fraction <= 1.0:
            raise ValueError(f"shadow_fraction is {self.shadow_fraction}; expected [0, 1]")
        if not 0.0 <= self.shadow_delay_s < math.inf:
            raise ValueError(f"shadow_delay_s is {self.shadow_delay_s}; expected finite seconds")
        for name in ("max_batch", "shadow_window", "shadow_queue"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
