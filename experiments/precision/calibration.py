"""Choosing levels: the training mode beside its rivals, on the same bank, data and times.

Everything is chosen on calibration data; accuracy is reported on held-out data too.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from agents.precision.static_mix import cheapest_mix
from experiments.precision.answers import (
    MODELLED_SAMPLES,
    Told,
    exact_answers,
    shared_multiplications,
)
from experiments.precision.banks import TrainedBank, inputs
from experiments.precision.data import Part
from experiments.precision.latencies import BucketLatencies
from experiments.training import Report
from runtime.precision.corruptions import SEVERITIES, STRENGTHS, corruption_names, input_kind
from runtime.precision.judged_bank import JudgedBank, Result
from runtime.precision.names import unknown
from runtime.precision.training_mode import (
    Assignment,
    ChainCheck,
    StageSearch,
    Upstream,
    find_levels,
    hold_chain,
)

LEVELS, TRIALS, EVERY, CHOSEN, LATENCIES = (
    *("levels.csv", "trials.csv", "assignments.csv", "chosen.csv", "latencies.csv"),
)
RIVALS, FIT = "rivals.csv", "fit.csv"
TABLE, FRONT, KERNELS = "calibration.json", "front.png", "kernels.json"
PROFILE, HELD_OUT, MODELLED = "profile.npz", "profile_held_out.npz", "modelled.csv"
"""Files of a calibration's run folder."""

CONDITIONS = {
    "image": ["clean", "noise-3", "noise-5", "contrast-4", "occlusion-4"],
    "audio": ["clean", "noise-3", "noise-5", "clipping-4", "dropout-4"],
}
"""Conditions of profiles by kind of input: two degrees of one corruption, and two others."""


@dataclass(frozen=True)
class CalibrationNode:
    """The node `calibration` of a configuration.

    Attributes:
        batch: Batch size whose times count; one of the bank's buckets.
        fidelity: Threshold of a stage judged by itself: share of its first output's energy.
        accuracy: Threshold of a stage judged by the accuracy of the whole chain.
        chain: Threshold of the whole chain, and budget of the rivals: accuracy.
        samples: Calibration and held-out samples, at most.
        exhaustive_tmac: All assignments are run on the samples if that many 10^12 multiplications
            suffice (`shared_multiplications`); where more are needed, the best of all is not looked
            for, and profiles are modelled. A profile has no more samples than as many allow.
        conditions: Of the profiles: "clean", then such as "noise-3": a corruption and a severity;
            None: those of `CONDITIONS` that fit the inputs.
        profiled: Samples of a profile, at most; 0: tables alone, no profiles.
    """

    batch: int
    fidelity: float
    accuracy: float
    chain: float
    samples: int
    exhaustive_tmac: float
    conditions: list[str] | None
    profiled: int

    def __post_init__(self) -> None:
        """Refuse conditions that are none.

        Raises:
            ValueError: Names the condition.
        """
        if self.conditions is None:
            return
        if not self.conditions or self.conditions[0] != "clean":
            raise ValueError(f"conditions are {self.conditions}; expected 'clean' first")
        self._check({name for kind in STRENGTHS.values() for name in kind}, "corruption")

    def is_exact(self, trained: TrainedBank) -> bool:
        """Return whether all assignments of a bank are run."""
        return self._affordable(trained) >= min(self.samples, len(trained.data.calibration))

    def profile_samples(self, trained: TrainedBank) -> int:
        """Return how many samples a profile has at most."""
        if not self.is_exact(trained):
            return min(self.profiled, MODELLED_SAMPLES)
        conditions = len(self.names(trained.data.calibration.x))
        return min(self.profiled, max(1, self._affordable(trained) // conditions))

    def _affordable(self, trained: TrainedBank) -> int:
        """Return how many samples can be shown to all assignments."""
        return int(1e12 * self.exhaustive_tmac / shared_multiplications(trained))

    def names(self, x: NDArray[np.float32]) -> list[str]:
        """Return the names of the conditions for such inputs.

        Raises:
            ValueError: A corruption of another kind of inputs.
        """
        kind = input_kind(x)
        self._check(set(corruption_names(kind)), f"corruption of {kind} inputs")
        return self.conditions or CONDITIONS[kind]

    def _check(self, known: set[str], what: str) -> None:
        """Refuse conditions that are no known corruption with a severity."""
        for condition in (self.conditions or [])[1:]:
            name, dash, severity = condition.rpartition("-")
            degrees = [str(degree) for degree in SEVERITIES if degree > 0]
            if not (name and dash and severity in degrees):
                raise ValueError(
                    f"condition {condition!r} is not such as 'noise-3', a corruption and a "
                    f"severity of {degrees[0]} to {degrees[-1]}"
                )
            if name not in known:
                raise unknown(f"{what} (calibration.conditions)", name, known)


@dataclass(frozen=True, eq=False)
class Calibrated:
    """What was chosen.

    Attributes:
        searches: The training mode's searches and chain checks by name.
        chosen: Assignments by the name of who chose them.
        every: All assignments with accuracy on both parts and predicted latency, or only those
            that somebody tried.
    """

    searches: dict[str, tuple[StageSearch, ChainCheck]]
    chosen: dict[str, Assignment]
    every: pd.DataFrame


def calibrate(
    trained: TrainedBank, measured: BucketLatencies, node: CalibrationNode, report: Report
) -> Calibrated:
    """Choose levels in every way.

    Args:
        trained: The bank.
        measured: Latencies at `node.batch`.
        node: Thresholds and sizes.
        report: Told about progress.
    """
    bank, data = trained.bank, trained.data.calibration.first(node.samples)
    held_out = trained.data.validation.first(node.samples)
    stage_s = measured.fit.stage_s
    judges = {r: JudgedBank(bank, inputs(data.x), data.y, stage_s, r) for r in Result}
    judge = judges[Result.END_TO_END]
    outside = JudgedBank(bank, inputs(held_out.x), held_out.y, stage_s)
    exhaustive = node.is_exact(trained)
    if exhaustive:
        _answer_all(trained, judge, data, partial(report, "answers of all, calibration"))
        _answer_all(trained, outside, held_out, partial(report, "answers of all, held out"))
    searches = _searches(judges, node, report)
    n_stages = len(bank.stages)
    chosen = {level.name: trained.runnable((k,) * n_stages) for k, level in enumerate(bank.levels)}
    chosen |= {f"training mode, {name}": check.assignment for name, (_, check) in searches.items()}
    mix = _integer_programme(judge, measured, node.chain)
    if mix is not None:
        chosen["integer programme"] = mix
    tried = all_runnable(trained) if exhaustive else list(dict.fromkeys(chosen.values()))
    rows = []
    for k, assignment in enumerate(tried):
        if not exhaustive:
            report("accuracy of assignments", k, len(tried))
        rows.append(
            {
                "assignment": _say(judge, assignment),
                "calibration": judge.accuracy(assignment),
                "held_out": outside.accuracy(assignment),
            }
        )
    every = pd.DataFrame(rows)
    every["predicted_s"] = measured.fit.predict_s(np.array(tried, dtype=np.int64))
    if exhaustive:
        floor = judge.accuracy(tried[0]) - node.chain
        good = np.nonzero(every["calibration"].to_numpy() >= floor - 1e-12)[0]
        chosen["best of all"] = tried[good[every["predicted_s"].to_numpy()[good].argmin()]]
    return Calibrated(searches, chosen, every)


def all_runnable(trained: TrainedBank) -> list[Assignment]:
    """Return all assignments whose stages have their levels, in ascending order."""
    bank = trained.bank
    every = product(range(len(bank.levels)), repeat=len(bank.stages))
    return [assignment for assignment in every if trained.runnable(assignment) == assignment]


def _answer_all(trained: TrainedBank, judge: JudgedBank, part: Part, told: Told) -> None:
    """Tell a judge the answers of all assignments: looking them up is all that is left."""
    (found,) = exact_answers(trained, [inputs(part.x)], told)
    labels = found.label.astype(np.int64)
    judge.know({a: labels[trained.bank.encode(a)] for a in all_runnable(trained)})


def _searches(
    judges: dict[Result, JudgedBank], node: CalibrationNode, report: Report
) -> dict[str, tuple[StageSearch, ChainCheck]]:
    """Run the training mode with both results and both kinds of upstream stages."""
    thresholds = {Result.LOCAL: node.fidelity, Result.END_TO_END: node.accuracy}
    found = {}
    for k, (result, upstream) in enumerate(product(Result, Upstream)):
        report("training mode", k, len(Result) * len(Upstream))
        judge = judges[result]
        search = find_levels(judge, [thresholds[result]] * len(judge.stage_names), upstream)
        check = hold_chain(judges[Result.END_TO_END], search.assignment, node.chain)
        found[f"{result.value}, {upstream.value}"] = (search, check)
    report("training mode", len(found), len(found))
    return found


def _integer_programme(
    judge: JudgedBank, measured: BucketLatencies, budget: float
) -> Assignment | None:
    """Return the cheapest mix whose losses, each measured with one stage lowered, add up."""
    cost, transition = measured.fit.stage_s.copy(), measured.fit.transition_s
    n_stages, n_levels = cost.shape
    first = judge.accuracy((0,) * n_stages)
    loss = np.zeros(cost.shape)
    for stage, level in product(range(n_stages), range(1, n_levels)):
        if judge.refusal(stage, level):
            cost[stage, level] = np.inf
        else:
            lowered = tuple(level if k == stage else 0 for k in range(n_stages))
            loss[stage, level] = first - judge.accuracy(lowered)
    return cheapest_mix(cost, transition, loss, budget)


def rival_column(batch: int, rival: str) -> str:
    """Return the column of the table of levels that compares with a rival."""
    return f"batch_{batch}_over_{rival.replace(' ', '_')}"


def level_table(
    trained: TrainedBank, measured: list[BucketLatencies], accuracies: dict[str, NDArray[Any]]
) -> pd.DataFrame:
    """Return a row per level: latency at every batch size, speed-up, bytes, accuracies.

    Latencies of emulated levels are declared; such levels are compared with nothing.

    Args:
        trained: The bank.
        measured: Latencies at every batch size.
        accuracies: By condition float64 [P], held-out accuracy of uniform assignments.
    """
    bank = trained.bank
    rows = []
    for k, level in enumerate(bank.levels):
        row: dict[str, Any] = {"level": level.name, "emulated": level.emulated}
        for at in measured:
            seconds = _uniform_s(at, k)
            row[f"batch_{at.bucket}_ms"] = 1e3 * seconds
            for rival, rival_s in at.rivals_s.items():
                ratio = math.nan if level.emulated else rival_s / seconds
                row[rival_column(at.bucket, rival)] = ratio
        own = trained.runnable((k,) * len(bank.stages))
        row["bytes"] = sum(bank.bytes(stage, own[stage]) for stage in range(len(own)))
        row |= {f"accuracy_{name}": float(values[k]) for name, values in accuracies.items()}
        rows.append(row)
    return pd.DataFrame(rows)


def _uniform_s(at: BucketLatencies, level: int) -> float:
    """Return the latency of one level everywhere, measured, or declared if it is emulated."""
    uniform = np.nonzero((at.assignments == level).all(axis=1))[0]
    if len(uniform) > 0:
        return float(at.steady_s[uniform[0]])
    return float(at.fit.predict_s(np.full((1, at.assignments.shape[1]), level))[0])


def search_table(calibrated: Calibrated) -> pd.DataFrame:
    """Return the training mode's trials: a row per search, stage and level."""
    rows = []
    for name, (search, _) in calibrated.searches.items():
        rows += [
            {"search": name, **asdict(trial), "outcome": trial.outcome.value}
            for trial in search.trials
        ]
    return pd.DataFrame(rows)


def calibration_record(calibrated: Calibrated, judge_levels: tuple[str, ...]) -> dict[str, Any]:
    """Return the written calibration table: plain JSON values."""
    record: dict[str, Any] = {"levels": list(judge_levels), "searches": {}, "chosen": {}}
    for name, (search, check) in calibrated.searches.items():
        record["searches"][name] = {
            "runs": search.runs,
            "assignment": list(search.assignment),
            "trials": [asdict(trial) for trial in search.trials],
            "chain": {**asdict(check), "raises": [asdict(r) for r in check.raises]},
        }
    record["chosen"] = {name: list(levels) for name, levels in calibrated.chosen.items()}
    return record


def _say(judge: JudgedBank, assignment: Assignment) -> str:
    return "/".join(judge.level_names[level] for level in assignment)
