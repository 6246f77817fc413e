"""Claims on a bank alone: throughput at the allowed loss, and the model of latency."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from experiments.claim_maker import ClaimMaker
from experiments.claims import Claim
from experiments.precision.calibration import CHOSEN, FIT, LEVELS, rival_column
from experiments.precision.claim_words import dashed, id_of, label_of, source_of
from experiments.precision.declared import names_emulated
from experiments.precision.rivals import COMPILED, COMPILED_FP16, OPENVINO
from runtime.precision.levels import find_level
from runtime.precision.machine import has_matrix_units

STRICTLY_BETTER = ">= 1.02"
"""Two runs of the same assignment differ by up to a per cent or two."""


def bank_claims(folder: Path, node: DictConfig, make: ClaimMaker) -> Iterator[Claim]:
    """Claims on the bank alone: throughput at the allowed loss, and the additive model of latency.

    Args:
        folder: Tables of the network.
        node: With `batch`, the batch size that counts, and `chain`, the accuracy on clean
            calibration samples that a faster assignment may lose.
        make: Makes claims.
    """
    yield from _throughput_claims(folder, node, replace(make, unit="x"))
    fit, source = pd.read_csv(folder / FIT), source_of(folder / FIT, make)
    for figure, aim in (("mean", "<= 4"), ("worst", "<= 20")):
        said = (
            f"{figure} error of the predicted latency of held-out assignments, {label_of(folder)}, "
            "worst batch size"
        )
        rows = ", ".join(
            f"{100 * v:.1f} % at {b}" for b, v in zip(fit["batch"], fit[figure], strict=True)
        )
        why = f"by batch size: {rows}"
        value = 100.0 * float(fit[figure].max())
        yield make(f"bank.{id_of(folder)}.latency-{figure}", said, value, source, aim, why)


def _throughput_claims(folder: Path, node: DictConfig, make: ClaimMaker) -> Iterator[Claim]:
    """Claims of the fastest assignment within the allowed loss against its rivals.

    Rivals and chosen assignments were measured in two runs with uniform fp32 in both: only ratios
    within a run are used.
    """
    chosen = pd.read_csv(folder / CHOSEN).set_index("chosen_by")
    chosen = chosen[~chosen["assignment"].map(names_emulated)]  # their latencies are declared
    levels = pd.read_csv(folder / LEVELS).set_index("level")
    batch, allowed_loss = int(node.batch), float(node.chain)
    source, named = source_of(folder / CHOSEN, make), f"bank.{id_of(folder)}"
    own_ms, first = chosen[f"batch_{batch}_ms"], levels.index[0]
    within = chosen["calibration"] >= chosen.loc[first, "calibration"] - allowed_loss - 1e-12
    name = "best of all"
    if name not in chosen.index:  # not all were run, or it is emulated
        name = str(own_ms[within].idxmin())
    loss = 100.0 * float(chosen.loc[first, "held_out"] - chosen.loc[name, "held_out"])
    best = (
        f"the fastest assignment ({name}) within {100 * allowed_loss:g} points on clean "
        f"calibration samples (on held-out ones it loses {loss:.1f})"
    )

    def times_ms(rival: str, size: int) -> tuple[float, float] | None:
        """Return the latencies of the assignment and of a rival of the whole network."""
        column, own = rival_column(size, rival), chosen[f"batch_{size}_ms"]
        if column not in levels:
            return None
        return float(own[name]), float(levels.loc[first, column] * own[first])

    on_gpu = find_level(first).device == "cuda"
    what = f"{label_of(folder)}, batch {batch}, {'one GPU' if on_gpu else 'one thread'}"
    aims = {COMPILED: None if on_gpu else ">= 4" if has_matrix_units() else ">= 1.9"}
    for rival, aim in (aims | {COMPILED_FP16: None}).items():
        if pair := times_ms(rival, batch):
            how, ratio = " ".join(reversed(rival.split())), pair[1] / pair[0]
            said = f"throughput of {best} over {how}, {what}"
            yield make(f"{named}.vs-{dashed(how)}", said, ratio, source, aim, _both(pair))
    good = [level for level in levels.index if within.get(level, default=False)]
    pair = float(own_ms[name]), float(own_ms[good].min())
    said = f"throughput of {best} over the best uniform level within them, {what}"
    ratio, aim = pair[1] / pair[0], STRICTLY_BETTER
    yield make(f"{named}.vs-uniform", said, ratio, source, aim, _both(pair))
    for size, aim_of in ((batch, "<= 1.5"), (1, None)):
        if pair := times_ms(OPENVINO, size):
            whole = f"OpenVINO int8 of the whole, {label_of(folder)}, batch {size}"
            said = f"latency of {best} over {whole}"
            claim, ratio = f"{named}.vs-openvino.batch-{size}", pair[0] / pair[1]
            yield make(claim, said, ratio, source, aim_of, _both(pair))


def _both(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.2f} ms against {pair[1]:.2f} ms"
