"""Claims from made-up tables whose figures are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import DictConfig, OmegaConf

from experiments import reference
from experiments.claims import ClaimError, load_claims
from experiments.compare import ROWS
from experiments.errors import ConfigError
from experiments.record import RunFolder

EPISODES = np.array([1.0, 2.0, 5.0])  # latency of a factor of 1, seconds
# Factors of the latency: ppo halves Spark's and is 20 % below the best constants.
FACTORS = {
    "spark_default": 2.0,
    "single_best": 1.25,
    "static_best": 1.25,
    "idle_trigger": 1.6,
    "ppo": 1.0,
    "clairvoyant": 0.75,
}


def simulated_rows(env: str = "stream_cluster") -> pd.DataFrame:
    rows = [
        {"env": env, "load": 0.7, "agent": agent, "train_seed": seed, "episode": k}
        | {"mean_s": factor * latency_s * (1.0 + shift)}
        for agent, factor in FACTORS.items()
        # Two training seeds of ppo that differ, with the mean in between.
        for seed, shift in ([(0, -0.1), (1, 0.1)] if agent == "ppo" else [(0, 0.0)])
        for k, latency_s in enumerate(EPISODES)
    ]
    return pd.DataFrame(rows)


def real_rows(ppo_factor: float = 0.5) -> pd.DataFrame:
    """Measured and predicted: the prediction is 4 % low for Spark, 8 % high for ppo."""
    rows: list[dict[str, Any]] = []
    for agent, factor, error in (("spark_default", 1.0, -0.04), ("ppo", ppo_factor, 0.08)):
        for k, latency_s in enumerate(EPISODES):
            common = {"study": "latency", "agent": agent, "train_seed": 0, "episode": k}
            for source, scale in (("measured", 1.0), ("simulated", 1.0 + error)):
                mean_s = factor * latency_s * scale
                rows.append(common | {"source": source, "mean_s": mean_s, "p95_s": 2.0 * mean_s})
    return pd.DataFrame(rows)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    target = tmp_path / "reference"
    monkeypatch.setattr(reference, "REFERENCE", target)
    return target


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    made = tmp_path / "tables"
    made.mkdir()
    rates = {"ppo": 130.0, "spark_default": 100.0, "static_best": 125.0}
    rows = [{"agent": agent, "rate_per_s": rate} for agent, rate in rates.items()]
    pd.DataFrame(rows).to_csv(made / "throughput.csv", index=False)
    real_rows().to_csv(made / "real.csv", index=False)
    return made


def compared(tmp_path: Path, table: pd.DataFrame) -> list[RunFolder]:
    run = tmp_path / "run"
    run.mkdir()
    table.to_csv(run / ROWS, index=False)
    return [RunFolder(run, {})]


def settings(**changes: Any) -> DictConfig:
    content = {
        "record": True,
        "size": {"name": "paper", "headline_seeds": 2},
        "workload": {"name": "made-up"},
    }
    return OmegaConf.create(content | changes)


def test_claims_state_the_figures_of_the_tables(tmp_path: Path, tables: Path, folder: Path) -> None:
    reference.record_reference(settings(), tables, compared(tmp_path, simulated_rows()))
    claims = load_claims(folder / "claims.json")
    expected = {
        "sim.load70.headroom": 40.0,
        "sim.load70.ppo-vs-spark-default": -50.0,
        "sim.load70.ppo-vs-static-best": -20.0,
        "sim.load70.ppo-vs-idle-trigger": -37.5,
        "sim.throughput.ppo-vs-spark-default": 30.0,
        "sim.throughput.ppo-vs-static-best": 4.0,
        "real.ppo-vs-spark-default": -50.0,
        "real.prediction.mean": 8.0,
        "real.prediction.p95": 8.0,
    }
    found = {name: claims[name].value for name in expected}
    assert found == pytest.approx(expected)
    change = claims["sim.load70.ppo-vs-spark-default"]
    # The same change in every episode: resampling them moves nothing.
    assert (change.low, change.high) == pytest.approx((-50.0, -50.0))
    assert (change.met, change.seeds, change.data) == (True, (0, 1), "made-up")
    assert {(folder / claim.source).name for claim in claims.values()} == {
        "simulated.csv",
        "throughput.csv",
        "real.csv",
    }


def test_the_fixed_arm_makes_claims_of_its_own(tmp_path: Path, tables: Path, folder: Path) -> None:
    both = pd.concat([simulated_rows(), simulated_rows("stream_cluster_fixed_interval")])
    reference.record_reference(settings(), tables, compared(tmp_path, both))
    claims = load_claims(folder / "claims.json")
    arm = claims["sim.load70.fixed.ppo-vs-single-best"]
    assert arm.value == pytest.approx(-20.0)
    assert "fixed interval" in arm.what


def test_a_missed_aim_needs_a_reason(
    tmp_path: Path, tables: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_rows(ppo_factor=0.9).to_csv(tables / "real.csv", index=False)
    runs = compared(tmp_path, simulated_rows())
    monkeypatch.setattr(reference, "WHY", {})
    with pytest.raises(ClaimError, match=r"real\.ppo-vs-spark-default.*without a reason"):
        reference.record_reference(settings(), tables, runs)
    assert not (folder / "claims.json").exists()
    monkeypatch.setattr(reference, "WHY", {"real.ppo-vs-spark-default": "two slots"})
    reference.record_reference(settings(), tables, runs)
    (missed,) = (c for c in json.loads((folder / "claims.json").read_text()) if c["met"] is False)
    assert (missed["value"], missed["why"]) == (pytest.approx(-10.0), "two slots")


def test_nothing_is_written_unless_asked_for(tmp_path: Path, tables: Path, folder: Path) -> None:
    runs = compared(tmp_path, simulated_rows())
    reference.record_reference(settings(record=False), tables, runs)
    assert not folder.exists()
    quick = settings(size={"name": "quick", "headline_seeds": 2})
    with pytest.raises(ConfigError, match="size=paper"):
        reference.record_reference(quick, tables, runs)
    assert not folder.exists()
