from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from envs.precision.config import StagedPrecisionConfig
from envs.precision.env import StagedPrecisionEnv
from experiments.cli import CONF
from experiments.precision.worlds import build_world, evaluation_episodes
from experiments.record import load_run, open_run
from experiments.workloads import Part
from experiments.worlds import restored, settled
from runtime.precision.actions import LevelActions, TableActions
from runtime.precision.guard_tables import Conflict
from simulators.arrivals import PoissonArrivals
from simulators.precision.workload import ListedConditions, Stream, SwitchingConditions
from simulators.replay import RateReplay
from tests.experiments.precision_configs import calibrated, compose_precision

WORKLOADS = sorted(path.stem for path in (CONF / "workload").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def _steps(world: StagedPrecisionConfig) -> None:
    env = StagedPrecisionEnv(world)
    first, _ = env.reset(seed=1)
    second, *_ = env.step(env.action_space.sample())
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("stream", [stream.value for stream in Stream])
def test_every_stream_builds_and_steps_in_both_parts(stream: str) -> None:
    config = compose_precision(f"env.stream={stream}")
    before = copy.deepcopy(config)
    for part in Part:
        world = build_world(config, part)
        _steps(world)
        varies = stream in ("burst", "both")
        arrivals = world.workload.arrivals
        assert isinstance(arrivals, PoissonArrivals)
        assert bool(arrivals.factors) == varies
        drifts = isinstance(world.workload.conditions, SwitchingConditions)
        assert drifts == (stream in ("drift", "both"))
        assert drifts or isinstance(world.workload.conditions, ListedConditions)
    assert config == before


@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_shipped_workload_gives_requests_without_data(workload: str) -> None:
    # Ticks of clusters are longer: their workloads suit servers that are slower than ours.
    config = compose_precision(f"workload={workload}")
    world = build_world(config, Part.HELD_OUT)
    episodes = evaluation_episodes(config, Part.HELD_OUT, 2)
    counts = world.workload.arrivals.counts(episodes.keys, episodes.starts, world.n_ticks)
    assert counts.sum(axis=1).min() > 0


def test_the_four_streams_have_the_same_load_of_the_safe_plan() -> None:
    for stream in Stream:
        words = f"env.stream={stream.value}", "workload.load=0.6"
        world = build_world(compose_precision(*words), Part.HELD_OUT)
        capacity = world.profile.capacity_per_s(world.safe_plan.levels, world.serving.max_batch)
        assert world.workload.arrivals.mean_rate_per_s == pytest.approx(0.6 * capacity)


def test_the_request_trace_replays_its_seconds(data_root: Path) -> None:
    """Rates of a second: the count of the trace over the mean of the last minute, at the load."""
    from simulators.traces import read_azure_llm_2023

    config = compose_precision("workload=azure_llm_seconds", root=data_root)
    world = build_world(config, Part.TRAIN)
    arrivals = world.workload.arrivals
    assert isinstance(arrivals, RateReplay)
    counts = read_azure_llm_2023(data_root).binned(1.0).counts
    capacity = world.profile.capacity_per_s(world.safe_plan.levels, world.serving.max_batch)
    expected = 0.6 * capacity * counts[60:80] / [counts[k - 60 : k].mean() for k in range(60, 80)]
    np.testing.assert_allclose(arrivals.rates_per_s[:20], expected)


def test_held_out_are_samples_arrivals_and_keys_but_not_knowledge(tmp_path: Path) -> None:
    config = compose_precision(*calibrated(tmp_path))
    train, held_out = (build_world(config, part) for part in Part)
    assert not np.array_equal(train.profile.label, held_out.profile.label)
    assert train.starts[1] < held_out.starts[0]
    keys = [evaluation_episodes(config, part, 4).keys for part in Part]
    assert not set(keys[0].tolist()) & set(keys[1].tolist())
    assert train.scale() == held_out.scale()
    np.testing.assert_array_equal(train.bank_tables().accuracy, held_out.bank_tables().accuracy)
    assert held_out.bank_tables().accuracy.tolist() != held_out.profile.accuracy()[0].tolist()
    assert isinstance(train.actions, TableActions)
    assert train.actions.to_mapping() == held_out.actions.to_mapping()
    assert (train.load_factors, held_out.load_factors) == ((0.8, 1.0, 1.25), (1.0,))


@pytest.mark.parametrize(
    ("safe", "levels"),
    [
        ("training mode", (1, 2, 2, 2)),  # the fastest of two
        ("'training mode, local, cascade'", (0, 2, 2, 0)),
        ("int8", (2, 2, 2, 2)),
        ("[fp32,int8,int8,bf16]", (0, 2, 2, 1)),
        ("[bf16]", (1, 1, 1, 1)),
    ],
)
def test_the_safe_plan_is_named_by_who_chose_it_or_by_levels(
    tmp_path: Path, safe: str, levels: tuple[int, ...]
) -> None:
    config = compose_precision(*calibrated(tmp_path), f"env.safe={safe}")
    assert build_world(config, Part.TRAIN).safe_plan.levels == levels


def test_actions_guards_and_deadline_are_read() -> None:
    words = ("env.actions.kind=levels", "+env.actions.escalate_below=[0.0,0.3]")
    guards = ("env.guards.coarsest=[int8]", "env.guards.conflict=deadline_first")
    world = build_world(compose_precision(*words, *guards, "env.deadline_s=0.3"), Part.TRAIN)
    assert isinstance(world.actions, LevelActions)
    assert world.actions.nvec == (4, 4, 4, 4, 2)
    assert world.guards.coarsest == (2, 2, 2, 2)
    assert world.guards.conflict is Conflict.DEADLINE_FIRST
    assert world.guards.latency_target_s == np.inf
    assert world.serving.deadline_s == 0.3
    default = build_world(compose_precision(), Part.TRAIN)
    safe_s = default.profile.predict_latency_s(default.safe_plan.levels, 16)
    assert default.serving.deadline_s == pytest.approx(3.0 * safe_s)


def test_a_saved_run_rebuilds_its_world(tmp_path: Path) -> None:
    root = os.environ.get("RHEOSTAT_DATA")
    words = ("workload=azure_llm_seconds", f"results.root='{tmp_path}'", *calibrated(tmp_path))
    config = settled(compose_precision(*words, root=Path(root) if root else None))
    again = restored(load_run(open_run(config).path).config)
    worlds = [build_world(c, Part.HELD_OUT) for c in (config, again)]
    episodes = [evaluation_episodes(c, Part.HELD_OUT, 3) for c in (config, again)]
    first, second = (
        world.workload.arrivals.counts(e.keys, e.starts, world.n_ticks)
        for world, e in zip(worlds, episodes, strict=True)
    )
    np.testing.assert_array_equal(first, second)
    assert worlds[0].actions.to_mapping() == worlds[1].actions.to_mapping()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["env.stream=busrt"], "unknown env.stream 'busrt'; did you mean 'burst'"),
        (["+env.strem=1"], "unknown key of env 'strem'; did you mean 'stream'"),
        (["env.max_batch=64"], r"env.max_batch is 64; expected 1 to 16"),
        (["env.max_batch=0"], "env.max_batch is 0"),
        (["env.deadline_s=-1"], r"deadline_s is -1\.0"),
        (["env.horizon_s=0"], r"horizon_s is 0\.0"),
        (["env.shadow_fraction=2"], r"shadow_fraction is 2\.0"),
        (["env.hidden=[inputs]"], "unknown group 'inputs'"),
        (["env.conditions.clean_s=0"], r"env.conditions: clean_s is 0\.0"),
        (["env.safe=[int9]"], "env.safe: unknown level 'int9'"),
        (["env.safe=3"], "env.safe is 3; expected level names"),
        (["env.safe=[int8,int8]"], "env.safe: 2 levels are given; expected 1 or 4"),
        (["env.guards.finest=[int9]"], "env.guards.finest: unknown level 'int9'"),
        (["env.guards.conflict=accuracy"], "unknown env.guards.conflict 'accuracy'"),
        (["env.guards.accuracy_floor=2"], r"env.guards: guard accuracy_floor is 2\.0"),
        (["+env.guards.dwel_s=1"], "unknown key of env.guards 'dwel_s'; did you mean 'dwell_s'"),
        (["env.reward.energy=-1"], r"reward energy is -1\.0"),
        (["env.actions.kind=table"], "unknown env.actions.kind 'table'; did you mean 'tables'"),
        (["env.actions.most=99"], "env.actions: most is 99; expected 1 to 64"),
        (["env.actions.margins=[0]"], r"env.actions: margins is \[0\.0\]"),
        (["env.actions.most=5"], "more than 5; give fewer margins"),
        (["env.network=fashion_cnn"], r"env.network is 'fashion_cnn', but the profile is one of"),
        (["env.profile=absent.npz"], r"env.profile is 'absent.npz', which is no file.*calibrate"),
        (["env.held_out_profile=x.npz"], "env.profile is null; give both"),
        (["workload.span_s=2"], r"train part of workload request_bursts has 1\.4 s"),
    ],
)
def test_mistakes_are_named_with_the_place_and_the_remedy(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_world(compose_precision(*words), Part.TRAIN)


def test_mistakes_in_profiles_and_calibration(tmp_path: Path) -> None:
    words = calibrated(tmp_path)
    with pytest.raises(ValueError, match=r"did you mean .training mode.\?"):
        build_world(compose_precision(*words, "env.safe=traning mode"), Part.TRAIN)
    (tmp_path / "calibration.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is no calibration .*calibrate again"):
        build_world(compose_precision(*words), Part.TRAIN)
    (tmp_path / "calibration.json").unlink()
    with pytest.raises(ValueError, match="keep it beside the profile"):
        build_world(compose_precision(*words), Part.TRAIN)
    (tmp_path / "held_out_profile.npz").write_bytes(b"no profile")
    with pytest.raises(ValueError, match="not a usable precision profile"):
        build_world(compose_precision(*words), Part.HELD_OUT)
