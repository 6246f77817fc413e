"""Exported policies deciding for many simulated servers at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.precision.servers import Servers
from runtime.networks import Preferred
from runtime.precision.observation import PrecisionCodec
from runtime.precision.plan import PrecisionPlan
from runtime.precision.policy import PrecisionBundle


class BundleStreams:
    """A bundle that decides for N simulated servers: what is compared is what is deployed.

    A `PrecisionBatchAgent`. Like the deployed policy it encodes the signals itself, normalised as
    in training: a world with another profile of the same bank may normalise differently.
    """

    observes = False

    def __init__(self, bundle: PrecisionBundle) -> None:
        """Keep the bundle."""
        self._bundle = bundle
        self._preferred = Preferred(bundle.actions.nvec)

    @property
    def decides(self) -> bool:
        """Whether it looks at what happens; see `agents.precision.api.decides`."""
        return self._bundle.decides

    def begin(self, servers: Servers) -> None:
        """Forget the past and check that the bundle was made for such servers.

        Raises:
            ValueError: The servers have other stages, levels or signals.
        """
        bundle, profile = self._bundle, servers.config.profile
        own = (bundle.stages, bundle.levels, bundle.scale.properties)
        theirs = (tuple(profile.stages), tuple(profile.levels), profile.property_names)
        if own != theirs:
            raise ValueError(
                f"bundle {bundle.name!r} was made for stages, levels and properties {own}; the "
                f"server has {theirs}; train and export an agent for this bank"
            )
        self._servers = servers
        self._codec = PrecisionCodec(bundle.scale, servers.n)
        self._guards = bundle.guarded() if bundle.masked else None
        policy = bundle.policy
        self._state = None if isinstance(policy, PrecisionPlan) else policy.start(servers.n)

    def propose(
        self, observation: NDArray[np.float32], signals: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the plans of the most preferred actions; see `agents.deciders.BatchDecider`."""
        bundle, policy, plans = self._bundle, self._bundle.policy, self._servers.plans
        if isinstance(policy, PrecisionPlan):
            return np.tile(policy.to_row(), (len(signals), 1))
        preferences, self._state = policy.advance(self._codec.encode(signals), self._state)
        if self._guards is not None:
            masks = self._guards.masks(bundle.actions, plans, signals)
            preferences = np.where(masks, preferences, np.float32(-np.inf))
        return bundle.actions.decode(self._preferred.rows(preferences), plans)
