"""What serving costs beyond the passes: deciding, dispatching, switching levels, shadow checks.

    python -m benchmarks serving

A small convolutional net with random weights on random images, one thread, and a policy network of
two hidden layers of 64 that chooses among verified tables. Wall time, medians: a server waits for
its decisions. Whatever is compared takes turns, so that a disturbance of the machine meets all of
it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from agents.deciders import Constant
from agents.precision.api import PrecisionAgent
from agents.precision.export import bundle_of
from agents.precision.known import known_of
from agents.precision.tables import verified_tables
from benchmarks.rows import BenchmarkRow
from envs.precision.config import StagedPrecisionConfig, default_config
from experiments.precision.banks import SampleRows, StandInBank
from experiments.precision.overhead import untrained
from runtime.precision.bank import Bank
from runtime.precision.bank_builder import BankOptions
from runtime.precision.guards import PrecisionGuards
from runtime.precision.measure import measure_latencies
from runtime.precision.memory import keep_memory
from runtime.precision.networks import NETWORKS
from runtime.precision.observation import PrecisionCodec
from runtime.precision.plan import PrecisionPlan
from runtime.precision.policy import PrecisionBundlePolicy
from runtime.precision.server import PrecisionServer
from runtime.precision.serving import Drop, Serving
from runtime.precision.shadow import ShadowCheck
from runtime.precision.snapshot import REPORT_INDEX
from runtime.precision.staging import StagedNetwork
from runtime.precision.streams import RequestStream, Served

DECISION_AIM_US, SWITCH_AIM_US = 50, 20
FRACTIONS = (0.0, 0.02, 0.1)
LEVELS = ("fp32", "int8", "int8_quarter", "int8_sixteenth")
BATCH = 16
STREAM_S, REPETITIONS = 0.5, 24
LOAD = 0.5  # of what the server carries at the coarsest level in full batches


@dataclass(frozen=True, eq=False)
class Bench:
    """What is measured.

    Attributes:
        bank: With as many stages and levels as `config`.
        shape: Of its inputs.
        config: World whose guards and scales are used; its costs are declared.
    """

    bank: StandInBank
    shape: tuple[int, ...]
    config: StagedPrecisionConfig

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.config.profile.stages)

    @property
    def levels(self) -> int:
        """Number of levels."""
        return len(self.config.profile.levels)


def make_bench() -> Bench:
    """Return a warmed-up bank of a small net, and a world of as many stages and levels."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_memory()
    config = default_config()
    network = NETWORKS["fashion_cnn"]().eval()
    staged = StagedNetwork.from_modules(
        zip(network.stage_names, network.stages(), strict=True), network.input_shape
    )
    options = BankOptions(levels=LEVELS, buckets=(1, 2, 4, 8, BATCH))
    bank = Bank(staged, torch.rand(64, *network.input_shape), options)
    if (len(bank.stages), len(bank.levels)) != (4, len(config.profile.levels)):
        raise RuntimeError(f"the net has {len(bank.stages)} stages; the declared world has 4")
    bank.warm_up()
    return Bench(StandInBank(bank), network.input_shape, config)


def policy_of(bench: Bench) -> PrecisionAgent:
    """Return a deployed policy with random weights."""
    config = bench.config
    tables = verified_tables(known_of(config), config.profile.levels, (0.2, 0.4, 0.6))
    network = untrained(PrecisionCodec(config.scale()).size, sum(tables.nvec))
    bundle = bundle_of("network", network, replace(config, actions=tables), {})
    return PrecisionBundlePolicy(bundle)


def serve(
    bench: Bench,
    agent: PrecisionAgent,
    arrival_s: NDArray[np.float64],
    fraction: float = 0.0,
    batch: int = BATCH,
) -> Served:
    """Serve requests for random images; nothing is dropped."""
    config, layout = bench.config, bench.config.scale().signals
    images, count = SampleRows(torch.rand(256, *bench.shape)), 256
    place = torch.arange(len(arrival_s)) % count
    stream = RequestStream(arrival_s, lambda first, last: images.take(place[first:last]))
    guards = PrecisionGuards(config.guards, config.bank_tables(), config.safe_plan, layout)
    agent.reset()
    with ShadowCheck(bench.bank, layout.n_stages, fraction) as shadow:
        serving = Serving(deadline_s=1e6, max_batch=batch, drop=Drop.NEVER)
        return PrecisionServer(bench.bank, agent, guards, serving, shadow).serve(stream, layout)


def _row(name: str, us: float, start: tuple[float, float], note: str) -> BenchmarkRow:
    spent = time.perf_counter() - start[0], time.process_time() - start[1]
    return BenchmarkRow(name, us, "us", *spent, None, note)


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def measure_decisions(bench: Bench, batches: int = 400) -> list[BenchmarkRow]:
    """Return what a decision takes: batch formed to plan, properties and guards included."""
    start = _now()
    served = serve(bench, policy_of(bench), np.zeros(BATCH * batches))
    median, p99 = 1e6 * np.quantile(served.decision_s, (0.5, 0.99))
    each = 1e6 * served.decision_s.sum() / (BATCH * batches)
    plain = serve(bench, Constant("", bench.config.safe_plan), np.zeros(BATCH * batches))
    without = 1e6 * np.median(plain.decision_s)
    note = f"aim {DECISION_AIM_US}; p99 {p99:.0f}; under a constant plan {without:.0f}"
    return [
        _row(f"serving: a decision, batch of {BATCH}", float(median), start, note),
        _row("serving: decisions per request", float(each), start, "mean; full batches"),
    ]


def measure_dispatch(bench: Bench, rounds: int = 12, batches: int = 20) -> list[BenchmarkRow]:
    """Return what a served batch takes beyond a pass, per batch size, under a constant plan."""
    rows = []
    for size in (1, BATCH):
        start = _now()
        levels = (bench.levels - 1,) * bench.stages
        agent = Constant("", PrecisionPlan(levels))
        x = torch.rand(size, *bench.shape)
        served, bare = [], []
        for _ in range(rounds):
            reports = serve(bench, agent, np.zeros(size * batches), batch=size).reports
            served.append(np.diff(reports[:, REPORT_INDEX["start_s"]]))
            bare.append(_times(partial(bench.bank.run, x, levels), batches))
        beyond = 1e6 * (np.median(served) - np.median(bare))
        note = f"over a pass of {1e6 * np.median(bare):.0f} us"
        rows.append(_row(f"serving: overhead of a batch of {size}", float(beyond), start, note))
    return rows


def _times(call: Callable[[], object], n: int) -> NDArray[np.float64]:
    at = []
    with torch.inference_mode():
        for _ in range(n + 1):
            call()
            at.append(time.perf_counter())
    return np.diff(at)


def measure_switches(bench: Bench, rounds: int = 25) -> list[BenchmarkRow]:
    """Return how much longer the first pass after a change of levels takes than the next ones."""
    start = _now()
    every = list(product(range(bench.levels), repeat=bench.stages))
    rng = np.random.default_rng(0)
    chosen = [every[k] for k in rng.choice(len(every), min(24, len(every)), replace=False)]
    calls = [partial(bench.bank.run, assignment=levels) for levels in chosen]
    x = torch.rand(BATCH, *bench.shape)
    with torch.inference_mode():
        found = measure_latencies(calls, x, rounds, rng)
    beyond = 1e6 * (found.switch_s - found.steady_s)
    note = (
        f"aim {SWITCH_AIM_US}; steady {1e6 * np.median(found.steady_s):.0f}; median over "
        f"{len(chosen)} assignments, worst {beyond.max():.0f}"
    )
    name = f"serving: first pass after a switch, batch of {BATCH}"
    return [_row(name, float(np.median(beyond)), start, note)]


def measure_shadow(bench: Bench, seconds: float = STREAM_S) -> list[BenchmarkRow]:
    """Return the p99 latency of the same stream with and without shadow checks."""
    start = _now()
    level = bench.levels - 1
    agent = Constant("", PrecisionPlan((level,) * bench.stages))
    full = serve(bench, agent, np.zeros(BATCH * 50)).reports
    batch_s = float(np.median(np.diff(full[:, REPORT_INDEX["start_s"]])))
    rng = np.random.default_rng(0)
    gaps = rng.exponential(batch_s / BATCH / LOAD, round(LOAD * BATCH * seconds / batch_s))
    arrival_s = np.cumsum(gaps)
    p99_s = np.zeros((REPETITIONS, len(FRACTIONS)))
    for r in range(REPETITIONS):
        for k in rng.permutation(len(FRACTIONS)):
            served = serve(bench, agent, arrival_s, FRACTIONS[k])
            p99_s[r, k] = np.quantile(served.latency_s, 0.99)
    return _shadow_rows(p99_s, len(arrival_s) / arrival_s[-1], start)


def _shadow_rows(
    p99_s: NDArray[np.float64], rate_per_s: float, start: tuple[float, float]
) -> Sequence[BenchmarkRow]:
    rows = []
    for k, fraction in enumerate(FRACTIONS):
        row = _row(
            f"serving: p99 latency, {100 * fraction:g} % shadow-checked",
            1e6 * float(np.median(p99_s[:, k])),
            start,
            f"{rate_per_s:.0f} requests/s, median of {len(p99_s)} runs in turn; ratio: unchecked",
        )
        rows.append(replace(row, ratio=float(np.median(p99_s[:, k] / p99_s[:, 0]))))
    return rows


def measure_all() -> list[BenchmarkRow]:
    """Return all rows; about a minute."""
    bench = make_bench()
    return [
        *measure_decisions(bench),
        *measure_dispatch(bench),
        *measure_switches(bench),
        *measure_shadow(bench),
    ]
