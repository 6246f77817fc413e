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
from envs.precision.config import StagedPrecisionConfig, precision_config
from envs.precision.env import StagedPrecisionEnv, StagedPrecisionVectorEnv
from envs.precision.reward import PrecisionWeights
from envs.precision.viewer import CORRUPTED_COLOUR, level_colours
from runtime.precision.actions import ActionCodec, LevelActions, TableActions
from runtime.precision.guard_tables import PrecisionLimits
from runtime.precision.plan import PrecisionPlan, assignment_index
from runtime.precision.snapshot import REPORT_INDEX
from simulators.precision.profile import PrecisionProfile
from simulators.precision.reference import ReferenceServer
from simulators.precision.synthetic import SyntheticParameters, synthetic_profile
from simulators.precision.workload import Stream

TABLES = {
    "fine": PrecisionPlan((1, 1, 1, 1)),
    "int8": PrecisionPlan((2, 2, 2, 2)),
    "half": PrecisionPlan((3, 3, 3, 3)),
    "cascade": PrecisionPlan((3, 3, 3, 3), 0.4, (1, 1, 1, 1)),
}
FACES: dict[str, Callable[[], ActionCodec]] = {
    "levels": lambda: LevelActions(4, 4),
    "cascade": lambda: LevelActions(4, 4, (0.0, 0.3), (1, 1, 1, 1)),
    "tables": lambda: TableActions(TABLES),
}


@cache
def _profile() -> PrecisionProfile:
    return synthetic_profile(SyntheticParameters(samples=128))


def _config(face: str = "levels", load: float = 0.6, **changes: Any) -> StagedPrecisionConfig:
    stream = changes.pop("stream", Stream.BOTH)
    values = {"actions": FACES[face](), "horizon_s": 3.0, "starts": (0, 1000)} | changes
    return replace(precision_config(_profile(), stream, load), **values)


@cache
def _env(face: str, load: float) -> StagedPrecisionEnv:
    return StagedPrecisionEnv(_config(face, load))


def _actions(env: gymnasium.Env[Any, Any], n: int, seed: int = 0) -> list[Any]:
    env.action_space.seed(seed)
    return [env.action_space.sample() for _ in range(n)]


@pytest.mark.parametrize("face", FACES)
def test_the_registered_environment_passes_both_checkers(face: str) -> None:
    # Warnings are errors in this suite.
    env = gymnasium.make(envs.STAGED_PRECISION, config=_config(face), render_mode="rgb_array")
    check_env(env.unwrapped)
    check_env_sb3(env.unwrapped)
    kind = gymnasium.spaces.Discrete if face == "tables" else gymnasium.spaces.MultiDiscrete
    assert isinstance(env.action_space, kind)


def test_every_registered_environment_has_such_a_test() -> None:
    ours = {name for name in gymnasium.registry if name.startswith("rheostat/")}
    assert ours == {envs.STREAM_CLUSTER, envs.STAGED_PRECISION}


def test_the_default_environment_needs_no_measurement() -> None:
    env = gymnasium.make("rheostat/StagedPrecision-v0")
    observation, _ = env.reset(seed=1)
    assert env.observation_space.contains(observation)
    assert env.unwrapped.config.profile.origin == "synthetic"  # type: ignore[attr-defined]


@pytest.mark.parametrize("face", FACES)
def test_two_instances_agree_to_the_last_bit(face: str) -> None:
    one, two = (StagedPrecisionEnv(_config(face, load=0.8, horizon_s=0.5)) for _ in range(2))
    actions = _actions(one, 250)
    np.testing.assert_array_equal(one.reset(seed=11)[0], two.reset(seed=11)[0])
    truncated = 0
    for action in actions:
        left, right = one.step(action), two.step(action)
        np.testing.assert_array_equal(left[0], right[0])
        assert left[1:] == right[1:]
        if left[3]:
            truncated += 1
            np.testing.assert_array_equal(one.reset()[0], two.reset()[0])
    assert truncated > 0
    observations = []
    for seed in (11, 12):
        one.reset(seed=seed)
        observations.append(one.step(actions[0])[0])
    assert not np.array_equal(*observations)


def test_episodes_are_truncated_at_the_horizon_and_never_terminated() -> None:
    env = StagedPrecisionEnv(_config(load=0.3))
    env.reset(seed=1)
    times_s = []
    while True:
        observation, _, terminated, truncated, _ = env.step(np.array([2, 2, 2, 2]))
        times_s.append(env.servers.engine.signals[0, 0])
        assert not terminated
        assert env.observation_space.contains(observation)
        if truncated:
            break
    assert times_s[-1] >= 3.0
    assert all(t < 3.0 for t in times_s[:-1])
    assert (np.diff(times_s) > 0).all()


def test_time_jumps_over_idle_stretches_and_every_step_serves() -> None:
    env = StagedPrecisionEnv(_config(load=0.002, stream=Stream.STEADY, horizon_s=30.0))
    env.reset(seed=4)
    while True:
        before_s, batch = env.servers.engine.signals[0, [0, 7]]
        assert batch >= 1
        *_, truncated, info = env.step(np.array([2, 2, 2, 2]))
        assert info["report"]["requests"] == batch
        assert info["report"]["start_s"] == before_s
        if truncated:
            break
    # A few requests in half a minute, and no more steps than requests.
    assert info["report"]["batch"] < 150
    assert env.servers.engine.signals[0, 0] >= 30.0


@pytest.mark.parametrize("face", FACES)
def test_server_k_of_many_is_the_one_seeded_with_seed_plus_k(face: str) -> None:
    """Across ends of episodes that come at different steps, whatever the number of servers."""
    limits = PrecisionLimits(dwell_s=0.05)
    config = _config(face, load=0.75, load_factors=(0.3, 1.0), horizon_s=0.5, guards=limits)
    steps = 160
    single = [StagedPrecisionEnv(config) for _ in range(5)]
    actions = np.stack([_actions(env, steps, seed=k) for k, env in enumerate(single)], axis=1)
    for n in (5, 2):
        many = StagedPrecisionVectorEnv(n, config)
        observation, _ = many.reset(seed=100)
        alone = [env.reset(seed=100 + k)[0] for k, env in enumerate(single[:n])]
        np.testing.assert_array_equal(observation, alone)
        ends = np.zeros(n, dtype=int)
        together = 0
        for t in range(steps):
            observation, reward, terminated, truncated, info = many.step(actions[t, :n])
            results = [env.step(actions[t, k]) for k, env in enumerate(single[:n])]
            assert not terminated.any()
            assert reward.tolist() == [result[1] for result in results]
            assert truncated.tolist() == [result[3] for result in results]
            assert info["cost"].tolist() == [result[4]["cost"] for result in results]
            for k, result in enumerate(results):
                expected = list(result[4]["report"].values())
                np.testing.assert_array_equal(info["report"][k], expected)
            last = np.stack([result[0] for result in results])
            if truncated.any():
                np.testing.assert_array_equal(info["_final_obs"], truncated)
                np.testing.assert_array_equal(info["final_obs"], last)
                for k in np.flatnonzero(truncated):
                    last[k] = single[k].reset()[0]
            else:
                assert "final_obs" not in info
            np.testing.assert_array_equal(observation, last)
            ends += truncated
            together += bool(truncated.all())
        assert ends.min() >= 1
        assert together == 0  # they ended at different steps


def test_make_vec_uses_the_compiled_core() -> None:
    many = gymnasium.make_vec(
        envs.STAGED_PRECISION,
        num_envs=5,
        vectorization_mode="vector_entry_point",
        config=_config("tables"),
    )
    assert isinstance(many, StagedPrecisionVectorEnv)
    assert many.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observation, _ = many.reset(seed=3)
    assert many.observation_space.contains(observation)
    assert np.asarray(many.step(many.action_space.sample())[1]).shape == (5,)
    # One seed per server, or one for some: the others go on with theirs.
    given_seeds, _ = many.reset(seed=[3, 4, 5, 6, 7])
    np.testing.assert_array_equal(given_seeds, observation)
    keys = many.servers.keys.copy()
    many.reset(seed=[3, None, None, None, None])
    assert (many.servers.keys == keys).tolist() == [True, False, False, False, False]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(FACES)),
    st.sampled_from([0.02, 0.7, 3.0]),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 10**9), min_size=30, max_size=30),
)
def test_observations_stay_in_the_box(face: str, load: float, seed: int, draws: list[int]) -> None:
    env = _env(face, load)
    nvec = np.array(env.config.actions.nvec)
    observation, _ = env.reset(seed=seed)
    for draw in draws:
        assert env.observation_space.contains(observation)
        choice = np.array([draw // 7**i for i in range(len(nvec))]) % nvec
        observation, reward, _, truncated, info = env.step(
            choice if len(nvec) > 1 else int(choice[0])
        )
        assert reward <= 0.0
        assert reward == pytest.approx(sum(info["terms"].values()))
        if truncated:
            observation, _ = env.reset()


def _oracle(env: StagedPrecisionEnv) -> ReferenceServer:
    """Return an oracle of the running episode."""
    config, servers = env.config, env.servers
    oracle = ReferenceServer(config.profile, config.serving)
    segments = config.workload.conditions.segments(servers.keys, config.horizon_s)
    stretches = zip(segments.start_s[0], segments.condition[0], strict=True)
    oracle.reset(
        int(servers.keys[0]),
        servers.counts()[0],
        config.workload.arrivals.tick_s,
        list(stretches),
        config.safe_plan,
    )
    return oracle


@pytest.mark.parametrize("load", [0.5, 2.0])
def test_reward_terms_count_what_happened_to_every_request(load: float) -> None:
    weights = PrecisionWeights(2.0, 3.0, 0.5, 0.25, accuracy_floor=0.9)
    config = _config(load=load, reward=weights)
    env = StagedPrecisionEnv(config)
    env.reset(seed=5)
    oracle = _oracle(env)
    start_s = oracle.now_s
    totals: dict[str, float] = {}
    cost = switched = 0.0
    levels = config.safe_plan.levels
    for action in _actions(env, 2000, 3):
        *_, truncated, info = env.step(action)
        oracle.step(PrecisionPlan.from_row(env.servers.plans[0]))
        for name, value in info["terms"].items():
            totals[name] = totals.get(name, 0.0) + value
        cost += info["cost"]
        switched += sum(a != b for a, b in zip(levels, action, strict=True))
        levels = tuple(action)
        if truncated:
            break
    assert truncated
    deadline_s = config.serving.deadline_s
    served = [request for request in oracle.log if request.fate == "served"]
    dropped = len(oracle.log) - len(served)
    latency_s = np.array([request.end_s - request.arrival_s for request in served])
    correct = np.array([request.correct for request in served])
    good = int((correct & (latency_s <= deadline_s)).sum())
    assert dropped > 0 or load < 1.0
    assert totals["effective_accuracy"] == pytest.approx(-2.0 * (len(oracle.log) - good) / 16)
    waits = latency_s.sum() / deadline_s + dropped
    assert totals["latency"] == pytest.approx(-3.0 * waits / 16)
    power = config.profile.energy
    used_j = power.energy_j(oracle.now_s - start_s, oracle.busy_s)
    assert totals["energy"] == pytest.approx(-0.5 * used_j / power.energy_j(deadline_s, deadline_s))
    assert totals["switching"] == pytest.approx(-0.25 * switched)
    assert cost == pytest.approx((0.9 * len(served) - correct.sum()) / 16)


def test_guards_speak_in_the_info_and_in_the_masks() -> None:
    accuracy = _profile().accuracy()[0]
    floor = float(accuracy[assignment_index((2, 2, 2, 2), 4)]) - 1e-9
    limits = PrecisionLimits(coarsest=(2, 3, 3, 3), accuracy_floor=floor)
    env = StagedPrecisionEnv(_config("levels", guards=limits))
    env.reset(seed=1)
    assert env.step(np.array([2, 2, 2, 2]))[4]["causes"] == []
    assert env.step(np.array([3, 3, 3, 3]))[4]["causes"] == ["BOUNDS", "ACCURACY"]
    assert accuracy[assignment_index(tuple(env.servers.plans[0, :4].astype(int)), 4)] >= floor
    assert env.action_masks().tolist() == [True, True, True, False] + [True] * 12
    tables = StagedPrecisionVectorEnv(3, _config("tables", guards=limits))
    tables.reset(seed=1)
    expected = [name in ("fine", "int8") for name in TABLES]
    assert tables.action_masks().tolist() == [expected] * 3
    free = StagedPrecisionEnv(_config("tables"))
    free.reset(seed=1)
    assert free.action_masks().tolist() == [True] * 4


def test_finer_levels_pay_when_there_is_time_and_coarser_ones_under_load() -> None:
    """The trade-off that agents are to learn is there."""
    returns: dict[tuple[float, str], float] = {}
    for load in (0.05, 2.0):
        many = StagedPrecisionVectorEnv(
            32, _config("tables", load, stream=Stream.DRIFT, horizon_s=5.0)
        )
        for action, name in enumerate(TABLES):
            many.reset(seed=9)
            good = resolved = 0.0
            for _ in range(40):
                report = many.step(np.full(32, action))[4]["report"]
                good += report[:, REPORT_INDEX["correct_in_time"]].sum()
                resolved += report[:, REPORT_INDEX["requests"]].sum()
                resolved += report[:, REPORT_INDEX["dropped"]].sum()
            returns[load, name] = good / resolved
    assert returns[0.05, "int8"] > returns[0.05, "half"] + 0.05
    assert returns[0.05, "fine"] > returns[0.05, "half"] + 0.05
    assert returns[2.0, "half"] > returns[2.0, "int8"] + 0.05
    assert returns[2.0, "int8"] > returns[2.0, "fine"] + 0.05


def _has(pixels: NDArray[np.uint8], colour: str) -> bool:
    rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((pixels == rgb).all(axis=-1).any())


def test_render_draws_stages_by_level() -> None:
    env = StagedPrecisionEnv(_config(load=1.5, horizon_s=30.0), render_mode="rgb_array")
    env.reset(seed=2)
    empty = env.render()
    assert empty is not None
    while env.servers.engine.reports[0, REPORT_INDEX["condition"]] == 0:
        env.step(np.array([0, 1, 2, 2]))
    for _ in range(20):
        env.step(np.array([0, 1, 2, 2]))
    pixels = env.render()
    assert pixels is not None
    assert (pixels.dtype, pixels.shape) == (np.uint8, empty.shape)
    above = pixels[: len(pixels) // 2]  # the legend below shows all levels
    drawn = [_has(above, colour) for colour in level_colours(4)]
    assert drawn == [True, True, True, False]
    assert _has(pixels, CORRUPTED_COLOUR)
    assert StagedPrecisionEnv(_config()).render() is None


def test_other_render_modes_and_impossible_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="render_mode is 'human'"):
        StagedPrecisionEnv(_config(), render_mode="human")
    with pytest.raises(ValueError, match="render one StagedPrecisionEnv"):
        StagedPrecisionVectorEnv(2, _config(), render_mode="rgb_array")
    for changes, message in (
        ({"horizon_s": 0.0}, "expected finite seconds > 0"),
        ({"starts": (5, 3)}, "0 <= first <= last tick"),
        ({"load_factors": ()}, r"load_factors is \(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            _config(**changes)
    with pytest.raises(ValueError, match=r"reward latency is -1\.0"):
        PrecisionWeights(latency=-1.0)
