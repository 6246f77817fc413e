from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.precision import imitation
from agents.precision.api import ConstantRows, Episodes, effective_accuracies
from agents.precision.bundle import BundleStreams
from agents.precision.heuristics.load import SlackFit
from agents.precision.heuristics.static import Static
from agents.precision.imitation import imitate, nearest_actions
from agents.precision.known import Known
from agents.precision.learned import LearnedStreams, Training, make_learner, preset_of
from agents.precision.learned import train_learner as learn
from agents.precision.rule import Rule
from agents.precision.tables import verified_tables
from envs.precision.config import StagedPrecisionConfig
from runtime.precision.actions import LevelActions, TableActions
from runtime.precision.plan import PrecisionPlan
from runtime.precision.policy import PrecisionBundle

SMALL = {"n_envs": 8, "n_steps": 16, "batch_size": 64, "n_epochs": 2, "net": (32, 32)}


@pytest.fixture(autouse=True)
def few_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imitation, "SERVERS", 24)
    monkeypatch.setattr(imitation, "DECISIONS", 400)
    monkeypatch.setattr(imitation, "_BATCH", 128)


@pytest.fixture(scope="module")
def listed(world: StagedPrecisionConfig, world_known: Known) -> StagedPrecisionConfig:
    levels = world.profile.levels
    return replace(world, actions=verified_tables(world_known, levels, (0.2, 0.4)))


class Ruled:
    """A rule as an agent, with plans that are on offer."""

    def __init__(self, rule: Rule, offered: TableActions) -> None:
        self._rule, self._offered = rule, offered

    def begin(self, servers: object) -> None:
        self._rule.forget(3)

    def propose(self, observation: np.ndarray, signals: np.ndarray) -> np.ndarray:
        chosen = nearest_actions(self._offered, self._rule.rows(signals))
        return self._offered.rows[chosen[:, 0]]


def test_the_nearest_action_of_a_plan_on_offer_is_itself(listed: StagedPrecisionConfig) -> None:
    assert isinstance(listed.actions, TableActions)
    rows = listed.actions.rows
    np.testing.assert_array_equal(nearest_actions(listed.actions, rows)[:, 0], np.arange(len(rows)))


def test_other_plans_get_the_nearest_one() -> None:
    plans = {
        "fine": PrecisionPlan((0, 0)),
        "coarse": PrecisionPlan((2, 2)),
        "again": PrecisionPlan((2, 2), 0.4, (0, 0)),
    }
    wanted = [
        PrecisionPlan((0, 1)),
        PrecisionPlan((2, 1)),
        PrecisionPlan((2, 2), 0.3, (0, 0)),
        # without a second pass its levels are of no account
        PrecisionPlan((2, 2), 0.0, (1, 1)),
    ]
    rows = np.stack([plan.to_row() for plan in wanted])
    found = nearest_actions(TableActions(plans), rows)
    np.testing.assert_array_equal(found[:, 0], [0, 1, 2, 1])
    by_stage = nearest_actions(LevelActions(2, 3), rows)
    np.testing.assert_array_equal(by_stage, [[0, 1], [2, 1], [2, 2], [2, 2]])


@pytest.mark.parametrize("name", ["ppo", "maskable_ppo"])
def test_a_taught_policy_decides_nearly_as_well_as_its_rule(
    listed: StagedPrecisionConfig,
    world_known: Known,
    episodes: Episodes,
    name: str,
) -> None:
    rule = SlackFit(world_known, factor=0.8)
    assert isinstance(listed.actions, TableActions)
    model = make_learner(name, listed, 0, preset_of(name, SMALL))
    expected = effective_accuracies(listed, Ruled(rule, listed.actions), episodes).mean()
    before = effective_accuracies(listed, LearnedStreams(model), episodes).mean()
    imitate(model, listed, rule)  # type: ignore[arg-type]
    after = effective_accuracies(listed, LearnedStreams(model), episodes).mean()
    assert before < expected - 0.02
    assert after > expected - 0.01


def test_a_taught_policy_tries_other_actions_than_the_taught_one(
    listed: StagedPrecisionConfig, world_known: Known
) -> None:
    rule = Static("always", PrecisionPlan((2, 2, 2, 2)))
    model = make_learner("ppo", listed, 0, preset_of("ppo", SMALL))
    imitate(model, listed, rule)  # type: ignore[arg-type]
    worlds = model.get_env()
    assert worlds is not None
    assert model.num_timesteps == 0
    policy: Any = model.policy
    seen = torch.as_tensor(worlds.reset())
    shares = policy.get_distribution(seen).distribution.probs.detach().numpy()
    assert isinstance(listed.actions, TableActions)
    chosen = nearest_actions(listed.actions, rule.rows(np.zeros((1, 1))))[0, 0]
    assert (shares.argmax(axis=1) == chosen).all()
    others = 1.0 - shares[:, chosen]
    assert (others > 0.3 * imitation.RANDOM_SHARE).all()
    assert (others < 3.0 * imitation.RANDOM_SHARE).all()


def test_the_critic_learns_what_the_taught_policy_is_worth(
    listed: StagedPrecisionConfig, world_known: Known, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = SlackFit(world_known, factor=0.8)
    models = []
    for updates in (0, 4):
        monkeypatch.setattr(imitation, "CRITIC_UPDATES", updates)
        model = make_learner("ppo", listed, 0, preset_of("ppo", SMALL))
        imitate(model, listed, rule)  # type: ignore[arg-type]
        models.append(model)
    untaught, taught = (model.policy.state_dict() for model in models)
    for name, values in taught.items():
        same = torch.equal(values, untaught[name])
        assert same == ("value" not in name), name
    assert all(parameter.requires_grad for parameter in models[1].policy.parameters())


def test_learning_goes_on_from_what_was_taught(
    listed: StagedPrecisionConfig, world_known: Known, episodes: Episodes, tmp_path: Path
) -> None:
    rule = SlackFit(world_known, factor=0.8)
    short = replace(listed, horizon_s=1.0)
    learn("ppo", short, Training(64, SMALL, rule), tmp_path, 0)
    bundle = PrecisionBundle.load(tmp_path / "bundle")
    assert bundle.provenance["learner"] == "ppo"
    finest = ConstantRows(np.tile(PrecisionPlan((0, 0, 0, 0)).to_row(), (3, 1)))
    taught = effective_accuracies(listed, BundleStreams(bundle), episodes).mean()
    assert taught > effective_accuracies(listed, finest, episodes).mean() + 0.02
