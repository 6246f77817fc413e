from __future__ import annotations

import gzip
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulators.traces import (
    ALIBABA_GENAI_2026,
    AZURE_LLM_2023,
    WORLDCUP98,
    DataRootError,
    EventTrace,
    RateTrace,
    TraceError,
    read_alibaba_genai_2026,
    read_azure_llm_2023,
    read_worldcup98,
)

GOOD = [
    "period,count",
    "1998-04-30 21:30:00,2",
    "1998-04-30 21:31:00,11",
    "1998-04-30 21:34:00,16",
]


def _write(root: Path, relative: Path, lines: list[str]) -> Path:
    path = root / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    return root


def test_worldcup98_fills_minutes_without_a_row_with_zeros(tmp_path: Path) -> None:
    trace = read_worldcup98(_write(tmp_path, WORLDCUP98, GOOD))
    assert trace.counts.tolist() == [2, 11, 0, 0, 16]
    assert trace.counts.dtype == np.int64
    assert trace.start == np.datetime64("1998-04-30T21:30:00")
    assert trace.interval_s == 60.0


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (1, "period,requests", r"line 1: no column 'count'; expected period, count"),
        (2, "1998-04-30 21:30:00", r"line 2: 1 fields; expected 2"),
        (3, "1998-04-30 21:31:00,11,5", r"line 3: 3 fields; expected 2"),
        (3, "1998-04-30 21:31:00,-11", r"line 3: count '-11'; expected a whole number"),
        (3, "1998-04-30 21:31:00,11.5", r"line 3: count '11.5'"),
        (3, "1998-04-30 21:31:00,nan", r"line 3: count 'nan'"),
        (3, "1998-04-30 21:31:00,", r"line 3: count ''"),
        (3, "1998-04-30 21:31:00,99999999999999999999", r"line 3: count '9999"),
        (3, "30/04/1998 21:31,11", r"line 3: time '30/04/1998 21:31'; expected YYYY-MM-DD"),
        (3, "NaT,11", r"line 3: time 'NaT'"),
        (3, "1998-04-30,11", r"line 3: time '1998-04-30'"),
        (3, "1998-04-30 21:31:00Z,11", r"line 3: time '1998-04-30 21:31:00Z'"),
        (3, "1998-04-31 21:31:00,11", r"line 3: time '1998-04-31 .*a date that exists"),
        (3, "1998-04-30 21:31:30,11", r"line 3: time .*; expected a whole minute"),
        (3, "1998-04-30 21:30:00,11", r"line 3: time .* out of order; expected a time after"),
        (4, "1998-04-30 21:20:00,11", r"line 4: time .* out of order"),
    ],
)
def test_malformed_rows_are_refused_with_line_and_reason(
    tmp_path: Path, line: int, text: str, message: str
) -> None:
    lines = [*GOOD]
    lines[line - 1] = text
    with pytest.raises(TraceError, match=message) as caught:
        read_worldcup98(_write(tmp_path, WORLDCUP98, lines))
    assert str(tmp_path / WORLDCUP98) in str(caught.value)


def test_files_without_rows_or_not_gzipped_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="has a header and no rows"):
        read_worldcup98(_write(tmp_path, WORLDCUP98, GOOD[:1]))
    path = tmp_path / WORLDCUP98
    path.write_bytes(b"")
    with pytest.raises(TraceError, match="found an empty file"):
        read_worldcup98(tmp_path)
    path.write_text("\n".join(GOOD))
    with pytest.raises(TraceError, match="not a readable gzipped CSV"):
        read_worldcup98(tmp_path)
    path.write_bytes(gzip.compress(b"period,count\n" + b"\xff\xfe,1\n"))
    with pytest.raises(TraceError, match="not a readable gzipped CSV"):
        read_worldcup98(tmp_path)


@given(kept=st.floats(0.0, 0.999), flipped=st.integers(0, 10**6))
def test_any_truncation_or_flipped_bit_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, kept: float, flipped: int
) -> None:
    root = _write(tmp_path_factory.mktemp("trace"), WORLDCUP98, GOOD)
    path = root / WORLDCUP98
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(TraceError):
        read_worldcup98(root)
    damaged = bytearray(whole)
    damaged[flipped // 8 % len(whole)] ^= 1 << flipped % 8
    path.write_bytes(damaged)
    try:
        counts = read_worldcup98(root).counts.tolist()
    except TraceError:
        return
    assert counts == [2, 11, 0, 0, 16]  # a bit of the gzip header that means nothing


def test_events_are_read_with_fractions_and_service_times(tmp_path: Path) -> None:
    root = _write(
        tmp_path,
        AZURE_LLM_2023,
        [
            "TIMESTAMP,ContextTokens,GeneratedTokens",
            "2023-11-16 18:15:46.6805900,374,44",
            "2023-11-16 18:15:46.6805900,374,44",
            "2023-11-16 18:15:50.9951690,396,109",
        ],
    )
    trace = read_azure_llm_2023(root)
    np.testing.assert_allclose(trace.times_s, [0.0, 0.0, 4.314579], atol=1e-9)
    assert trace.service_s is None
    _write(
        root,
        ALIBABA_GENAI_2026,
        [
            "gmt_create,predict_type,exec_time_seconds",
            "2024-11-15 16:57:50,TXT_2_IMG,32.0",
            "2024-11-15 16:58:50,TXT_2_IMG,",
        ],
    )
    served = read_alibaba_genai_2026(root)
    assert served.times_s.tolist() == [0.0, 60.0]
    assert served.service_s is not None
    np.testing.assert_array_equal(served.service_s, [32.0, np.nan])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2024-11-15 16:57:49,X,1.0", "line 3: time .* out of order; expected a time not before"),
        ("2024-11-15 16:57:51,X,-1.0", "line 3: exec_time_seconds '-1.0'; expected finite"),
        ("2024-11-15 16:57:51,X,inf", "line 3: exec_time_seconds 'inf'"),
        ("2024-11-15 16:57:51,X,slow", "line 3: exec_time_seconds 'slow'"),
    ],
)
def test_malformed_events_are_refused(tmp_path: Path, row: str, message: str) -> None:
    lines = ["gmt_create,predict_type,exec_time_seconds", "2024-11-15 16:57:50,X,1.0", row]
    with pytest.raises(TraceError, match=message):
        read_alibaba_genai_2026(_write(tmp_path, ALIBABA_GENAI_2026, lines))


def test_a_missing_data_root_says_how_to_mend_it(tmp_path: Path) -> None:
    with pytest.raises(DataRootError, match="no data root is set; set the environment variable"):
        read_worldcup98(None)
    with pytest.raises(DataRootError, match="is no folder; set the environment variable"):
        read_worldcup98(tmp_path / "elsewhere")
    with pytest.raises(DataRootError, match=r"has no worldcup98.requests_per_minute\.csv\.gz"):
        read_worldcup98(tmp_path)


def _rate_trace(n: int = 10) -> RateTrace:
    return RateTrace("t", np.datetime64("2020-01-01T00:00:00"), 60.0, np.arange(n, dtype=np.int64))


def test_rates_split_by_fraction_and_by_date() -> None:
    for at in (0.6, "2020-01-01T00:06", "2020-01-01T00:05:30", datetime(2020, 1, 1, 0, 6)):
        early, late = _rate_trace().split(at)
        assert early.counts.tolist() == [0, 1, 2, 3, 4, 5]
        assert late.counts.tolist() == [6, 7, 8, 9]
        assert late.start == np.datetime64("2020-01-01T00:06:00")
    _, late = _rate_trace().split(0.6, lead_in=2)
    assert late.counts.tolist() == [4, 5, 6, 7, 8, 9]
    assert late.lead_in == 2
    assert late.start == np.datetime64("2020-01-01T00:04:00")


@pytest.mark.parametrize("at", [0.0, 1.0, 0.01, "2019-12-31", "2020-01-02", "soon"])
def test_splits_outside_the_trace_are_refused(at: float | str) -> None:
    with pytest.raises(TraceError, match=r"empty part|expected one in|expected ISO form"):
        _rate_trace().split(at)
    events = EventTrace("e", np.datetime64("2020-01-01T00:00:00", "ns"), np.arange(600.0))
    if at != 0.01:
        with pytest.raises(TraceError, match=r"empty part|expected one in|expected ISO form"):
            events.split(at)


def test_events_split_by_time_and_keep_their_gaps() -> None:
    start = np.datetime64("2020-01-01T00:00:00", "ns")
    trace = EventTrace("e", start, np.array([0.0, 1.0, 5.0, 10.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    for at in (0.5, "2020-01-01T00:00:05"):
        early, late = trace.split(at)
        assert early.times_s.tolist() == [0.0, 1.0]
        assert late.times_s.tolist() == [0.0, 5.0]
        assert late.start == np.datetime64("2020-01-01T00:00:05", "ns")
        assert late.service_s is not None
        assert late.service_s.tolist() == [3.0, 4.0]
    assert trace.binned(2.0).counts.tolist() == [2, 0, 1, 0, 0, 1]


def test_real_worldcup98(data_root: Path) -> None:
    times = []
    for _ in range(3):
        began = time.process_time()
        trace = read_worldcup98(data_root)
        times.append(time.process_time() - began)
    # 0.17 s on an idle 2-core Xeon; the limit leaves room for a busy one.
    assert min(times) < 1.0
    counts = trace.counts
    assert len(counts) == 73_590
    assert (counts == 0).sum() == 10
    assert counts.mean() == pytest.approx(7812.7, abs=0.1)
    assert counts.std() / counts.mean() == pytest.approx(1.738, abs=1e-3)
    assert counts.max() / counts.mean() == pytest.approx(19.70, abs=0.01)


def test_real_event_traces(data_root: Path) -> None:
    azure = read_azure_llm_2023(data_root)
    assert len(azure.times_s) == 19_366
    assert azure.times_s[-1] == pytest.approx(3501.72, abs=0.01)
    alibaba = read_alibaba_genai_2026(data_root)
    assert len(alibaba.times_s) == 15_630
    assert alibaba.service_s is not None
    assert np.all(alibaba.service_s >= 0.0)
