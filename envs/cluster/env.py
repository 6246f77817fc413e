"""Gymnasium faces of the stream cluster."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.cluster.clusters import Clusters
from envs.cluster.config import StreamClusterConfig, default_config
from envs.cluster.viewer import draw_gantt
from envs.faces import Observation, SingleFace, VectorFace, spaces_of
from runtime.guards import Cause
from runtime.plan import Plan
from runtime.snapshot import Report
from simulators.cluster.reference import ReferenceCluster

__all__ = ["Observation", "StreamClusterEnv", "StreamClusterVectorEnv", "spaces_of"]

_RENDER_FPS = 2


class StreamClusterEnv(SingleFace):
    """One simulated stream cluster.

    A decision is due every `config.period_s` simulated seconds. Episodes never terminate; they
    are truncated at the horizon.

    Observation: `Box(0, 1, (34,), float32)`; columns, units and ranges are
    `ClusterCodec.layout`.

    Action: `config.actions` decides: `MultiDiscrete` over pools, share, independent policy,
    dependent policy, parallelism, batch interval and idle trigger (`FieldActions`, the default),
    or `Discrete` over a list of plans (`ListedActions`) or of moves (`MoveActions`).

    Reward: minus the integral of records in the system, and optional terms; `info["terms"]` holds
    each (see `RewardWeights`).
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's own annotation)
        "render_modes": ["rgb_array"],
        "render_fps": _RENDER_FPS,
    }

    def __init__(
        self, config: StreamClusterConfig | None = None, render_mode: str | None = None
    ) -> None:
        """Build the world.

        Args:
            config: What it consists of; None is `default_config()`.
            render_mode: None or "rgb_array".

        Raises:
            ValueError: Another render mode.
        """
        self.config = config or default_config()
        self.clusters = Clusters(self.config, 1)
        super().__init__(self.clusters, render_mode)
        self._shadow: ReferenceCluster | None = None
        self._reports: list[Report] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see `gymnasium.Env.reset`."""
        started = super().reset(seed=seed, options=options)
        if self.render_mode:
            self._shadow, self._reports = self._start_shadow(), []
        return started

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Apply an action for one period; see `gymnasium.Env.step`."""
        actions = np.asarray(action, dtype=np.int64).reshape(1, -1)
        observation, reward, truncated = self.clusters.step(actions)
        if self._shadow is not None:
            plan = Plan.from_row(self.clusters.plans[0])
            snapshot = self._shadow.advance(plan, float(self.clusters.engine.signals[0, 0]))
            self._reports += snapshot.reports
        return observation[0], float(reward[0]), False, truncated, self._explain(Cause)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions are worth taking now, bool [sum(nvec)]; any may be taken."""
        masks = self.config.actions.masks(self.clusters.plans)
        return np.asarray(masks[0])

    def render(self) -> NDArray[np.uint8] | None:
        """Draw the last periods: slots over time, pools in two hues, queue below.

        Returns:
            uint8 [height, width, 3], or None without a render mode.
        """
        if self._shadow is None:
            return None
        return draw_gantt(self._shadow, self._reports, 4.0 * self.config.period_s)

    def _start_shadow(self) -> ReferenceCluster:
        """Return an oracle of the running episode: it logs tasks, which the engine does not."""
        config, clusters = self.config, self.clusters
        shadow = ReferenceCluster(
            config.application, config.profile, config.slots, max_open=config.max_open
        )
        counts = clusters.counts()[0]
        shadow.reset(int(clusters.keys[0]), counts, config.arrivals.tick_s, config.initial_plan)
        return shadow


class StreamClusterVectorEnv(VectorFace):
    """N stream clusters advanced by one call; cluster k is `StreamClusterEnv` seeded seed + k."""

    def __init__(
        self,
        num_envs: int = 1,
        config: StreamClusterConfig | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Build the worlds.

        Args:
            num_envs: Number of clusters N, at least 1.
            config: What each consists of; None is `default_config()`.
            render_mode: Must be None; render one cluster with `StreamClusterEnv`.

        Raises:
            ValueError: A render mode was asked for.
        """
        self.config = config or default_config()
        self.clusters = Clusters(self.config, num_envs)
        super().__init__(self.clusters, render_mode, StreamClusterEnv)

    def step(
        self, actions: Any
    ) -> tuple[
        Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
    ]:
        """Apply one action per cluster; at the horizon all begin anew in the same step."""
        choice = np.asarray(actions, dtype=np.int64).reshape(self.num_envs, -1)
        observation, reward, over = self.clusters.step(choice)
        info: dict[str, Any] = {"terms": self.clusters.terms}
        if over:
            everywhere = np.ones(self.num_envs, dtype=bool)
            info |= {"final_obs": observation, "_final_obs": everywhere}
            observation = self.clusters.reset(self._rngs)
        none = np.zeros(self.num_envs, dtype=bool)
        return observation, reward, none, np.full(self.num_envs, over), info

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions are worth taking now, bool [N, sum(nvec)]."""
        return self.config.actions.masks(self.clusters.plans)
