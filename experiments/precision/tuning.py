"""Tuning of all hand-made rules on training streams; their settings are kept as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from itertools import product
from multiprocessing import current_process
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from omegaconf import DictConfig

from agents.precision.api import Episodes, run_streams
from agents.precision.candidates import candidate_rows
from agents.precision.families import GRIDS
from agents.precision.heuristics.chance import EqualDuty, equal_duty
from agents.precision.heuristics.static import Static, uniforms
from agents.precision.known import Known, known_of
from agents.precision.rule import Rule
from agents.precision.saved import STATIC, rule_of, saved_rule
from agents.precision.scores import rule_accuracies
from agents.precision.static_mix import cheapest_mix
from agents.tuning import worker_pool
from envs.precision.config import StagedPrecisionConfig
from experiments.files import write_csv, write_json
from experiments.precision.worlds import build_world, evaluation_episodes
from experiments.record import RunFolder
from experiments.training import Report
from experiments.workloads import Part
from runtime.precision.plan import PrecisionPlan

RULES, SCORES = "rules.json", "scores.csv.gz"
STATIC_BEST, TRAINING_MODE, PROGRAMME = "static_best", "training_mode", "integer_programme"
_AT_ONCE = 64
"""Rules that a worker evaluates at once."""
_ALONE = 64
"""Rules times episodes up to which no workers are worth their start."""


class Candidate(NamedTuple):
    """A rule in one of its settings.

    Attributes:
        name: What the rule is called in tables; the best setting of each name is kept.
        rule: The rule.
    """

    name: str
    rule: Rule


def tune_rules(config: DictConfig, run: RunFolder, report: Report) -> None:
    """Find the best setting of every rule and write `rules.json` and `scores.csv.gz`.

    Args:
        config: A settled configuration with an agent of kind rules.
        run: Where to write.
        report: Told about progress.
    """
    world = build_world(config, Part.TRAIN)
    known, node = known_of(world), config.agent
    episodes = evaluation_episodes(config, Part.TRAIN, int(node.episodes))
    candidates = list(_candidates(world, known, node))
    scores = evaluate_rules(world, [c.rule for c in candidates], episodes, report)
    mean = np.nanmean(scores, axis=1)
    best: dict[str, int] = {}
    for k, candidate in enumerate(candidates):
        if candidate.name not in best or mean[k] > mean[best[candidate.name]]:
            best[candidate.name] = k
    content = {
        name: saved_rule(candidates[k].rule) | {"training": float(mean[k])}
        for name, k in best.items()
    }
    adaptive = {name: k for name, k in best.items() if content[name]["family"] != STATIC}
    pattern = max(adaptive, key=lambda name: mean[adaptive[name]])
    content[EqualDuty.name] = _equal_duty(world, candidates[best[pattern]].rule, episodes)
    content[EqualDuty.name]["of"] = pattern
    write_csv(run.path / SCORES, _table(candidates, scores))
    write_json(run.path / RULES, content)


def read_rules(run: RunFolder, known: Known) -> dict[str, Rule]:
    """Return the tuned rules of a finished run by name."""
    return {name: rule_of(name, saved, known) for name, saved in _saved(run).items()}


def best_rule(run: RunFolder, known: Known) -> Rule:
    """Return the rule of a finished run that was best on training streams, of those that decide.

    Who imitates a plan that never changes tries nothing else afterwards.
    """
    saved = {name: entry for name, entry in _saved(run).items() if "training" in entry}
    rules = {name: rule_of(name, entry, known) for name, entry in saved.items()}
    deciding = [name for name, rule in rules.items() if rule.decides]
    return rules[max(deciding, key=lambda name: float(saved[name]["training"]))]


def _saved(run: RunFolder) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run.path / RULES).read_text(encoding="utf-8"))
    return content


def evaluate_rules(
    world: StagedPrecisionConfig, rules: Sequence[Rule], episodes: Episodes, report: Report
) -> NDArray[np.float64]:
    """Return the effective accuracy of each rule in each episode, float64 [rules, episodes].

    Args:
        world: The simulated world.
        rules: Different objects.
        episodes: Which streams, common to all rules.
        report: Told how many rules are done.
    """
    what, n = "rules on training streams", len(rules)
    if n * len(episodes.keys) <= _ALONE or current_process().daemon:
        return rule_accuracies(world, rules, episodes, lambda done: report(what, done, n))
    chunks = [list(rules[k : k + _AT_ONCE]) for k in range(0, n, _AT_ONCE)]
    result: list[NDArray[np.float64]] = []
    with worker_pool(min(os.cpu_count() or 1, len(chunks))) as pool:
        for scores in pool.imap(_evaluate, [(world, chunk, episodes) for chunk in chunks]):
            result.append(scores)
            report(what, sum(map(len, result)), n)
    return np.concatenate(result)


def _evaluate(work: tuple[StagedPrecisionConfig, list[Rule], Episodes]) -> NDArray[np.float64]:
    return rule_accuracies(*work)


def _candidates(world: StagedPrecisionConfig, known: Known, node: Any) -> Iterator[Candidate]:
    """Yield every rule in every setting that is tried."""
    for rule in uniforms(known, world.profile.levels):
        yield Candidate(rule.name, rule)
    yield Candidate(TRAINING_MODE, Static(TRAINING_MODE, world.safe_plan))
    mix = _integer_programme(world, known, float(node.budget))
    yield Candidate(PROGRAMME, Static(PROGRAMME, mix))
    for row in candidate_rows(world, known, int(node.assignments)):
        yield Candidate(STATIC_BEST, Static(STATIC_BEST, PrecisionPlan.from_row(row)))
    for name, grid in GRIDS.items():
        rules = grid(known)
        most = len(rules) if node.settings is None else int(node.settings)
        places = np.unique(np.linspace(0, len(rules) - 1, min(most, len(rules))).round())
        for k in places.astype(int):
            yield Candidate(name, rules[k])


def _integer_programme(world: StagedPrecisionConfig, known: Known, budget: float) -> PrecisionPlan:
    """Return the cheapest mix at the largest batch whose losses, taken as additive, are small."""
    profile = world.known_profile
    s, p = known.tables.n_stages, known.tables.n_levels
    b = int(known.bucket(np.array([float(known.max_batch)]))[0])
    loss = np.zeros((s, p))
    for stage, level in product(range(s), range(p)):
        lowered = tuple(level if k == stage else 0 for k in range(s))
        alone = known.tables.accuracy[int(known.assignments(lowered))]
        loss[stage, level] = known.tables.accuracy[0] - alone
    mix = cheapest_mix(profile.latency_s[b], profile.transition_s[b], loss, budget)
    return PrecisionPlan(mix if mix is not None else (0,) * s)


def _equal_duty(world: StagedPrecisionConfig, rule: Rule, episodes: Episodes) -> dict[str, Any]:
    """Return the draws that use each plan as often as a rule does on training streams."""
    return saved_rule(equal_duty(run_streams(world, rule, episodes).plans))


def _table(candidates: Sequence[Candidate], scores: NDArray[np.float64]) -> pd.DataFrame:
    """Return a row per setting: its scores."""
    rows = [
        {"rule": c.name, "settings": json.dumps(saved_rule(c.rule)["settings"])} for c in candidates
    ]
    table = pd.DataFrame(rows)
    for k in range(scores.shape[1]):
        table[f"episode_{k}"] = scores[:, k]
    table["mean"] = np.nanmean(scores, axis=1)
    return table
