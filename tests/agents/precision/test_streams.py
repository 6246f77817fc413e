"""Rules on short streams of the synthetic bank; tuning and search with the true future."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.precision.api import (
    ConstantRows,
    Episodes,
    Separately,
    effective_accuracies,
    run_streams,
)
from agents.precision.clairvoyant import (
    WindowRows,
    hindsight_best,
    hindsight_windows,
    with_other_samples,
)
from agents.precision.families import GRIDS
from agents.precision.heuristics.chance import EqualDuty, equal_duty
from agents.precision.heuristics.feedback import ShadowFeedback
from agents.precision.heuristics.inputs import Difficulty
from agents.precision.heuristics.load import SlackFit
from agents.precision.heuristics.static import Static, uniforms
from agents.precision.known import Known
from agents.precision.rule import Rule
from agents.precision.saved import rule_of, saved_rule
from agents.precision.scores import SideBySide, row_accuracies, rule_accuracies
from envs.precision.config import StagedPrecisionConfig
from envs.precision.servers import Servers
from runtime.precision.plan import PrecisionPlan
from runtime.precision.snapshot import REPORT_INDEX
from simulators.precision.workload import ListedConditions

NAMES = (*GRIDS, "static_int8", "equal_duty")


def _rule(name: str, known: Known) -> Rule:
    if name == "static_int8":
        return uniforms(known, ("fp32", "bf16", "int8", "int8_half"))[2]
    if name == "equal_duty":
        return EqualDuty(known.rows[[85, 170, 255]], np.array([0.2, 0.5, 0.3]))
    if name == "difficulty":
        return Difficulty(known, "last_margin", (0.75,), (known.uniform(2), known.uniform(3)))
    grid = GRIDS[name](known)
    return grid[len(grid) // 2]


@pytest.mark.parametrize("name", NAMES)
def test_every_request_is_served_or_dropped_once(
    name: str, world: StagedPrecisionConfig, world_known: Known, episodes: Episodes
) -> None:
    streams = run_streams(world, _rule(name, world_known), episodes)
    arrivals = world.workload.arrivals
    counts = arrivals.counts(episodes.keys, episodes.starts, world.n_ticks)
    for k, reports in enumerate(streams.reports):
        served = reports[:, REPORT_INDEX["requests"]].sum()
        dropped = reports[:, REPORT_INDEX["dropped"]].sum()
        assert served + dropped == counts[k].sum() == streams.summaries[k].requests
        assert len(streams.plans[k]) == len(streams.causes[k]) == len(reports)
    expected = [summary.effective_accuracy for summary in streams.summaries]
    quick = effective_accuracies(world, _rule(name, world_known), episodes)
    np.testing.assert_allclose(quick, expected, rtol=1e-12)
    assert 0.0 < min(expected) <= max(expected) <= 1.0


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_for_many_servers_decides_as_it_does_for_one(
    name: str, world: StagedPrecisionConfig, world_known: Known, episodes: Episodes
) -> None:
    one = Episodes(episodes.keys[:1], episodes.starts[:1])
    together = run_streams(world, _rule(name, world_known), episodes)
    alone = run_streams(world, Separately(lambda k: _rule(name, world_known)), one)
    np.testing.assert_array_equal(together.reports[0], alone.reports[0])
    np.testing.assert_array_equal(together.plans[0], alone.plans[0])
    if name != "equal_duty":  # its server k draws numbers of its own
        each = run_streams(world, Separately(lambda k: _rule(name, world_known)), episodes)
        for k in range(3):
            np.testing.assert_array_equal(together.plans[k], each.plans[k])


@pytest.mark.parametrize("name", NAMES)
def test_a_second_run_of_the_same_rule_repeats_the_first(
    name: str, world: StagedPrecisionConfig, world_known: Known, episodes: Episodes
) -> None:
    rule = _rule(name, world_known)
    first, second = (run_streams(world, rule, episodes) for _ in range(2))
    for a, b in zip(first.reports, second.reports, strict=True):
        np.testing.assert_array_equal(a, b)


def test_who_does_not_observe_loses_nothing_by_it(
    world: StagedPrecisionConfig, world_known: Known, episodes: Episodes
) -> None:
    seen = []

    class Watched(SlackFit):
        def propose(
            self, observation: NDArray[np.float32], signals: NDArray[np.float64]
        ) -> NDArray[np.float64]:
            seen.append(observation.shape)
            return super().propose(observation, signals)

    class Curious(Watched):
        observes = True

    size = Servers(world, 1).codec.size
    curious = run_streams(world, Curious(world_known, 0.9), episodes)
    assert set(seen) == {(len(episodes.keys), size)}
    seen.clear()
    plain = run_streams(world, Watched(world_known, 0.9), episodes)
    assert set(seen) == {(len(episodes.keys), 0)}
    for a, b in zip(curious.reports, plain.reports, strict=True):
        np.testing.assert_array_equal(a, b)


def test_only_agents_that_decide_take_time_for_it(
    world: StagedPrecisionConfig, world_known: Known, episodes: Episodes
) -> None:
    decision_s = 1e-3 * np.arange(1, len(world.profile.buckets) + 1)
    slow = replace(world, profile=replace(world.profile, decision_s=decision_s))
    plan = world.safe_plan

    class Stubborn(Static):
        decides = True

    start, end, n = (REPORT_INDEX[name] for name in ("start_s", "end_s", "requests"))
    at_once, constant, deciding = (
        run_streams(w, rule("", plan), episodes).reports[0]
        for w, rule in ((world, Static), (slow, Static), (slow, Stubborn))
    )
    np.testing.assert_array_equal(at_once, constant)
    # The first batches are the same ones, hence their residuals: what differs is the decision.
    bucket = np.searchsorted(world.profile.buckets, deciding[0, n])
    took_s = [reports[0, end] - reports[0, start] for reports in (deciding, constant)]
    assert took_s[0] - took_s[1] == pytest.approx(decision_s[bucket])
    assert len(deciding) < len(constant)  # slower, so larger batches
    with pytest.raises(ValueError, match="run apart"):
        SideBySide([Static("", plan), Stubborn("", plan)])


def test_rules_that_adapt_use_several_plans(
    world: StagedPrecisionConfig, world_known: Known, episodes: Episodes
) -> None:
    for name in ("slack_fit", "model_switching", "stage_shedding", "difficulty", "alert"):
        streams = run_streams(world, _rule(name, world_known), episodes)
        assert len(np.unique(np.concatenate(streams.plans), axis=0)) > 1, name


def test_shadow_feedback_raises_its_levels_when_the_inputs_drift(
    world: StagedPrecisionConfig, world_known: Known, episodes: Episodes
) -> None:
    drifting = replace(
        world,
        horizon_s=12.0,
        workload=replace(world.workload, conditions=ListedConditions(((0.0, 0), (4.0, 3)))),
    )
    rule = ShadowFeedback(world_known, target=0.25, pause_s=0.5, start=3)
    streams = run_streams(drifting, rule, episodes)
    for reports, plans in zip(streams.reports, streams.plans, strict=True):
        start_s = reports[:, REPORT_INDEX["start_s"]]
        before = plans[(start_s > 3.0) & (start_s < 4.0), 0]
        assert before.mean() == 3.0
        # It raises within six seconds of the drift. Where the finer level then agrees with the
        # reference again it tries the coarser one again, so it need not stay up.
        raised_s = start_s[plans[:, 0] < 3.0]
        assert 4.0 < raised_s.min() < 10.0


def test_constant_plans_side_by_side_score_as_one_by_one(
    world: StagedPrecisionConfig, world_known: Known
) -> None:
    few = Episodes(np.array([5, 6], dtype=np.uint64), np.array([0, 100]))
    short = replace(world, horizon_s=1.0)
    done: list[int] = []
    scores = row_accuracies(short, world_known.rows, few, done.append)
    assert done[-1] == len(scores) == 256
    for index in range(0, 256, 9):
        row = np.tile(world_known.rows[index], (2, 1))
        own = [s.effective_accuracy for s in run_streams(short, ConstantRows(row), few).summaries]
        np.testing.assert_allclose(scores[index], own, rtol=1e-12)


def test_rules_side_by_side_score_as_one_by_one(
    world: StagedPrecisionConfig, world_known: Known, episodes: Episodes
) -> None:
    fitting = [SlackFit(world_known, factor) for factor in (0.01, 0.2, 0.5, 1.0)]
    rules = [fitting[0], Static("", PrecisionPlan((0,) * 4)), *fitting[1:]]
    done: list[int] = []
    scores = rule_accuracies(world, rules, episodes, done.append)
    alone = [effective_accuracies(world, rule, episodes) for rule in rules]
    np.testing.assert_array_equal(scores, np.stack(alone))
    assert len(np.unique(scores.mean(axis=1))) > 2
    assert done[-1] == 5


def test_the_oracle_is_never_worse_than_the_best_constant_plan_in_hindsight(
    world: StagedPrecisionConfig, world_known: Known, episodes: Episodes
) -> None:
    rows = world_known.rows[[0, 85, 170, 255]]
    constant = row_accuracies(world, rows, episodes)
    best = hindsight_best(world, rows, episodes)
    np.testing.assert_array_equal(constant.max(axis=0), constant[best, np.arange(3)])
    found = hindsight_windows([world], np.tile(rows, (3, 1, 1)), episodes, 1.0)
    assert found.shape == (4, 3, rows.shape[1])
    one = Episodes(episodes.keys[1:2], episodes.starts[1:2])
    np.testing.assert_array_equal(
        hindsight_windows([world], rows[None], one, 1.0)[:, 0], found[:, 1]
    )
    agent = WindowRows(found, 1.0)
    scores = effective_accuracies(world, agent, episodes)
    assert (scores >= constant.max(axis=0)).all()
    assert (scores > constant.max(axis=0)).any()


def test_other_samples_come_at_the_same_times_in_the_same_conditions(
    world: StagedPrecisionConfig, world_known: Known, episodes: Episodes
) -> None:
    agent = ConstantRows(np.repeat(world_known.rows[[255]], 3, axis=0))
    other = with_other_samples(world, np.random.default_rng(3))
    own, theirs = (run_streams(config, agent, episodes) for config in (world, other))
    timed = [REPORT_INDEX[name] for name in ("requests", "start_s", "end_s", "late", "condition")]
    for mine, yours in zip(own.reports, theirs.reports, strict=True):
        np.testing.assert_array_equal(mine[:, timed], yours[:, timed])
        assert (mine[:, REPORT_INDEX["correct"]] != yours[:, REPORT_INDEX["correct"]]).any()
    np.testing.assert_array_equal(
        np.sort(world.profile.label[1, 255] == world.profile.truth),
        np.sort(other.profile.label[1, 255] == other.profile.truth),
    )


def test_the_search_without_the_answers_gains_by_arrivals_and_conditions_alone(
    world: StagedPrecisionConfig, world_known: Known, episodes: Episodes
) -> None:
    rows = world_known.rows[[0, 85, 170, 255]]
    one = Episodes(episodes.keys[:1], episodes.starts[:1])
    rng = np.random.default_rng(3)
    others = [with_other_samples(world, rng) for _ in range(2)]
    plans = {
        name: WindowRows(hindsight_windows(worlds, rows[None], one, 1.0), 1.0)
        for name, worlds in (("answers", [world]), ("foresight", others))
    }
    scores = {name: effective_accuracies(world, agent, one)[0] for name, agent in plans.items()}
    searched = np.mean([effective_accuracies(other, plans["foresight"], one) for other in others])
    constant = np.mean([row_accuracies(other, rows, one) for other in others], axis=0)
    assert searched >= constant.max()
    assert scores["answers"] >= scores["foresight"] > row_accuracies(world, rows, one).mean()


def test_window_rows_change_at_the_windows(
    world: StagedPrecisionConfig, world_known: Known
) -> None:
    one = Episodes(np.array([7], dtype=np.uint64), np.array([0]))
    rows = world_known.rows[[0, 255]][:, None]
    streams = run_streams(world, WindowRows(rows, 2.0), one)
    start_s = streams.reports[0][:, REPORT_INDEX["start_s"]]
    np.testing.assert_array_equal(streams.plans[0][:, 0], np.where(start_s < 2.0, 0.0, 3.0))


def test_equal_duty_of_a_run_uses_its_plans(
    world: StagedPrecisionConfig, world_known: Known, episodes: Episodes
) -> None:
    original = run_streams(world, _rule("slack_fit", world_known), episodes)
    rule = equal_duty(original.plans)
    used = np.unique(np.concatenate(run_streams(world, rule, episodes).plans), axis=0)
    assert {tuple(row) for row in used} <= {tuple(row) for row in rule.plans}


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_every_setting_of_a_family_is_different_and_bears_its_name(
    name: str, world_known: Known
) -> None:
    grid = GRIDS[name](world_known)
    assert {rule.name for rule in grid} == {name}
    settings = {repr(sorted(rule.settings().items())) for rule in grid}
    assert len(settings) == len(grid) > 1


def test_a_static_rule_tells_its_plan() -> None:
    plan = PrecisionPlan((1, 2), 0.3, (0, 0))
    assert PrecisionPlan.from_mapping(Static("one", plan).settings()) == plan


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_rule_is_what_a_json_file_gives_back(name: str, world_known: Known) -> None:
    rule = _rule(name, world_known)
    saved = saved_rule(rule)
    read = json.loads(json.dumps(saved))
    assert read == saved
    assert saved_rule(rule_of(rule.name, read, world_known)) == saved
