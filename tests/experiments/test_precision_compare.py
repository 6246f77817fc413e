from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import astuple, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from omegaconf import DictConfig

from agents.precision.families import GRIDS
from agents.precision.heuristics.load import SlackFit
from agents.precision.heuristics.static import Cascade, Static
from agents.precision.known import known_of
from agents.precision.learned import IMITATORS, LEARNERS
from agents.precision.saved import saved_rule
from envs.precision.config import default_config
from experiments import compare, train
from experiments.cli import CONF
from experiments.errors import ConfigError
from experiments.precision.ablation import NOTHING, ablate, ablation_makers, ablation_table
from experiments.precision.agents import KINDS
from experiments.precision.compare import ROWS, SUMMARY, TIMELINE, compare_streams
from experiments.precision.lineup import makers
from experiments.precision.summary import (
    closed,
    difference,
    headroom,
    headroom_line,
    scores_of,
    summarise,
    with_clairvoyant,
)
from experiments.precision.tuning import RULES, SCORES, best_rule
from experiments.precision.worlds import build_world
from experiments.record import COMPLETE, RunFolder, run_path
from experiments.training import BUNDLE, train_agent, training_part, with_agent
from experiments.workloads import Part
from runtime.precision.plan import PrecisionPlan
from runtime.precision.policy import PrecisionBundle
from simulators.precision.workload import Stream
from tests.experiments.precision_configs import composing

AGENTS = sorted(path.stem for path in (CONF / "agent" / "precision").glob("*.yaml"))
SIZES = sorted(path.stem for path in (CONF / "size").glob("*.yaml"))
SEARCHED = {"hindsight_best", "hindsight_windows", "foresight_windows", "clairvoyant"}
STATIC = {"static_fp32", "static_bf16", "static_int8", "static_int8_half"}
TUNED = {*STATIC, *GRIDS, "static_best", "training_mode", "integer_programme", "equal_duty"}
Told = list[tuple[str, int, int]]


class Compared(NamedTuple):
    """A comparison at the smallest size; `config` composes its configuration with changes."""

    config: Callable[..., DictConfig]
    run: RunFolder

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.run.path / name)


def test_learners_imitate_the_best_rule_that_decides(tmp_path: Path) -> None:
    known = known_of(default_config())
    scored = [
        (Static("static_best", PrecisionPlan((3, 3, 3, 3))), 0.95),
        (Cascade(known, 3, 2, 0.3), 0.94),
        (SlackFit(known, 0.5, 0.1), 0.9),
        (GRIDS["alert"](known)[0], 0.8),
    ]
    content = {rule.name: saved_rule(rule) | {"training": score} for rule, score in scored}
    (tmp_path / RULES).write_text(json.dumps(content))
    found = best_rule(RunFolder(tmp_path, {}), known)
    assert isinstance(found, SlackFit)
    assert found.settings() == {"factor": 0.5, "most_loss": 0.1}


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., DictConfig]]:
    with composing(tmp_path_factory.mktemp("results")) as made:
        yield made


@pytest.fixture(scope="module")
def compared(compose: Callable[..., DictConfig]) -> Compared:
    return Compared(compose, compare_streams(compose()))


def test_all_agents_meet_the_same_episodes(compared: Compared) -> None:
    rows = compared.table(ROWS)
    assert set(rows["agent"]) == TUNED | SEARCHED | {"ppo", "bandit"}
    counts = rows.groupby(["agent", "train_seed"])["episode"].apply(list)
    assert all(episodes == [0, 1] for episodes in counts)
    assert (rows.groupby("episode")["requests"].nunique() == 1).all()
    assert set(rows["part"]) == {"held_out"}
    shares = rows[["effective_accuracy", "accuracy", "missed_share", "dropped_share"]]
    assert shares.to_numpy().min() >= 0.0
    assert shares.to_numpy().max() <= 1.0
    assert (rows["effective_accuracy"] <= rows["accuracy"] + 1e-12).all()


def test_nobody_is_better_than_the_clairvoyant_reference(compared: Compared) -> None:
    scores = scores_of(compared.table(ROWS))
    for name, own in scores.items():
        assert (scores["clairvoyant"] >= own).all(), name
        if name in STATIC:
            assert (scores["hindsight_best"] >= own).all(), name
    assert (scores["hindsight_windows"] >= scores["hindsight_best"]).all()


def test_the_summary_compares_with_static_best(compared: Compared) -> None:
    summary = compared.table(SUMMARY).set_index("agent")
    assert summary["effective_accuracy"].is_monotonic_decreasing
    assert summary.loc["static_best", "vs_static_best"] == 0.0
    room = headroom(compared.table(ROWS)).value
    assert summary.loc["clairvoyant", "vs_static_best"] == pytest.approx(room)
    gained = summary["effective_accuracy"] - summary.loc["static_best", "effective_accuracy"]
    np.testing.assert_allclose(summary["vs_static_best"], gained, atol=1e-12)
    np.testing.assert_allclose(summary["closed"], gained / room, atol=1e-9)


def test_the_first_episode_is_kept_batch_by_batch(compared: Compared) -> None:
    steps, rows = compared.table(TIMELINE), compared.table(ROWS)
    first = rows[rows["episode"] == 0].set_index("agent")
    world = build_world(compared.config(), Part.HELD_OUT)
    assert set(steps["agent"]) == {*first.index, "given"} - {"clairvoyant"}
    for name, own in steps.groupby("agent"):
        if name == "given":
            assert set(own["condition"]) <= set(world.profile.conditions)
            assert own["requests"].sum() == first["requests"].iloc[0]
            continue
        served, asked = own["requests"].sum(), (own["requests"] + own["dropped"]).sum()
        assert asked == first.loc[name, "requests"]
        assert 1.0 - served / asked == pytest.approx(first.loc[name, "dropped_share"])
        right = own["in_time"].sum() / asked
        assert right == pytest.approx(first.loc[name, "effective_accuracy"])


def test_what_is_finished_is_skipped(compared: Compared) -> None:
    before = (compared.run.path / ROWS).stat().st_mtime_ns
    told: Told = []
    again = compare_streams(compared.config(), lambda *words: told.append(words))
    assert again.path == compared.run.path
    assert told == []
    assert (again.path / ROWS).stat().st_mtime_ns == before


def test_the_commands_make_and_show_the_same_runs(
    compared: Compared, capsys: pytest.CaptureFixture[str]
) -> None:
    for agent in ("ppo", "rules"):
        config = compared.config(f"agent=precision/{agent}")
        path = run_path(training_part(config))
        before = (path / COMPLETE).stat().st_mtime_ns
        train.task(config)
        assert (path / COMPLETE).stat().st_mtime_ns == before
    compare.task(compared.config())
    said = capsys.readouterr().out
    assert "held-out streams, both, load" in said
    assert "headroom over static best:" in said


def test_tuning_keeps_the_best_setting_of_every_rule(compared: Compared) -> None:
    run = train_agent(with_agent(compared.config(), "rules"))
    rules = json.loads((run.path / RULES).read_text())
    assert set(rules) == TUNED
    best = pd.read_csv(run.path / SCORES).groupby("rule")["mean"].max()
    for name in TUNED - {"equal_duty"}:
        assert rules[name]["training"] == pytest.approx(best[name])
    # The best of all assignments on trial, uniform ones among them.
    assert best["static_best"] >= best[sorted(STATIC)].max()
    pattern = rules["equal_duty"]["of"]
    assert best[pattern] == best[sorted(GRIDS)].max()


def test_learned_agents_leave_a_bundle_that_tells_its_making(compared: Compared) -> None:
    for name in ("ppo", "bandit"):
        run = train_agent(with_agent(compared.config(), name))
        bundle = PrecisionBundle.load(run.path / BUNDLE)
        assert bundle.provenance["learner"] == name
        assert bundle.provenance["timesteps"] >= 4096
        assert bundle.provenance["config"]["agent"]["name"] == name
        world = build_world(compared.config(), Part.TRAIN)
        assert bundle.actions.to_mapping() == world.actions.to_mapping()


def test_an_ablation_trains_without_each_group_and_is_skipped_then(compared: Compared) -> None:
    told: Told = []
    run = ablate(compared.config(), lambda *words: told.append(words))
    learned = {what for what, *_ in told if what.startswith("ppo")}
    assert learned == {"ppo, both, seed 0, without load"}, "with all signals there is one already"
    summary = pd.read_csv(run.path / SUMMARY).set_index("hidden")
    assert list(summary.index) == [NOTHING, "load"]
    assert summary.loc[NOTHING, ["change", "low", "high"]].tolist() == [0.0, 0.0, 0.0]
    rows = pd.read_csv(run.path / ROWS)
    everybody = compared.table(ROWS)
    ppo = everybody.loc[everybody["agent"] == "ppo", "effective_accuracy"]
    whole = rows.loc[rows["hidden"] == NOTHING, "effective_accuracy"]
    np.testing.assert_allclose(whole, ppo, err_msg="another agent or other episodes")
    told.clear()
    assert ablate(compared.config(), lambda *words: told.append(words)).path == run.path
    assert told == []


def _table() -> pd.DataFrame:
    """Return three episodes of a static agent, a cascade, and a learned one of two seeds."""
    scores = {
        ("static_best", 0): (0.50, 0.60, 0.70),
        ("confidence_cascade", 0): (0.60, 0.60, 0.60),
        ("ppo", 0): (0.55, 0.65, 0.80),
        ("ppo", 1): (0.65, 0.75, 0.70),
    }
    rows = [
        {"agent": agent, "train_seed": seed, "episode": k, "effective_accuracy": score}
        for (agent, seed), own in scores.items()
        for k, score in enumerate(own)
    ]
    others = ("accuracy", "p50_s", "p99_s", "missed_share", "dropped_share")
    more = ("energy_per_request_j", "switches_per_minute", "escalated_share")
    return pd.DataFrame(rows).assign(**dict.fromkeys((*others, *more), 0.25))


def test_headroom_and_what_is_closed_of_it_in_closed_form() -> None:
    table = with_clairvoyant(_table())
    reference = table[table["agent"] == "clairvoyant"].sort_values("episode")
    assert reference["effective_accuracy"].tolist() == [0.65, 0.75, 0.80]
    assert reference["reached_by"].tolist() == ["ppo"] * 3
    assert reference["train_seed"].tolist() == [0, 0, 0]
    room = headroom(table)
    assert room.value == pytest.approx((0.15 + 0.15 + 0.10) / 3)
    assert 0.10 <= room.low <= room.value <= room.high <= 0.15 + 1e-12
    # seeds are averaged first: 0.60, 0.70, 0.75
    gain = difference(scores_of(table), "ppo", "static_best")
    assert gain.value == pytest.approx((0.10 + 0.10 + 0.05) / 3)
    share = closed(table, "ppo")
    assert share.value == pytest.approx(0.25 / 0.40)
    assert 0.5 <= share.low <= share.value <= share.high <= 2.0 / 3.0 + 1e-9
    assert astuple(closed(table, "static_best")) == pytest.approx((0.0, 0.0, 0.0))
    assert astuple(closed(table, "clairvoyant")) == pytest.approx((1.0, 1.0, 1.0))
    assert closed(table, "confidence_cascade").value == pytest.approx(0.0)
    assert headroom_line(table).startswith("headroom over static best: 13.3 points (")


def test_a_summary_in_closed_form() -> None:
    summary = summarise(with_clairvoyant(_table())).set_index("agent")
    assert list(summary.index) == ["clairvoyant", "ppo", "static_best", "confidence_cascade"]
    assert summary["seeds"].tolist() == [1, 2, 1, 1]
    assert summary["episodes"].tolist() == [3] * 4
    expected = [2.2 / 3, 4.1 / 6, 0.6, 0.6]
    np.testing.assert_allclose(summary["effective_accuracy"], expected)
    assert (summary["p99_s"] == 0.25).all()
    assert summary.loc["ppo", "vs_confidence_cascade"] == pytest.approx(0.25 / 3)
    assert "vs_slack_fit" not in summary  # nobody of this name took part


def test_nothing_is_closed_where_there_is_no_headroom() -> None:
    table = _table()
    table["effective_accuracy"] = 0.9 + 0.005 * table["train_seed"]
    table = with_clairvoyant(table)
    assert headroom(table).value == pytest.approx(0.005)
    assert np.isnan(astuple(closed(table, "ppo"))).all()
    assert headroom_line(table).endswith("so small that adapting is not worth it here")


def test_one_episode_has_no_interval() -> None:
    table = with_clairvoyant(_table().query("episode == 0"))
    share = closed(table, "ppo")
    assert share.value == pytest.approx(0.1 / 0.15)
    assert np.isnan([share.low, share.high]).all()


def test_what_hiding_costs_is_paired_by_episode() -> None:
    rows = pd.concat(
        _table().query("agent == 'ppo'").assign(hidden=hidden, effective_accuracy=scores)
        for hidden, scores in (
            (NOTHING, [0.5, 0.7, 0.9, 0.6, 0.8, 1.0]),
            ("load", [0.4, 0.6, 0.8, 0.3, 0.5, 0.7]),
        )
    )
    table = ablation_table(rows).set_index("hidden")
    np.testing.assert_allclose(table.loc[NOTHING], [0.75, 0.0, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(table.loc["load"], [0.55, -0.2, -0.2, -0.2], atol=1e-12)


@pytest.mark.parametrize("name", AGENTS)
def test_every_shipped_agent_can_be_made(compose: Callable[..., DictConfig], name: str) -> None:
    node = training_part(compose(f"agent=precision/{name}")).agent
    assert node.name == name
    assert node.kind in KINDS
    if node.kind == "learned":
        preset = LEARNERS[node.learner].preset
        assert set(node.preset) <= {field.name for field in fields(preset)}
        assert (node.start is not None) == (node.learner in IMITATORS)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_names_agents_streams_and_groups_that_exist(
    compose: Callable[..., DictConfig], size: str
) -> None:
    config = compose(f"size={size}")
    settings = config.size.precision
    made = makers(config)
    n = len(settings.learners)
    assert len(made) == 1 + settings.headline_seeds + (n - 1) * settings.seeds
    assert len({run_path(each) for each in made}) == len(made)
    for stream in settings.streams:
        assert stream in {member.value for member in Stream}
    ablated = ablation_makers(config)
    assert len(ablated) == (1 + len(settings.hidden)) * settings.seeds
    for each in ablated:
        assert build_world(each, Part.TRAIN).hidden == tuple(each.env.hidden)
    # Agents with all signals are those of the comparison.
    whole = {run_path(each) for each in ablated if not each.env.hidden}
    assert whole <= {run_path(each) for each in made}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["agent.kind=rule"], "unknown agent.kind 'rule'; did you mean 'rules'"),
        (["agent.learner=qrdqn"], "unknown agent.learner 'qrdqn'; did you mean 'qr_dqn'"),
        (
            ["+agent.preset.learning_rat=1e-3"],
            "unknown key of agent.preset 'learning_rat'; did you mean 'learning_rate'",
        ),
        (["+agent.preset.buffer_size=100"], "unknown key of agent.preset 'buffer_size'"),
        (["agent.learner=dqn"], "unknown key of agent.preset 'n_steps'"),
        (["agent.learner=recurrent_ppo"], "recurrent_ppo cannot start from a rule"),
        (["agent.start=true"], "agent.start"),
        (["+agent.start.setings=3"], "unknown key of agent.start 'setings'"),
    ],
)
def test_misspelt_agents_are_named(
    compose: Callable[..., DictConfig], words: list[str], message: str
) -> None:
    config = training_part(compose(*words))
    told: Told = []
    with pytest.raises(ConfigError, match=message):
        train_agent(config, lambda *words: told.append(words))
    assert told == [], "work had begun"
    assert not run_path(config).exists()


def test_misspelt_learners_are_named_before_anything_is_made(
    compose: Callable[..., DictConfig], tmp_path: Path
) -> None:
    words = (f"results.root='{tmp_path / 'other'}'", "size.precision.learners=[ppo,bandid]")
    with pytest.raises(ConfigError, match="unknown agent 'bandid'; did you mean 'bandit'"):
        compare_streams(compose(*words))
    assert list(tmp_path.iterdir()) == []
