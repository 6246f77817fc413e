from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from agents.export import bundle_of
from agents.heuristics.constant import ConstantAgent
from experiments.drive import DECISIONS, beside, changes, drive
from experiments.drive_view import DriveView, plan_words
from experiments.errors import REPOSITORY, explain_run
from experiments.measure import real_jobs
from experiments.real_run import Unwatched, check_counts, episode_world, predict, run_for_real
from experiments.record import results_root
from experiments.roster import Driver, drivers
from experiments.training import silent
from experiments.turns import REPORTS, ROWS, alternated
from experiments.worlds import Part, build_world
from runtime.plan import Plan, Policy, Pools
from runtime.policy import WEIGHTS
from runtime.snapshot import REPORT_INDEX, SIGNAL_INDEX, SIGNALS, Snapshot

Compose = Callable[..., DictConfig]
SHORT = ("size.drive.seconds=2", "env.period_s=0.5")
PLANS = (
    "[{name: fast, parallelism: 8, batch_interval_s: 0.25}, {name: slow, batch_interval_s: 0.5}]"
)
"""The first one is the faster one, by far."""


@pytest.fixture
def two_plans(smoke: Compose, profile: Path) -> Compose:
    fixed = [*SHORT, f"env.profile='{profile}'", "drive.agents=[]", f"drive.plans={PLANS}"]
    return lambda *words: smoke("workload.load=0.2", *fixed, *words)


class Log(Unwatched):
    """Notes which runs there were, the warm-up left out."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    def begins(self, title: str, executor: Any, horizon_s: float) -> None:
        if title:
            self.titles.append(title)


def test_real_runs_stand_beside_their_prediction(two_plans: Compose) -> None:
    view = DriveView(Progress())
    screen = Console(record=True, width=100, file=io.StringIO())
    decided = view.decided

    def look(decision: Any) -> None:
        decided(decision)
        screen.print(view)

    view.decided = look  # type: ignore[method-assign]
    config = two_plans("drive.agents=[random]")
    run = drive(config, watch=view)
    rows = pd.read_csv(run.path / ROWS)
    keys = ["agent", "source"]
    agents = ("random", "fast", "slow")
    pairs = [[agent, source] for agent in agents for source in ("measured", "simulated")]
    assert rows[keys].to_numpy().tolist() == pairs
    assert rows["unfinished"].eq(0).all()
    assert rows["failed_share"].eq(0.0).all()
    world = build_world(config, Part.HELD_OUT)
    sent = set()
    for agent in agents:
        folder = run.path / "repetition=0" / agent
        reports = pd.read_csv(folder / REPORTS)
        sent.add(int(reports["records"].sum()))
        assert sorted(reports["batch"]) == list(range(len(reports)))
        lines = (folder / DECISIONS).read_text().splitlines()
        times = [json.loads(line)["time_s"] for line in lines]
        assert np.allclose(times, [0.0, 0.5, 1.0, 1.5], atol=0.2)
    assert len(sent) == 1, "agents met different arrivals"
    assert sent.pop() == pytest.approx(0.2 * world.capacity_per_s * 2.0, rel=0.2)
    own = rows.set_index(keys)
    for source in ("measured", "simulated"):
        assert own.loc[("fast", source), "plan_changes"] == 0
        assert own.loc[("random", source), "plan_changes"] > 0
        assert own.loc[("fast", source), "mean_s"] < own.loc[("slow", source), "mean_s"]
    text = screen.export_text()
    assert "repetition 1, random" in text
    assert "single pool FIFO, 8 jobs at once, cut every 0.25 s" in text

    log = Log()
    assert drive(config, watch=log).complete
    assert log.titles == []


def test_passive_decisions_change_nothing(two_plans: Compose) -> None:
    config = two_plans("drive.agents=[random]", "drive.plans=[]")
    world = build_world(config, Part.HELD_OUT)
    (chance,) = drivers(config, world, silent)
    short = episode_world(world, np.full(4, 100), 2.0)
    run = run_for_real(real_jobs(world.application), short, chance, "", Unwatched(), passive=True)
    simulated = predict(short, chance, np.uint64(1), passive=True)
    assert sum(decision.changed for decision in run.decisions) > 1
    for reports in (run.reports, simulated.reports[0]):
        assert reports[:, REPORT_INDEX["records"]].sum() == 400
        assert set(reports[:, REPORT_INDEX["plan_version"]]) == {0}


def _bundle(config: DictConfig, folder: Path) -> Path:
    world = build_world(config, Part.TRAIN)
    bundle_of("constant", Plan(parallelism=4), world, {}).save(folder)
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["drive.agents=[spark_defualt]"], "did you mean 'spark_default'?"),
        (["drive.agents=[some/folder]"], "'some/folder', which is no folder"),
        (["drive.plans=[]"], "name at least one agent"),
        (["drive.plans=[{name: a, parallelsm: 2}]"], "unknown plan field 'parallelsm'"),
        (["drive.plans=[{name: a, parallelism: 99}]"], "outside env.guards"),
        (["drive.plans=[{name: a}, {name: a}]"], "two agents to drive are called 'a'"),
        (["drive.plans=[{name: a/b}]"], "called 'a/b'"),
        (["env.profile=null"], "run `python -m experiments.measure`"),
        (["env.profile=nowhere.json"], "which is no file"),
        (["size.drive.seconds=0.5"], "expected at least two periods"),
        (["drive.tries=3"], "only runs with env=staged_precision are repeated"),
        (["workload.load=1e-6"], "no record arrives"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(
    two_plans: Compose, words: list[str], message: str
) -> None:
    config = two_plans(*words)
    with pytest.raises(ValueError, match=r".") as caught:
        drive(config)
    words_shown = explain_run(caught.value)
    assert words_shown is not None, "a mistake, not a bug"
    assert message in words_shown
    assert not results_root(config).exists()


def test_a_changed_bundle_is_refused_with_exit_code_2(two_plans: Compose, tmp_path: Path) -> None:
    config = two_plans()
    folder = _bundle(config, tmp_path / "bundle")
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"x")
    words = [f"drive.agents=['{folder}']", f"env.profile='{config.env.profile}'"]
    result = subprocess.run(_command("drive", tmp_path, *words), **_SHELL, timeout=120)
    assert result.returncode == 2, result.stderr
    assert "was changed after its export" in result.stderr
    assert "Traceback" not in result.stderr
    assert not results_root(config).exists()


_SHELL: dict[str, Any] = {"cwd": REPOSITORY, "capture_output": True, "text": True, "check": False}


def _command(name: str, tmp_path: Path, *words: str) -> list[str]:
    fixed = ["size=smoke", "workload=steady", "data.root=null"]
    fixed.append(f"results.root='{tmp_path / 'results'}'")
    return [sys.executable, "-m", f"experiments.{name}", *fixed, *words]


def _interrupt(command: list[str], ready: Callable[[], bool]) -> int:
    """Send SIGINT to a command once something is there, as Ctrl-C does; return its exit code."""
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until_s = time.monotonic() + 120.0
        while process.poll() is None and not ready():
            assert time.monotonic() < until_s, "the command did not come so far"
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        return process.wait(60)
    finally:
        process.kill()


def _half_written(root: Path) -> list[Path]:
    return [path for path in root.rglob(".*")]


def test_after_ctrl_c_driving_goes_on_with_what_is_missing(
    two_plans: Compose, tmp_path: Path, profile: Path
) -> None:
    config = two_plans()
    root = results_root(config)
    words = [*SHORT, "workload.load=0.2", "drive.agents=[]", f"drive.plans={PLANS}"]
    command = _command("drive", tmp_path, f"env.profile='{profile}'", *words)
    assert _interrupt(command, lambda: any(root.rglob("fast"))) == 130
    assert _half_written(root) == []
    assert not list(root.rglob("slow"))
    (rows,) = root.rglob(f"fast/{ROWS}")
    kept = rows.read_text()
    log = Log()
    run = drive(config, watch=log)  # the same configuration, so the same folder
    assert log.titles == ["repetition 1, slow"]
    assert rows.read_text() == kept
    assert pd.read_csv(run.path / ROWS)["agent"].tolist() == ["fast"] * 2 + ["slow"] * 2

    content = json.loads(profile.read_text())
    content["origin"] = "measured anew"
    profile.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="profile changed since the runs in"):
        drive(config)


def test_after_ctrl_c_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    root = tmp_path / "results"
    command = _command("train", tmp_path, "agent.timesteps=100_000_000", "env.horizon_s=60")

    def logs() -> int:
        """Count starts that have come to their first update: each has a log of its own."""
        return sum(path.stat().st_size > 0 for path in root.rglob("progress*.csv"))

    assert _interrupt(command, lambda: logs() == 1) == 130
    assert _half_written(root) == []
    assert not list(root.rglob("bundle"))
    (checkpoint,) = root.rglob("checkpoint*")
    before = checkpoint.stat().st_mtime_ns
    assert _interrupt(command, lambda: logs() == 2) == 130
    assert checkpoint.stat().st_mtime_ns > before, "the second start saved no checkpoint"
    assert _half_written(root) == []
    first, second = sorted(root.rglob("progress*.csv"), key=lambda path: path.stat().st_mtime_ns)
    steps = [pd.read_csv(path)["time/total_timesteps"] for path in (first, second)]
    assert steps[1].iloc[0] > steps[0].iloc[-1], "the second start began anew"


def test_repetitions_alternate() -> None:
    plan = Plan()
    roster = [Driver(name, ConstantAgent(name, plan), plan, {}) for name in "ABC"]
    turns = alternated(range(4), roster)
    order = "".join(turn.driver.name for turn in turns)
    assert order == "ABC" + "BCA" + "CAB" + "ABC"
    assert [turn.repetition for turn in turns] == [r for r in range(4) for _ in range(3)]


def _snapshot(**counts: float) -> Snapshot:
    row = np.zeros(len(SIGNALS))
    for name, value in counts.items():
        row[SIGNAL_INDEX[name]] = value
    return Snapshot(row)


def test_lost_and_doubled_records_are_noticed() -> None:
    check_counts(_snapshot(records_in=5, records_uncut=5), (), 5)
    with pytest.raises(RuntimeError, match="6 records were sent and 5 arrived"):
        check_counts(_snapshot(records_in=5, records_uncut=5), (), 6)
    with pytest.raises(RuntimeError, match="the counts do not add up"):
        check_counts(_snapshot(records_in=5, records_uncut=4), (), 5)
    with pytest.raises(RuntimeError, match="5 records left, but the reports hold 0"):
        check_counts(_snapshot(records_in=5, records_out=4, records_failed=1), (), 5)


def _table(measured: dict[str, list[float]], error: float = 0.0) -> pd.DataFrame:
    return pd.DataFrame(
        {"agent": agent, "episode": k, "source": source}
        | dict.fromkeys(("mean_s", "p50_s", "p95_s"), value * factor)
        for agent, values in measured.items()
        for k, value in enumerate(values)
        for source, factor in (("measured", 1.0), ("simulated", 1.0 + error))
    )


def test_predictions_stand_beside_measurements() -> None:
    table = beside(_table({"b": [2.0, 4.0], "a": [1.0, 1.0]}, error=-0.1))
    assert table["agent"].tolist() == ["a"] * 3 + ["b"] * 3
    assert table["latency"].tolist() == ["mean", "p50", "p95"] * 2
    assert table["measured s"].tolist() == [1.0] * 3 + [3.0] * 3
    assert table["error %"].to_numpy() == pytest.approx(-10.0)


def test_changes_are_paired() -> None:
    table = changes(_table({"spark_default": [1.0, 10.0], "ppo": [0.5, 5.0]}))
    (row,) = table.to_dict("records")
    # In pairs the change is the same in both repetitions, so its interval has no width.
    assert row == {
        "agent": "ppo",
        "change %": pytest.approx(-50.0),
        "low %": pytest.approx(-50.0),
        "high %": pytest.approx(-50.0),
    }


def test_plans_in_words() -> None:
    assert plan_words(Plan()) == "single pool FIFO, 1 jobs at once, cut every 2 s"
    soft = Plan(
        pools=Pools.SOFT,
        share=0.8,
        independent_policy=Policy.FAIR,
        parallelism=4,
        batch_interval_s=0.25,
        idle_batches=2,
        per_pool_parallelism=True,
    )
    assert plan_words(soft) == (
        "soft pools FAIR/FIFO, share 0.80, 4 jobs at once in each pool, cut below 2 open batches, "
        "at least 0.25 s apart"
    )
