from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from agents.precision.export import bundle_of
from envs.precision.config import default_config
from experiments.cli import CONF
from experiments.drive import task
from experiments.errors import explain_run
from experiments.precision import driving
from experiments.precision.banks import StandInBank, TrainedBank
from experiments.precision.driving import (
    SERVING,
    SWITCHES,
    drive_streams,
    own_config,
    predictions,
    real_timeline,
    serving_table,
)
from experiments.precision.real_streams import (
    Episode,
    RealBank,
    ShownSamples,
    check_served,
    episode_requests,
    open_real,
    pace,
)
from experiments.precision.worlds import build_world
from experiments.record import COMPLETE, RunFolder, results_root, run_path
from experiments.turns import REPORTS, ROWS
from experiments.workloads import Part
from runtime.precision.answers import answers_of
from runtime.precision.snapshot import REPORT_COLUMNS, REPORT_INDEX
from runtime.precision.streams import Served
from simulators.precision.profile import PrecisionProfile
from tests.experiments.precision_banks import LEVELS, SMALL, calibrated_bank, profiles

CASCADE = "{name: cascade, levels: [int8_quarter], escalate_below: 0.5, escalate_levels: [fp32]}"


class Small(NamedTuple):
    """Composes configurations of a calibrated bank; `trained` is the bank."""

    config: Callable[..., DictConfig]
    trained: TrainedBank
    folder: Path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    GlobalHydra.instance().clear()
    folder = tmp_path_factory.mktemp("bank")
    fixed = [*SMALL, f"results.root='{folder / 'results'}'"]
    before = torch.get_num_threads()
    with (
        initialize_config_dir(str(CONF), version_base="1.3"),
        pytest.MonkeyPatch.context() as patch,
    ):
        # Latencies of this bank are declared: at its true pace a deadline would be a few passes.
        patch.setattr(driving, "pace", lambda real, world: 1.0)
        trained = calibrated_bank(compose("config", overrides=fixed), folder)
        fixed += [*profiles(folder), "env.max_batch=8", "env.deadline_s=1.0"]
        fixed += ["size.drive={seconds: 1.0, repetitions: 2}", "env.conditions={clean_s: 0.3, "]
        fixed[-1] += "corrupted_s: 0.3}"
        yield Small(lambda *w: compose("config", overrides=[*fixed, *w]), trained, folder)
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(small: Small) -> RunFolder:
    agents = "drive.agents=[static_int8,slack_fit,training_mode]"
    return drive_streams(small.config(agents, f"drive.plans=[{CASCADE}]"))


NAMES = ["static_int8", "slack_fit", "training_mode", "cascade"]


def test_real_streams_stand_beside_their_prediction(run: RunFolder) -> None:
    rows = pd.read_csv(run.path / ROWS)
    assert run.complete
    order = [NAMES, [*NAMES[1:], NAMES[0]]]  # they alternate
    expected = [
        [r, agent, source]
        for r in range(2)
        for agent in order[r]
        for source in ("measured", "simulated")
    ]
    assert rows[["episode", "agent", "source"]].to_numpy().tolist() == expected
    # the same requests: nothing is dropped at this deadline, so what is answered is the same too
    requests = rows.groupby("episode")["requests"].agg(["min", "max"])
    assert (requests["min"] == requests["max"]).all()
    assert rows["dropped_share"].eq(0.0).all()
    own = rows.set_index(["agent", "episode", "source"])["accuracy"].sort_index()
    for agent in ("static_int8", "training_mode"):
        for episode in range(2):
            measured, simulated = own[agent, episode]
            assert measured == pytest.approx(simulated, abs=0.02)
    table = predictions(rows)
    assert set(table["agent"]) == set(NAMES)
    assert table["effective %"].is_monotonic_decreasing


def test_every_run_keeps_what_happened(run: RunFolder) -> None:
    rows = pd.read_csv(run.path / ROWS)
    requests = rows.groupby("episode")["requests"].first()
    for episode in range(2):
        for name in NAMES:
            folder = run.path / f"repetition={episode}" / name
            reports = pd.read_csv(folder / REPORTS)
            assert tuple(reports.columns) == REPORT_COLUMNS
            assert reports["requests"].sum() == requests[episode]
            assert set(reports["condition"]) <= {0, 1}
            serving = json.loads((folder / SERVING).read_text())
            assert serving["shadow"]["failed_batches"] == 0
            assert 0.0 < serving["decision_s"]["p50"] <= serving["decision_s"]["worst"]
            switches = [json.loads(line) for line in (folder / SWITCHES).read_text().splitlines()]
            assert len(switches) == (reports["switched"] > 0).sum()
            for switch in switches:
                assert set(switch["after"]) <= set(LEVELS)
                assert switch["after"] == switch["proposed"] or switch["causes"]
    (first,) = (run.path / "repetition=0" / "static_int8" / SWITCHES).read_text().splitlines()
    assert json.loads(first)["before"] == ["fp32", "int8", "int8", "int8"]
    assert json.loads(first)["after"] == ["int8"] * 4


def test_what_happened_can_be_drawn_and_counted(small: Small, run: RunFolder) -> None:
    steps = real_timeline(small.config(), run)
    assert set(steps["agent"]) == {*NAMES, "given"}
    own = steps[steps["agent"] == "slack_fit"]
    reports = pd.read_csv(run.path / "repetition=0" / "slack_fit" / REPORTS)
    assert own["requests"].sum() == reports["requests"].sum()
    levels = own.filter(like="level_").to_numpy()
    changed = (levels[1:] != levels[:-1]).sum(axis=1)
    np.testing.assert_array_equal(changed, reports["switched"][1:])
    table = serving_table(run)
    assert len(table) == 2 * len(NAMES)
    assert (table["decision_p50_us"] <= table["decision_p99_us"]).all()
    assert table.set_index(["agent", "repetition"]).loc[("static_int8", "0"), "switches"] == 1


def test_pace_is_how_long_passes_take_over_what_was_profiled(small: Small) -> None:
    world = build_world(small.config(), Part.HELD_OUT)
    size, levels = world.serving.max_batch, world.safe_plan.levels
    profiled_s = world.profile.predict_latency_s(levels, size)
    ran = []

    def slow(x: torch.Tensor, assignment: tuple[int, ...]) -> SimpleNamespace:
        ran.append((len(x), assignment))
        time.sleep(3.0 * profiled_s)
        return SimpleNamespace(output=torch.rand(len(x), 10), clip_rates=np.zeros(len(levels)))

    part = small.trained.data.validation.first(world.profile.n_samples)
    samples = ShownSamples(part, world.profile.conditions)
    stub: Any = RealBank(SimpleNamespace(observe=slow), samples)  # type: ignore[arg-type]
    assert pace(stub, world) == pytest.approx(3.0, rel=0.3)
    assert set(ran) == {(size, levels)}


def test_a_run_on_a_machine_that_changed_its_pace_is_repeated(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    paces = iter([1.0, 1.4, 0.7, 1.0, 0.8, 0.82, 1.5, 1.0, 1.0, 1.3, 1.0, 2.0])
    monkeypatch.setattr(driving, "pace", lambda real, world: next(paces))
    lines: list[str] = []
    config = small.config("drive.agents=[static_int8]", "drive.tries=3", "workload.load=0.2")
    run = drive_streams(config, told=lines.append)
    table = serving_table(run).set_index("repetition")
    assert table["tries"].tolist() == [3, 3]
    assert table.loc["0", ["pace_before", "pace_after"]].tolist() == [0.8, 0.82]
    assert table.loc["1", ["pace_before", "pace_after"]].tolist() == [1.0, 2.0]
    steady, changed = lines
    assert "profiled" not in steady
    assert changed.endswith("; passes took 1.00 times as long as profiled before, 2.00 after")


def test_a_finished_run_is_skipped_and_shown(
    small: Small, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run.path / ROWS).stat().st_mtime_ns
    task(small.config("drive.agents=[static_int8,slack_fit,training_mode]", _plans()))
    assert (run.path / ROWS).stat().st_mtime_ns == before
    assert "real streams, measured and predicted" in capsys.readouterr().out


def _plans() -> str:
    return f"drive.plans=[{CASCADE}]"


def test_after_an_interruption_only_what_is_missing_runs(small: Small) -> None:
    config = small.config("drive.agents=[static_int8,static_fp32]", "workload.load=0.2")
    lines: list[str] = []

    def interrupted(line: str) -> None:
        lines.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive_streams(config, told=interrupted)
    root = run_path(own_config(config))
    (kept,) = root.rglob(ROWS)
    before = kept.stat().st_mtime_ns
    assert kept.parent == root / "repetition=0" / "static_int8"
    assert not (root / COMPLETE).exists()
    assert not list(root.rglob(".*"))
    run = drive_streams(config, told=lines.append)
    assert [line.split(":")[0] for line in lines] == [
        "repetition 1, static_int8",
        "repetition 1, static_fp32",
        "repetition 2, static_fp32",
        "repetition 2, static_int8",
    ]
    assert run.path == root
    assert kept.stat().st_mtime_ns == before


def test_the_images_are_those_of_the_profile(small: Small) -> None:
    profile = PrecisionProfile.load(small.folder / "held_out.npz")
    real = open_real(small.trained, profile)
    for condition in range(2):
        x = real.samples.of(condition)
        with torch.inference_mode():
            for number in (0, 13, profile.n_assignments - 1):
                output = torch.cat(
                    [real.bank.run(part, profile.levels_of(number)) for part in torch.split(x, 8)]
                )
                same = answers_of(output)[0] == profile.label[condition, number]
                assert same.mean() > 0.95
    world = build_world(small.config(), Part.HELD_OUT)
    requests = episode_requests(world, Episode(np.uint64(5), world.starts[0]))
    stream = real.samples.stream(requests)
    sent = stream.inputs(3, 9)
    for k in range(3, 9):
        own = real.samples.of(int(requests.condition[k]))[requests.sample[k]]
        assert torch.equal(sent[k - 3], own)
    assert stream.truth is not None
    np.testing.assert_array_equal(stream.truth, profile.truth[requests.sample])


def test_a_stage_without_a_level_runs_the_next_higher_one(small: Small) -> None:
    bank, trained = StandInBank(small.trained.bank), small.trained
    x = ShownSamples(trained.data.validation.first(8), ("clean",)).of(0)
    coarsest = (2,) * 4
    with torch.inference_mode():
        own = trained.bank.run(x, trained.runnable(coarsest))
        assert torch.equal(bank.run(x, coarsest), own)
        assert torch.equal(bank.observe(x, coarsest).output, own)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["drive.agents=[static_int9]"], "did you mean 'static_int8'?"),
        (["drive.agents=[some/folder]"], "'some/folder', which is no folder"),
        (["drive.agents=[]"], "name at least one agent"),
        (["drive.agents=[]", "drive.plans=[{name: a, levels: [int9]}]"], "unknown level 'int9'"),
        (["drive.agents=[]", "drive.plans=[{name: a}]"], "plan.levels is missing"),
        (["drive.plans=[{name: training_mode, levels: [fp32]}]"], "are called 'training_mode'"),
        (["env.guards.coarsest=[int8]", _plans()], "outside env.guards"),
        (["env.held_out_profile=null"], "env.held_out_profile is null"),
        (["size.drive.seconds=0.2"], "expected at least 1 s"),
        (["drive.passive=true"], "drive.passive is true"),
        (["bank.levels=[fp32,int8,int6_emulated]"], "drive serves in real time, and int6_emulated"),
        (["drive.tries=0"], "drive.tries is 0; expected at least 1"),
        (["workload.load=1e-7"], "no request arrives"),
        (["bank.buckets=[8]"], "has the batch sizes 1, 8, the bank 8"),
        (
            ["bank.levels=[fp32,int8]"],
            "has the levels fp32, int8, int8_quarter, the bank fp32, int8",
        ),
        (["seed=1"], "the network was trained anew"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(small: Small, words: list[str], message: str) -> None:
    config = small.config("drive.agents=[training_mode]", *words)
    with pytest.raises(ValueError, match=r".") as caught:
        drive_streams(config)
    said = explain_run(caught.value)
    assert said is not None, "a mistake, not a bug"
    assert message in said
    runs = results_root(config) / "runs" / "smoke" / "streams" / "staged_precision" / "drive"
    agents = {path.parent.name for path in runs.rglob(ROWS)} if runs.exists() else set()
    assert agents <= {*NAMES, "seed=0", "static_fp32"}


def test_a_bundle_of_another_network_is_refused(small: Small, tmp_path: Path) -> None:
    world = default_config()
    bundle_of("constant", world.safe_plan, world, {}).save(tmp_path / "other")
    with pytest.raises(ValueError, match=r"made for a network with the stages .* train and export"):
        drive_streams(small.config(f"drive.agents=['{tmp_path / 'other'}']"))


def test_a_bundle_drives_and_a_changed_one_does_not_go_on(small: Small, tmp_path: Path) -> None:
    config = small.config(
        f"drive.agents=['{tmp_path / 'mine'}']", "size.drive.repetitions=1", "workload.load=0.2"
    )
    world = build_world(config, Part.TRAIN)
    bundle_of("mine", world.safe_plan, world, {"seed": 3}).save(tmp_path / "mine")
    rows = pd.read_csv(drive_streams(config).path / ROWS)
    assert rows["agent"].tolist() == ["mine"] * 2
    assert rows["train_seed"].tolist() == [3, 3]
    (tmp_path / "mine").rename(tmp_path / "old")
    bundle_of("mine", world.safe_plan, world, {"seed": 4}).save(tmp_path / "mine")
    with pytest.raises(ValueError, match="mine changed since the runs in"):
        drive_streams(config)


def _served(first: list[int], requests: list[int], dropped: list[int], answered: int) -> Served:
    reports = np.zeros((len(first), len(REPORT_COLUMNS)))
    for name, column in (("first_request", first), ("requests", requests), ("dropped", dropped)):
        reports[:, REPORT_INDEX[name]] = column
    latency_s = np.where(np.arange(6) < answered, 0.01, np.nan)
    empty: Any = np.zeros(0)
    return Served(reports, empty, empty, latency_s, [], {}, empty, empty, 0.0, 0.0)  # type: ignore[arg-type]


def test_lost_and_doubled_requests_are_noticed() -> None:
    check_served(_served([0, 3], [2, 3], [1, 0], 5), 6)
    with pytest.raises(RuntimeError, match="6 requests arrived and 5 were answered"):
        check_served(_served([0, 3], [2, 3], [0, 0], 5), 6)
    with pytest.raises(RuntimeError, match="do not add up"):
        check_served(_served([0, 1], [3, 3], [0, 0], 6), 6)
    with pytest.raises(RuntimeError, match="do not add up"):
        check_served(_served([0, 3], [2, 3], [1, 0], 4), 6)
