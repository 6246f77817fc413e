"""The reward of a stream cluster, as named terms of what a snapshot reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from envs.weights import refuse_negative
from runtime.snapshot import SIGNAL_INDEX

_INDEPENDENT, _DEPENDENT = SIGNAL_INDEX["busy_independent_s"], SIGNAL_INDEX["busy_dependent_s"]
_SYSTEM = SIGNAL_INDEX["system_record_s"]
_FAILED = SIGNAL_INDEX["records_failed"]


@dataclass(frozen=True)
class RewardWeights:
    """Weights of the terms, each >= 0.

    Attributes:
        latency: Of the integral of records in the system over the period, divided by
            (capacity * period): by Little's law seconds of record latency, at full load.
        failure: Of failed records at the latency cap, in the same unit.
        busy: Of busy slots over slots, mean over the period (the part of energy that plans move).
        change: Of a change of plan.
        latency_cap_s: Latency at which a failed record is counted, seconds.
    """

    latency: float = 1.0
    failure: float = 1.0
    busy: float = 0.0
    change: float = 0.0
    latency_cap_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse negative weights.

        Raises:
            ValueError: Names the weight.
        """
        refuse_negative(asdict(self))


class ClusterReward:
    """Computes the terms of N clusters from their snapshots."""

    def __init__(
        self, weights: RewardWeights, capacity_per_s: float, slots: int, period_s: float
    ) -> None:
        """Keep the units.

        Args:
            weights: Weights of the terms.
            capacity_per_s: Records per second that make a load of 1.
            slots: Worker slots.
            period_s: Time between decisions, seconds.
        """
        self.weights = weights
        self._per_record_s = 1.0 / (capacity_per_s * period_s)
        self._per_busy_s = 1.0 / (slots * period_s)

    def terms(
        self,
        signals: NDArray[np.float64],
        failed_before: NDArray[np.float64],
        changed: NDArray[np.bool_],
    ) -> dict[str, NDArray[np.float64]]:
        """Return the terms, each float64 [N] and <= 0; the reward is their sum.

        Args:
            signals: float64 [N, len(SIGNALS)] at the end of the period.
            failed_before: float64 [N], `records_failed` at its beginning.
            changed: bool [N], whether the plan changed at its beginning.
        """
        weights = self.weights
        failed = (signals[:, _FAILED] - failed_before) * weights.latency_cap_s
        busy_s = signals[:, _INDEPENDENT] + signals[:, _DEPENDENT]
        return {
            "latency": -weights.latency * self._per_record_s * signals[:, _SYSTEM],
            "failure": -weights.failure * self._per_record_s * failed,
            "busy": -weights.busy * self._per_busy_s * busy_s,
            "change": np.where(changed, -weights.change, 0.0),
        }
