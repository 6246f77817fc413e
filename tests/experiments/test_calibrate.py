from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from experiments.calibrate import calibrate_network
from experiments.cli import CONF
from experiments.errors import ConfigError
from experiments.precision.answers import MODELLED_SAMPLES, shared_multiplications
from experiments.precision.banks import open_bank
from experiments.precision.calibration import (
    CHOSEN,
    EVERY,
    FRONT,
    HELD_OUT,
    KERNELS,
    LATENCIES,
    LEVELS,
    MODELLED,
    PROFILE,
    TABLE,
    TRIALS,
    CalibrationNode,
)
from experiments.precision.latencies import DECISION, OVERHEAD
from experiments.record import RunFolder
from experiments.schema import read_node
from simulators.precision.profile import PrecisionProfile
from simulators.precision.profile_file import FORMAT_VERSION

Compose = Callable[..., DictConfig]
OFFERED = ("fp32", "int8", "int8_quarter")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    GlobalHydra.instance().clear()
    results = tmp_path_factory.mktemp("results")
    fixed = [
        "size=smoke",
        "network=digits_cnn",
        "data.root=null",
        f"results.root='{results}'",
        f"bank.levels=[{','.join(OFFERED)}]",
        "bank.buckets=[4]",
        "calibration.batch=4",
        "calibration.samples=120",
        "calibration.conditions=[clean,noise-4]",
        "calibration.profiled=60",
        "size.latencies={assignments:40,rounds:3}",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *words: compose("config", overrides=[*fixed, *words])


@pytest.fixture(scope="module")
def run(small: Compose) -> RunFolder:
    return calibrate_network(small())


def _table(run: RunFolder, name: str) -> pd.DataFrame:
    return pd.read_csv(run.path / name)


def test_everything_is_written(run: RunFolder) -> None:
    for name in (LEVELS, TRIALS, EVERY, CHOSEN, LATENCIES, TABLE, FRONT, KERNELS, MODELLED):
        assert (run.path / name).stat().st_size > 0
    assert run.complete


def test_a_calibration_whose_profiles_this_code_cannot_read_is_another_run(
    run: RunFolder, small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert calibrate_network(small()).path == run.path
    monkeypatch.setattr("experiments.calibrate.FORMAT_VERSION", FORMAT_VERSION + 1)
    monkeypatch.setattr("experiments.calibrate.measure_bank", _measured_again)
    with pytest.raises(_MeasuredAgainError):
        calibrate_network(small())


class _MeasuredAgainError(Exception):
    pass


def _measured_again(*args: object) -> None:
    raise _MeasuredAgainError


def test_every_level_has_its_row_and_its_own_kernels(run: RunFolder) -> None:
    levels = _table(run, LEVELS)
    assert tuple(levels["level"]) == OFFERED
    assert not levels["emulated"].any()
    assert (levels["batch_4_ms"] > 0.0).all()
    # int8 weights take a quarter, those of the half interior less again
    sizes = levels["bytes"].tolist()
    assert sizes[0] > 3 * sizes[1] > 3 * sizes[2]
    accuracies = [c for c in levels.columns if c.startswith("accuracy_")]
    assert len(accuracies) == 7  # clean and six corruptions
    assert levels[accuracies].to_numpy().min() >= 0.0
    assert levels[accuracies].to_numpy().max() <= 1.0
    kernels = json.loads((run.path / KERNELS).read_text())
    for stage in ("stem", "deep"):
        used = {level: kernels[f"{stage}, {level}"] for level in OFFERED}
        assert any("u8" in kernel for kernel in used["int8"])
        assert not any("u8" in kernel for kernel in used["fp32"])


def test_the_training_mode_keeps_its_rules(run: RunFolder) -> None:
    record = json.loads((run.path / TABLE).read_text())
    trials, chosen = _table(run, TRIALS), _table(run, CHOSEN).set_index("chosen_by")
    first = chosen.loc["fp32", "calibration"]
    assert len(record["searches"]) == 4
    for name, search in record["searches"].items():
        stages = len(search["assignment"])
        assert search["runs"] <= stages * len(OFFERED)
        rows = trials[trials["search"] == name]
        assert len(rows) == stages * len(OFFERED)
        assert search["chain"]["result"] >= first - 0.005 - 1e-12
        assert chosen.loc[f"training mode, {name}", "calibration"] == search["chain"]["result"]


def test_the_best_of_all_is_the_fastest_that_is_accurate_enough(run: RunFolder) -> None:
    every = _table(run, EVERY).set_index("assignment")
    chosen = _table(run, CHOSEN).set_index("chosen_by")
    best = every.loc[chosen.loc["best of all", "assignment"]]
    enough = every[every["calibration"] >= chosen.loc["fp32", "calibration"] - 0.005 - 1e-12]
    assert best["predicted_s"] == enough["predicted_s"].min()
    assert chosen.loc["best of all", "held_out"] == best["held_out"]
    refused = len(OFFERED) ** len(chosen.loc["fp32", "assignment"].split("/")) - len(every)
    assert refused >= 0


def test_profiles_hold_what_the_bank_answers_and_costs(run: RunFolder) -> None:
    profile = PrecisionProfile.load(run.path / PROFILE)
    held_out = PrecisionProfile.load(run.path / HELD_OUT)
    assert (profile.network, profile.levels) == ("digits_cnn", OFFERED)
    assert profile.conditions == ("clean", "noise-4")
    assert profile.label.shape == (2, profile.n_assignments, 60)
    latencies = _table(run, LATENCIES).set_index("assignment")
    fitted = latencies["predicted_s"].dropna()
    assert len(fitted) > len(OFFERED)
    serving_s = [latencies.loc[OVERHEAD.format(level), "steady_s"] for level in OFFERED]
    assert profile.fixed_s == pytest.approx([min(serving_s)])
    for said, fitted_s in fitted.items():
        levels = str(said).split("/")
        predicted_s = profile.predict_latency_s(profile.assignment(*levels), 4)
        if len(set(levels)) == 1:  # served, passes of one level cost what that level was seen to
            beyond_s = serving_s[OFFERED.index(levels[0])]
            assert predicted_s == pytest.approx(fitted_s + beyond_s, rel=1e-6)
        assert predicted_s >= (fitted_s + min(serving_s)) * (1.0 - 1e-6)
    assert profile.decision_s == pytest.approx([latencies.loc[DECISION, "steady_s"]])
    assert 0.0 <= profile.decision_s[0] < 0.01  # some tens of microseconds
    beyond_s = (latencies["switch_s"] - latencies["steady_s"]).median()
    assert profile.switch_s == pytest.approx([max(beyond_s, 0.0)])
    np.testing.assert_array_equal(profile.latency_s, held_out.latency_s)
    assert (profile.truth != held_out.truth).any()
    # noise is seen in the property that estimates it, and costs accuracy
    noise = profile.properties[:, :, profile.property_names.index("noise")].mean(axis=1)
    assert noise[1] > 1.2 * noise[0]
    # the reference is exact by itself; lowering a stage adds noise
    assert profile.sqnr_db[0, :, 0].min() == 100.0
    assert profile.sqnr_db[0, :, 1].max() < 80.0


@pytest.fixture(scope="module")
def with_emulated(small: Compose) -> RunFolder:
    return calibrate_network(small("bank.levels=[fp32,int8,int4_emulated]"))


def test_emulated_levels_answer_for_real_and_are_never_timed(with_emulated: RunFolder) -> None:
    latencies = _table(with_emulated, LATENCIES)
    assert not latencies["assignment"].str.contains("emulated").any()
    levels = _table(with_emulated, LEVELS).set_index("level")
    assert levels["emulated"].to_dict() == {"fp32": False, "int8": False, "int4_emulated": True}
    compared = [column for column in levels if "_over_" in column]
    assert compared
    assert levels.loc["int4_emulated", compared].isna().all()
    assert levels.loc[["fp32", "int8"], compared].notna().all().all()
    # in four bits the net really answers otherwise
    profile = PrecisionProfile.load(with_emulated.path / PROFILE)
    agreement = profile.agreement()[0]
    assert agreement[profile.n_assignments // 2] > agreement[-1]


def test_costs_of_emulated_levels_are_declared_from_int8(with_emulated: RunFolder) -> None:
    every = _table(with_emulated, EVERY).set_index("assignment")["predicted_s"]
    half = every["/".join(["int4_emulated"] * 4)]
    assert half == pytest.approx(every["/".join(["int8"] * 4)] / 2)
    chosen = _table(with_emulated, CHOSEN).set_index("chosen_by")
    assert chosen.loc["int4_emulated", "batch_4_ms"] == pytest.approx(1e3 * half)
    assert chosen.loc["int8", "batch_4_ms"] != pytest.approx(2e3 * half, rel=1e-9)  # measured
    profile = PrecisionProfile.load(with_emulated.path / PROFILE)
    assert profile.emulated == (False, False, True)
    assert profile.origin.endswith("; costs of int4_emulated declared from int8's")
    changes_s = profile.transition_s
    np.testing.assert_array_equal(changes_s[..., 0, 1], changes_s[..., 0, 2])
    np.testing.assert_allclose(changes_s[..., 1, 2], 0.0, atol=1e-15)


@pytest.mark.parametrize(
    ("levels", "why"),
    [
        ("int4_emulated,fp32,int8", "first level, int4_emulated, is emulated; expected a real one"),
        ("fp32,int6_emulated", "int6_emulated is emulated, .* 6/8 of int8's; add int8"),
        ("fp32,int8,int6", "no level 'int6'; expected of .*int6_emulated"),
    ],
)
def test_emulated_levels_whose_costs_cannot_be_declared_are_refused(
    small: Compose, tmp_path: Path, levels: str, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        calibrate_network(small(f"bank.levels=[{levels}]", f"results.root='{tmp_path}'"))
    assert not list(tmp_path.iterdir())


def test_the_error_of_modelled_answers_is_stated(run: RunFolder) -> None:
    table = _table(run, MODELLED).set_index("condition")
    assert list(table.index) == ["clean", "noise-4"]
    # four stages with three levels: most answers of mixes follow from those of single stages
    assert (table["agreement"] > 0.6).all()
    assert (table["mean"] <= table["worst"]).all()


def test_more_assignments_than_are_run_are_modelled(small: Compose) -> None:
    few = calibrate_network(small("calibration.exhaustive_tmac=0", "calibration.samples=60"))
    profile = PrecisionProfile.load(few.path / PROFILE)
    assert "modelled from single stages" in profile.origin
    assert "best of all" not in set(_table(few, CHOSEN)["chosen_by"])
    exact = PrecisionProfile.load(calibrate_network(small()).path / PROFILE)
    # what was run alone is exact, and the first level is never changed
    assert (profile.label[:, 0] == exact.label[:, 0]).mean() > 0.98
    assert (profile.label == exact.label).mean() > 0.6


def test_cost_of_all_assignments_by_hand(small: Compose) -> None:
    trained = open_bank(small())
    stem = 9 * 64 * (64 + 64 * 32)  # 1 -> 64 -> 32 channels on 64 pixels
    middle = 9 * 64 * 2 * 32 * 128
    deep = 16 * (9 * 32 * 128 + 9 * 128 * 64 + 32 * 64)
    head = 64 * 64 + 64 * 10
    # three levels: 3 stems, each followed by 3 middles, each of the 9 by 3 deeps, ...
    assert shared_multiplications(trained) == 3 * stem + 9 * middle + 27 * deep + 81 * head


def test_profiles_have_no_more_samples_than_can_be_run(small: Compose) -> None:
    trained = open_bank(small())
    node = read_node(CalibrationNode, small().calibration, "calibration")
    tera = shared_multiplications(trained) / 1e12
    assert node.profile_samples(trained) == 60  # as wished
    # two conditions
    assert replace(node, exhaustive_tmac=110.5 * tera, samples=110).profile_samples(trained) == 55
    modelled = replace(node, exhaustive_tmac=109.5 * tera, samples=110, profiled=10_000)
    assert modelled.profile_samples(trained) == MODELLED_SAMPLES


def test_a_finished_calibration_is_skipped(small: Compose, run: RunFolder) -> None:
    before = (run.path / LATENCIES).stat().st_mtime_ns
    assert calibrate_network(small()).path == run.path
    assert (run.path / LATENCIES).stat().st_mtime_ns == before


def test_mistakes_leave_nothing_behind(small: Compose, tmp_path: Path) -> None:
    elsewhere = f"results.root='{tmp_path}'"
    with pytest.raises(ConfigError, match=r"calibration.batch is 5; expected one of .*\[4\]"):
        calibrate_network(small("calibration.batch=5", elsewhere))
    for condition, why in (
        ("fog", "condition 'fog' is not such as 'noise-3'"),
        ("noise-9", "'noise-9' is not such as 'noise-3', a corruption and a severity of 1 to 5"),
        ("noize-3", "unknown corruption .*'noize'; did you mean 'noise'?"),
    ):
        with pytest.raises(ConfigError, match=why):
            calibrate_network(small(f"calibration.conditions=[clean,{condition}]", elsewhere))
    with pytest.raises(ConfigError, match="bank"):
        calibrate_network(small("bank.buckets=four", elsewhere))
    with pytest.raises(ValueError, match=r"no level 'int9'.*did you mean 'int8'"):
        calibrate_network(small("bank.levels=[fp32,int9]", elsewhere))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"corruption of image inputs .*'clipping'"):
        calibrate_network(small("calibration.conditions=[clean,clipping-3]"))
