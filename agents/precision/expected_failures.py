"""What requests lose whatever an agent decides: taken from rewards, it leaves less noise to learn.

How often a request is answered wrongly depends far more on the request than on the levels. Its
mean over all assignments does not depend on decisions, so subtracting it changes no policy's rank,
but most of the noise goes: an input-driven baseline (Mao et al., "Variance Reduction for
Reinforcement Learning in Input-Driven Environments", ICLR 2019), here inside the reward, for
learners of values too. Tried on the synthetic bank, stream "both", 400,000 decisions, one seed,
with the mean over the tables on offer in place of all assignments: PPO's effective accuracy on
training streams rose from 0.925 to 0.943.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from envs.precision.servers import Servers
from simulators.precision.requests import requests_of
from simulators.precision.workload import Segments


class ExpectedFailures:
    """Counts the expected failures of the requests that leave simulated servers.

    It looks at the true answers, so it is for training alone.
    """

    def __init__(self, servers: Servers) -> None:
        """Average over all assignments.

        Args:
            servers: Whose requests are counted; `begin` must be told of each new episode.
        """
        profile = servers.config.profile
        self._servers = servers
        self._wrong = (profile.label != profile.truth).mean(axis=1)  # [C, samples]
        self._until = [np.zeros(1) for _ in range(servers.n)]  # sums over a stream's first requests
        self._heads = np.zeros(servers.n, dtype=np.int64)

    def begin(self, which: NDArray[np.int64]) -> None:
        """Look at the streams that some servers (int64 [M]) have just begun."""
        servers, config = self._servers, self._servers.config
        keys, counts = servers.keys[which], servers.counts(which)
        segments = config.workload.conditions.segments(keys, config.horizon_s)
        tick_s, n_samples = config.workload.arrivals.tick_s, self._wrong.shape[1]
        for i, server in enumerate(which.tolist()):
            own = Segments(segments.start_s[i : i + 1], segments.condition[i : i + 1])
            requests = requests_of(keys[i], counts[i], tick_s, own, n_samples)
            wrong = self._wrong[requests.condition, requests.sample]
            self._until[server] = np.concatenate([[0.0], np.cumsum(wrong)])
        self._heads[which] = self._now()[which]

    def of_last_step(self) -> NDArray[np.float64]:
        """Return the sum over requests that left since the last call or `begin`, float64 [N]."""
        now = self._now()
        pairs = zip(self._until, self._heads.tolist(), now.tolist(), strict=True)
        result = np.array([until[after] - until[before] for until, before, after in pairs])
        self._heads = now
        return result

    def _now(self) -> NDArray[np.int64]:
        """Return how many requests of each server have been served or dropped, int64 [N]."""
        heads: NDArray[np.int64] = self._servers.engine.state.server["head"][:, 0].copy()
        return heads
