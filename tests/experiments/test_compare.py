from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from omegaconf import DictConfig

from experiments.compare import REFERENCE_AGENT, ROWS, SUMMARY, TIMELINE, compare, headroom
from experiments.record import COMPLETE, RunFolder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from experiments.cli import CONF

    GlobalHydra.instance().clear()
    results = tmp_path_factory.mktemp("compare")
    words = ["size=smoke", "workload=diurnal", "data.root=null", f"results.root='{results}'"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=[*words, "env.horizon_s=120.0"])


@pytest.fixture(scope="module")
def run(config: DictConfig) -> RunFolder:
    return compare(config)


@pytest.fixture(scope="module")
def rows(run: RunFolder) -> pd.DataFrame:
    return pd.read_csv(run.path / ROWS)


def test_every_agent_has_a_row_per_episode(config: DictConfig, rows: pd.DataFrame) -> None:
    episodes = int(config.size.evaluation_seeds)
    counts = rows.groupby(["agent", "train_seed"])["episode"].agg(["size", "nunique"])
    assert (counts == episodes).all(axis=None)
    needed = {"spark_default", "static_best", "random", "ppo", "hindsight_search", REFERENCE_AGENT}
    assert needed <= set(rows["agent"])
    assert np.isfinite(rows["mean_s"]).all()
    assert (rows["unfinished"] == 0).all()


def test_nobody_beats_the_clairvoyant_reference(rows: pd.DataFrame) -> None:
    best = rows[rows["agent"] == REFERENCE_AGENT].set_index("episode")
    assert (rows["mean_s"] >= rows["episode"].map(best["mean_s"]) - 1e-12).all()
    reached = rows.set_index(["agent", "episode"])["mean_s"]
    for episode, row in best.iterrows():
        assert row["mean_s"] in np.atleast_1d(reached[row["reached_by"], episode])
    assert headroom(rows) >= 0.0


def test_all_agents_meet_the_same_arrivals(run: RunFolder) -> None:
    timeline = pd.read_csv(run.path / TIMELINE)
    arrived = timeline.pivot(index="time_s", columns="agent", values="records_in")
    assert arrived.shape[1] > 5
    assert arrived.iloc[-1, 0] > 0
    assert (arrived.nunique(axis=1) == 1).all()


def test_mean_latency_obeys_littles_law(rows: pd.DataFrame) -> None:
    # The area counts what happens before the horizon, the reports what happens after it too.
    measured = rows[rows["agent"].isin(["static_best", "spark_default"])]
    np.testing.assert_allclose(measured["little_mean_s"], measured["mean_s"], rtol=0.1)


def test_the_summary_states_changes_against_rivals(run: RunFolder, rows: pd.DataFrame) -> None:
    summary = pd.read_csv(run.path / SUMMARY).set_index("agent")
    means = rows.groupby("agent")["mean_s"].mean()
    np.testing.assert_allclose(summary["mean_s"], means[summary.index])
    assert summary.loc["spark_default", "vs_spark_default_%"] == pytest.approx(0.0)
    assert summary["mean_s"].is_monotonic_increasing


def test_a_finished_comparison_is_skipped(config: DictConfig, run: RunFolder) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.path.iterdir()}
    again = compare(config)
    assert again.path == run.path
    after = {path: path.stat().st_mtime_ns for path in run.path.iterdir()}
    written = [path.name for path in before if before[path] != after[path]]
    assert set(written) <= {"provenance.json"}
    assert (run.path / COMPLETE).exists()
