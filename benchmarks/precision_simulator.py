"""Speed of the compiled precision engine, what its features cost, and its environment.

The budget's workload is a bank of four stages and four levels (synthetic) at the load at which
most batches hold one request or a few; a step is a dispatched batch. Full batches are measured
beside it: a step then serves sixteen requests.

Processor time counts, and medians over interleaved runs: machines are shared. The best tenth of the
runs is noted beside the median, as what the code does when nothing disturbs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks.rows import BenchmarkRow, Timing, measure
from envs.precision.config import default_config
from envs.precision.env import StagedPrecisionEnv, StagedPrecisionVectorEnv
from runtime.precision.plan import PrecisionPlan
from runtime.precision.serving import Serving
from simulators.precision.engine import PrecisionEngine
from simulators.precision.reference import ReferenceServer
from simulators.precision.synthetic import synthetic_profile
from simulators.precision.workload import PrecisionWorkload, Segments, Stream, stream_workload

TICK_S = 0.05
WARM_UP, STEPS = 20, 100  # steps before a measured run, and in it
HORIZON_S = 20.0
BUDGET_STEPS_PER_S = 10_000_000
INT8, HALF = (2, 2, 2, 2), (3, 3, 3, 3)
PROFILE = synthetic_profile()


@dataclass(frozen=True)
class Load:
    """Servers and what they are given to do.

    Attributes:
        plan: The plan, constant.
        rate_per_s: Mean arrival rate of each server, requests per second.
        n_envs: Number of servers.
        stream: Kind of stream.
        serving: Rules of serving.
    """

    plan: PrecisionPlan = field(default_factory=lambda: PrecisionPlan(INT8))
    rate_per_s: float = 300.0
    n_envs: int = 256
    stream: Stream = Stream.BOTH
    serving: Serving = field(default_factory=lambda: Serving(0.15, 16))

    @property
    def workload(self) -> PrecisionWorkload:
        """The stream."""
        return stream_workload(self.stream, self.rate_per_s, len(PROFILE.conditions), TICK_S)


class Run:
    """Runs of a load that start from the same warmed-up state."""

    def __init__(self, load: Load) -> None:
        self.load = load
        n, conditions = load.n_envs, load.workload.conditions
        self.engine = PrecisionEngine(
            PROFILE, load.serving, n, n_segments=conditions.n_segments(HORIZON_S)
        )
        self.keys = np.arange(n, dtype=np.uint64)
        self.counts = load.workload.arrivals.counts(
            self.keys, np.zeros(n, np.int64), round(HORIZON_S / TICK_S)
        )
        self.segments: Segments = conditions.segments(self.keys, HORIZON_S)
        self.rows = np.tile(load.plan.to_row(), (n, 1))
        self.restart()
        before = self.engine.signals[:, 2].sum()
        self.advance()
        self.requests = float(self.engine.signals[:, 2].sum() - before)
        if self.engine.finished.any():
            raise RuntimeError("a stream ended within the measured run; lengthen HORIZON_S")

    def restart(self) -> None:
        """Start anew and warm up."""
        self.engine.reset(self.keys, self.counts, TICK_S, self.segments, self.load.plan)
        for _ in range(WARM_UP):
            self.engine.step(self.rows)

    def advance(self) -> None:
        """Do what is measured."""
        for _ in range(STEPS):
            self.engine.step(self.rows)

    @property
    def steps(self) -> int:
        """Steps of all servers in a measured run."""
        return self.load.n_envs * STEPS


def time_runs(runs: list[Run], repetitions: int) -> list[Timing]:
    """Time the measured part of each run, restarting in between."""
    return measure(
        *[run.advance for run in runs], runs=repetitions, before=[run.restart for run in runs]
    )


def oracle_work(run: Run, envs: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return preparation and the same work on the plain-Python oracle, for some servers."""
    oracles = [ReferenceServer(PROFILE, run.load.serving) for _ in range(envs)]

    def prepare() -> None:
        for e, oracle in enumerate(oracles):
            own = zip(run.segments.start_s[e], run.segments.condition[e], strict=True)
            oracle.reset(e, run.counts[e], TICK_S, list(own), run.load.plan)
            for _ in range(WARM_UP):
                oracle.step(run.load.plan)

    def work() -> None:
        for oracle in oracles:
            for _ in range(STEPS):
                oracle.step(run.load.plan)

    return prepare, work


LOADS = {
    "budget's workload": Load(),
    "full batches": Load(PrecisionPlan(HALF), rate_per_s=3000.0, stream=Stream.DRIFT),
}


def measure_throughput(repetitions: int = 60, oracle_envs: int = 4) -> list[BenchmarkRow]:
    """Return steps/s and requests/s of the batched engine, with the ratio to the oracle."""
    rows = []
    for name, load in LOADS.items():
        run = Run(load)
        (timing,) = time_runs([run], repetitions)
        prepare, work = oracle_work(run, oracle_envs)
        (oracle,) = measure(work, runs=3, before=[prepare])
        for clock, times_s, oracle_s in (
            ("CPU", timing.cpu_s, oracle.cpu_s),
            ("wall", timing.wall_s, oracle.wall_s),
        ):
            median_s, best_s = float(np.median(times_s)), float(np.quantile(times_s, 0.1))
            ratio = float(np.median(oracle_s)) / (oracle_envs * STEPS) * run.steps / median_s
            for what, amount in (("steps", run.steps), ("requests", run.requests)):
                budget = f", budget {BUDGET_STEPS_PER_S:,}" if what == "steps" else ""
                note = (
                    f"{run.requests / run.steps:.1f} requests a step; best tenth "
                    f"{amount / best_s:,.0f}/s{budget}; ratio to the oracle"
                )
                label = f"precision {what}, {name}, {clock} time"
                rows.append(_row(label, amount / median_s, "1/s", timing, ratio, note))
    return rows


FEATURES: dict[str, Load] = {
    "constant plan at light load (one request a step)": Load(rate_per_s=60.0),
    "batches of one": Load(serving=Serving(0.15, 1), rate_per_s=200.0),
    "cascade": Load(PrecisionPlan(INT8, 0.4, (0, 0, 0, 0))),
    "no shadow checks": Load(serving=Serving(0.15, 16, shadow_fraction=0.0)),
    "every request shadow-checked": Load(serving=Serving(0.15, 16, shadow_fraction=1.0)),
    "no condition changes": Load(stream=Stream.BURST),
    "64 servers": Load(n_envs=64),
    "1024 servers": Load(n_envs=1024),
}


def measure_features(repetitions: int = 20) -> list[BenchmarkRow]:
    """Return the time of a step with one thing changed; ratio to the step without the change."""
    base = Run(Load())
    rows = []
    for name, load in FEATURES.items():
        run = Run(load)
        before, after = time_runs([base, run], repetitions)
        per_step = after.cpu_s / run.steps
        ratio = float(np.median(per_step / (before.cpu_s / base.steps)))
        note = f"{run.requests / run.steps:.1f} requests a step; ratio to the budget's workload"
        rows.append(_row(name, float(np.median(per_step)) * 1e9, "ns/step", after, ratio, note))
    return rows


def measure_environment(steps: int = 200, repetitions: int = 15) -> list[BenchmarkRow]:
    """Return steps/s of one Gymnasium environment and of the vector face."""
    action = np.array(INT8)
    env = StagedPrecisionEnv(default_config())
    env.reset(seed=0)

    def single() -> None:
        for _ in range(steps):
            env.step(action)

    (timing,) = measure(single, runs=repetitions, before=[lambda: env.reset()])
    rows = [_rate("one precision environment", steps, timing, "steps/s")]
    for n in (256, 1024):
        envs = StagedPrecisionVectorEnv(n, replace(default_config(), horizon_s=20.0))
        envs.reset(seed=0)
        actions = np.tile(action, (n, 1))

        def many(envs: StagedPrecisionVectorEnv = envs, actions: np.ndarray = actions) -> None:
            for _ in range(steps):
                envs.step(actions)

        (timing,) = measure(many, runs=max(repetitions // 3, 1))
        label = f"precision vector environment of {n}, resets included"
        rows.append(_rate(label, n * steps, timing, "env-steps/s"))
    return rows


def measure_all() -> list[BenchmarkRow]:
    """Return all rows; about half a minute."""
    return measure_throughput() + measure_features() + measure_environment()


def _rate(name: str, amount: int, timing: Timing, unit: str) -> BenchmarkRow:
    """Return a rate per second of processor time, the median over runs; wall time in the note."""
    by_cpu, by_wall = (amount / float(np.median(t)) for t in (timing.cpu_s, timing.wall_s))
    return _row(name, by_cpu, unit, timing, None, f"CPU time; {by_wall:,.0f} by wall time")


def _row(
    name: str,
    value: float,
    unit: str,
    timing: Timing,
    ratio: float | None = None,
    note: str = "",
) -> BenchmarkRow:
    wall_s, cpu_s = float(timing.wall_s.sum()), float(timing.cpu_s.sum())
    return BenchmarkRow(name, value, unit, wall_s, cpu_s, ratio, note)
