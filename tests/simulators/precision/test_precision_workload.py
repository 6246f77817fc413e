from __future__ import annotations

import numpy as np
import pytest

from simulators.precision.workload import (
    ListedConditions,
    Stream,
    SwitchingConditions,
    stream_workload,
)

KEYS = np.arange(400, dtype=np.uint64) * 7919


def test_switching_alternates_and_keeps_its_means() -> None:
    schedule = SwitchingConditions((2, 3, 5), clean_s=10.0, corrupted_s=4.0)
    start_s, condition = schedule.segments(KEYS, 100.0)
    lengths = np.diff(start_s, axis=1)
    assert (start_s[:, 0] == 0.0).all()
    assert (start_s[:, -1] > 100.0).all()  # reaches over the horizon
    clean = condition == 0
    assert (clean[:, 1:] != clean[:, :-1]).all()
    assert set(np.unique(condition)) == {0, 2, 3, 5}
    for kind, mean_s in ((clean, 10.0), (~clean, 4.0)):
        own = lengths[kind[:, :-1]]
        assert own.min() >= 0.5 * mean_s
        assert own.max() <= 1.5 * mean_s
        assert own.mean() == pytest.approx(mean_s, rel=0.02)
    assert clean[:, 0].mean() == pytest.approx(0.5, abs=0.1)
    corrupted = condition[~clean]
    shares = [(corrupted == c).mean() for c in (2, 3, 5)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.03)


def test_a_schedule_depends_on_its_key_alone() -> None:
    schedule = SwitchingConditions((1, 2), 3.0, 3.0)
    together = schedule.segments(KEYS[:9], 20.0)
    for k in range(9):
        alone = schedule.segments(KEYS[k : k + 1], 20.0)
        np.testing.assert_array_equal(alone.start_s[0], together.start_s[k])
        np.testing.assert_array_equal(alone.condition[0], together.condition[k])


@pytest.mark.parametrize("stream", Stream)
def test_streams_are_what_their_names_say(stream: Stream) -> None:
    workload = stream_workload(stream, 200.0, 4)
    assert workload.arrivals.mean_rate_per_s == 200.0
    counts = workload.arrivals.counts(KEYS, np.zeros(400, np.int64), 1200)
    assert counts.mean() / 0.05 == pytest.approx(200.0, rel=0.05)
    seconds = counts.reshape(400, 60, 20).sum(axis=2)
    spread = seconds.std() / seconds.mean()
    bursty = stream in (Stream.BURST, Stream.BOTH)
    assert (spread > 0.5) == bursty
    assert (spread < 0.1) != bursty
    condition = workload.conditions.segments(KEYS, 60.0).condition
    assert (condition.max() > 0) == (stream in (Stream.DRIFT, Stream.BOTH))


def test_impossible_schedules_are_refused() -> None:
    for stretches in ((), ((1.0, 0),), ((0.0, 0), (3.0, 1), (2.0, 0))):
        with pytest.raises(ValueError, match="expected ascending seconds from 0"):
            ListedConditions(stretches)
    with pytest.raises(ValueError, match="expected conditions >= 0"):
        ListedConditions(((0.0, -1),))
    with pytest.raises(ValueError, match="at least one condition"):
        stream_workload(Stream.DRIFT, 10.0, 1)
    with pytest.raises(ValueError, match=r"clean_s is 0\.0"):
        SwitchingConditions((1,), 0.0, 1.0)
