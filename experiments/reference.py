"""From finished runs to results/reference: tables, figures and claims (only with record=true)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from experiments.claim_maker import ClaimMaker
from experiments.claims import REFERENCE, Claim, is_recorded, record_claims
from experiments.compare import REFERENCE_AGENT, ROWS, by_agent, headroom
from experiments.files import write_csv
from experiments.record import RunFolder
from experiments.statistics import Estimate, paired_change
from experiments.throughput import HIGHEST

LATENCY_AIM, THROUGHPUT_AIM = "<= -42", ">= 21"
MEAN_AIM, P95_AIM = "<= 10", "<= 15"
VERIFY = "verify"  # the study of fixed plans
MATTERING_HEADROOM = 15.0  # per cent; below it adapting is not worth it
RIVALS = ("single_best", "static_best", "idle_trigger")

WHY: dict[str, str] = {}
"""Why an aim was missed, by claim; a missed aim without a reason cannot be recorded.

Aims against the tuned constants need no entry: how close a constant comes to the clairvoyant
reference says why it was not beaten.
"""


def change(table: pd.DataFrame, baseline: str, candidate: str) -> Estimate:
    """Return the change of mean latency in per cent, paired by episode, over training seeds."""
    scores = by_agent(table)
    rng = np.random.default_rng(0)
    return paired_change([scores[baseline].mean(axis=0)], [scores[candidate].mean(axis=0)], rng)


def record_reference(config: DictConfig, tables: Path, compared: list[RunFolder]) -> None:
    """Copy tables and figures to results/reference and write the claims, if asked to.

    Args:
        config: With `record`, `size.name` and `data.root`.
        tables: Folder of joint tables and figures, `throughput.csv` and `real.csv` among them.
        compared: Finished comparisons.

    Raises:
        ConfigError: Recording was asked for at another size than paper.
    """
    if not is_recorded(config):
        return
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for path in [*tables.glob("*.png"), *tables.glob("*.md"), *tables.glob("*.csv")]:
        shutil.copy2(path, REFERENCE / path.name)
    simulated = pd.concat([pd.read_csv(run.path / ROWS) for run in compared], ignore_index=True)
    write_csv(REFERENCE / "simulated.csv", simulated)
    maker = ClaimMaker(
        reference=REFERENCE,
        command="make reproduce SIZE=paper record=true",
        data=str(config.workload.name),
        seeds=tuple(range(int(config.size.headline_seeds))),
        reasons=WHY,
    )
    claims = [
        *_simulated(simulated, maker),
        *_throughput(pd.read_csv(REFERENCE / "throughput.csv"), maker),
        *_real(pd.read_csv(REFERENCE / "real.csv"), maker),
    ]
    record_claims(claims, record=True, reference=REFERENCE)


def _simulated(table: pd.DataFrame, make: ClaimMaker) -> Iterator[Claim]:
    """Claims on held-out arrivals in the simulator."""
    for (env, load), rows in table.groupby(["env", "load"]):
        fixed = str(env).endswith("fixed_interval")
        arm = ", fixed interval" if fixed else ""
        tag = f"load{round(100 * float(load))}" + (".fixed" if fixed else "")
        room = headroom(rows)
        nothing = Estimate(room, float("nan"), float("nan"))
        what = f"headroom over the best constant plan, simulated, load {load:g}{arm}"
        yield make(f"sim.{tag}.headroom", what, nothing, "simulated.csv")
        for rival in ("spark_default", *RIVALS):
            if rival not in set(rows["agent"]):
                continue
            what = f"mean latency, ppo against {rival}, simulated, held-out, load {load:g}{arm}"
            aim = LATENCY_AIM if rival == "spark_default" else None
            if rival in RIVALS and room >= MATTERING_HEADROOM:
                aim = "< 0"
            left = -change(rows, rival, REFERENCE_AGENT).value
            why = f"the clairvoyant reference itself is only {left:.1f} % below {rival}"
            name = f"sim.{tag}.ppo-vs-{rival.replace('_', '-')}"
            yield make(name, what, change(rows, rival, "ppo"), "simulated.csv", aim, why)
        if "idle_trigger" in set(rows["agent"]):
            what = f"clairvoyant reference against idle_trigger, simulated, load {load:g}{arm}"
            left_over = change(rows, "idle_trigger", REFERENCE_AGENT)
            yield make(f"sim.{tag}.clairvoyant-vs-idle", what, left_over, "simulated.csv")


def _throughput(table: pd.DataFrame, make: ClaimMaker) -> Iterator[Claim]:
    rates = table.groupby("agent")["rate_per_s"].mean()
    for rival in ("spark_default", "static_best"):
        gain = 100.0 * (rates["ppo"] / rates[rival] - 1.0)
        name = f"sim.throughput.ppo-vs-{rival.replace('_', '-')}"
        what = (
            f"throughput by bisection up to a load of {HIGHEST:g}, ppo against {rival}, simulated, "
            "both made for load 0.7"
        )
        aim = THROUGHPUT_AIM if rival == "spark_default" else None
        value = Estimate(float(gain), float("nan"), float("nan"))
        yield make(name, what, value, "throughput.csv", aim)


def prediction_errors(table: pd.DataFrame, column: str) -> pd.Series:
    """Return the relative error of the prediction per agent or plan, per cent, over repetitions."""
    keys = ["study", "agent"]
    wide = table.pivot_table(index=[*keys, "episode"], columns="source", values=column)
    means = wide.groupby(keys).mean()
    return 100.0 * (means["simulated"] / means["measured"] - 1.0)


def _real(table: pd.DataFrame, make: ClaimMaker) -> Iterator[Claim]:
    """Claims on real torch execution."""
    tuned = table[table["study"] != VERIFY]
    measured = tuned[tuned["source"] == "measured"]
    for rival in ("spark_default", "static_best", "idle_trigger"):
        if rival in set(measured["agent"]):
            what = f"mean latency, ppo bundle against {rival}, real torch execution"
            aim = LATENCY_AIM if rival == "spark_default" else None
            name = f"real.ppo-vs-{rival.replace('_', '-')}"
            yield make(name, what, change(measured, rival, "ppo"), "real.csv", aim)
    for column, aim in (("mean_s", MEAN_AIM), ("p95_s", P95_AIM)):
        errors = prediction_errors(table, column)
        worst = ": ".join(errors.abs().idxmax())
        value = Estimate(float(errors.abs().max()), float("nan"), float("nan"))
        what = (
            f"largest error of the predicted {column.removesuffix('_s')} latency over "
            f"{len(errors)} agents and plans ({worst}), real torch execution"
        )
        yield make(f"real.prediction.{column.removesuffix('_s')}", what, value, "real.csv", aim)
