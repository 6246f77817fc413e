"""The reward of a precision server, as named terms of what its last batch reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.precision.snapshot import REPORT_INDEX
from simulators.energy import EnergyModel

_REQUESTS, _DROPPED = REPORT_INDEX["requests"], REPORT_INDEX["dropped"]
_CORRECT, _IN_TIME = REPORT_INDEX["correct"], REPORT_INDEX["correct_in_time"]
_MEAN_ARRIVAL, _START, _END = (
    REPORT_INDEX[name] for name in ("mean_arrival_s", "start_s", "end_s")
)
_SWITCHED = REPORT_INDEX["switched"]


@dataclass(frozen=True)
class PrecisionWeights:
    """Weights of the terms, each >= 0; units make a full batch count about 1.

    Attributes:
        effective_accuracy: Of requests that were not answered correctly within the deadline
            (wrong, late or dropped), over the largest batch.
        latency: Of the latencies of the requests in units of the deadline (dropped ones count
            one deadline), over the largest batch.
        energy: Of the energy since the last decision, in units of what the server draws at work
            in one deadline.
        switching: Of each stage whose level changes.
        accuracy_floor: Accuracy that served requests shall reach, in [0, 1]; it is no term of the
            reward but a cost, (floor * served - correct) / largest batch, that shall not be
            positive on average: `info["cost"]`, for a Lagrange multiplier.
    """

    effective_accuracy: float = 1.0
    latency: float = 0.0
    energy: float = 0.0
    switching: float = 0.0
    accuracy_floor: float = 0.0

    def __post_init__(self) -> None:
        """Refuse negative weights.

        Raises:
            ValueError: Names the weight.
        """
        for name, value in asdict(self).items():
            if not value >= 0.0:
                raise ValueError(f"reward {name} is {value}; expected a number >= 0")
        if self.accuracy_floor > 1.0:
            raise ValueError(f"reward accuracy_floor is {self.accuracy_floor}; expected [0, 1]")


class PrecisionReward:
    """Computes the terms of N servers from the reports of their last batches."""

    def __init__(
        self, weights: PrecisionWeights, deadline_s: float, max_batch: int, energy: EnergyModel
    ) -> None:
        """Keep the units.

        Args:
            weights: Weights of the terms.
            deadline_s: Deadline of a request, seconds.
            max_batch: Largest batch.
            energy: Power model; the bank is one slot.
        """
        self.weights, self._deadline_s = weights, deadline_s
        self._per_request = 1.0 / max_batch
        self._energy = energy
        full_j = energy.energy_j(deadline_s, deadline_s)
        self._per_joule = 1.0 / full_j if full_j > 0.0 else 0.0

    def terms(
        self, reports: NDArray[np.float64], elapsed_s: NDArray[np.float64]
    ) -> dict[str, NDArray[np.float64]]:
        """Return the terms, each float64 [N] and <= 0; the reward is their sum.

        Args:
            reports: float64 [N, len(REPORT_COLUMNS)], of the batches just served.
            elapsed_s: float64 [N], from the last decision to this one, seconds.
        """
        weights = self.weights
        served, dropped = reports[:, _REQUESTS], reports[:, _DROPPED]
        failed = served + dropped - reports[:, _IN_TIME]
        latency_s = served * (reports[:, _END] - reports[:, _MEAN_ARRIVAL])
        waits = latency_s / self._deadline_s + dropped
        busy_s = reports[:, _END] - reports[:, _START]
        energy_j = self._energy.idle_w * elapsed_s + self._energy.active_w_per_slot * busy_s
        return {
            "effective_accuracy": -weights.effective_accuracy * self._per_request * failed,
            "latency": -weights.latency * self._per_request * waits,
            "energy": -weights.energy * self._per_joule * energy_j,
            "switching": -weights.switching * reports[:, _SWITCHED],
        }

    def cost(self, reports: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the constraint's cost, float64 [N]: above 0 where accuracy is below the floor."""
        short = self.weights.accuracy_floor * reports[:, _REQUESTS] - reports[:, _CORRECT]
        return np.asarray(self._per_request * short)
