from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from agents.deciders import BatchDecider
from agents.export import ExportError
from agents.learned import CHECKPOINT, load_checkpoint, train
from agents.precision import learned
from agents.precision.api import ConstantRows, Episodes, Separately, Streams, run_streams
from agents.precision.bundle import BundleStreams
from agents.precision.export import bundle_of, check_parity, export_agent, network_of
from agents.precision.heuristics.static import Static
from agents.precision.learned import (
    LEARNERS,
    LearnedStreams,
    Training,
    judge,
    make_learner,
    preset_of,
    train_learner,
)
from agents.precision.vec_env import PrecisionVecEnv
from envs.precision.config import StagedPrecisionConfig
from envs.precision.reward import PrecisionWeights
from runtime.networks import Network
from runtime.precision.actions import LevelActions, TableActions
from runtime.precision.guard_tables import PrecisionLimits
from runtime.precision.guards import PrecisionCause
from runtime.precision.plan import PrecisionPlan
from runtime.precision.policy import PrecisionBundle, PrecisionBundlePolicy

GRADIENT = {"n_envs": 8, "n_steps": 16, "batch_size": 64, "n_epochs": 2, "net": (16, 16)}
VALUE = {"n_envs": 8, "learning_starts": 64, "batch_size": 32, "net": (16, 16)}
SMALL: dict[str, Mapping[str, Any]] = {
    "ppo": GRADIENT,
    "maskable_ppo": GRADIENT,
    "recurrent_ppo": GRADIENT | {"lstm_units": 8},
    "dqn": VALUE,
    "qr_dqn": VALUE | {"quantiles": 5},
    "bandit": VALUE,
}
TABLES = TableActions(
    {
        "finest": PrecisionPlan((0, 0, 0, 0)),
        "int8": PrecisionPlan((2, 2, 2, 2)),
        "half": PrecisionPlan((3, 3, 3, 3)),
        "cascade": PrecisionPlan((3, 3, 3, 3), 0.3, (2, 2, 2, 2)),
    }
)
MULTIPLE = {"ppo", "maskable_ppo", "recurrent_ppo"}


@pytest.fixture(scope="module")
def staged(world: StagedPrecisionConfig) -> StagedPrecisionConfig:
    """Return the world with a choice per stage, its streams cut to a second."""
    return replace(world, horizon_s=1.0)


@pytest.fixture(scope="module")
def listed(staged: StagedPrecisionConfig) -> StagedPrecisionConfig:
    """Return the same with a list of tables."""
    return replace(staged, actions=TABLES)


def small(name: str, staged: StagedPrecisionConfig, seed: int = 1, **more: Any) -> BaseAlgorithm:
    return make_learner(name, staged, seed, preset_of(name, SMALL[name]), **more)


def shaken(model: BaseAlgorithm) -> BaseAlgorithm:
    """Return a model whose decisions really depend on what it sees, without any training.

    Large weights, no biases: no choice is preferred whatever is seen.
    """
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.policy.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * ("weight" in name))
    return model


def assert_same(one: Streams, other: Streams) -> None:
    for a, b in zip(one.plans, other.plans, strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.summaries == other.summaries


@pytest.mark.parametrize(
    ("name", "by_stage"), [(n, False) for n in LEARNERS] + [(n, True) for n in sorted(MULTIPLE)]
)
def test_what_is_exported_decides_like_the_model(
    listed: StagedPrecisionConfig,
    staged: StagedPrecisionConfig,
    episodes: Episodes,
    tmp_path: Path,
    name: str,
    by_stage: bool,
) -> None:
    config = staged if by_stage else listed
    model = shaken(small(name, config))
    export_agent(name, model, config, tmp_path / "bundle", {"note": "test"})
    bundle = PrecisionBundle.load(tmp_path / "bundle")
    assert bundle.provenance == {"note": "test"}
    batched = run_streams(config, BundleStreams(bundle), episodes)
    assert_same(batched, run_streams(config, LearnedStreams(model), episodes))
    single = Separately(lambda k: PrecisionBundlePolicy(bundle))
    assert_same(batched, run_streams(config, single, episodes))
    used = np.unique(np.concatenate(batched.plans), axis=0)
    assert len(used) > 1, "a policy that always decides the same compares nothing"


def test_quantiles_are_folded_into_their_mean(listed: StagedPrecisionConfig) -> None:
    model = shaken(small("qr_dqn", listed))
    observation = np.random.default_rng(0).uniform(size=(32, model.observation_space.shape[0]))
    observation = observation.astype(np.float32)
    with torch.no_grad():
        quantiles = model.policy.quantile_net(torch.as_tensor(observation)).numpy()
    assert quantiles.shape == (32, 5, 4)
    network = network_of(model)
    assert isinstance(network, Network)
    np.testing.assert_allclose(network(observation), quantiles.mean(axis=1), rtol=1e-4, atol=1e-5)


def test_a_wrong_export_is_refused(listed: StagedPrecisionConfig) -> None:
    model = shaken(small("ppo", listed))
    network = network_of(model)
    assert isinstance(network, Network)
    weight, bias = network.layers[-1]
    wrong = Network((*network.layers[:-1], (-weight, -bias)))
    check_parity(model, bundle_of("ppo", network, listed, {}), listed)
    with pytest.raises(ExportError, match="nothing was written"):
        check_parity(model, bundle_of("ppo", wrong, listed, {}), listed)


@pytest.mark.parametrize("name", LEARNERS)
def test_one_call_trains_and_leaves_a_bundle(
    listed: StagedPrecisionConfig, tmp_path: Path, name: str
) -> None:
    config = replace(listed, horizon_s=0.3)
    steps: list[int] = []
    training = Training(256, SMALL[name], provenance={"study": "test"})
    train_learner(name, config, training, tmp_path, 3, steps.append)
    bundle = PrecisionBundle.load(tmp_path / "bundle")
    assert bundle.name == name
    assert bundle.masked == (name == "maskable_ppo")
    assert bundle.provenance["study"] == "test"
    assert bundle.provenance["preset"]["net"] == [16, 16]
    assert steps[0] == 0
    assert bundle.provenance["timesteps"] >= 256
    written = (tmp_path / CHECKPOINT).stat().st_mtime_ns
    train_learner(name, config, training, tmp_path, 3, steps.append)
    assert (tmp_path / CHECKPOINT).stat().st_mtime_ns == written, "a finished run was run again"


def test_the_policy_that_serves_best_is_kept(
    listed: StagedPrecisionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[dict[str, torch.Tensor]] = []
    seen: list[dict[str, torch.Tensor]] = []
    scores = [3.0, 1.0, 2.0, 4.0]  # before, at two checkpoints, after

    def export(name: str, model: BaseAlgorithm, *rest: Any) -> None:
        exported.append(model.policy.state_dict())

    def score(agent: BatchDecider[Any]) -> float:
        parameters = agent._model.policy.state_dict()  # type: ignore[attr-defined]
        seen.append({key: value.clone() for key, value in parameters.items()})
        return scores[len(seen) - 1]

    monkeypatch.setattr(learned, "export_agent", export)
    training = Training(384, SMALL["dqn"], score=score, checkpoint_every=128)
    train_learner("dqn", listed, training, tmp_path, 3)
    matches = [all(torch.equal(each[k], exported[0][k]) for k in each) for each in seen]
    assert matches == [False, True, False, False]


@pytest.mark.parametrize("name", ["dqn", "recurrent_ppo"])
def test_training_is_reproducible_and_resumes(
    listed: StagedPrecisionConfig, tmp_path: Path, name: str
) -> None:
    models = []
    for label in ("a", "b"):
        models.append(small(name, listed, seed=3))
        train(models[-1], 512, tmp_path / label)
    first, second = (m.policy.state_dict() for m in models)
    assert all(torch.equal(first[key], second[key]) for key in first)
    resumed = small(name, listed, seed=3)
    steps: list[int] = []
    train(resumed, 1024, tmp_path / "a", steps.append)
    assert steps[0] == 512
    assert resumed.num_timesteps == 1024
    assert not all(torch.equal(first[k], v) for k, v in resumed.policy.state_dict().items())


def test_the_multiplier_is_logged_and_survives_an_interrupt(
    staged: StagedPrecisionConfig, tmp_path: Path
) -> None:
    floored = replace(staged, reward=PrecisionWeights(accuracy_floor=1.0))
    preset = preset_of("ppo", GRADIENT | {"multiplier_rate": 0.5})
    model = make_learner("ppo", floored, 3, preset)
    train(model, 512, tmp_path)
    before = model.get_env().unwrapped.multiplier
    assert before > 0.0
    assert "train/multiplier" in (tmp_path / "progress.csv").read_text().splitlines()[0]
    resumed = make_learner("ppo", floored, 3, preset)
    assert load_checkpoint(resumed, tmp_path)
    worlds = resumed.get_env().unwrapped
    assert isinstance(worlds, PrecisionVecEnv)
    assert worlds.multiplier == before


def test_policies_below_the_accuracy_floor_are_judged_last(listed: StagedPrecisionConfig) -> None:
    workload = listed.workload
    crowded = replace(workload, arrivals=workload.arrivals.scaled(4.3))

    def scores(floor: float) -> dict[str, float]:
        weights = PrecisionWeights(accuracy_floor=floor)
        score = judge(replace(listed, workload=crowded, reward=weights), 16)
        rows = {name: np.tile(plan.to_row(), (16, 1)) for name, plan in TABLES.plans.items()}
        return {name: score(ConstantRows(own)) for name, own in rows.items()}

    free = scores(0.0)
    assert min(free, key=lambda name: free[name]) == "half"
    # too slow for the load, but nothing that it answers is wrong
    assert free["finest"] > -0.1
    floored = scores(0.9)
    assert sorted(floored, key=lambda name: floored[name]) == ["int8", "finest", "cascade", "half"]
    assert floored["int8"] == free["int8"]
    assert floored["half"] > floored["cascade"] > 1.0


def test_a_masked_policy_proposes_nothing_that_guards_would_change(
    listed: StagedPrecisionConfig, episodes: Episodes
) -> None:
    accuracy = listed.bank_tables().accuracy
    floor = float(accuracy[0b10101010])  # of (2, 2, 2, 2)
    guarded = replace(listed, guards=PrecisionLimits(accuracy_floor=floor))

    def causes(name: str) -> int:
        model = shaken(small(name, guarded))
        agent = BundleStreams(
            bundle_of(name, network_of(model), guarded, {}, masked=name == "maskable_ppo")
        )
        return int(
            np.bitwise_or.reduce(np.concatenate(run_streams(guarded, agent, episodes).causes))
        )

    assert causes("maskable_ppo") == 0
    assert causes("ppo") & PrecisionCause.ACCURACY


def test_a_constant_plan_is_a_bundle_too(
    staged: StagedPrecisionConfig, episodes: Episodes, tmp_path: Path
) -> None:
    plan = PrecisionPlan((3, 3, 3, 3), 0.3, (2, 2, 2, 2))
    bundle_of("cascade", plan, staged, {}).save(tmp_path / "b")
    bundle = PrecisionBundle.load(tmp_path / "b")
    constant = ConstantRows(np.tile(plan.to_row(), (len(episodes.keys), 1)))
    expected = run_streams(staged, constant, episodes)
    assert_same(run_streams(staged, BundleStreams(bundle), episodes), expected)


def test_bundles_serve_other_samples_of_their_bank_and_no_other_bank(
    staged: StagedPrecisionConfig, listed: StagedPrecisionConfig, episodes: Episodes
) -> None:
    bundle = bundle_of("ppo", network_of(shaken(small("ppo", listed))), listed, {})
    profile = staged.profile
    darker = replace(staged, profile=replace(profile, properties=profile.properties * 0.5))
    assert darker.scale() != bundle.scale
    single = Separately(lambda k: PrecisionBundlePolicy(bundle))
    batched = run_streams(darker, BundleStreams(bundle), episodes)
    assert_same(batched, run_streams(darker, single, episodes))
    renamed = replace(staged, profile=replace(profile, stages=("a", "b", "c", "d")))
    with pytest.raises(ValueError, match="train and export an agent for this bank"):
        run_streams(renamed, BundleStreams(bundle), episodes)


def test_what_cannot_be_learned_is_refused(
    staged: StagedPrecisionConfig, listed: StagedPrecisionConfig, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="unknown learner 'sac'; expected one of"):
        make_learner("sac", staged, 0)
    with pytest.raises(ValueError, match="has no 'gama'"):
        preset_of("ppo", {"gama": 0.9})
    with pytest.raises(ValueError, match="give it TableActions"):
        small("dqn", staged)
    start = Static("int8", PrecisionPlan((2, 2, 2, 2)))
    with pytest.raises(ValueError, match="dqn cannot start from a rule"):
        train_learner("dqn", listed, Training(64, SMALL["dqn"], start), tmp_path / "run", 0)
    assert not (tmp_path / "run").exists()
    assert isinstance(staged.actions, LevelActions)
