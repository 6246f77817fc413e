"""Verified tables: the short list of whole plans that agents with a single choice choose from."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from agents.precision.known import Known
from runtime.actions import MAX_LISTED
from runtime.precision.actions import TableActions
from runtime.precision.plan import PrecisionPlan


def verified_tables(
    known: Known, levels: Sequence[str], margins: Sequence[float], most: int = MAX_LISTED
) -> TableActions:
    """Return uniform tables, confidence cascades of two of them, and the frontiers, by name.

    The frontiers are those of accuracy on calibration data against latency at every batch size;
    where all of them would be too many, they are thinned out evenly. A cascade is listed only if
    its first pass is the faster and less accurate one of the two.

    Args:
        known: The bank's calibrated tables.
        levels: Names of the levels.
        margins: Margins below which cascades run a sample again, each in (0, 1].
        most: Longest list, up to `MAX_LISTED`.

    Raises:
        ValueError: Uniform tables and cascades alone are more than `most`, or a margin outside its
            range.
    """
    if not 1 <= most <= MAX_LISTED:
        raise ValueError(f"most is {most}; expected 1 to {MAX_LISTED}")
    if any(not 0.0 < margin <= 1.0 for margin in margins):
        raise ValueError(f"margins is {list(margins)}; expected numbers above 0, at most 1")
    plans = {name: PrecisionPlan(known.uniform(k)) for k, name in enumerate(levels)}
    for high, low in _cascades(known):
        for margin in margins:
            name = f"{levels[low]} then {levels[high]} below {margin:g}"
            plans[name] = PrecisionPlan(known.uniform(low), float(margin), known.uniform(high))
    if len(plans) > most:
        raise ValueError(
            f"{len(plans)} uniform tables and cascades are more than {most}; give fewer margins"
        )
    frontier = [a for a in _frontier(known) if len(set(known.levels[a].tolist())) > 1]
    places = np.unique(np.linspace(0, len(frontier) - 1, most - len(plans)).round().astype(int))
    for assignment in [frontier[k] for k in places] if frontier else []:
        own = tuple(known.levels[assignment].tolist())
        plans["/".join(levels[level] for level in own)] = PrecisionPlan(own)
    return TableActions(plans)


def _cascades(known: Known) -> list[tuple[int, int]]:
    """Return pairs of levels, the one of the second pass first."""
    tables = [int(known.assignments(known.uniform(k))) for k in range(known.tables.n_levels)]
    latency_s = known.tables.latency_s[tables, _last_bucket(known)]
    accuracy = known.tables.accuracy[tables]
    return [
        (high, low)
        for high, low in combinations(range(len(tables)), 2)
        if latency_s[low] < latency_s[high] and accuracy[low] < accuracy[high]
    ]


def _frontier(known: Known) -> list[int]:
    """Return the assignments of the frontiers up to the largest batches, from fast to accurate."""
    last = _last_bucket(known)
    every = {int(a) for b in range(last + 1) for a in known.frontiers[b].assignment}
    return sorted(every, key=lambda a: (float(known.tables.latency_s[a, last]), a))


def _last_bucket(known: Known) -> int:
    return int(known.bucket(np.array([float(known.max_batch)]))[0])
