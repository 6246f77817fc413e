from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from envs.precision.config import default_config
from envs.precision.env import StagedPrecisionEnv
from runtime.encoding import Encoder, RateWindows
from runtime.precision.observation import (
    GROUPS,
    RATE_WINDOWS_S,
    PrecisionCodec,
    PrecisionScale,
)
from runtime.precision.plan import PrecisionPlan

SCALE = PrecisionScale(
    n_stages=2,
    n_levels=3,
    properties=("noise", "tilt"),
    property_low=(0.0, -1.0),
    property_high=(0.5, 1.0),
    deadline_s=0.2,
    rate_per_s=100.0,
    max_batch=8,
)
LAYOUT = SCALE.signals


def _signals(**values: float) -> NDArray[np.float64]:
    row = np.zeros((1, LAYOUT.size))
    for name, value in values.items():
        row[0, LAYOUT.index[name]] = value
    return row


def _decoded(codec: PrecisionCodec, observation: NDArray[np.float32]) -> dict[str, float]:
    """Return an observation in its units again (numbers beyond their range at its end)."""
    values = {}
    for entry, x in zip(codec.layout, observation.astype(float), strict=True):
        step, span = entry.log_step, entry.high - entry.low
        log = math.expm1(x * math.log1p(span / step)) * step if step else 0.0
        values[entry.name] = entry.low + (log if step else x * span)
    return values


def _by_arrays(codec: PrecisionCodec, rows: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the observations of consecutive finite snapshots of one server, [steps, size]."""
    windows = RateWindows((*RATE_WINDOWS_S, 5.0, 5.0, 5.0), 1)
    copied = [LAYOUT.index[entry.name] for entry in codec.layout[:-6]]
    before, encoder, found = np.zeros(6), Encoder(codec.layout), []
    for row in rows:
        passed, before = row[:6] - before, row[:6]
        _, arrived, served, late, dropped, busy_s = passed
        amounts = np.array([arrived, arrived, arrived, busy_s, late + dropped, served + dropped])
        elapsed_s = max(passed[0], 0.0)
        rates = windows.update(np.array([[elapsed_s]]), amounts[None] / max(elapsed_s, 1e-9))[0]
        trend, missed = rates[0] / max(rates[1], 1e-9), rates[4] / max(rates[5], 1e-9)
        derived = [*rates[:3], trend, rates[3], missed]
        found.append(encoder.encode(np.array([[*row[copied], *derived]]))[0])
    return np.array(found)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_the_compiled_loops_say_what_the_shared_classes_say(seed: int) -> None:
    rng, steps = np.random.default_rng(seed), 12
    rows = rng.exponential(1.0, (steps, LAYOUT.size)) * rng.choice([0.01, 1.0, 300.0], LAYOUT.size)
    rows[:, :6] = np.cumsum(rows[:, :6], axis=0)
    rows[3, 0] = rows[2, 0]  # no time has passed
    codec = PrecisionCodec(SCALE)
    found = np.concatenate([codec.encode(row[None]) for row in rows])
    np.testing.assert_allclose(found, _by_arrays(codec, rows), rtol=1e-5, atol=1e-7)
    together = PrecisionCodec(SCALE, n=2)
    both = np.stack([together.encode(np.stack([row, 2.0 * row])) for row in rows])
    np.testing.assert_array_equal(both[:, 0], found)


def test_the_layout_names_every_number_once_and_none_is_a_secret() -> None:
    codec = PrecisionCodec(SCALE)
    names = [entry.name for entry in codec.layout]
    assert len(set(names)) == len(names) == codec.size
    assert codec.encode(_signals(time_s=1.0)).shape == (1, codec.size)
    assert all(entry.unit and entry.meaning and entry.high > entry.low for entry in codec.layout)
    for secret in ("time", "correct", "condition", "truth", "sample"):
        assert not any(secret in name for name in names)


def test_signals_come_through_in_their_units() -> None:
    codec = PrecisionCodec(SCALE)
    plan = PrecisionPlan((2, 1), 0.5, (0, 1))
    values = {
        "waiting": 20.0,
        "batch": 5.0,
        "head_slack_s": 0.15,
        "last_service_s": 0.03,
        "last_margin": 0.7,
        "shadow_disagreement": 0.04,
        "property_noise": 0.1,
        "property_tilt": -0.5,
        "clip_rate_1": 0.003,
        "sqnr_db_0": 22.0,
    }
    columns = LAYOUT.names[LAYOUT.plan_columns]
    in_force = dict(zip(columns, plan.to_row().tolist(), strict=True))
    seen = _decoded(codec, codec.encode(_signals(time_s=1.0, **values, **in_force))[0])
    for name, value in (values | in_force).items():
        assert seen[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_rates_and_shares_by_hand() -> None:
    codec = PrecisionCodec(SCALE)
    # 50 requests a second; 30 answered in time, 10 late, 10 dropped; busy 60 % of the time.
    for k in range(1, 400):
        row = _signals(
            time_s=float(k),
            requests_in=50.0 * k,
            requests_served=40.0 * k,
            requests_late=10.0 * k,
            requests_dropped=10.0 * k,
            busy_s=0.6 * k,
        )
        seen = _decoded(codec, codec.encode(row)[0])
        for window in ("short", "medium", "long"):
            assert seen[f"arrival_rate_{window}"] == pytest.approx(50.0, rel=1e-5)
        assert seen["utilisation"] == pytest.approx(0.6, rel=1e-5)
        assert seen["missed_share"] == pytest.approx(0.4, rel=1e-5)
    # Then silence: the windows forget at their own pace.
    row[0, 0] += 5.0
    seen = _decoded(codec, codec.encode(row)[0])
    for window, s in zip(("short", "medium", "long"), RATE_WINDOWS_S, strict=True):
        expected = 50.0 * math.exp(-5.0 / s)
        assert seen[f"arrival_rate_{window}"] == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_a_missing_signal_keeps_its_last_value() -> None:
    codec, whole = PrecisionCodec(SCALE), PrecisionCodec(SCALE)
    first = _signals(time_s=1.0, requests_in=10.0, last_margin=0.4, property_noise=0.2)
    codec.encode(first)
    whole.encode(first)
    second = _signals(time_s=2.0, requests_in=30.0, last_margin=0.4, property_noise=0.2)
    broken = second.copy()
    broken[0, LAYOUT.index["last_margin"]] = np.nan
    broken[0, LAYOUT.index["property_noise"]] = np.inf
    np.testing.assert_array_equal(codec.encode(broken), whole.encode(second))
    # All monitors silent: still numbers.
    silent = codec.encode(np.full((1, LAYOUT.size), np.nan))
    assert np.isfinite(silent).all()


def test_encoding_again_changes_nothing_and_reset_forgets_one_server() -> None:
    rng = np.random.default_rng(2)
    both, alone = PrecisionCodec(SCALE, 2), PrecisionCodec(SCALE, 1)

    def rows(k: int) -> NDArray[np.float64]:
        values = rng.exponential(size=(2, LAYOUT.size))
        values[:, :6] = np.arange(1.0, 7.0) * k
        return values

    for k in range(1, 6):
        values = rows(k)
        first = both.encode(values)
        np.testing.assert_array_equal(both.encode(values), first)
    both.reset(np.array([1]))
    for k in range(6, 12):
        values = rows(k)
        np.testing.assert_array_equal(both.encode(values)[1:], alone.encode(values[1:]))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(-6, 9))
def test_whatever_comes_the_observation_stays_in_its_box(seed: int, exponent: int) -> None:
    rng = np.random.default_rng(seed)
    codec = PrecisionCodec(SCALE, 3)
    for k in range(6):
        values = rng.normal(size=(3, LAYOUT.size)) * 10.0**exponent
        values[:, 0] = 0.1 * (k + 1)
        values[rng.random(values.shape) < 0.05] = np.nan
        observation = codec.encode(values)
        assert observation.dtype == np.float32
        assert np.all((observation >= 0.0) & (observation <= 1.0))


@pytest.mark.parametrize("group", GROUPS)
def test_a_hidden_group_reads_zero_and_the_rest_is_unchanged(group: str) -> None:
    hidden = PrecisionScale(**(SCALE.to_mapping() | {"hidden": (group,)}))
    values = _signals(**{name: 0.3 for name in LAYOUT.names})
    seen, part = PrecisionCodec(SCALE).encode(values)[0], PrecisionCodec(hidden).encode(values)[0]
    changed = {
        entry.name
        for entry, a, b in zip(PrecisionCodec(SCALE).layout, seen, part, strict=True)
        if a != b
    }
    assert (part[seen != part] == 0.0).all()
    example = {
        "input": "property_noise",
        "performance": "clip_rate_1",
        "margin": "last_margin",
        "load": "head_slack_s",
        "shadow": "shadow_high",
    }
    for name, column in example.items():
        assert (column in changed) == (name == group)
    assert ("sqnr_db_0" in changed) == (group in ("performance", "shadow"))
    assert not any(name.startswith("level_") for name in changed)


def test_the_environment_and_a_stream_of_snapshots_give_identical_observations() -> None:
    """The one codec serves both: what the real controller sees is what was trained on."""
    env = StagedPrecisionEnv(default_config())
    seen = [env.reset(seed=3)[0]]
    snapshots = [env.servers.engine.snapshot()]
    env.action_space.seed(1)
    for _ in range(60):
        seen.append(env.step(env.action_space.sample())[0])
        snapshots.append(env.servers.engine.snapshot())
    scale = json.loads(json.dumps(env.config.scale().to_mapping(), allow_nan=False))
    codec = PrecisionCodec(PrecisionScale.from_mapping(scale))
    for observation, snapshot in zip(seen, snapshots, strict=True):
        np.testing.assert_array_equal(codec.encode(snapshot.signals[None])[0], observation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"deadline_s": 0.0}, r"deadline_s is 0\.0"),
        ({"rate_per_s": math.nan}, "rate_per_s is nan"),
        ({"property_low": (0.0,)}, "2 properties have 1 low"),
        ({"property_high": (0.0, 1.0)}, r"property noise goes from 0\.0 to 0\.0"),
        ({"hidden": ("loads",)}, "unknown group 'loads'"),
        ({"stages": 1}, "not an observation scale"),
    ],
)
def test_impossible_scales_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrecisionScale.from_mapping(SCALE.to_mapping() | change)
