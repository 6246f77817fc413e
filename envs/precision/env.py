"""Gymnasium faces of staged precision."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from envs.precision.config import StagedPrecisionConfig, default_config
from envs.precision.servers import Servers
from envs.precision.viewer import Served, draw_levels
from runtime.precision.guards import PrecisionCause
from runtime.precision.snapshot import REPORT_INDEX

Observation = NDArray[np.float32]
_RENDER_FPS = 4
_DRAWN_BATCHES = 120


def spaces_of(
    servers: Servers,
) -> tuple[gymnasium.Space[Observation], gymnasium.Space[Any]]:
    """Return observation and action space of one server."""
    nvec = servers.config.actions.nvec
    size = (servers.codec.size,)
    box: gymnasium.Space[Observation] = gymnasium.spaces.Box(0.0, 1.0, size, np.float32)
    if len(nvec) == 1:
        return box, gymnasium.spaces.Discrete(nvec[0])
    return box, gymnasium.spaces.MultiDiscrete(np.array(nvec))


class StagedPrecisionEnv(gymnasium.Env[Observation, Any]):
    """One simulated server of a staged network whose stages each run at a precision level.

    A step serves one batch: the decision is made when it is about to be dispatched. If no request
    waits, simulated time jumps to the next arrival. Episodes never terminate; they are truncated
    at the first decision at or after the horizon (in simulated seconds), so the number of steps
    depends on arrivals and actions.

    Observation: `Box(0, 1, (size,), float32)`; columns, units and ranges are
    `PrecisionCodec.layout`.

    Action: `config.actions` decides: `MultiDiscrete`, a level for each stage and optionally a
    margin for a second pass (`LevelActions`, the default), or `Discrete` over a list of verified
    tables (`TableActions`). A chain of a single stage has a `Discrete` space too.

    Reward: minus requests that were not answered correctly within the deadline, and optional
    terms; `info["terms"]` holds each (see `PrecisionWeights`), `info["cost"]` the cost of the
    accuracy constraint, `info["causes"]` why guards changed the proposal, and `info["report"]`
    the served batch by name, correctness included.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium's own annotation)
        "render_modes": ["rgb_array"],
        "render_fps": _RENDER_FPS,
    }

    def __init__(
        self, config: StagedPrecisionConfig | None = None, render_mode: str | None = None
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
        self.servers = Servers(self.config, 1)
        self.observation_space, self.action_space = spaces_of(self.servers)
        self._served: list[Served] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see `gymnasium.Env.reset`."""
        super().reset(seed=seed)
        observation = self.servers.reset([self.np_random])
        self._served = []
        return observation[0], {}

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Serve a batch under an action; see `gymnasium.Env.step`."""
        actions = np.asarray(action, dtype=np.int64).reshape(1, -1)
        servers = self.servers
        waiting = float(servers.engine.signals[0, servers.engine.layout.index["waiting"]])
        observation, reward, over = servers.step(actions)
        row = servers.engine.reports[0]
        if self.render_mode:
            self._remember(row, waiting)
        causes = int(servers.causes[0])
        info = {
            "terms": {name: float(term[0]) for name, term in servers.terms.items()},
            "cost": float(servers.cost[0]),
            "causes": [cause.name for cause in PrecisionCause(causes)] if causes else [],
            "report": dict(zip(REPORT_INDEX, row.tolist(), strict=True)),
        }
        return observation[0], float(reward[0]), False, bool(over[0]), info

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions hold the guards' floors now, bool [sum(nvec)]; any may be taken."""
        return np.asarray(self.servers.action_masks()[0])

    def render(self) -> NDArray[np.uint8] | None:
        """Draw the last batches: stages over time coloured by level, queue below.

        Returns:
            uint8 [height, width, 3], or None without a render mode.
        """
        if not self.render_mode:
            return None
        return draw_levels(self.config.profile, self._served)

    def _remember(self, row: NDArray[np.float64], waiting: float) -> None:
        levels = self.servers.plans[0, : len(self.config.profile.stages)]
        start_s, end_s, condition = (
            float(row[REPORT_INDEX[name]]) for name in ("start_s", "end_s", "condition")
        )
        missed = row[REPORT_INDEX["late"]] + row[REPORT_INDEX["dropped"]]
        batch = Served(
            start_s,
            end_s,
            tuple(levels.astype(int).tolist()),
            int(waiting),
            int(missed),
            int(condition),
        )
        self._served = [*self._served[1 - _DRAWN_BATCHES :], batch]


class StagedPrecisionVectorEnv(VectorEnv[Observation, Any, Any]):
    """N servers advanced by one call; server k is `StagedPrecisionEnv` seeded seed + k.

    Servers reach the horizon at different steps. Autoreset is `SAME_STEP`: a server that is
    truncated begins anew in the same step; `info["final_obs"]` holds the last observations,
    float32 [N, size], and `info["_final_obs"]` which of them are final, bool [N].
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        config: StagedPrecisionConfig | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Build the worlds.

        Args:
            num_envs: Number of servers N, at least 1.
            config: What each consists of; None is `default_config()`.
            render_mode: Must be None; render one server with `StagedPrecisionEnv`.

        Raises:
            ValueError: A render mode was asked for.
        """
        if render_mode is not None:
            raise ValueError("the vector face draws nothing; render one StagedPrecisionEnv instead")
        self.config = config or default_config()
        self.num_envs = num_envs
        self.render_mode = None
        self.servers = Servers(self.config, num_envs)
        self.single_observation_space, self.single_action_space = spaces_of(self.servers)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rngs: list[np.random.Generator] = []

    def reset(
        self,
        *,
        seed: int | list[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode in every server; see `gymnasium.vector.VectorEnv.reset`."""
        if isinstance(seed, int):
            seed = [seed + k for k in range(self.num_envs)]
        if seed is not None or not self._rngs:
            seeds = seed if seed is not None else [None] * self.num_envs
            fresh = [None if s is None else seeding.np_random(s)[0] for s in seeds]
            kept = self._rngs or [seeding.np_random(None)[0] for _ in range(self.num_envs)]
            self._rngs = [new or old for new, old in zip(fresh, kept, strict=True)]
        return self.servers.reset(self._rngs), {}

    def step(
        self, actions: Any
    ) -> tuple[
        Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]
    ]:
        """Serve a batch in every server; those at the horizon begin anew in the same step."""
        choice = np.asarray(actions, dtype=np.int64).reshape(self.num_envs, -1)
        servers = self.servers
        observation, reward, over = servers.step(choice)
        info: dict[str, Any] = {
            "terms": servers.terms,
            "cost": servers.cost,
            "report": servers.engine.reports.copy(),
        }
        if over.any():
            info |= {"final_obs": observation, "_final_obs": over}
            observation = servers.reset(self._rngs, np.flatnonzero(over))
        return observation, reward, np.zeros(self.num_envs, dtype=bool), over, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions hold the guards' floors now, bool [N, sum(nvec)]."""
        return self.servers.action_masks()
