"""Readers for measured arrivals: counts per interval, or the times of single requests.

The files lie under a data root that the caller passes in (see the project's README for where each
set comes from); nothing is copied into the repository. A file that is not what its source
describes is refused with file, line and reason instead of being mended silently.
"""

from __future__ import annotations

import csv
import gzip
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

WORLDCUP98: Final = Path("worldcup98/requests_per_minute.csv.gz")
AZURE_LLM_2023: Final = Path("azure_llm_2023/AzureLLMInferenceTrace_conv.csv.gz")
ALIBABA_GENAI_2026: Final = Path("alibaba_genai_2026/lora_request_trace.csv.gz")

_NS_PER_S = 1_000_000_000
_SECOND = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
_TIME_FORMS: Final = {
    "s": (_SECOND, "YYYY-MM-DD HH:MM:SS"),
    "ns": (_SECOND + r"(\.\d{1,9})?", "YYYY-MM-DD HH:MM:SS[.fraction]"),
}


class DataRootError(ValueError):
    """There is no data root, or it lacks a file."""


class TraceError(ValueError):
    """A trace file is not what its source describes, or a request does not fit the trace."""


@dataclass(frozen=True, eq=False)
class RateTrace:
    """Counts of arrivals in equal intervals.

    Attributes:
        name: What it is called in tables.
        start: When the first interval begins, datetime64[s].
        interval_s: Length of an interval, seconds.
        counts: int64 [n], arrivals in each interval, at least 0.
        lead_in: Intervals at the beginning that serve as a past for trailing means and are not
            part of the trace proper.
    """

    name: str
    start: np.datetime64
    interval_s: float
    counts: NDArray[np.int64]
    lead_in: int = 0

    def split(self, at: float | str | datetime, lead_in: int = 0) -> tuple[RateTrace, RateTrace]:
        """Split by time into an earlier part (to train on) and a later one (held out).

        Args:
            at: Fraction of the intervals in (0, 1), or a date (ISO string or datetime, in the
                trace's own time zone) that the later part begins at.
            lead_in: Intervals before the cut that the later part carries in front as the past of
                its trailing means; they are never replayed.

        Raises:
            TraceError: One of the parts would be empty, or the date cannot be read.
        """
        n = len(self.counts)
        if isinstance(at, float):
            cut = _fraction_of(at, n, self.name)
        else:
            after = (_parse_date(at) - self.start) / np.timedelta64(1, "s")
            cut = math.ceil(float(after) / self.interval_s)
        if not self.lead_in < cut < n:
            raise TraceError(
                f"splitting {self.name} at {at} leaves an empty part; expected a place inside "
                f"{self.start} .. {self.start + self._offset(n)}"
            )
        if not 0 <= lead_in <= cut:
            raise TraceError(f"lead_in is {lead_in}; expected 0 to {cut} intervals before the cut")
        later = self.start + self._offset(cut - lead_in)
        return (
            RateTrace(self.name, self.start, self.interval_s, self.counts[:cut], self.lead_in),
            RateTrace(self.name, later, self.interval_s, self.counts[cut - lead_in :], lead_in),
        )

    def _offset(self, intervals: int) -> np.timedelta64:
        return np.timedelta64(round(intervals * self.interval_s), "s")


@dataclass(frozen=True, eq=False)
class EventTrace:
    """Times of single arrivals.

    Attributes:
        name: What it is called in tables.
        start: Time of the first arrival, datetime64[ns].
        times_s: float64 [n], seconds since `start`, not decreasing.
        service_s: float64 [n], measured service time of each, seconds; None where not measured.
    """

    name: str
    start: np.datetime64
    times_s: NDArray[np.float64]
    service_s: NDArray[np.float64] | None = None

    def split(self, at: float | str | datetime) -> tuple[EventTrace, EventTrace]:
        """Split by time into an earlier part (to train on) and a later one (held out).

        Args:
            at: Fraction of the trace's *duration* in (0, 1), or a date (ISO string or datetime,
                in the trace's own time zone). An arrival at the cut belongs to the later part.

        Raises:
            TraceError: One of the parts would be empty, or the date cannot be read.
        """
        if isinstance(at, float):
            if not 0.0 < at < 1.0:
                raise TraceError(f"fraction {at} of {self.name}; expected one in (0, 1)")
            cut_s = at * float(self.times_s[-1])
        else:
            cut_s = float((_parse_date(at) - self.start) / np.timedelta64(1, "ns")) / _NS_PER_S
        cut = int(np.searchsorted(self.times_s, cut_s, side="left"))
        if not 0 < cut < len(self.times_s):
            raise TraceError(
                f"splitting {self.name} at {at} leaves an empty part; expected a place inside "
                f"{self.start} .. {self.start + np.timedelta64(int(self.times_s[-1]), 's')}"
            )
        first_s = float(self.times_s[cut])
        later = self.start + np.timedelta64(round(first_s * _NS_PER_S), "ns")
        before, after = (None, None)
        if self.service_s is not None:
            before, after = self.service_s[:cut], self.service_s[cut:]
        return (
            EventTrace(self.name, self.start, self.times_s[:cut], before),
            EventTrace(self.name, later, self.times_s[cut:] - first_s, after),
        )

    def binned(self, interval_s: float) -> RateTrace:
        """Return counts per interval; the last, incomplete interval is kept.

        Args:
            interval_s: Length of an interval, above 0.
        """
        if not (math.isfinite(interval_s) and interval_s > 0.0):
            raise TraceError(f"interval_s is {interval_s}; expected finite seconds above 0")
        index = (self.times_s // interval_s).astype(np.int64)
        return RateTrace(
            self.name, self.start.astype("datetime64[s]"), interval_s, np.bincount(index)
        )


def read_worldcup98(data_root: Path | None) -> RateTrace:
    """Read the requests per minute to the 1998 World Cup web site.

    Minutes without a row had no request (said by the source) and become zeros.

    Args:
        data_root: Folder that holds worldcup98/.

    Raises:
        DataRootError: No data root, or the file is not there.
        TraceError: A malformed file; names file, line and reason.
    """
    path = find_data_file(data_root, WORLDCUP98)
    table = _read_columns(path, ("period", "count"))
    minutes = _times(path, table["period"], "s", strictly=True)
    counts = _whole_numbers(path, table["count"], "count")
    since_start = (minutes - minutes[0]).astype(np.int64)
    if np.any(since_start % 60):
        row = int(np.argmax(since_start % 60 != 0))
        raise _row_error(path, row, f"time {table['period'][row]!r}", "a whole minute")
    full = np.zeros(int(since_start[-1]) // 60 + 1, dtype=np.int64)
    full[since_start // 60] = counts
    return RateTrace("worldcup98", minutes[0], 60.0, full)


def read_azure_llm_2023(data_root: Path | None) -> EventTrace:
    """Read the arrivals of one production LLM conversation service (one hour).

    Args:
        data_root: Folder that holds azure_llm_2023/.

    Raises:
        DataRootError: No data root, or the file is not there.
        TraceError: A malformed file; names file, line and reason.
    """
    path = find_data_file(data_root, AZURE_LLM_2023)
    table = _read_columns(path, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"))
    times = _times(path, table["TIMESTAMP"], "ns", strictly=False)
    for column in ("ContextTokens", "GeneratedTokens"):
        _whole_numbers(path, table[column], column)
    return _event_trace("azure_llm_2023", times)


def read_alibaba_genai_2026(data_root: Path | None) -> EventTrace:
    """Read the arrivals and service times of a production image-generation service (two weeks).

    All requests arrive, whatever became of them; times have a resolution of one second.

    Args:
        data_root: Folder that holds alibaba_genai_2026/.

    Raises:
        DataRootError: No data root, or the file is not there.
        TraceError: A malformed file; names file, line and reason.
    """
    path = find_data_file(data_root, ALIBABA_GENAI_2026)
    table = _read_columns(path, ("gmt_create", "exec_time_seconds"))
    times = _times(path, table["gmt_create"], "ns", strictly=False)
    service_s = _durations(path, table["exec_time_seconds"], "exec_time_seconds")
    return _event_trace("alibaba_genai_2026", times, service_s)


def _event_trace(
    name: str, times: NDArray[np.datetime64], service_s: NDArray[np.float64] | None = None
) -> EventTrace:
    since_start_s = (times - times[0]).astype(np.int64) / _NS_PER_S
    return EventTrace(name, times[0], since_start_s, service_s)


def find_data_file(data_root: Path | None, relative: Path) -> Path:
    """Return the path of a data file.

    Args:
        data_root: Folder of all data sets; None if it is not set.
        relative: Place of the file below it.

    Raises:
        DataRootError: No data root, or the file is not there; says how to mend it.
    """
    mend = (
        "set the environment variable RHEOSTAT_DATA (or the key data.root) to the folder that "
        f"holds {relative.parts[0]}/, or choose synthetic arrivals, which need no data"
    )
    if data_root is None:
        raise DataRootError(f"no data root is set; {mend}")
    if not data_root.is_dir():
        raise DataRootError(f"the data root {data_root} is no folder; {mend}")
    path = data_root / relative
    if not path.is_file():
        raise DataRootError(f"the data root {data_root} has no {relative}; {mend}")
    return path


def _read_columns(path: Path, columns: Sequence[str]) -> dict[str, list[str]]:
    """Read the named columns of a gzipped CSV as text; every row must have all of the header's."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            missing = [name for name in columns if name not in header]
            if missing:
                raise TraceError(
                    f"{path}, line 1: no column {missing[0]!r}; expected {', '.join(columns)}, "
                    f"found {', '.join(header) or 'an empty file'}"
                )
            rows = list(reader)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path} is not a readable gzipped CSV file ({error})") from error
    if not rows:
        raise TraceError(f"{path} has a header and no rows; expected at least one")
    width = len(header)
    for i, row in enumerate(rows):
        if len(row) != width:
            raise _row_error(path, i, f"{len(row)} fields", f"{width}")
    by_column = list(zip(*rows, strict=True))
    return {name: list(by_column[header.index(name)]) for name in columns}


def _times(
    path: Path, text: Sequence[str], unit: Literal["s", "ns"], *, strictly: bool
) -> NDArray[np.datetime64]:
    """Parse "YYYY-MM-DD HH:MM:SS[.fff]" in ascending (or never descending) order."""
    pattern, form = _TIME_FORMS[unit]
    matches = re.compile(pattern).fullmatch
    for i, value in enumerate(text):
        if matches(value) is None:
            raise _row_error(path, i, f"time {value!r}", form)
    try:
        times = np.array(text, dtype=f"datetime64[{unit}]")
    except ValueError:
        i = next(i for i, value in enumerate(text) if not _is_date(value))
        raise _row_error(path, i, f"time {text[i]!r}", f"{form}, a date that exists") from None
    steps = np.diff(times).astype(np.int64)
    wrong = steps <= 0 if strictly else steps < 0
    if wrong.any():
        i = int(np.argmax(wrong)) + 1
        expected = f"a time {'after' if strictly else 'not before'} {text[i - 1]!r}"
        raise _row_error(path, i, f"time {text[i]!r} out of order", expected)
    return times


def _is_date(value: str) -> bool:
    """Whether text of the right form names a date and time that exist."""
    try:
        datetime.fromisoformat(value[:19])
    except ValueError:
        return False
    return True


def _whole_numbers(path: Path, text: Sequence[str], column: str) -> NDArray[np.int64]:
    """Parse counts: whole numbers of at least 0."""
    for i, value in enumerate(text):
        if not (value.isascii() and value.isdigit() and len(value) < 19):
            raise _row_error(path, i, f"{column} {value!r}", "a whole number of at least 0")
    return np.array(text).astype(np.int64)


def _durations(path: Path, text: Sequence[str], column: str) -> NDArray[np.float64]:
    """Parse finite seconds of at least 0; an empty field becomes NaN (not measured)."""
    values = np.full(len(text), np.nan)
    for i, value in enumerate(text):
        if not value:
            continue
        try:
            values[i] = float(value)
        except ValueError:
            values[i] = -1.0
        if not (math.isfinite(values[i]) and values[i] >= 0.0):
            raise _row_error(path, i, f"{column} {value!r}", "finite seconds >= 0, or nothing")
    return values


def _row_error(path: Path, row: int, came: str, expected: str) -> TraceError:
    """Describe what is wrong with a data row (0 is the one below the header, line 2)."""
    return TraceError(f"{path}, line {row + 2}: {came}; expected {expected}")


def _parse_date(at: str | datetime) -> np.datetime64:
    try:
        return np.datetime64(at, "s")
    except ValueError as error:
        raise TraceError(f"split date {at!r}; expected ISO form, e.g. 1998-06-01T00:00") from error


def _fraction_of(fraction: float, n: int, name: str) -> int:
    if not 0.0 < fraction < 1.0:
        raise TraceError(f"fraction {fraction} of {name}; expected one in (0, 1)")
    return round(fraction * n)
