from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import envs
from envs.cluster.config import StreamClusterConfig, default_config
from envs.cluster.env import StreamClusterEnv, StreamClusterVectorEnv
from envs.cluster.reward import RewardWeights
from envs.cluster.viewer import DEPENDENT_COLOUR, INDEPENDENT_COLOUR
from runtime.cluster.actions import ActionCodec, FieldActions, ListedActions, MoveActions
from runtime.plan import PLAN_COLUMNS, Plan, Pools
from runtime.snapshot import REPORT_INDEX, SIGNAL_INDEX

FACES: dict[str, Callable[[], ActionCodec]] = {
    "fields": FieldActions,
    "listed": lambda: ListedActions(
        {
            "slow": Plan(parallelism=1, batch_interval_s=4.0),
            "hard": Plan(pools=Pools.HARD, share=0.6, parallelism=8, batch_interval_s=1.0),
            "soft": Plan(pools=Pools.SOFT, share=0.6, parallelism=8, batch_interval_s=0.5),
        }
    ),
    "moves": lambda: MoveActions(FieldActions()),
}


def _config(face: str = "fields", load: float = 0.6, **changes: Any) -> StreamClusterConfig:
    values = {"actions": FACES[face](), "horizon_s": 40.0, "starts": (0, 1000)} | changes
    return replace(default_config(load), **values)


@cache
def _env(face: str, load: float) -> StreamClusterEnv:
    return StreamClusterEnv(_config(face, load))


def _actions(env: gymnasium.Env[Any, Any], n: int, seed: int = 0) -> list[Any]:
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(n)]


@pytest.mark.parametrize("face", FACES)
def test_the_registered_environment_passes_both_checkers(face: str) -> None:
    # Warnings are errors in this suite.
    env = gymnasium.make(envs.STREAM_CLUSTER, config=_config(face), render_mode="rgb_array")
    check_env(env.unwrapped)
    check_env_sb3(env.unwrapped)
    kind = gymnasium.spaces.MultiDiscrete if face == "fields" else gymnasium.spaces.Discrete
    assert isinstance(env.action_space, kind)


@pytest.mark.parametrize("face", FACES)
def test_two_instances_agree_to_the_last_bit(face: str) -> None:
    one, two = (StreamClusterEnv(_config(face, load=0.8)) for _ in range(2))
    actions = _actions(one, 45)
    first, second = one.reset(seed=11)[0], two.reset(seed=11)[0]
    np.testing.assert_array_equal(first, second)
    for action in actions:
        left, right = one.step(action), two.step(action)
        np.testing.assert_array_equal(left[0], right[0])
        assert left[1:] == right[1:]
        if left[3]:
            np.testing.assert_array_equal(one.reset()[0], two.reset()[0])
    observations = []
    for seed in (11, 12):
        one.reset(seed=seed)
        observations.append(one.step(actions[0])[0])
    assert not np.array_equal(*observations)


def test_episodes_are_truncated_at_the_horizon_and_never_terminated() -> None:
    env = StreamClusterEnv(_config(period_s=3.0, horizon_s=10.0))
    for _ in range(2):
        env.reset(seed=1)
        flags = [env.step(action)[2:4] for action in _actions(env, 4)]
        assert flags == [(False, False)] * 3 + [(False, True)]
        assert env.clusters.engine.signals[0, 0] == 12.0


@pytest.mark.parametrize("face", FACES)
def test_cluster_k_of_many_is_the_one_seeded_with_seed_plus_k(face: str) -> None:
    """Across the end of an episode, whatever the number of clusters."""
    config = _config(face, load=0.8, load_factors=(0.5, 1.0))
    steps = config.steps + 5
    single = [StreamClusterEnv(config) for _ in range(6)]
    actions = np.stack([_actions(env, steps, seed=k) for k, env in enumerate(single)], axis=1)
    for n in (6, 2):
        many = StreamClusterVectorEnv(n, config)
        observation, _ = many.reset(seed=100)
        alone = [env.reset(seed=100 + k)[0] for k, env in enumerate(single[:n])]
        np.testing.assert_array_equal(observation, alone)
        for t in range(steps):
            observation, reward, terminated, truncated, info = many.step(actions[t, :n])
            results = [env.step(actions[t, k]) for k, env in enumerate(single[:n])]
            assert not terminated.any()
            assert truncated.tolist() == [t == config.steps - 1] * n
            assert reward.tolist() == [result[1] for result in results]
            last = np.stack([result[0] for result in results])
            if truncated.all():
                np.testing.assert_array_equal(info["final_obs"], last)
                last = np.stack([env.reset()[0] for env in single[:n]])
            np.testing.assert_array_equal(observation, last)


def test_make_vec_uses_the_compiled_core() -> None:
    many = gymnasium.make_vec(
        envs.STREAM_CLUSTER,
        num_envs=5,
        vectorization_mode="vector_entry_point",
        config=_config("moves"),
    )
    assert isinstance(many, StreamClusterVectorEnv)
    assert many.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observation, _ = many.reset(seed=3)
    assert many.observation_space.contains(observation)
    assert many.action_space.contains(many.action_space.sample())
    assert np.asarray(many.step(many.action_space.sample())[1]).shape == (5,)
    # One seed per cluster, or one for some: the others go on with theirs.
    given_seeds, _ = many.reset(seed=[3, 4, 5, 6, 7])
    np.testing.assert_array_equal(given_seeds, observation)
    keys = many.clusters.keys.copy()
    many.reset(seed=[3, None, None, None, None])
    assert (many.clusters.keys == keys).tolist() == [True, False, False, False, False]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(FACES)),
    st.sampled_from([0.02, 0.7, 3.0]),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 10**9), min_size=20, max_size=20),
)
def test_observations_stay_in_the_box(face: str, load: float, seed: int, draws: list[int]) -> None:
    env = _env(face, load)
    nvec = np.array(env.config.actions.nvec)
    observation, _ = env.reset(seed=seed)
    for draw in draws:
        assert env.observation_space.contains(observation)
        choice = np.array([draw // 7**i for i in range(len(nvec))]) % nvec
        observation, reward, _, _, info = env.step(choice if len(nvec) > 1 else int(choice[0]))
        assert np.isfinite(reward)
        assert reward <= 0.0
        assert reward == pytest.approx(sum(info["terms"].values()))
    assert env.observation_space.contains(observation)


def _record_times_s(env: StreamClusterEnv) -> NDArray[np.float64]:
    """Return when each record of the episode arrives: spread evenly over its tick."""
    counts = env.clusters.counts()[0]
    ticks = [tick + (np.arange(n) + 0.5) / n for tick, n in enumerate(counts) if n]
    return np.concatenate(ticks) * env.config.arrivals.tick_s


def _run(env: StreamClusterEnv, seed: int) -> tuple[dict[str, float], NDArray[np.float64]]:
    """Run an episode; return the sum of each term and all reports."""
    env.reset(seed=seed)
    totals: dict[str, float] = {}
    reports = []
    for action in _actions(env, env.config.steps, seed):
        terms = env.step(action)[4]["terms"]
        totals = {name: totals.get(name, 0.0) + value for name, value in terms.items()}
        reports.append(env.clusters.engine.report_rows(0))
    return totals, np.concatenate(reports)


@pytest.mark.parametrize("load", [0.5, 1.5])
def test_the_reward_sums_record_latencies(load: float) -> None:
    """By Little's law: the integral of records in the system is the sum of their times in it."""
    env = StreamClusterEnv(_config(load=load, horizon_s=120.0))
    totals, reports = _run(env, 5)
    end_s = env.config.steps * env.config.period_s
    times_s = _record_times_s(env)
    left_s = np.full(len(times_s), end_s)
    for row in reports:
        first, n = int(row[REPORT_INDEX["first_record"]]), int(row[REPORT_INDEX["records"]])
        left_s[first : first + n] = row[REPORT_INDEX["end_s"]]
    inside = times_s <= end_s
    expected = (left_s - times_s)[inside].sum()
    unit = env.config.capacity_per_s * env.config.period_s
    assert totals["latency"] == pytest.approx(-expected / unit, rel=1e-9)
    assert totals["failure"] == totals["busy"] == totals["change"] == 0.0


def test_optional_terms_count_failures_busy_slots_and_changes() -> None:
    plain = _config(horizon_s=60.0)
    costs = {
        key: replace(cost, failure_probability=0.2) for key, cost in plain.profile.costs.items()
    }
    weights = RewardWeights(latency=0.0, failure=2.0, busy=3.0, change=0.5, latency_cap_s=10.0)
    profile = replace(plain.profile, costs=costs)
    env = StreamClusterEnv(replace(plain, profile=profile, reward=weights))
    totals, reports = _run(env, 7)
    failed = reports[reports[:, REPORT_INDEX["failed_jobs"]] > 0, REPORT_INDEX["records"]].sum()
    assert failed > 0
    unit = env.config.capacity_per_s * env.config.period_s
    assert totals["failure"] == pytest.approx(-2.0 * 10.0 * failed / unit)
    # Busy slots are counted when a task starts or runs, reports when a batch ends.
    busy_s = reports[:, [REPORT_INDEX["busy_independent_s"], REPORT_INDEX["busy_dependent_s"]]]
    capacity_s = env.config.slots * env.config.period_s
    assert totals["busy"] <= -3.0 * busy_s.sum() / capacity_s + 1e-9
    assert totals["busy"] >= -3.0 * env.config.steps
    assert totals["latency"] == 0.0
    # A change is a plan other than the one in force, whatever the action was called.
    env.reset(seed=1)
    action = np.array([0, 0, 0, 0, 2, 3, 0])
    changes = [env.step(action)[4]["terms"]["change"] for _ in range(3)]
    assert changes == [-0.5, 0.0, 0.0]
    action[1] = 5  # a single pool has no share
    assert env.step(action)[4]["terms"]["change"] == 0.0


def test_guards_speak_in_the_info() -> None:
    limits = replace(_config().guards, parallelism=3)
    env = StreamClusterEnv(_config(guards=limits))
    env.reset(seed=1)
    assert env.step(np.array([0, 0, 0, 0, 0, 0, 0]))[4]["causes"] == []
    assert env.step(np.array([0, 0, 0, 0, 7, 0, 0]))[4]["causes"] == ["BOUNDS"]
    assert env.clusters.plans[0, PLAN_COLUMNS.index("parallelism")] == 3.0


def test_masks_follow_the_plan_in_force() -> None:
    env = StreamClusterEnv(_config("moves"))
    env.reset(seed=1)
    names = env.config.actions.names
    assert env.action_masks().dtype == np.bool_
    # A single pool at P = 4 and 2 s: no share to move.
    off = {name for name, on in zip(names, env.action_masks(), strict=True) if not on}
    assert off == {"share_down", "share_up"}
    for _ in range(12):
        env.step(names.index("interval_s_down"))
    off = {name for name, on in zip(names, env.action_masks(), strict=True) if not on}
    assert off == {"share_down", "share_up", "interval_s_down"}
    assert env.clusters.plans[0, PLAN_COLUMNS.index("batch_interval_s")] == 0.1
    many = StreamClusterVectorEnv(3, _config("fields"))
    many.reset(seed=1)
    assert many.action_masks().shape == (3, sum(many.config.actions.nvec))
    assert many.action_masks().all()


def _has(pixels: NDArray[np.uint8], colour: str) -> bool:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((pixels == rgb).all(axis=-1).any())


def test_render_draws_both_pools_and_follows_the_engine_to_the_bit() -> None:
    env = StreamClusterEnv(_config(), render_mode="rgb_array")
    env.reset(seed=2)
    empty = env.render()
    assert empty is not None
    for action in _actions(env, 6):
        env.step(action)
    pixels = env.render()
    assert pixels is not None
    assert (pixels.dtype, pixels.shape) == (np.uint8, empty.shape)
    assert pixels.shape[2] == 3
    assert _has(pixels, INDEPENDENT_COLOUR)
    assert _has(pixels, DEPENDENT_COLOUR)
    assert not np.array_equal(pixels, empty)
    assert env._shadow is not None
    known = slice(0, SIGNAL_INDEX["system_record_s"] + 1)
    np.testing.assert_array_equal(env._shadow.signals[known], env.clusters.engine.signals[0, known])
    assert StreamClusterEnv(_config()).render() is None


def test_other_render_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="render_mode is 'human'"):
        StreamClusterEnv(render_mode="human")
    with pytest.raises(ValueError, match="render one StreamClusterEnv"):
        StreamClusterVectorEnv(2, render_mode="rgb_array")


def test_impossible_times_are_refused() -> None:
    for changes, message in (
        ({"period_s": 50.0}, "0 < period_s <= horizon_s"),
        ({"starts": (5, 3)}, "0 <= first <= last tick"),
    ):
        with pytest.raises(ValueError, match=message):
            _config(**changes)
