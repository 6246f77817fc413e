"""Gymnasium faces of the stream cluster."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.cluster.clusters import Clusters
from envs.cluster.config import StreamClusterConfig, default_config
from envs.cluster.viewer import draw_gantt
from runtime.guards import Cause
from runtime.plan import Plan
from runtime.snapshot import Report
from simulators.cluster.reference import ReferenceCluster

Observation = NDArray[np.float32]
_RENDER_FPS = 2


def spaces_of(
    clusters: Clusters,
) -> tuple[gymnasium.Space[Observation], gymnasium.Space[Any]]:
    """Return observation and action space of one cluster."""
    nvec = clusters.config.actions.nvec
    size = (clusters.codec.size,)
    box: gymnasium.Space[Observation] = gymnasium.spaces.Box(0.0, 1.0, size, np.float32)
    if len(nvec) == 1:
        return box, gymnasium.spaces.Discrete(nvec[0])
    return box, gymnasium.spaces.MultiDiscrete(np.array(nvec))


class StreamClusterEnv(gymnasium.Env[Observation, Any]):
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
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; expected None or 'rgb_array'")
        self.config = config or default_config()
        self.render_mode = render_mode
        self.clusters = Clusters(self.config, 1)
        self.observation_space, self.action_space = spaces_of(self.clusters)
        self._shadow: ReferenceCluster | None = None
        self._reports: list[Report] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see `gymnasium.Env.reset`."""
        super().reset(seed=seed)
        observation = self.clusters.reset([self.np_random])
        if self.render_mode:
            self._shadow, self._reports = self._start_shadow(), []
        return observation[0], {}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Apply an action for one period; see `gymnasium.Env.step`."""
        actions = np.asarray(action, dtype=np.int64).reshape(1, -1)
        observation, reward, truncated = self.clusters.step(actions)
        if self._shadow is not None:
            plan = Plan.from_row(self.clusters.plans[0])
            snapshot = self._shadow.advance(plan, float(self.clusters.engine.signals[0, 0]))
            self._reports += snapshot.reports
        causes = int(self.clusters.causes[0])
        info = {
            "terms": {name: float(term[0]) for name, term in self.clusters.terms.items()},
            "causes": [cause.name for cause in Cause(causes)] if causes else [],
        }
        return observation[0], float(reward[0]), False, truncated, info

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


class StreamClusterVectorEnv(VectorEnv[Observation, Any, Any]):
    """N stream clusters advanced by one call; cluster k is `StreamClusterEnv` seeded seed + k."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

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
        if render_mode is not None:
            raise ValueError("the vector face draws nothing; render one StreamClusterEnv instead")
        self.config = config or default_config()
        self.num_envs = num_envs
        self.render_mode = None
        self.clusters = Clusters(self.config, num_envs)
        self.single_observation_space, self.single_action_space = spaces_of(self.clusters)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rngs: list[np.random.Generator] = []

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode in every cluster; see `gymnasium.vector.VectorEnv.reset`."""
        if isinstance(seed, int):
            seed = [seed + k for k in range(self.num_envs)]
        if seed is not None or not self._rngs:
            seeds = seed if seed is not None else [None] * self.num_envs
            fresh = [None if s is None else seeding.np_random(s)[0] for s in seeds]
            kept = self._rngs or [seeding.np_random(None)[0] for _ in range(self.num_envs)]
            self._rngs = [new or old for new, old in zip(fresh, kept, strict=True)]
        return self.clusters.reset(self._rngs), {}

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
