from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from benchmarks import record as recording
from benchmarks.record import BUDGETS, record
from benchmarks.rows import BenchmarkRow
from experiments.claims import load_claims

# Twice what was aimed at, so aims from below are met and aims from above are missed.
VALUES = {
    "env-steps, CPU time": BenchmarkRow("env-steps, CPU time", 6e5, "1/s", 1.0, 1.0, ratio=100.0),
    "tasks, CPU time": BenchmarkRow("tasks, CPU time", 36e6, "1/s", 1.0, 1.0),
    "one environment, budget's workload": BenchmarkRow(
        "one environment, budget's workload", 5e3, "steps/s", 1.0, 1.0
    ),
    "  in it: codec": BenchmarkRow("  in it: codec", 40.0, "us", 1.0, 1.0),
    "PPO preset, budget's workload": BenchmarkRow(
        "PPO preset, budget's workload", 1e4, "steps/s", 1.0, 1.0, None, "x; gradient steps 60 %"
    ),
    "a decision, median": BenchmarkRow("a decision, median", 100.0, "us", 1.0, 1.0),
    "a decision, p99": BenchmarkRow("a decision, p99", 400.0, "us", 1.0, 1.0),
    "overhead of a task, 8 slots, 25 ms waits": BenchmarkRow(
        "overhead of a task, 8 slots, 25 ms waits", 50.0, "us", 1.0, 1.0
    ),
    "precision steps, budget's workload, CPU time": BenchmarkRow(
        "precision steps, budget's workload, CPU time", 20e6, "1/s", 1.0, 1.0
    ),
    "serving: a decision, batch of 16": BenchmarkRow(
        "serving: a decision, batch of 16", 100.0, "us", 1.0, 1.0, None, "p99 200"
    ),
    "serving: first pass after a switch, batch of 16": BenchmarkRow(
        "serving: first pass after a switch, batch of 16", 10.0, "us", 1.0, 1.0
    ),
    **{
        name: BenchmarkRow(name, 3.0, "us", 1.0, 1.0, ratio=1.25)
        for name in (
            "serving: decisions per request",
            "serving: overhead of a batch of 1",
            "serving: overhead of a batch of 16",
            "serving: p99 latency, 2 % shadow-checked",
            "serving: p99 latency, 10 % shadow-checked",
        )
    },
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(recording, "REFERENCE", tmp_path)
    return tmp_path


def test_rows_become_a_table_and_claims(folder: Path) -> None:
    rows = list(VALUES.values())
    record({"engine": rows[:2], "rest": rows[2:]})
    table = pd.read_csv(folder / "bench.csv")
    assert table["benchmark"].tolist() == ["engine"] * 2 + ["rest"] * 14
    claims = load_claims(folder / "claims.json")
    assert set(claims) == {budget.identity for budget in BUDGETS}
    assert claims["bench.engine.vs-reference"].value == 100.0
    assert claims["bench.engine.env-steps"].value == 6e5
    shadow = claims["bench.precision.shadow-10"]
    assert (shadow.value, shadow.aim, shadow.met) == (1.25, None, None)
    assert claims["bench.precision.overhead-1"].value == 3.0
    met = {name for name, claim in claims.items() if claim.met}
    ours = ("engine", "executor", "precision.steps", "precision.switch")
    assert met == {name for name in claims if any(part in name for part in ours)}
    assert "p99 200" in claims["bench.precision.decision"].why
    assert "codec 40 us" in claims["bench.env.single"].why
    assert "gradient steps 60 %" in claims["bench.ppo.end-to-end"].why
    assert all(not claims[name].why for name in met)


def test_a_missing_row_is_named(folder: Path) -> None:
    with pytest.raises(KeyError, match="tasks, CPU time"):
        record({"engine": [row for row in VALUES.values() if row.name != "tasks, CPU time"]})
    assert not (folder / "claims.json").exists()
