"""Claims on streams: what could be won, what agents won, simulated and real, and predictions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.claim_maker import ClaimMaker
from experiments.claims import Claim
from experiments.precision.claim_words import dashed, id_of, label_of, source_of
from experiments.precision.summary import (
    CLAIRVOYANT,
    FORESIGHT,
    SEARCHED,
    SMALL_HEADROOM,
    STATIC_BEST,
    closed,
    difference,
    headroom,
    scores_of,
)
from experiments.statistics import Estimate

LOADS, REAL, SIMULATED = "loads.csv", "real.csv", "simulated.csv"
MAIN_STREAM = "both"
CASCADE, HEADLINE = "confidence_cascade", "ppo"
LOAD_ONLY = ("slack_fit", "model_switching", "stage_shedding")


def headroom_claims(folder: Path, load: float, make: ClaimMaker) -> Iterator[Claim]:
    """Claims on what adapting can win on training streams at a load, stream by stream."""
    table, source = pd.read_csv(folder / LOADS), source_of(folder / LOADS, make)
    for stream, rows in table[table["load"] == load].groupby("stream", sort=False):
        scores = scores_of(rows)
        (searched,) = set(scores) & set(SEARCHED)
        what = "arrivals and conditions" if searched == FORESIGHT else "everything"
        said = (
            f"what a search that knows {what} wins over static best, {label_of(folder)}, {stream}, "
            f"load {load:g}, training streams, simulated"
        )
        room = difference(scores, searched, STATIC_BEST)
        yield make(f"headroom.{id_of(folder)}.{stream}", said, _points(room), source)


def stream_claims(folder: Path, make: ClaimMaker) -> Iterator[Claim]:
    """Claims on streams: headroom in simulation, and the best agents, simulated and real."""
    simulated = pd.read_csv(folder / SIMULATED)
    real = pd.read_csv(folder / REAL)
    source, label, named = source_of(folder / SIMULATED, make), label_of(folder), id_of(folder)
    for stream, rows in simulated.groupby("stream", sort=False):
        said = f"headroom of the clairvoyant reference over static best, {label}, {stream}"
        room = headroom(rows)
        yield make(f"sim.{named}.{stream}.headroom", said, _points(room), source)
        if FORESIGHT in set(rows["agent"]):
            said = (
                "effective accuracy of a search that knows arrivals and conditions, but not which "
                f"requests will be answered rightly, over static best, {label}, {stream}"
            )
            room = difference(scores_of(rows), FORESIGHT, STATIC_BEST)
            yield make(f"sim.{named}.{stream}.foresight", said, _points(room), source)
    yield from _against_rivals(Main.simulated(simulated), folder, make)
    yield from _against_rivals(Main.real(simulated, real), folder, make)
    rows = _main(simulated)
    part = closed(rows, HEADLINE)
    if np.isfinite(part.value):
        said = f"headroom closed by {HEADLINE}, {label}, {MAIN_STREAM}, simulated"
        value = Estimate(100 * part.value, 100 * part.low, 100 * part.high)
        best = max(
            (n for n in scores_of(rows) if n not in SEARCHED),
            key=lambda n: closed(rows, n).value,
        )
        why = f"the most is closed by {best}: {100 * closed(rows, best).value:.0f} %"
        if FORESIGHT in set(rows["agent"]):
            known = 100 * closed(rows, FORESIGHT).value
            why += (
                f"; by a search that knows arrivals and conditions, but not which requests will be "
                f"answered rightly: {known:.0f} %"
            )
        percent = replace(make, unit="%")
        yield percent(f"sim.{named}.both.closed", said, value, source, ">= 60", why)


@dataclass(frozen=True, eq=False)
class Main:
    """Runs on the main stream.

    Attributes:
        kind: "sim" or "real".
        how: In words.
        table: Name of the file with the runs.
        rows: The runs.
        searched: Simulated runs on this stream, with the clairvoyant reference.
        predicted: What was predicted for the same streams; None for simulated runs.
    """

    kind: str
    how: str
    table: str
    rows: pd.DataFrame
    searched: pd.DataFrame
    predicted: pd.DataFrame | None = None

    @classmethod
    def simulated(cls, simulated: pd.DataFrame) -> Main:
        """Return the simulated runs."""
        rows = _main(simulated)
        return cls("sim", "simulated", SIMULATED, rows, rows)

    @classmethod
    def real(cls, simulated: pd.DataFrame, real: pd.DataFrame) -> Main:
        """Return the measured runs among real ones."""
        rows, own = _main(real), _main(simulated)
        measured, predicted = (rows[rows["source"] == s] for s in ("measured", "simulated"))
        return cls("real", "real execution", REAL, measured, own, predicted)

    def reason(self, agent: str, rival: str) -> str:
        """Say what an agent could have gained over a rival at best."""
        room = 100.0 * difference(scores_of(self.searched), CLAIRVOYANT, rival).value
        if self.predicted is None:
            why = f"the clairvoyant reference itself is {room:.1f} points above {rival}"
        else:
            expected = 100.0 * difference(scores_of(self.predicted), agent, rival).value
            why = (
                f"{expected:.1f} points predicted for these streams; on the simulated ones the "
                f"clairvoyant reference is {room:.1f} points above {rival}"
            )
        return why + (": adapting is not worth it here" if room < 100.0 * SMALL_HEADROOM else "")


def _main(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["stream"] == MAIN_STREAM]


def _against_rivals(main: Main, folder: Path, make: ClaimMaker) -> Iterator[Claim]:
    """Claims of the best combined agent against rivals on the main stream."""
    scores, missed = scores_of(main.rows), scores_of(main.rows, "missed_share")
    source, where = source_of(folder / main.table, make), f"{label_of(folder)}, {MAIN_STREAM}"
    for agent in (HEADLINE, "slack_cascade"):
        for rival in (STATIC_BEST, CASCADE, *LOAD_ONLY):
            if agent not in scores or rival not in scores:
                continue
            aim = ">= 3" if rival == STATIC_BEST else "> 0"
            name = f"{main.kind}.{id_of(folder)}.both.{dashed(agent)}-vs-{dashed(rival)}"
            said = f"{agent} against {rival}, {where}, {main.how}"
            change, why = _points(difference(scores, agent, rival)), main.reason(agent, rival)
            yield make(name, f"effective accuracy, {said}", change, source, aim, why)
            more = _points(difference(missed, agent, rival))
            yield make(f"{name}.missed", f"missed requests, {said}", more, source)


def prediction_claims(folder: Path, make: ClaimMaker) -> Iterator[Claim]:
    """Claims on how far predictions of real streams are off, worst over agents and streams."""
    table, source = pd.read_csv(folder / REAL), source_of(folder / REAL, make)
    for column, said, relative in (
        ("effective_accuracy", "effective accuracy", False),
        ("p50_s", "median latency", True),
        ("p99_s", "p99 latency", True),
    ):
        means = table.groupby(["stream", "agent", "source"])[column].mean().unstack("source")
        off = means["simulated"] - means["measured"]
        off = (off / means["measured"] if relative else off).abs()
        worst = ", ".join(str(part) for part in off.idxmax())
        what = (
            f"largest error of the predicted {said} over {len(off)} agents and streams ({worst}), "
            f"{label_of(folder)}, real execution"
        )
        own = replace(make, unit="%" if relative else "points")
        name = f"real.{id_of(folder)}.prediction.{dashed(column.removesuffix('_s'))}"
        yield own(name, what, 100.0 * float(off.max()), source)


def _points(estimate: Estimate) -> Estimate:
    return Estimate(100.0 * estimate.value, 100.0 * estimate.low, 100.0 * estimate.high)
