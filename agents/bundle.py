"""Exported policies deciding for many simulated clusters at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.cluster.clusters import Clusters
from runtime.networks import Preferred
from runtime.plan import Plan
from runtime.policy import Bundle


class BundleBatch:
    """A bundle that decides for N simulated clusters: what is compared is what is deployed."""

    def __init__(self, bundle: Bundle) -> None:
        """Keep the bundle."""
        self._bundle = bundle
        self._preferred = Preferred(bundle.actions.nvec)

    def begin(self, clusters: Clusters) -> None:
        """Check that the bundle was made for such clusters.

        Raises:
            ValueError: Its observations are normalised by other numbers.
        """
        scale = clusters.codec.scale
        if isinstance(self._bundle.policy, Plan) or scale == self._bundle.scale:
            self._clusters = clusters
            return
        raise ValueError(
            f"bundle {self._bundle.name!r} was made for {self._bundle.scale}, the cluster has "
            f"{scale}; train and export an agent for this cluster"
        )

    def propose(
        self, observation: NDArray[np.float32], signals: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the plans of the most preferred actions; see `agents.api.BatchAgent`."""
        policy = self._bundle.policy
        if isinstance(policy, Plan):
            return np.tile(policy.to_row(), (len(observation), 1))
        choice = self._preferred.rows(policy(observation))
        return self._bundle.actions.decode(choice, self._clusters.plans)
