from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.api import BatchAgent, ConstantRows, Episodes, run_episodes
from agents.bundle import BundleBatch
from agents.export import (
    ExportError,
    bundle_of,
    check_parity,
    export_ppo,
    network_of,
    parity_observations,
)
from agents.learned import (
    CHECKPOINT,
    LearnedBatch,
    PPOPreset,
    load_checkpoint,
    make_ppo,
    torch_threads,
    train,
)
from agents.vec_env import ClusterVecEnv
from envs.cluster.config import StreamClusterConfig
from envs.cluster.env import StreamClusterVectorEnv
from runtime.cluster.actions import ListedActions
from runtime.plan import Plan, Policy, Pools
from runtime.policy import Bundle, Network

PRESET = PPOPreset(n_envs=8, n_steps=16, batch_size=64, n_epochs=2, net=(16, 16))


def test_adapter_is_the_vector_face(world: StreamClusterConfig) -> None:
    ours, theirs = StreamClusterVectorEnv(3, world), ClusterVecEnv(world, 3)
    theirs.seed(7)
    np.testing.assert_array_equal(ours.reset(seed=7)[0], theirs.reset())
    rng = np.random.default_rng(0)
    for step in range(2 * world.steps):
        actions = rng.integers(0, world.actions.nvec, size=(3, len(world.actions.nvec)))
        seen, reward, _, truncated, info = ours.step(actions)
        theirs.step_async(actions)
        seen_2, reward_2, done, infos = theirs.step_wait()
        np.testing.assert_array_equal(seen, seen_2)
        np.testing.assert_allclose(reward, reward_2, rtol=1e-6)
        np.testing.assert_array_equal(truncated, done)
        if (step + 1) % world.steps == 0:
            assert all(i["TimeLimit.truncated"] for i in infos)
            last = np.stack([i["terminal_observation"] for i in infos])
            np.testing.assert_array_equal(info["final_obs"], last)


def test_learner_may_see_the_logarithm_but_returns_keep_the_reward(
    world: StreamClusterConfig,
) -> None:
    plain, logarithmic = ClusterVecEnv(world, 2), ClusterVecEnv(world, 2, log_scale_s=0.5)
    actions = np.zeros((2, len(world.actions.nvec)), dtype=np.int64)
    returns = np.zeros(2)
    for env in (plain, logarithmic):
        env.seed(1)
        env.reset()
    for _ in range(world.steps):
        for env in (plain, logarithmic):
            env.step_async(actions)
        _, reward, _, _ = plain.step_wait()
        _, seen, _, infos = logarithmic.step_wait()
        np.testing.assert_allclose(seen, -np.log1p(-reward / 0.5), rtol=1e-5)
        returns += reward
    np.testing.assert_allclose([i["episode"]["r"] for i in infos], returns, rtol=1e-5)


def test_learning_starts_from_a_plan(world: StreamClusterConfig, episodes: Episodes) -> None:
    plan = Plan(Pools.SOFT, 0.7, Policy.FAIR, Policy.FIFO, 4, 0.5, idle_batches=1)
    constant = ConstantRows(np.tile(plan.to_row(), (len(episodes.keys), 1)))
    started = LearnedBatch(make_ppo(PRESET, world, seed=0, start=plan))
    expected = run_episodes(world, constant, episodes).signals
    np.testing.assert_array_equal(run_episodes(world, started, episodes).signals, expected)
    listed = replace(world, actions=ListedActions({"a": plan, "b": Plan()}))
    with pytest.raises(ValueError, match="only where actions are fields"):
        make_ppo(PRESET, listed, seed=0, start=plan)


def test_training_is_reproducible_and_resumes(world: StreamClusterConfig, tmp_path: Path) -> None:
    models = []
    for name in ("a", "b"):
        model = make_ppo(PRESET, world, seed=3)
        train(model, 512, tmp_path / name)
        models.append(model)
    first, second = (m.policy.state_dict() for m in models)
    assert all(torch.equal(first[key], second[key]) for key in first)
    resumed = make_ppo(PRESET, world, seed=3)
    assert load_checkpoint(resumed, tmp_path / "a")
    assert resumed.num_timesteps == models[0].num_timesteps == 512
    assert all(torch.equal(first[k], v) for k, v in resumed.policy.state_dict().items())
    steps: list[int] = []
    train(resumed, 1024, tmp_path / "a", steps.append)
    assert steps[0] == 512
    assert resumed.num_timesteps == 1024
    assert not all(torch.equal(first[k], v) for k, v in resumed.policy.state_dict().items())


def test_the_best_policy_on_training_data_is_kept(
    world: StreamClusterConfig, tmp_path: Path
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    scores = [3.0, 1.0, 2.0, 4.0]  # before, at two checkpoints, after

    def score(agent: BatchAgent) -> float:
        parameters = model.policy.state_dict()
        seen.append({name: value.clone() for name, value in parameters.items()})
        return scores[len(seen) - 1]

    model = make_ppo(PRESET, world, seed=3)
    train(model, 384, tmp_path, score=score, checkpoint_every=128)
    assert len(seen) == len(scores)
    kept = model.policy.state_dict()
    matches = [all(torch.equal(each[name], kept[name]) for name in kept) for each in seen]
    assert matches == [False, True, False, False]


def test_an_interrupt_leaves_a_checkpoint(world: StreamClusterConfig, tmp_path: Path) -> None:
    def interrupt(steps: int) -> None:
        if steps >= 256:
            raise KeyboardInterrupt

    model = make_ppo(PRESET, world, seed=0)
    with pytest.raises(KeyboardInterrupt):
        train(model, 4096, tmp_path, interrupt)
    assert [p.name for p in tmp_path.glob("*checkpoint*")] == [CHECKPOINT]
    resumed = make_ppo(PRESET, world, seed=0)
    assert load_checkpoint(resumed, tmp_path)
    assert resumed.num_timesteps == 256


def test_learning_beats_random_plans(world: StreamClusterConfig, episodes: Episodes) -> None:
    busy = replace(world, arrivals=world.arrivals.scaled(1.5))
    model = make_ppo(replace(PRESET, n_envs=32, batch_size=256), busy, seed=0)
    before = run_episodes(busy, LearnedBatch(model), episodes).signals[..., 24].sum()
    with torch_threads(1):
        model.learn(20_000)
    after = run_episodes(busy, LearnedBatch(model), episodes).signals[..., 24].sum()
    assert after < 0.9 * before


def test_exported_policy_decides_the_same(
    world: StreamClusterConfig, episodes: Episodes, tmp_path: Path
) -> None:
    model = make_ppo(PRESET, world, seed=1)
    train(model, 512, tmp_path / "run")
    export_ppo(model, world, tmp_path / "bundle", {"note": "test"})
    bundle = Bundle.load(tmp_path / "bundle")
    ours = run_episodes(world, BundleBatch(bundle), episodes)
    theirs = run_episodes(world, LearnedBatch(model), episodes)
    np.testing.assert_array_equal(ours.signals, theirs.signals)


def test_a_wrong_export_is_refused(world: StreamClusterConfig) -> None:
    model = make_ppo(PRESET, world, seed=1)
    network = network_of(model)
    weight, bias = network.layers[-1]
    swapped = Network((*network.layers[:-1], (-weight, -bias)))
    observations = parity_observations(model, world)
    assert observations.shape == (256, model.observation_space.shape[0])
    check_parity(model, bundle_of("ppo", network, world, {}), observations)
    with pytest.raises(ExportError, match="of 256 observations differ"):
        check_parity(model, bundle_of("ppo", swapped, world, {}), observations)


def test_a_bundle_for_another_cluster_is_refused(
    world: StreamClusterConfig, episodes: Episodes
) -> None:
    bundle = bundle_of("ppo", network_of(make_ppo(PRESET, world, seed=1)), world, {})
    other = replace(world, slots=3)
    with pytest.raises(ValueError, match="train and export an agent for this cluster"):
        run_episodes(other, BundleBatch(bundle), episodes)
