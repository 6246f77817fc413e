from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.buffers import RolloutBuffer

from agents.precision.discounting import TimedRolloutBuffer
from agents.precision.learned import make_learner, preset_of
from agents.precision.vec_env import PrecisionVecEnv
from envs.precision.config import StagedPrecisionConfig

SPACES = Box(0.0, 1.0, (2,)), Discrete(3)
SMALL = {"n_envs": 4, "n_steps": 8, "batch_size": 32, "n_epochs": 1, "net": (8, 8)}
GAMMA, TRACE = 0.8, 0.6


def fill(
    buffer: RolloutBuffer, rewards: np.ndarray, values: np.ndarray, starts: np.ndarray
) -> None:
    n = rewards.shape[1]
    for reward, value, start in zip(rewards, values, starts, strict=True):
        nothing = np.zeros((n, 2), np.float32), np.zeros(n)
        buffer.add(*nothing, reward, start, torch.as_tensor(value), torch.zeros(n))


def test_a_step_is_discounted_by_the_time_it_took() -> None:
    buffer = TimedRolloutBuffer(2, *SPACES, gamma=GAMMA, gae_lambda=1.0, n_envs=1)
    times = iter([np.array([2.0]), np.array([0.5])])
    buffer.ask = lambda: next(times)
    fill(buffer, np.array([[1.0], [3.0]]), np.zeros((2, 1)), np.zeros((2, 1)))
    buffer.compute_returns_and_advantage(torch.tensor([10.0]), np.array([False]))
    last = 3.0 + GAMMA**0.5 * 10.0
    assert buffer.returns[:, 0] == pytest.approx([1.0 + GAMMA**2 * last, last])


def test_an_end_cuts_off_what_comes_later() -> None:
    buffer = TimedRolloutBuffer(2, *SPACES, gamma=GAMMA, gae_lambda=1.0, n_envs=1)
    buffer.ask = lambda: np.array([1.0])
    fill(buffer, np.array([[1.0], [3.0]]), np.zeros((2, 1)), np.array([[1.0], [1.0]]))
    buffer.compute_returns_and_advantage(torch.tensor([10.0]), np.array([True]))
    assert buffer.returns[:, 0].tolist() == [1.0, 3.0]


def test_steps_of_one_unit_are_what_the_library_computes() -> None:
    rng = np.random.default_rng(0)
    steps, n = 12, 5
    rewards, values = rng.normal(size=(2, steps, n)).astype(np.float32)
    starts = rng.random((steps, n)) < 0.2
    last, dones = torch.as_tensor(rng.normal(size=n).astype(np.float32)), rng.random(n) < 0.5
    arguments = {"gamma": GAMMA, "gae_lambda": TRACE, "n_envs": n}
    theirs = RolloutBuffer(steps, *SPACES, **arguments)
    ours = TimedRolloutBuffer(steps, *SPACES, **arguments)
    ours.ask = lambda: np.ones(n)
    for buffer in (theirs, ours):
        fill(buffer, rewards, values, starts)
        buffer.compute_returns_and_advantage(last, dones)
    np.testing.assert_allclose(ours.returns, theirs.returns, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ppo", "maskable_ppo", "recurrent_ppo"])
def test_learners_discount_by_the_clock_of_their_servers(
    world: StagedPrecisionConfig, name: str
) -> None:
    model = make_learner(name, world, 0, preset_of(name, SMALL))
    model.learn(32)
    worlds = model.get_env().unwrapped  # type: ignore[union-attr]
    assert isinstance(worlds, PrecisionVecEnv)
    elapsed = model.rollout_buffer.elapsed  # type: ignore[attr-defined]
    assert elapsed.shape == (8, 4)
    assert (elapsed > 0.0).all()
    assert len(np.unique(elapsed)) > 8
    now_s = worlds.servers.engine.signals[:, 0]  # no episode has ended so far
    deadline_s = world.serving.deadline_s
    first_s = now_s - elapsed.sum(axis=0, dtype=np.float64) * deadline_s
    assert ((first_s >= -1e-4) & (first_s < now_s)).all()
    np.testing.assert_allclose(elapsed[-1], worlds.elapsed, rtol=1e-6)
