"""What the Gymnasium faces of all domains share: spaces, render modes, seeds, info."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

Observation = NDArray[np.float32]


class Core(Protocol):
    """What faces need of N worlds behind one step function.

    Attributes:
        config: What the worlds consist of; it has `actions`.
        codec: What makes observations; it has a `size`.
        n: Number of worlds N.
        terms: Terms of the last reward by name, each float64 [N].
        causes: int64 [N], why guards changed the last proposals.
    """

    config: Any
    codec: Any
    n: int
    terms: dict[str, NDArray[np.float64]]
    causes: NDArray[np.int64]

    def reset(self, rngs: Sequence[np.random.Generator]) -> Observation:
        """Start an episode in every world; world k draws from `rngs[k]` alone."""


def spaces_of(core: Core) -> tuple[gymnasium.Space[Observation], gymnasium.Space[Any]]:
    """Return observation and action space of one world."""
    nvec = core.config.actions.nvec
    size = (core.codec.size,)
    box: gymnasium.Space[Observation] = gymnasium.spaces.Box(0.0, 1.0, size, np.float32)
    if len(nvec) == 1:
        return box, gymnasium.spaces.Discrete(nvec[0])
    return box, gymnasium.spaces.MultiDiscrete(np.array(nvec))


class SingleFace(gymnasium.Env[Observation, Any]):
    """One world as a Gymnasium environment; a domain adds its step and its picture."""

    def __init__(self, core: Core, render_mode: str | None) -> None:
        """Show a core of one world.

        Args:
            core: The world.
            render_mode: None or "rgb_array".

        Raises:
            ValueError: Another render mode.
        """
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; expected None or 'rgb_array'")
        self.render_mode = render_mode
        self._core = core
        self.observation_space, self.action_space = spaces_of(core)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see `gymnasium.Env.reset`."""
        super().reset(seed=seed)
        return self._core.reset([self.np_random])[0], {}

    def _explain(self, cause: type[IntFlag]) -> dict[str, Any]:
        """Return terms of the last reward and names of the guards' causes, for the info."""
        causes = int(self._core.causes[0])
        return {
            "terms": {name: float(term[0]) for name, term in self._core.terms.items()},
            "causes": [flag.name for flag in cause(causes)] if causes else [],
        }


class VectorFace(VectorEnv[Observation, Any, Any]):
    """N worlds as a Gymnasium vector environment; a domain adds its step."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, core: Core, render_mode: str | None, single: type[SingleFace]) -> None:
        """Show a core of N worlds.

        Args:
            core: The worlds.
            render_mode: Must be None.
            single: The face that can be rendered.

        Raises:
            ValueError: A render mode was asked for.
        """
        if render_mode is not None:
            raise ValueError(f"the vector face draws nothing; render one {single.__name__} instead")
        self.num_envs = core.n
        self.render_mode = None
        self._core = core
        self.single_observation_space, self.single_action_space = spaces_of(core)
        self.observation_space = batch_space(self.single_observation_space, core.n)
        self.action_space = batch_space(self.single_action_space, core.n)
        self._rngs: list[np.random.Generator] = []

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode in every world; see `gymnasium.vector.VectorEnv.reset`."""
        if isinstance(seed, int):
            seed = [seed + k for k in range(self.num_envs)]
        if seed is not None or not self._rngs:
            seeds = seed if seed is not None else [None] * self.num_envs
            fresh = [None if s is None else seeding.np_random(s)[0] for s in seeds]
            kept = self._rngs or [seeding.np_random(None)[0] for _ in range(self.num_envs)]
            self._rngs = [new or old for new, old in zip(fresh, kept, strict=True)]
        return self._core.reset(self._rngs), {}
