"""From benchmark rows to results/reference/bench.csv and to claims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import NamedTuple

import pandas as pd

from benchmarks.rows import BenchmarkRow
from experiments.claims import REFERENCE, Claim, record_claims
from experiments.files import file_sha256, write_csv
from experiments.provenance import machine_summary

COMMAND = "make bench ARGS=record=true"
TABLE = "bench.csv"
Rows = dict[str, BenchmarkRow]


class Budget(NamedTuple):
    """A claim that one row makes.

    Attributes:
        identity: Id of the claim.
        row: Name of the row.
        what: What is measured, in words that stand alone.
        aim: What was aimed at; None: nothing, the figure is there to be known.
        why: Words a missed aim, from all rows.
        ratio: Whether the claim states the row's ratio instead of its value.
    """

    identity: str
    row: str
    what: str
    aim: str | None
    why: Callable[[Rows], str] = lambda rows: ""
    ratio: bool = False


_ELSEWHERE = (
    "the aim was set on a Xeon with AVX-512; this machine has two cores shared with other programs"
)


def _elsewhere(rows: Rows) -> str:
    return _ELSEWHERE


def _single(rows: Rows) -> str:
    parts = [row for name, row in rows.items() if name.startswith("  in it: ")]
    words = [f"{row.name.removeprefix('  in it: ')} {row.value:.0f} us" for row in parts]
    return (
        f"{', '.join(words)}: codec and guards are numpy for any number of environments, and for "
        f"one each of their array operations costs about 1 us; {_ELSEWHERE}"
    )


def _training(rows: Rows) -> str:
    note = rows["PPO preset, budget's workload"].note
    return f"{note[note.index('gradient steps') :]} of the time; {_ELSEWHERE}"


def _decision(rows: Rows) -> str:
    codec = rows["  in it: codec"].value
    return f"codec {codec:.0f} us, the rest network, action and plan; {_ELSEWHERE}"


def _noted(name: str) -> Callable[[Rows], str]:
    """Return what words a missed aim by the note of a row."""
    return lambda rows: f"{rows[name].note}; {_ELSEWHERE}"


BUDGETS = (
    Budget(
        "bench.engine.env-steps",
        "env-steps, CPU time",
        "batched engine, 256 environments, one core",
        ">= 300000",
        _elsewhere,
    ),
    Budget(
        "bench.engine.tasks",
        "tasks, CPU time",
        "simulated tasks of the batched engine, one core",
        ">= 18e6",
        _elsewhere,
    ),
    Budget(
        "bench.engine.vs-reference",
        "env-steps, CPU time",
        "batched engine over its plain-Python oracle",
        ">= 50",
        _elsewhere,
        ratio=True,
    ),
    Budget(
        "bench.env.single",
        "one environment, budget's workload",
        "one Gymnasium environment",
        ">= 100000",
        _single,
    ),
    Budget(
        "bench.ppo.end-to-end",
        "PPO preset, budget's workload",
        "decisions of PPO training, end to end",
        ">= 50000",
        _training,
    ),
    Budget(
        "bench.decision.median",
        "a decision, median",
        "one decision of a loaded bundle, median",
        "<= 50",
        _decision,
    ),
    Budget(
        "bench.decision.p99",
        "a decision, p99",
        "one decision of a loaded bundle, 99th percentile",
        "<= 200",
        lambda rows: f"{_decision(rows)}, which preempt it",
    ),
    Budget(
        "bench.executor.overhead",
        "overhead of a task, 8 slots, 25 ms waits",
        "real executor's overhead per task, median",
        "<= 200",
        _elsewhere,
    ),
    Budget(
        "bench.precision.steps",
        "precision steps, budget's workload, CPU time",
        "batched simulator of staged precision, one core",
        ">= 10e6",
        _elsewhere,
    ),
    Budget(
        "bench.precision.decision",
        "serving: a decision, batch of 16",
        "one decision for a batch of 16 requests: properties, bundle and guards, in the server",
        "<= 50",
        _noted("serving: a decision, batch of 16"),
    ),
    Budget(
        "bench.precision.switch",
        "serving: first pass after a switch, batch of 16",
        "first pass after a change of levels, beyond a pass without, batch of 16",
        "<= 20",
        _noted("serving: first pass after a switch, batch of 16"),
    ),
    Budget(
        "bench.precision.per-request",
        "serving: decisions per request",
        "decisions per request in batches of 16: properties, bundle and guards, in the server",
        None,
    ),
    *(
        Budget(
            f"bench.precision.overhead-{size}",
            f"serving: overhead of a batch of {size}",
            f"serving a batch of {size} beyond its pass, under a plan that never changes",
            None,
        )
        for size in (1, 16)
    ),
    *(
        Budget(
            f"bench.precision.shadow-{share}",
            f"serving: p99 latency, {share} % shadow-checked",
            f"p99 latency with {share} % of the requests shadow-checked over that without checks",
            None,
            ratio=True,
        )
        for share in (2, 10)
    ),
)


def record(measured: dict[str, list[BenchmarkRow]]) -> None:
    """Write the table and the claims to results/reference.

    Args:
        measured: Rows by benchmark, all of them.

    Raises:
        KeyError: A row that makes a claim is missing.
    """
    frames = [asdict(row) | {"benchmark": name} for name, rows in measured.items() for row in rows]
    write_csv(REFERENCE / TABLE, pd.DataFrame(frames))
    rows = {row.name: row for group in measured.values() for row in group}
    claims = [claim_of(budget, rows) for budget in BUDGETS]
    record_claims(claims, record=True, reference=REFERENCE)


def claim_of(budget: Budget, rows: Rows) -> Claim:
    """Return the claim of a budget; needs the written table."""
    row = rows[budget.row]
    value, unit = (row.ratio, "") if budget.ratio else (row.value, row.unit)
    if value is None:
        raise KeyError(f"row {budget.row!r} has no ratio")
    fields = {
        "id": budget.identity,
        "what": budget.what,
        "value": value,
        "unit": unit,
        "aim": budget.aim,
        "command": COMMAND,
        "data": "synthetic",
        "machine": machine_summary(),
        "date": datetime.now(UTC).date().isoformat(),
        "source": TABLE,
        "source_sha256": file_sha256(REFERENCE / TABLE),
    }
    claim = Claim(**fields, why=budget.why(rows))
    return replace(claim, why="") if claim.met else claim
