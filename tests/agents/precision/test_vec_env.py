from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.precision.vec_env import MULTIPLIER, PrecisionVecEnv
from envs.precision.config import StagedPrecisionConfig
from envs.precision.env import StagedPrecisionVectorEnv
from envs.precision.reward import PrecisionWeights


def test_adapter_is_the_vector_face(world: StagedPrecisionConfig) -> None:
    short = replace(world, horizon_s=0.5)
    ours, theirs = StagedPrecisionVectorEnv(3, short), PrecisionVecEnv(short, 3)
    theirs.seed(7)
    np.testing.assert_array_equal(ours.reset(seed=7)[0], theirs.reset())
    rng = np.random.default_rng(0)
    returns, lengths = np.zeros(3), np.zeros(3)
    ended_apart = False
    for _ in range(300):
        actions = rng.integers(0, short.actions.nvec, size=(3, len(short.actions.nvec)))
        seen, reward, _, truncated, info = ours.step(actions)
        theirs.step_async(actions)
        seen_2, reward_2, done, infos = theirs.step_wait()
        np.testing.assert_array_equal(seen, seen_2)
        np.testing.assert_allclose(reward, reward_2, rtol=1e-6)
        np.testing.assert_array_equal(truncated, done)
        returns += reward
        lengths += 1
        for k in range(3):
            assert ("episode" in infos[k]) == done[k]
            if done[k]:
                assert infos[k]["TimeLimit.truncated"]
                np.testing.assert_array_equal(
                    infos[k]["terminal_observation"], info["final_obs"][k]
                )
                assert infos[k]["episode"]["l"] == lengths[k]
                np.testing.assert_allclose(infos[k]["episode"]["r"], returns[k])
                returns[k] = lengths[k] = 0.0
        ended_apart |= bool(done.any() and not done.all())
    assert ended_apart, "servers that always end together test nothing"


def test_multiplier_climbs_with_the_cost_and_weighs_it(world: StagedPrecisionConfig) -> None:
    floored = replace(world, reward=PrecisionWeights(accuracy_floor=0.97))
    plain, priced = PrecisionVecEnv(floored, 4), PrecisionVecEnv(floored, 4, multiplier_rate=2.0)
    for env in (plain, priced):
        env.seed(1)
        env.reset()
    multiplier = 0.0
    actions = np.full((4, len(floored.actions.nvec)), 3)  # the coarsest levels break the floor
    for _ in range(50):
        for env in (plain, priced):
            env.step_async(actions)
        _, reward, _, _ = plain.step_wait()
        _, shown, _, _ = priced.step_wait()
        cost = plain.servers.cost
        expected = (reward - multiplier * cost) / (1.0 + multiplier)
        np.testing.assert_allclose(shown, expected, rtol=1e-5, atol=1e-6)
        multiplier = max(multiplier + 2.0 * float(cost.mean()), 0.0)
        assert priced.multiplier == pytest.approx(multiplier)
    assert multiplier > 0.0
    assert priced.numbers() == {MULTIPLIER: priced.multiplier}
    assert plain.numbers() == {}


def test_multiplier_never_falls_below_zero(world: StagedPrecisionConfig) -> None:
    easy = replace(world, reward=PrecisionWeights(accuracy_floor=0.01))
    env = PrecisionVecEnv(easy, 2, multiplier_rate=5.0)
    env.seed(1)
    env.reset()
    for _ in range(20):
        env.step_async(np.zeros((2, len(easy.actions.nvec)), dtype=np.int64))
        env.step_wait()
        assert env.multiplier == 0.0


@pytest.mark.parametrize(
    ("rate", "floor", "message"),
    [(-1.0, 0.9, "expected a number >= 0"), (0.1, 0.0, "needs an accuracy floor")],
)
def test_impossible_multipliers_are_refused(
    world: StagedPrecisionConfig, rate: float, floor: float, message: str
) -> None:
    floored = replace(world, reward=PrecisionWeights(accuracy_floor=floor))
    with pytest.raises(ValueError, match=message):
        PrecisionVecEnv(floored, 2, rate)


def test_expected_failures_are_those_of_the_requests_that_left(
    world: StagedPrecisionConfig,
) -> None:
    short = replace(world, horizon_s=0.5)
    plain, quiet = PrecisionVecEnv(short, 3), PrecisionVecEnv(short, 3, less_noise=True)
    profile = short.profile
    wrong = (profile.label != profile.truth).mean(axis=1)
    for env in (plain, quiet):
        env.seed(5)
        env.reset()
    rng = np.random.default_rng(1)
    actions, ended = rng.integers(0, short.actions.nvec, size=(200, 3, len(short.actions.nvec))), 0
    seen_requests = 0
    for chosen in actions:
        requests = plain.servers.engine.state.request.copy()
        for env in (plain, quiet):
            env.step_async(chosen)
        first, reward, over, _ = plain.step_wait()
        second, shown, _, _ = quiet.step_wait()
        np.testing.assert_array_equal(first, second)
        reports = plain.servers.engine.reports
        for k in np.flatnonzero(~over):
            # Dropped requests were never drawn here: compare steps without them.
            served, dropped = int(reports[k, 2]), int(reports[k, 11])
            own = requests[k, :served]
            expected = wrong[own["condition"], own["sample"]].sum() / short.serving.max_batch
            if dropped == 0:
                assert shown[k] - reward[k] == pytest.approx(expected, abs=1e-5)
                seen_requests += served
        ended += int(over.sum())
    assert ended > 3
    assert seen_requests > 500


def test_leaving_out_expected_failures_lowers_the_noise(
    world: StagedPrecisionConfig,
) -> None:
    spread = {}
    for less_noise in (False, True):
        env = PrecisionVecEnv(replace(world, horizon_s=1e3), 16, less_noise=less_noise)
        env.seed(2)
        env.reset()
        env.step_async(np.full((16, len(world.actions.nvec)), 3))  # fast: nothing is late
        spread[less_noise] = np.std([env.step_wait()[1] for _ in range(200)])
    assert spread[True] < 0.8 * spread[False]
