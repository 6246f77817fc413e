"""Stable-Baselines3's view of N simulated worlds that advance by one compiled call."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from envs.cluster.clusters import Clusters
from envs.cluster.config import StreamClusterConfig
from envs.faces import Core, spaces_of

Stepped = tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_]]
"""Observations float32 [N, size], rewards float64 [N], and which episodes are over, bool [N]."""


class CompiledVecEnv(VecEnv):
    """N simulated worlds; a domain adds how they advance and how episodes begin anew.

    World k with seed s has the trajectory of a single environment seeded s + k. Reported returns
    are sums of the domain's own reward, whatever the learner is shown.
    """

    render_mode = None

    def __init__(self, core: Core) -> None:
        """Show a core to the library.

        Args:
            core: The N worlds.
        """
        n_envs = core.n
        self._actions = np.zeros((n_envs, len(core.config.actions.nvec)), dtype=np.int64)
        self._rngs = [seeding.np_random(None)[0] for _ in range(n_envs)]
        self._returns = np.zeros(n_envs)
        self._lengths = np.zeros(n_envs, dtype=np.int64)
        self._start_s = time.monotonic()
        self._core = core
        super().__init__(n_envs, *spaces_of(core))

    @abstractmethod
    def advance(self, actions: NDArray[np.int64]) -> Stepped:
        """Take actions, int64 [N, dims], in every world."""

    @abstractmethod
    def restart(self, over: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Begin new episodes where they are over, bool [N]; observations float32 [N, size]."""

    @abstractmethod
    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions are worth taking now, bool [N, sum(nvec)]."""

    def shown(self, reward: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what the learner gets for a reward, float64 [N]."""
        return reward

    def numbers(self) -> dict[str, float]:
        """Return what the adapter itself has learned, by name: logged and kept in checkpoints."""
        return {}

    def restore(self, numbers: dict[str, float]) -> None:
        """Go on from the `numbers` of a checkpoint."""

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed world k with seed + k; takes effect at the next reset."""
        if seed is not None:
            self._rngs = [seeding.np_random(seed + k)[0] for k in range(self.num_envs)]
        return [None if seed is None else seed + k for k in range(self.num_envs)]

    def reset(self) -> NDArray[np.float32]:
        """Start an episode everywhere; observations float32 [N, size]."""
        self._returns[:] = 0.0
        self._lengths[:] = 0
        return self._core.reset(self._rngs)

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Keep the actions, int64 [N, dims] (or [N] for a Discrete space)."""
        self._actions = actions.reshape(self.num_envs, -1)

    def step_wait(
        self,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Advance by one decision; see `stable_baselines3.common.vec_env.VecEnv`."""
        observation, reward, over = self.advance(self._actions)
        self._returns += reward
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if over.any():
            self._conclude(np.flatnonzero(over).tolist(), observation, infos)
            observation = self.restart(over)
        return observation, self.shown(reward).astype(np.float32), over, infos

    def _conclude(
        self, over: list[int], observation: NDArray[np.float32], infos: list[dict[str, Any]]
    ) -> None:
        """Say in the infos what became of the episodes that are over: all were cut short."""
        elapsed_s = round(time.monotonic() - self._start_s, 6)
        for k in over:
            infos[k]["terminal_observation"] = observation[k]
            infos[k]["TimeLimit.truncated"] = True
            length = int(self._lengths[k])
            infos[k]["episode"] = {"r": float(self._returns[k]), "l": length, "t": elapsed_s}
        self._returns[over] = 0.0
        self._lengths[over] = 0

    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of the adapter once per chosen world."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the adapter."""
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method; only `action_masks` makes sense for single worlds."""
        if method_name != "action_masks":
            raise AttributeError(f"simulated worlds have no method {method_name!r} of their own")
        masks = self.action_masks()
        return [masks[k] for k in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Return False throughout: single worlds are never wrapped."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return nothing to draw; render one single environment instead."""
        return [None] * self.num_envs

    def _get_indices(self, indices: Any) -> Iterable[int]:
        return range(self.num_envs) if indices is None else np.atleast_1d(indices).tolist()


class ClusterVecEnv(CompiledVecEnv):
    """N stream clusters: the same core as `envs.cluster.env.StreamClusterVectorEnv`."""

    def __init__(self, config: StreamClusterConfig, n_envs: int, log_scale_s: float = 0.0) -> None:
        """Build the clusters.

        Args:
            config: The simulated world.
            n_envs: Number of clusters N.
            log_scale_s: Above 0, the learner gets -log(1 - reward / log_scale_s) instead of the
                reward: a relative saving then counts the same in quiet and in crowded times,
                which would otherwise drown all others. Reported returns keep the true reward.
        """
        self._log_scale_s = log_scale_s
        self.clusters = Clusters(config, n_envs)
        super().__init__(self.clusters)

    def advance(self, actions: NDArray[np.int64]) -> Stepped:
        """Advance by one period; all clusters reach the horizon at once."""
        observation, reward, over = self.clusters.step(actions)
        return observation, reward, np.full(self.num_envs, over)

    def restart(self, over: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Start an episode everywhere."""
        return self.clusters.reset(self._rngs)

    def shown(self, reward: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the reward, or its logarithm."""
        if self._log_scale_s > 0.0:
            return np.asarray(-np.log1p(np.maximum(-reward, 0.0) / self._log_scale_s))
        return reward

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions are worth taking now, bool [N, sum(nvec)]."""
        return self.clusters.config.actions.masks(self.clusters.plans)
