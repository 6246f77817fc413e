"""Stable-Baselines3's view of N simulated clusters."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from envs.cluster.clusters import Clusters
from envs.cluster.config import StreamClusterConfig
from envs.cluster.env import spaces_of


class ClusterVecEnv(VecEnv):
    """N stream clusters advanced by one compiled call.

    The same core as `envs.cluster.env.StreamClusterVectorEnv`: cluster k with seed s has the
    trajectory of a single environment seeded s + k.
    """

    render_mode = None

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
        self._actions = np.zeros((n_envs, len(config.actions.nvec)), dtype=np.int64)
        self._rngs = [seeding.np_random(None)[0] for _ in range(n_envs)]
        self._returns = np.zeros(n_envs)
        self._start_s = time.monotonic()
        super().__init__(n_envs, *spaces_of(self.clusters))

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed cluster k with seed + k; takes effect at the next reset."""
        if seed is not None:
            self._rngs = [seeding.np_random(seed + k)[0] for k in range(self.num_envs)]
        return [None if seed is None else seed + k for k in range(self.num_envs)]

    def reset(self) -> NDArray[np.float32]:
        """Start an episode everywhere; observations float32 [N, size]."""
        self._returns[:] = 0.0
        return self.clusters.reset(self._rngs)

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Keep the actions, int64 [N, dims] (or [N] for a Discrete space)."""
        self._actions = actions.reshape(self.num_envs, -1)

    def step_wait(
        self,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Advance by one period; see `stable_baselines3.common.vec_env.VecEnv`."""
        observation, reward, over = self.clusters.step(self._actions)
        self._returns += reward
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if over:
            elapsed_s = round(time.monotonic() - self._start_s, 6)
            for k, info in enumerate(infos):
                info["terminal_observation"] = observation[k]
                info["TimeLimit.truncated"] = True
                length = self.clusters.config.steps
                info["episode"] = {"r": float(self._returns[k]), "l": length, "t": elapsed_s}
            observation = self.reset()
        if self._log_scale_s > 0.0:
            reward = -np.log1p(np.maximum(-reward, 0.0) / self._log_scale_s)
        return observation, reward.astype(np.float32), np.full(self.num_envs, over), infos

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions are worth taking now, bool [N, sum(nvec)]."""
        return self.clusters.config.actions.masks(self.clusters.plans)

    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of the adapter once per chosen cluster."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the adapter."""
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method; only `action_masks` makes sense for single clusters."""
        if method_name != "action_masks":
            raise AttributeError(f"stream clusters have no method {method_name!r} of their own")
        masks = self.action_masks()
        return [masks[k] for k in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Return False throughout: single clusters are never wrapped."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """Return nothing to draw; render one `StreamClusterEnv` instead."""
        return [None] * self.num_envs

    def _get_indices(self, indices: Any) -> Iterable[int]:
        return range(self.num_envs) if indices is None else np.atleast_1d(indices).tolist()
