from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from envs.cluster.config import default_config
from envs.cluster.env import StreamClusterEnv, StreamClusterVectorEnv
from runtime.cluster.observation import RATE_WINDOWS_S, ClusterCodec, ObservationScale
from runtime.plan import Plan, Policy, Pools
from runtime.snapshot import SIGNAL_INDEX, SIGNALS, Snapshot

SCALE = ObservationScale(slots=8, rate_per_s=100.0, period_s=2.0)
INDEX = {entry.name: i for i, entry in enumerate(ClusterCodec(SCALE).layout)}


def _signals(plan: Plan | None = None, **values: float) -> NDArray[np.float64]:
    row = np.zeros(len(SIGNALS))
    row[SIGNAL_INDEX["pools"] :] = (plan or Plan()).to_row()
    for name, value in values.items():
        row[SIGNAL_INDEX[name]] = value
    return row[None]


def _decoded(codec: ClusterCodec, observation: NDArray[np.float32]) -> dict[str, float]:
    """Return an observation in its units again (numbers beyond their range at its end)."""
    values = {}
    for entry, x in zip(codec.layout, observation.astype(float), strict=True):
        step = entry.log_step
        log = math.expm1(x * math.log1p(entry.high / step)) * step if step else 0.0
        values[entry.name] = log if step else x * entry.high
    return values


def test_the_layout_names_every_number_once() -> None:
    codec = ClusterCodec(SCALE)
    names = [entry.name for entry in codec.layout]
    assert len(set(names)) == len(names) == codec.size == 34
    assert codec.encode(_signals()).shape == (1, codec.size)
    assert all(entry.unit and entry.meaning and entry.high > 0 for entry in codec.layout)
    # Nothing that an operator could not measure: all of it derives from signals, none from time.
    assert "time_s" not in names


def test_the_environment_and_a_stream_of_snapshots_give_identical_observations() -> None:
    """The one codec serves both: what the real controller sees is what was trained on."""
    env = StreamClusterEnv(replace(default_config(0.9), horizon_s=120.0))
    seen = [env.reset(seed=3)[0]]
    snapshots: list[Snapshot] = [env.clusters.engine.snapshot()]
    env.action_space.seed(1)
    for _ in range(env.config.steps):
        seen.append(env.step(env.action_space.sample())[0])
        snapshots.append(env.clusters.engine.snapshot())
    scale = json.loads(json.dumps(env.config.scale().to_mapping(), allow_nan=False))
    codec = ClusterCodec(ObservationScale.from_mapping(scale))
    for observation, snapshot in zip(seen, snapshots, strict=True):
        np.testing.assert_array_equal(codec.encode(snapshot.signals[None])[0], observation)
    assert np.ptp(seen, axis=0).astype(bool).sum() > 25  # the stream exercised most numbers


def test_clusters_are_encoded_independently() -> None:
    config = replace(default_config(0.9), horizon_s=60.0)
    many = StreamClusterVectorEnv(4, config)
    many.reset(seed=1)
    codecs = [ClusterCodec(config.scale()) for _ in range(4)]
    for codec in codecs:
        codec.encode(_signals())
    many.action_space.seed(1)
    for k, codec in enumerate(codecs):
        codec.reset()
        codec.encode(many.clusters.engine.signals[k : k + 1])
    for _ in range(config.steps - 1):
        observation = many.step(many.action_space.sample())[0]
        for k, codec in enumerate(codecs):
            alone = codec.encode(many.clusters.engine.signals[k : k + 1])
            np.testing.assert_array_equal(alone[0], observation[k])


def test_a_period_in_closed_form() -> None:
    codec = ClusterCodec(SCALE)
    plan = Plan(Pools.HARD, 0.25, Policy.FAIR, Policy.FIFO, 3, 0.5, 2, per_pool_parallelism=True)
    values = _decoded(
        codec,
        codec.encode(
            _signals(
                plan,
                time_s=2.0,
                records_in=300.0,
                records_out=90.0,
                records_failed=10.0,
                records_uncut=40.0,
                records_pending=160.0,
                batches_pending=3.0,
                oldest_age_s=1.5,
                queued_tasks_independent=17.0,
                busy_slots_dependent=2.0,
                report_records=50.0,
                reports=2.0,
                accumulation_record_s=25.0,
                queueing_record_s=5.0,
                processing_record_s=40.0,
                busy_independent_s=12.0,
                busy_dependent_s=2.0,
                tasks_ended=20.0,
            )
        )[0],
    )
    expected = {
        "records_uncut": 40.0,
        "records_pending": 160.0,
        "batches_pending": 3.0,
        "oldest_age_s": 1.5,
        "queued_tasks_independent": 17.0,
        "queued_tasks_dependent": 0.0,
        "busy_slots_dependent": 2.0,
        "share": 0.25,
        "independent_policy": 1.0,
        "dependent_policy": 0.0,
        "parallelism": 3.0,
        "batch_interval_s": 0.5,
        "idle_batches": 2.0,
        "per_pool_parallelism": 1.0,
        "arrival_rate_short": 150.0,
        "arrival_rate_long": 150.0,
        "arrival_trend": 1.0,
        "accumulation_s": 0.5,
        "queueing_s": 0.1,
        "processing_s": 0.8,
        "processing_to_interval": 1.6,
        "task_s": 0.7,
        "utilisation_independent": 0.75,
        "utilisation_dependent": 0.125,
        "failed_share": 0.1,
        "pools_single": 0.0,
        "pools_hard": 1.0,
        "pools_soft": 0.0,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_rates_are_exponentially_weighted_whatever_the_periods() -> None:
    codec = ClusterCodec(SCALE)
    codec.encode(_signals(time_s=0.0))
    # Nothing arrives for 4 s, then 50 a second for 2 s and 200 a second for 5 s: the mean over
    # the past 11 s, weighted by exp(-age / window).
    for time_s in (2.0, 4.0):
        codec.encode(_signals(time_s=time_s))
    codec.encode(_signals(time_s=6.0, records_in=100.0))
    values = _decoded(codec, codec.encode(_signals(time_s=11.0, records_in=1100.0))[0])
    for name, window_s in zip(("short", "medium", "long"), RATE_WINDOWS_S, strict=True):
        at_5_s, at_7_s, at_11_s = (1.0 - math.exp(-age / window_s) for age in (5.0, 7.0, 11.0))
        expected = (200.0 * at_5_s + 50.0 * (at_7_s - at_5_s)) / at_11_s
        assert values[f"arrival_rate_{name}"] == pytest.approx(expected, rel=1e-5)
    ratio = values["arrival_rate_short"] / values["arrival_rate_medium"]
    assert values["arrival_trend"] == pytest.approx(ratio, rel=1e-5)
    # One long period or two short ones at the same rate come to the same.
    one, two = ClusterCodec(SCALE), ClusterCodec(SCALE)
    for c in (one, two):
        c.encode(_signals(time_s=2.0, records_in=100.0))
    two.encode(_signals(time_s=5.0, records_in=700.0))
    last = _signals(time_s=8.0, records_in=1300.0)
    short = slice(INDEX["arrival_rate_short"], INDEX["arrival_rate_long"] + 1)
    np.testing.assert_allclose(one.encode(last)[0, short], two.encode(last)[0, short], rtol=1e-6)


def test_the_last_latency_is_remembered_until_the_next_batch() -> None:
    codec = ClusterCodec(SCALE)
    parts = {"queueing_record_s": 20.0, "report_records": 10.0}
    first = codec.encode(_signals(time_s=2.0, **parts))[0, INDEX["queueing_s"]]
    quiet = codec.encode(_signals(time_s=4.0))[0, INDEX["queueing_s"]]
    assert first == quiet > 0.0
    codec.reset()
    assert codec.encode(_signals(time_s=2.0))[0, INDEX["queueing_s"]] == 0.0


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1), st.floats(-3.0, 9.0), st.integers(1, 4))
def test_any_measurement_lands_in_the_box(seed: int, exponent: float, periods: int) -> None:
    rng = np.random.default_rng(seed)
    codec = ClusterCodec(SCALE, 3)
    time_s = 0.0
    for _ in range(periods):
        time_s += rng.uniform(1e-3, 10.0)
        signals = rng.exponential(size=(3, len(SIGNALS))) * 10.0**exponent
        signals[rng.random(signals.shape) < 0.3] = 0.0
        signals[:, 0] = time_s
        observation = codec.encode(signals)
        assert observation.dtype == np.float32
        assert np.all((observation >= 0.0) & (observation <= 1.0))


def test_more_of_a_signal_never_lowers_its_number() -> None:
    for name in ("records_uncut", "oldest_age_s", "queued_tasks_dependent", "busy_slots_dependent"):
        values = [0.0, 0.5, 1.0, 3.0, 10.0, 1e3, 1e6]
        encoded = [
            ClusterCodec(SCALE).encode(_signals(**{name: value}))[0, INDEX[name]]
            for value in values
        ]
        assert encoded == sorted(encoded)
        assert (encoded[0], encoded[-1]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": 0}, "observation scale slots is 0"),
        ({"rate_per_s": math.inf}, "observation scale rate_per_s is inf"),
        ({"rate_per_s": math.nan}, "observation scale rate_per_s is nan"),
        ({"slot": 1}, "not an observation scale: .*'slot'"),
    ],
)
def test_impossible_scales_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObservationScale.from_mapping(SCALE.to_mapping() | change)
