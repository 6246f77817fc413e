"""The one codec between snapshots of a precision server and the observation of an agent.

Simulated environments and the real controller use this very class, so a policy sees the same
numbers in both. Everything here can be measured by an operator: no correctness, no true condition,
no future arrival. A signal that is missing (not finite) keeps its last known value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from runtime.encoding import Encoder, Entry
from runtime.precision.encoding_loops import ACCUMULATED, DERIVED, Past, Scaling, encode
from runtime.precision.plan import plan_columns
from runtime.precision.snapshot import LOW_MARGIN, PRECISION_SIGNALS, SignalLayout

RATE_WINDOWS_S = (0.5, 5.0, 30.0)
"""Time constants of the exponentially weighted arrival rates, seconds."""
_SHARE_WINDOW_S = 5.0
"""Time constant of the utilisation and of the share of missed deadlines, seconds."""

GROUPS = ("input", "performance", "margin", "load", "shadow")
"""Groups of signals that can be hidden to learn what they are worth."""


@dataclass(frozen=True)
class PrecisionScale:
    """What the observation is normalised by; part of every policy bundle.

    Attributes:
        n_stages: Number of stages.
        n_levels: Number of levels.
        properties: Names of the input properties.
        property_low: Value of each that is shown as 0.
        property_high: Value of each that is shown as 1.
        deadline_s: Deadline of a request, seconds.
        rate_per_s: A rate that the server can carry, requests per second.
        max_batch: Largest batch.
        hidden: Groups of signals (of `GROUPS`) that always read 0.
    """

    n_stages: int
    n_levels: int
    properties: tuple[str, ...]
    property_low: tuple[float, ...]
    property_high: tuple[float, ...]
    deadline_s: float
    rate_per_s: float
    max_batch: int
    hidden: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse scales that would divide by zero, and unknown groups.

        Raises:
            ValueError: Names the field.
        """
        for name in ("properties", "property_low", "property_high", "hidden"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("n_stages", "n_levels", "deadline_s", "rate_per_s", "max_batch"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"observation scale {name} is {value}; expected a number > 0")
        if not len(self.properties) == len(self.property_low) == len(self.property_high):
            raise ValueError(
                f"{len(self.properties)} properties have {len(self.property_low)} low and "
                f"{len(self.property_high)} high values; expected one of each"
            )
        for name, low, high in zip(
            self.properties, self.property_low, self.property_high, strict=True
        ):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"property {name} goes from {low} to {high}; expected low < high")
        unknown = sorted(set(self.hidden) - set(GROUPS))
        if unknown:
            raise ValueError(f"unknown group {unknown[0]!r}; expected of {list(GROUPS)}")

    @property
    def signals(self) -> SignalLayout:
        """Columns of the snapshots that the codec reads."""
        return SignalLayout(self.n_stages, self.properties)

    def to_mapping(self) -> dict[str, Any]:
        """Return the scale as plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Build a scale from `to_mapping`'s form.

        Raises:
            ValueError: Missing or unknown keys, or impossible values.
        """
        try:
            return cls(**mapping)
        except TypeError as error:
            raise ValueError(f"not an observation scale: {error}") from error


_DERIVED = (
    "arrival_rate_short",
    "arrival_rate_medium",
    "arrival_rate_long",
    "arrival_trend",
    "utilisation",
    "missed_share",
)
# The compiled loops number the columns.
assert len(_DERIVED) == DERIVED
assert PRECISION_SIGNALS[:ACCUMULATED] == (
    "time_s",
    "requests_in",
    "requests_served",
    "requests_late",
    "requests_dropped",
    "busy_s",
)
_SHADOW = ("shadow_checks", "shadow_disagreement", "shadow_low", "shadow_high")
_LOAD = ("waiting", "batch", "head_slack_s", "last_service_s", "last_batch", *_DERIVED)


def _entries(scale: PrecisionScale) -> tuple[Entry, ...]:
    """Return the layout: copied signals (names as in the snapshot), then derived ones."""
    deadline_s, batch, stages = scale.deadline_s, scale.max_batch, range(scale.n_stages)
    top = max(scale.n_levels - 1, 1)
    level = {name: Entry(name, "1", top, 0, "in force") for name in plan_columns(scale.n_stages)}
    level["escalate_below"] = Entry("escalate_below", "1", 1, 0, "margin of the second pass")
    return (
        Entry("waiting", "requests", 64 * batch, batch / 4, "wait, the next batch included"),
        Entry("batch", "requests", batch, 0, "in the batch about to be dispatched"),
        Entry("head_slack_s", "s", deadline_s, 0, "until the oldest request's deadline"),
        Entry("last_service_s", "s", 4 * deadline_s, deadline_s / 20, "of the last batch"),
        Entry("last_batch", "requests", batch, 0, "in the last batch"),
        Entry("last_margin", "1", 1, 0, "mean output margin, last batch, first pass"),
        Entry("last_low_margin_share", "1", 1, 0, f"margins below {LOW_MARGIN:g}, last batch"),
        Entry("last_escalated_share", "1", 1, 0, "run a second time, last batch"),
        Entry("shadow_checks", "requests", 1000, 5, "shadow-checked, in the window"),
        Entry("shadow_disagreement", "1", 1, 0.02, "share that differs from the reference level"),
        Entry("shadow_low", "1", 1, 0.02, "95 % interval of that share"),
        Entry("shadow_high", "1", 1, 0.02, "95 % interval of that share"),
        *(
            Entry(f"property_{name}", "1", high, 0, "mean over the batch to come", low)
            for name, low, high in zip(
                scale.properties, scale.property_low, scale.property_high, strict=True
            )
        ),
        *(Entry(f"clip_rate_{k}", "1", 1, 0.01, f"saturated, stage {k}") for k in stages),
        *(Entry(f"sqnr_db_{k}", "dB", 60, 0, f"last shadow check, stage {k}") for k in stages),
        *level.values(),
        *(
            Entry(f"arrival_rate_{w}", "requests/s", 3 * scale.rate_per_s, 0, f"over {s:g} s")
            for w, s in zip(("short", "medium", "long"), RATE_WINDOWS_S, strict=True)
        ),
        Entry("arrival_trend", "1", 4, 0, "short rate over medium rate"),
        Entry("utilisation", "1", 1, 0, f"time spent serving, over {_SHARE_WINDOW_S:g} s"),
        Entry("missed_share", "1", 1, 0, f"late or dropped, over {_SHARE_WINDOW_S:g} s"),
    )


def _is_hidden(name: str, hidden: tuple[str, ...]) -> bool:
    """Return whether an entry belongs to a hidden group; SQNRs come from shadow checks."""
    groups = {
        "input": name.startswith("property_"),
        "performance": name.startswith(("clip_rate_", "sqnr_db_")),
        "margin": name in ("last_margin", "last_low_margin_share", "last_escalated_share"),
        "load": name in _LOAD,
        "shadow": name in _SHADOW or name.startswith("sqnr_db_"),
    }
    return any(groups[group] for group in hidden)


class PrecisionCodec:
    """Encodes the snapshots of N servers; it remembers past arrivals and the last known signals."""

    def __init__(self, scale: PrecisionScale, n: int = 1) -> None:
        """Start with no past.

        Args:
            scale: What to normalise by.
            n: Number of servers N.
        """
        self.scale = scale
        self.layout = _entries(scale)
        encoder = Encoder(self.layout)
        signals = scale.signals
        copied = [entry.name for entry in self.layout[: -len(_DERIVED)]]
        hidden = [_is_hidden(entry.name, scale.hidden) for entry in self.layout]
        windows_s = (*RATE_WINDOWS_S, *(_SHARE_WINDOW_S,) * 3)
        self._scaling = Scaling(
            source=np.array([signals.index[name] for name in copied]),
            window_s=np.array(windows_s),
            low=encoder.low,
            multiplier=encoder.multiplier,
            gain=encoder.gain,
            is_log=encoder.is_log,
            shown=~np.array(hidden),
        )
        self._past = Past(
            known=np.zeros((n, signals.size)),
            previous=np.zeros((n, ACCUMULATED)),
            sums=np.zeros((n, len(windows_s))),
            weights=np.zeros((n, len(windows_s))),
        )

    @property
    def size(self) -> int:
        """Length of an observation."""
        return len(self.layout)

    def reset(self, which: NDArray[np.int64] | slice = slice(None)) -> None:
        """Forget the past of some servers."""
        for table in self._past:
            table[which] = 0.0

    def encode(self, signals: NDArray[np.float64]) -> NDArray[np.float32]:
        """Turn snapshots into observations, remembering what the next call needs.

        A snapshot that was encoded before gives the same numbers again and changes nothing.

        Args:
            signals: float64 [N, scale.signals.size]; columns are `scale.signals.names`.

        Returns:
            float32 [N, size], every number in [0, 1]; columns are `layout`.
        """
        observation = np.empty((len(signals), self.size), dtype=np.float32)
        encode(signals, self._past, self._scaling, observation)
        return observation
