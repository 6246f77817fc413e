"""Staged precision in results/reference: tables, figures and claims (only with record=true).

A folder per kind of processor and network: `precision/avx512_vnni/fashion_cnn`, or
`precision/sm_90/fashion_cnn` for banks on GPUs of that compute capability. Figures of one kind of
processor say little about another.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf

from experiments.claim_maker import ClaimMaker
from experiments.claims import REFERENCE, Claim, record_claims
from experiments.cli import CONF
from experiments.errors import ConfigError
from experiments.precision.banks import FIRST_LEVELS
from experiments.precision.calibration import (
    CHOSEN,
    FIT,
    FRONT,
    KERNELS,
    LEVELS,
    MODELLED,
    RIVALS,
    TRIALS,
    rival_column,
)
from experiments.precision.rivals import COMPILED, COMPILED_FP16, OPENVINO
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
from experiments.record import RunFolder
from experiments.statistics import Estimate
from runtime.precision.gpu import gpu_family
from runtime.precision.levels import find_level
from runtime.precision.machine import has_matrix_units, kernel_family

FOLDER = "precision"
MAIN_STREAM = "both"
CASCADE, HEADLINE = "confidence_cascade", "ppo"
LOAD_ONLY = ("slack_fit", "model_switching", "stage_shedding")
STRICTLY_BETTER = ">= 1.02"
"""Two runs of the same assignment differ by up to a per cent or two."""
_KINDS = (".csv", ".md", ".png")
_TABLES = (LEVELS, CHOSEN, TRIALS, RIVALS, FIT, MODELLED, KERNELS, FRONT, f"{Path(FRONT).stem}.md")


def record_bank(config: DictConfig, calibrated: RunFolder) -> None:
    """Copy the tables of a calibration to results/reference and write its claims, if asked to.

    Args:
        config: With `record`, `size.name`, `network` and `calibration.batch`.
        calibrated: The calibration.

    Raises:
        ConfigError: Recording was asked for at another size than paper.
    """
    if not config.record:
        return
    folder = _folder(config)
    _copy([path for name in _TABLES if (path := calibrated.path / name).exists()], folder)
    words = " ".join([f"network={config.network.name}", "record=true", *_changed(config)])
    make = ClaimMaker(
        reference=REFERENCE,
        command=f'make calibrate SIZE=paper ARGS="{words}"',
        data=str(config.network.data),
    )
    claims = bank_claims(folder, config.calibration, make)
    record_claims(claims, record=True, reference=REFERENCE)


def _changed(config: DictConfig) -> list[str]:
    """Return what the words of a command must say of the bank beside network and size."""
    usual = OmegaConf.load(CONF / "config.yaml")
    groups = ("bank", "calibration")
    return [word for group in groups for word in _words(group, config[group], usual[group])]


def _words(place: str, node: DictConfig, usual: DictConfig) -> list[str]:
    """Return overrides that turn one node into another."""
    return [
        f"{place}.{key}={str(value).replace(' ', '')}"
        for key, value in node.items()
        if key not in usual or value != usual[key]
    ]


def stream_command(config: DictConfig) -> str:
    """Return the command that makes the streams of a network, with all that is not as usual."""
    usual = OmegaConf.load(CONF / "size" / f"{config.size.name}.yaml")
    words = ["env=staged_precision", f"network={config.network.name}", *_changed(config)]
    words += _words("size.precision", config.size.precision, usual.precision)
    record = " record=true" if config.record else ""
    return f'make reproduce SIZE={config.size.name}{record} ARGS="{" ".join(words)}"'


def record_streams(config: DictConfig, tables: Path) -> None:
    """Copy tables and figures of streams to results/reference and write their claims, if asked to.

    Args:
        config: With `record`, `size`, `network` and `workload`.
        tables: Folder of the joint tables and figures of a network's streams.

    Raises:
        ConfigError: Recording was asked for at another size than paper.
    """
    if not config.record:
        return
    folder = _folder(config)
    _copy([path for path in tables.iterdir() if path.suffix in _KINDS], folder)
    make = ClaimMaker(
        reference=REFERENCE,
        command=stream_command(config),
        data=f"{config.network.data}, {config.workload.name}",
        seeds=tuple(range(int(config.size.precision.headline_seeds))),
        unit="points",
    )
    claims = [
        *stream_claims(folder, make),
        *prediction_claims(folder, replace(make, seeds=())),
    ]
    record_claims(claims, record=True, reference=REFERENCE)


def _folder(config: DictConfig) -> Path:
    if config.size.name != "paper":
        raise ConfigError(
            f"record=true with size={config.size.name}; results/reference is made with size=paper"
        )
    first = (config.bank.levels or [FIRST_LEVELS[config.bank.device]])[0]
    family = gpu_family() if find_level(first).device == "cuda" else kernel_family()
    return REFERENCE / FOLDER / family / str(config.network.name)


def _copy(paths: Iterable[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        shutil.copy2(path, folder / path.name)


def bank_claims(folder: Path, node: DictConfig, make: ClaimMaker) -> Iterator[Claim]:
    """Claims on the bank alone: throughput at the allowed loss, and the additive model of latency.

    Args:
        folder: Tables of the network.
        node: With `batch`, the batch size that counts, and `chain`, the accuracy on clean
            calibration samples that a faster assignment may lose.
        make: Makes claims.
    """
    yield from _throughput_claims(folder, node, replace(make, unit="x"))
    fit, source = pd.read_csv(folder / FIT), _source(folder / FIT, make)
    for figure, aim in (("mean", "<= 4"), ("worst", "<= 20")):
        said = (
            f"{figure} error of the predicted latency of held-out assignments, {_label(folder)}, "
            "worst batch size"
        )
        rows = ", ".join(
            f"{100 * v:.1f} % at {b}" for b, v in zip(fit["batch"], fit[figure], strict=True)
        )
        why = f"by batch size: {rows}"
        value = 100.0 * float(fit[figure].max())
        yield make(f"bank.{_id(folder)}.latency-{figure}", said, value, source, aim, why)


def _throughput_claims(folder: Path, node: DictConfig, make: ClaimMaker) -> Iterator[Claim]:
    """Claims of the fastest assignment within the allowed loss against its rivals.

    Rivals and chosen assignments were measured in two runs with uniform fp32 in both: only ratios
    within a run are used.
    """
    chosen = pd.read_csv(folder / CHOSEN).set_index("chosen_by")
    levels = pd.read_csv(folder / LEVELS).set_index("level")
    batch, allowed_loss = int(node.batch), float(node.chain)
    source, named = _source(folder / CHOSEN, make), f"bank.{_id(folder)}"
    own_ms, first = chosen[f"batch_{batch}_ms"], levels.index[0]
    within = chosen["calibration"] >= chosen.loc[first, "calibration"] - allowed_loss - 1e-12
    name = "best of all"
    if name not in chosen.index:  # not all were run
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
    what = f"{_label(folder)}, batch {batch}, {'one GPU' if on_gpu else 'one thread'}"
    aims = {COMPILED: None if on_gpu else ">= 4" if has_matrix_units() else ">= 1.9"}
    for rival, aim in (aims | {COMPILED_FP16: None}).items():
        if pair := times_ms(rival, batch):
            how, ratio = " ".join(reversed(rival.split())), pair[1] / pair[0]
            said = f"throughput of {best} over {how}, {what}"
            yield make(f"{named}.vs-{_dashed(how)}", said, ratio, source, aim, _both(pair))
    good = [level for level in levels.index if within[level]]
    pair = float(own_ms[name]), float(own_ms[good].min())
    said = f"throughput of {best} over the best uniform level within them, {what}"
    ratio, aim = pair[1] / pair[0], STRICTLY_BETTER
    yield make(f"{named}.vs-uniform", said, ratio, source, aim, _both(pair))
    for size, aim_of in ((batch, "<= 1.5"), (1, None)):
        if pair := times_ms(OPENVINO, size):
            whole = f"OpenVINO int8 of the whole, {_label(folder)}, batch {size}"
            said = f"latency of {best} over {whole}"
            claim, ratio = f"{named}.vs-openvino.batch-{size}", pair[0] / pair[1]
            yield make(claim, said, ratio, source, aim_of, _both(pair))


def stream_claims(folder: Path, make: ClaimMaker) -> Iterator[Claim]:
    """Claims on streams: headroom in simulation, and the best agents, simulated and real."""
    simulated = pd.read_csv(folder / "simulated.csv")
    real = pd.read_csv(folder / "real.csv")
    source, label, named = _source(folder / "simulated.csv", make), _label(folder), _id(folder)
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
        return cls("sim", "simulated", "simulated.csv", rows, rows)

    @classmethod
    def real(cls, simulated: pd.DataFrame, real: pd.DataFrame) -> Main:
        """Return the measured runs among real ones."""
        rows, own = _main(real), _main(simulated)
        measured, predicted = (rows[rows["source"] == s] for s in ("measured", "simulated"))
        return cls("real", "real execution", "real.csv", measured, own, predicted)

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
    source, where = _source(folder / main.table, make), f"{_label(folder)}, {MAIN_STREAM}"
    for agent in (HEADLINE, "slack_cascade"):
        for rival in (STATIC_BEST, CASCADE, *LOAD_ONLY):
            if agent not in scores or rival not in scores:
                continue
            aim = ">= 3" if rival == STATIC_BEST else "> 0"
            name = f"{main.kind}.{_id(folder)}.both.{_dashed(agent)}-vs-{_dashed(rival)}"
            said = f"{agent} against {rival}, {where}, {main.how}"
            change, why = _points(difference(scores, agent, rival)), main.reason(agent, rival)
            yield make(name, f"effective accuracy, {said}", change, source, aim, why)
            more = _points(difference(missed, agent, rival))
            yield make(f"{name}.missed", f"missed requests, {said}", more, source)


def prediction_claims(folder: Path, make: ClaimMaker) -> Iterator[Claim]:
    """Claims on how far predictions of real streams are off, worst over agents and streams."""
    table, source = pd.read_csv(folder / "real.csv"), _source(folder / "real.csv", make)
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
            f"{_label(folder)}, real execution"
        )
        own = replace(make, unit="%" if relative else "points")
        name = f"real.{_id(folder)}.prediction.{_dashed(column.removesuffix('_s'))}"
        yield own(name, what, 100.0 * float(off.max()), source)


def _points(estimate: Estimate) -> Estimate:
    return Estimate(100.0 * estimate.value, 100.0 * estimate.low, 100.0 * estimate.high)


def _both(pair: tuple[float, float]) -> str:
    return f"{pair[0]:.2f} ms against {pair[1]:.2f} ms"


def _source(path: Path, make: ClaimMaker) -> str:
    return path.relative_to(make.reference).as_posix()


def _label(folder: Path) -> str:
    """Word network and kind of processor of a folder."""
    return f"{folder.name} on {folder.parent.name}"


def _id(folder: Path) -> str:
    return _dashed(f"{folder.parent.name}.{folder.name}")


def _dashed(name: str) -> str:
    return name.replace("_", "-").replace(" ", "-")
