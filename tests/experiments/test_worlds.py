from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from agents.api import Episodes
from envs.cluster.config import StreamClusterConfig
from envs.cluster.env import StreamClusterEnv
from experiments.cli import CONF
from experiments.errors import ConfigError
from experiments.record import config_hash, load_run, open_run, portable_config
from experiments.workloads import READERS, Part
from experiments.worlds import build_world, evaluation_episodes, restored, settled
from simulators.arrivals import PoissonArrivals
from simulators.cluster.application_config import parse_application
from simulators.replay import RateReplay
from simulators.traces import DataRootError

GROUPS = {
    group: sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    for group in ("env", "application", "workload")
}
PRECISION = "staged_precision"  # see test_precision_worlds.py
CHOICES = [
    f"{group}={name}" for group, names in GROUPS.items() for name in names if name != PRECISION
]
TRACES = [*sorted(READERS), "azure_llm_seconds"]


@pytest.fixture(autouse=True)
def _hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def _compose(*words: str, root: Path | None = None) -> DictConfig:
    return compose("config", overrides=[f"data.root={root or 'null'}", *words])


def _counts(world: StreamClusterConfig, episodes: Episodes) -> np.ndarray[Any, Any]:
    return world.arrivals.counts(episodes.keys, episodes.starts, world.n_ticks)


def _builds_and_steps(config: DictConfig) -> None:
    before = copy.deepcopy(config)
    for part in Part:
        world = build_world(config, part)
        env = StreamClusterEnv(world)
        first, _ = env.reset(seed=1)
        observation, reward, _, truncated, _ = env.step(env.action_space.sample())
        assert not np.array_equal(first, observation)
        assert reward < 0.0
        assert not truncated
        episodes = evaluation_episodes(config, part, 2)
        assert _counts(world, episodes).sum(axis=1).min() > 0
    assert config == before
    assert OmegaConf.to_yaml(config) == OmegaConf.to_yaml(before)


def test_the_groups_hold_what_the_readme_promises() -> None:
    assert GROUPS["env"] == [PRECISION, "stream_cluster", "stream_cluster_fixed_interval"]
    synthetic = {"steady", "diurnal", "markov", "flash_crowd", "synthetic_worldcup"}
    assert synthetic | {"request_bursts", *TRACES} == set(GROUPS["workload"])
    assert "tpch" in GROUPS["application"]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_shipped_node_builds_without_data_under_its_own_name(choice: str) -> None:
    group, name = choice.split("=")
    config = _compose(choice)
    assert config[group].name == name
    if name == "tpch":
        with pytest.raises(DataRootError, match="no data root is set"):
            build_world(config, Part.TRAIN)
    else:
        _builds_and_steps(config)


@pytest.mark.parametrize("choice", ["application=tpch", *(f"workload={name}" for name in TRACES)])
def test_every_node_with_measured_data_builds(choice: str, data_root: Path) -> None:
    _builds_and_steps(_compose(choice, root=data_root))


@pytest.mark.parametrize("slots", ["null", "3"])
def test_a_load_refers_to_the_capacity_of_the_world(slots: str) -> None:
    words = ("workload=steady", "workload.load=0.6", "application=deep_dependent")
    world = build_world(_compose(*words, f"env.slots={slots}"), Part.TRAIN)
    assert world.slots == (12 if slots == "null" else 3)
    assert world.arrivals.mean_rate_per_s == pytest.approx(0.6 * world.capacity_per_s)


def test_the_fixed_interval_arm_offers_one_interval_and_the_rest_as_before() -> None:
    free = build_world(_compose("workload=steady"), Part.TRAIN).actions
    fixed = build_world(
        _compose("workload=steady", "env=stream_cluster_fixed_interval"), Part.TRAIN
    ).actions
    assert fixed.nvec == (*free.nvec[:-2], 1, 1)
    row = fixed.decode(np.zeros((1, 7), dtype=np.int64), np.zeros((1, 8)))[0]
    assert row[5:7].tolist() == [2.0, 0.0]


def test_without_data_a_synthetic_workload_stands_in_and_says_so() -> None:
    said: list[str] = []
    config = _compose("workload=worldcup98", "workload.load=0.55")
    result = settled(config, said.append)
    assert len(said) == 1
    assert "synthetic_worldcup stands in for worldcup98" in said[0]
    assert (result.workload.name, result.workload.load) == ("synthetic_worldcup", 0.55)
    assert config.workload.name == "worldcup98"
    assert config_hash(result) != config_hash(config)
    world = build_world(config, Part.TRAIN)
    assert isinstance(world.arrivals, PoissonArrivals)
    assert world.arrivals.rate_per_s == pytest.approx(0.55 * world.capacity_per_s)
    # What is settled stays so, silently.
    assert settled(result, pytest.fail) == result


def test_a_settled_trace_never_becomes_something_else(data_root: Path) -> None:
    config = settled(_compose("workload=worldcup98", root=data_root), pytest.fail)
    assert isinstance(build_world(config, Part.TRAIN).arrivals, RateReplay)
    elsewhere = OmegaConf.merge(config, {"data": {"root": None}})
    with pytest.raises(DataRootError, match="no data root is set"):
        build_world(elsewhere, Part.TRAIN)


@pytest.mark.parametrize("workload", ["worldcup98", "markov"])
def test_a_saved_run_rebuilds_its_world(
    workload: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = os.environ.get("RHEOSTAT_DATA")
    words = (f"workload={workload}", f"results.root={tmp_path}", "env.slots=5")
    config = settled(_compose(*words, root=Path(root) if root else None))
    run = open_run(config)
    saved = load_run(run.path).config
    assert saved == portable_config(config)
    assert saved["data"]["root"] is None
    again = restored(saved)
    episodes = evaluation_episodes(config, Part.HELD_OUT, 3)
    assert all(map(np.array_equal, episodes, evaluation_episodes(again, Part.HELD_OUT, 3)))
    worlds = [build_world(c, Part.HELD_OUT) for c in (config, again)]
    first, second = (_counts(world, episodes) for world in worlds)
    np.testing.assert_array_equal(first, second)
    signals = []
    for world in worlds:
        env = StreamClusterEnv(world)
        env.reset(seed=4)
        for _ in range(20):
            env.step(np.zeros(7, dtype=np.int64))
        signals.append(env.clusters.engine.signals.copy())
    np.testing.assert_array_equal(*signals)


@pytest.mark.parametrize("workload", ["worldcup98", "azure_llm_2023", "alibaba_genai_2026"])
def test_parts_of_a_trace_do_not_meet(workload: str, data_root: Path) -> None:
    """Every interval is in at most one part, and the held-out part starts with its full past."""
    config = _compose(f"workload={workload}", root=data_root)
    train, held_out = (build_world(config, part) for part in Part)
    trace, settings = READERS[workload](data_root), config.workload
    counts = (trace.binned(settings.trace.bin_s) if settings.trace.bin_s else trace).counts
    ticks = round(settings.trace.interval_s / settings.tick_s)
    cut, window = round(settings.train_fraction * len(counts)), settings.trace.window
    for world, first, n in ((train, window, cut - window), (held_out, cut, len(counts) - cut)):
        assert isinstance(world.arrivals, RateReplay)
        assert world.starts == (0, n * ticks - world.n_ticks)
        # The first rate, from the counts alone: load times capacity over the trailing mean.
        past = counts[first - window : first].mean()
        expected = settings.load * world.capacity_per_s * counts[first] / past
        assert world.arrivals.rates_per_s[0] == pytest.approx(expected)
        # Both ends can be drawn.
        world.arrivals.counts([1, 2], list(world.starts), world.n_ticks)


def _variation(rates: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    """Return coefficient of variation, 99th percentile over mean, autocorrelation at 180 s."""
    relative = rates / rates.mean()
    excess = relative - 1.0
    correlation = (excess[:-60] * excess[60:]).mean() / excess.var()
    return float(relative.std()), float(np.quantile(relative, 0.99)), float(correlation)


def test_the_stand_in_varies_like_the_trace(data_root: Path) -> None:
    trace = build_world(_compose(root=data_root), Part.HELD_OUT).arrivals
    stand_in = build_world(_compose("workload=synthetic_worldcup"), Part.HELD_OUT).arrivals
    assert isinstance(trace, RateReplay)
    assert isinstance(stand_in, PoissonArrivals)
    keys = np.arange(8, dtype=np.uint64)
    rates = stand_in.rates(keys, np.zeros(8, dtype=np.int64), 6 * len(trace.rates_per_s))
    expected = _variation(trace.rates_per_s)
    own = np.median([_variation(row[::6]) for row in rates], axis=0)
    # Measured: 0.24, 1.90, 0.49; the trace has 0.24, 1.85, 0.54.
    np.testing.assert_allclose(own, expected, rtol=0.2)


def test_parts_of_a_synthetic_workload_do_not_meet() -> None:
    config = _compose("workload=diurnal", "workload.span_s=4000", "env.horizon_s=100")
    train, held_out = (build_world(config, part) for part in Part)
    assert train.starts == (0, 5600 - 201)
    assert held_out.starts == (5600, 8000 - 201)


def test_evaluation_episodes_depend_on_the_part_and_the_number_alone() -> None:
    config = _compose("workload=markov")
    other = _compose("workload=markov", "seed=9", "env=stream_cluster_fixed_interval")
    world = build_world(config, Part.HELD_OUT)
    five, again = (evaluation_episodes(c, Part.HELD_OUT, 5) for c in (config, other))
    assert all(map(np.array_equal, five, again))
    assert (five.keys.dtype, five.starts.dtype) == (np.uint64, np.int64)
    assert len(set(five.keys.tolist())) == 5
    assert (five.starts[0], five.starts[-1]) == world.starts
    assert np.ptp(np.diff(five.starts)) <= 1
    tuning = evaluation_episodes(config, Part.TRAIN, 5)
    assert not set(tuning.keys.tolist()) & set(five.keys.tolist())
    one = evaluation_episodes(config, Part.HELD_OUT, 1)
    assert one.starts.tolist() == [sum(world.starts) // 2]
    # Keys of a smaller evaluation are the first of a larger one.
    assert one.keys[0] == five.keys[0]
    with pytest.raises(ConfigError, match="0 evaluation episodes"):
        evaluation_episodes(config, Part.TRAIN, 0)


def test_load_factors_vary_training_and_leave_evaluation_alone() -> None:
    config = _compose("workload=steady", "workload.load_factors=[0.5,1.5]")
    train, held_out = (build_world(config, part) for part in Part)
    assert train.load_factors == (0.5, 1.5)
    assert held_out.load_factors == (1.0,)


def test_a_measured_profile_replaces_the_declared_costs(tmp_path: Path) -> None:
    content = OmegaConf.to_container(_compose().application)
    assert isinstance(content, dict)
    for job in content["jobs"].values():
        for stage in job["stages"].values():
            stage["wait_s"] = 2.0 * stage.get("wait_s", 0.0)
    _, slower = parse_application({str(k): v for k, v in content.items()})
    slower.save(tmp_path / "profile.json")
    declared = build_world(_compose("workload=steady"), Part.TRAIN)
    words = ("workload=steady", f"env.profile={tmp_path / 'profile.json'}")
    config = _compose(*words)
    measured = build_world(config, Part.TRAIN)
    assert measured.capacity_per_s < 0.7 * declared.capacity_per_s
    ratio = measured.arrivals.mean_rate_per_s / declared.arrivals.mean_rate_per_s
    assert ratio == pytest.approx(measured.capacity_per_s / declared.capacity_per_s)
    with pytest.raises(ValueError, match=r"no cost for stage .*measure the application again"):
        build_world(_compose(*words, "application=wide_independent"), Part.TRAIN)


def test_an_infinite_limit_is_written_as_null() -> None:
    guards = build_world(_compose("workload=steady"), Part.TRAIN).guards
    assert guards.degradation == np.inf
    finite = build_world(_compose("workload=steady", "env.guards.degradation=2.5"), Part.TRAIN)
    assert finite.guards.degradation == 2.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["+workload.lod=1"], "unknown key of workload 'lod'; did you mean 'load'"),
        (["~workload.load"], "workload lacks the key 'load'"),
        (["workload.kind=tace"], "unknown workload.kind 'tace'; did you mean 'trace'"),
        (["workload.load=much"], "workload.load: Value 'much' of type 'str'"),
        (["workload.load=-1"], r"workload: load is -1\.0; expected a number above 0"),
        (["workload.train_fraction=1"], r"train_fraction is 1\.0"),
        (["workload.load_factors=[0]"], "load_factors is"),
        (["workload.factors=[{kind: sin}]"], "factors.0..kind 'sin'; did you mean 'sine'"),
        (["workload.factors=[{kind: sine, amplitude: 1}]"], "factors.0. lacks the key 'period_s'"),
        (
            ["workload.factors=[{kind: sine, amplitude: 2, period_s: 1}]"],
            r"workload.factors.0.: amplitude is 2\.0",
        ),
        (["workload.factors=[3]"], "workload.factors.0. is 3; expected keys"),
        (["workload.span_s=500"], r"train part of workload steady has 350 s; .*needs 600\.5 s"),
        (["env.horizon_s=1"], "period_s is 2.0 and horizon_s 1.0"),
        (["env.slots=0"], "env.slots is 0"),
        (["env.slots=two"], "env.slots: Value 'two'"),
        (["env.profile=absent.json"], "env.profile is 'absent.json', which is no file"),
        (["+env.reward.latncy=1"], "unknown key of env.reward 'latncy'; did you mean 'latency'"),
        (["env.reward.busy=-1"], r"env: reward busy is -1\.0"),
        (["+env.guards.dwel_s=1"], "unknown key of env.guards 'dwel_s'; did you mean 'dwell_s'"),
        (["env.guards.growth=0"], "env.guards: guard degradation must be"),
        (["+env.initial_plan.shre=1"], "unknown key of env.initial_plan 'shre'"),
        (["env.initial_plan.share=2"], "env.initial_plan: plan.share is 2"),
        (["env.actions.kind=field"], "env.actions: unknown kind of actions 'field'"),
        (["+env.actions.pool=[]"], "unknown key of env.actions 'pool'; did you mean 'pools'"),
        (["env.actions.share=[]"], "env.actions: an action field has no levels"),
        (["env.actions.share=[1.5]"], r"env.actions: plan.share is 1\.5"),
        (["+application.kind=tpc"], "unknown application.kind 'tpc'; did you mean 'tpch'"),
        (["+application.job=1"], "'job'; did you mean 'jobs'"),
        (["application.jobs.alert.stages.main.wait_s=100"], "no load can be set"),
    ],
)
def test_mistakes_are_named_with_the_place_and_the_remedy(words: list[str], message: str) -> None:
    config = _compose("workload=steady", *words)
    with pytest.raises(ValueError, match=message):
        build_world(config, Part.TRAIN)


def test_mistakes_in_a_trace_workload(data_root: Path) -> None:
    cases = {
        "workload.trace.reader=worldcup": "did you mean 'worldcup98'",
        "workload.trace.bin_s=60": "trace of counts per 60 s; set it to null",
        "+workload.trace.windw=3": "unknown key of workload.trace 'windw'; did you mean 'window'",
        "workload.trace.interval_s=0.3": r"interval_s is 0\.3 s",
        "workload.trace.window=0": "window is 0",
        "workload.tick_s=7": r"interval_s is 3\.0 s",
        "workload.trace.interval_s=0.5": "",
    }
    for word, message in cases.items():
        config = _compose("workload=worldcup98", word, root=data_root)
        if not message:
            assert build_world(config, Part.HELD_OUT).starts[1] > 0
            continue
        with pytest.raises(ValueError, match=message):
            build_world(config, Part.TRAIN)
    config = _compose("workload=azure_llm_2023", "workload.trace.bin_s=null", root=data_root)
    with pytest.raises(ConfigError, match="single arrivals; give the seconds"):
        build_world(config, Part.TRAIN)
    for fallback, message in (
        ("markow", "did you mean 'markov'"),
        ("azure_llm_2023", "a trace too; name a synthetic workload"),
    ):
        with pytest.raises(ConfigError, match=message):
            settled(_compose(f"workload.fallback={fallback}"))
