"""Speed of the compiled cluster engine, what each of its features costs, and how it scales.

The workload of the budget: 8 jobs, four alone and four in a chain, 12 slots in two hard pools, a
batch of about 60 tasks in every period of 2 s, task times from residual tables of 256 entries.

Processor time counts, and medians over interleaved runs: machines are shared. The best tenth of the
runs is noted beside the median, as what the code does when nothing disturbs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from benchmarks.rows import BenchmarkRow, Timing, measure
from runtime.application import Application, Job, Stage
from runtime.plan import Plan, Policy, Pools
from runtime.snapshot import SIGNAL_INDEX
from simulators.cluster.engine import ClusterEngine
from simulators.cluster.profile import Profile, StageCost
from simulators.cluster.reference import ReferenceCluster

PERIOD_S, TICK_S = 2.0, 1.0
WARM_UP, PERIODS = 10, 10  # periods before a measured run, and in it
BUDGET_STEPS_PER_S, BUDGET_TASKS_PER_S = 300_000, 18e6
HARD = Plan(pools=Pools.HARD, share=0.5, parallelism=8, batch_interval_s=PERIOD_S)


@dataclass(frozen=True)
class Workload:
    """A cluster and its load.

    Attributes:
        plan: The plan, constant.
        n_envs: Number of environments.
        residuals: Entries of each residual table.
        slowdown: Slowdown with all slots busy.
        failure_probability: Of one attempt of a task.
        stages: Stages of each job, a chain; the tasks are divided among them.
        slots: Slots of the cluster.
        records_per_s: Mean rate of Poisson arrivals.
        records_per_task: Records of a task.
    """

    plan: Plan = HARD
    n_envs: int = 256
    residuals: int = 256
    slowdown: float = 1.0
    failure_probability: float = 0.0
    stages: int = 1
    slots: int = 12
    records_per_s: float = 240.0
    records_per_task: int = 64

    def cluster(self) -> tuple[Application, Profile, int]:
        """Return application, profile and slots."""
        stages = tuple(
            Stage(f"stage{k}", self.records_per_task * self.stages, max_tasks=2**30)
            for k in range(self.stages)
        )
        names = [f"alone{k}" for k in range(4)] + [f"chain{k}" for k in range(4)]
        edges = tuple(pairwise(names[4:]))
        application = Application("benchmark", tuple(Job(name, stages) for name in names), edges)
        residual = np.exp(np.random.default_rng(0).normal(0.0, 0.3, self.residuals))
        cost = StageCost(
            wait_s=0.0,
            fixed_s=0.05,
            per_record_s=0.0025 / self.stages,
            residual=residual / residual.mean(),
            slowdown=np.linspace(1.0, self.slowdown, self.slots + 1),
            failure_probability=self.failure_probability,
        )
        costs = {(name, stage.name): cost for name in names for stage in stages}
        return application, Profile("benchmark", costs, self.slots, self.slots), self.slots

    def counts(self) -> np.ndarray:
        """Return arrivals, int64 [n_envs, n_ticks]."""
        n_ticks = round((WARM_UP + PERIODS + 1) * PERIOD_S / TICK_S)
        rng = np.random.default_rng(1)
        return rng.poisson(self.records_per_s * TICK_S, (self.n_envs, n_ticks))


class Run:
    """Runs of a workload that start from the same warmed-up state."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.engine = ClusterEngine(*workload.cluster(), workload.n_envs)
        self.counts = workload.counts()
        self.keys = np.arange(workload.n_envs, dtype=np.uint64)
        self.rows = np.tile(workload.plan.to_row(), (workload.n_envs, 1))
        self.ends_s = [
            np.full(workload.n_envs, (k + 1) * PERIOD_S) for k in range(WARM_UP + PERIODS)
        ]
        self.tasks = self.count_tasks()

    def count_tasks(self) -> float:
        """Return the number of tasks that end in a measured run."""
        self.restart()
        tasks = 0.0
        for end_s in self.ends_s[WARM_UP:]:
            self.engine.advance(self.rows, end_s)
            tasks += self.engine.signals[:, SIGNAL_INDEX["tasks_ended"]].sum()
        return tasks

    def restart(self) -> None:
        """Start anew and warm up."""
        self.engine.reset(self.keys, self.counts, TICK_S, self.workload.plan)
        for end_s in self.ends_s[:WARM_UP]:
            self.engine.advance(self.rows, end_s)

    def advance(self) -> None:
        """Do what is measured."""
        for end_s in self.ends_s[WARM_UP:]:
            self.engine.advance(self.rows, end_s)


def time_runs(runs: list[Run], repetitions: int) -> list[Timing]:
    """Time the measured part of each run, restarting in between."""
    return measure(
        *[run.advance for run in runs], runs=repetitions, before=[run.restart for run in runs]
    )


def oracle_seconds(workload: Workload, envs: int) -> Callable[[], object]:
    """Return the same work on the plain-Python oracle for some of the environments."""
    counts, cluster, plan = workload.counts(), workload.cluster(), workload.plan

    def work() -> None:
        for e in range(envs):
            oracle = ReferenceCluster(*cluster)
            oracle.reset(e, counts[e], TICK_S, plan)
            for k in range(PERIODS):
                oracle.advance(plan, (k + 1) * PERIOD_S)

    return work


def measure_throughput(repetitions: int = 100) -> list[BenchmarkRow]:
    """Return env-steps/s and tasks/s, and their ratio to the plain-Python oracle."""
    run, oracle_envs = Run(Workload()), 4
    (timing,) = time_runs([run], repetitions)
    (oracle,) = measure(oracle_seconds(run.workload, oracle_envs), runs=3)
    steps = run.workload.n_envs * PERIODS
    rows = []
    for clock, times_s, oracle_s in (
        ("CPU", timing.cpu_s, oracle.cpu_s),
        ("wall", timing.wall_s, oracle.wall_s),
    ):
        oracle_step_s = float(np.median(oracle_s)) / (oracle_envs * PERIODS)
        median_s, best_s = float(np.median(times_s)), float(np.quantile(times_s, 0.1))
        for name, amount, budget in (
            ("env-steps", steps, BUDGET_STEPS_PER_S),
            ("tasks", run.tasks, BUDGET_TASKS_PER_S),
        ):
            note = f"best tenth {amount / best_s:,.0f}/s, budget {budget:,.0f}; ratio to the oracle"
            ratio = oracle_step_s * steps / median_s
            rows.append(timing.row(f"{name}, {clock} time", amount / median_s, "1/s", ratio, note))
    return rows


def measure_single(repetitions: int = 15) -> list[BenchmarkRow]:
    """Return the time of one call for a single environment, and of a reset."""
    run = Run(Workload(n_envs=1))
    calls, now_s = 1000, run.ends_s[-1]

    def nothing() -> None:
        for _ in range(calls):
            run.engine.advance(run.rows, now_s)

    (empty,) = measure(nothing, runs=repetitions)
    (busy,) = time_runs([run], 40 * repetitions)
    many = Run(Workload())
    plan = many.workload.plan
    (reset,) = measure(
        lambda: many.engine.reset(many.keys, many.counts, TICK_S, plan), runs=repetitions
    )
    return [
        empty.row("one env, a call without events", _median_us(empty) / calls, "us"),
        busy.row("one env, a period of ~60 tasks", _median_us(busy) / PERIODS, "us"),
        reset.row(f"256 envs, reset ({many.counts.shape[1]} ticks)", _median_us(reset), "us"),
    ]


FEATURES: dict[str, Workload] = {
    "one queue, FIFO": Workload(replace(HARD, pools=Pools.SINGLE)),
    "one queue, FAIR": Workload(replace(HARD, pools=Pools.SINGLE, independent_policy=Policy.FAIR)),
    "soft pools": Workload(replace(HARD, pools=Pools.SOFT)),
    "hard pools, FAIR": Workload(
        replace(HARD, independent_policy=Policy.FAIR, dependent_policy=Policy.FAIR)
    ),
    "parallelism per pool": Workload(replace(HARD, per_pool_parallelism=True)),
    "idle trigger": Workload(replace(HARD, idle_batches=3)),
    "constant task times (residual tables of 1)": Workload(residuals=1),
    "residual tables of 4096": Workload(residuals=4096),
    "slowdown with busy slots": Workload(slowdown=1.3),
    "failures, 1 % of attempts": Workload(failure_probability=0.01),
    "three stages a job": Workload(stages=3),
    "64 environments": Workload(n_envs=64),
    "one task a job": Workload(records_per_task=100_000),
}


def measure_features(repetitions: int = 30) -> list[BenchmarkRow]:
    """Return the time of a step with one feature changed; ratio to the step without the change."""
    base = Run(Workload())
    rows = []
    for name, workload in FEATURES.items():
        run = Run(workload)
        before, after = time_runs([base, run], repetitions)
        steps = workload.n_envs * PERIODS
        per_step = after.cpu_s / steps
        ratio = float(np.median(per_step / (before.cpu_s / (base.workload.n_envs * PERIODS))))
        note = f"{run.tasks / steps:.0f} tasks a step; ratio to the budget's workload"
        rows.append(after.row(name, float(np.median(per_step)) * 1e6, "us/step", ratio, note))
    return rows


def measure_scaling(most_tasks: int = 1_000_000) -> list[BenchmarkRow]:
    """Return the cost of a task for 10 to 10,000 slots and batches of 10^3 to 10^6 tasks.

    The ratio is to the smallest of them, run in turn with each.
    """
    rows: list[BenchmarkRow] = []
    smallest = Drain(10, 1_000)
    note = "ratio to 10 slots, batches of 1,000; budget 3"
    for slots in (10, 100, 1000, 10_000):
        for tasks in (1_000, 10_000, 100_000, 1_000_000):
            if tasks > most_tasks:
                continue
            drain = Drain(slots, tasks)
            before, after = measure(smallest.work, drain.work, runs=7)
            task_s = after.cpu_s / drain.tasks
            ratio = float(np.median(task_s / (before.cpu_s / smallest.tasks)))
            name = f"{slots:,} slots, batches of {tasks:,} tasks"
            rows.append(after.row(name, float(np.median(task_s)) * 1e9, "ns/task", ratio, note))
    return rows


class Drain:
    """A cluster that works off batches of equal size, one after the other."""

    def __init__(self, slots: int, tasks: int) -> None:
        n_batches = max(200_000 // tasks, 1)
        interval_s = float(tasks)  # long enough for any batch to end before the next
        plan = replace(HARD, batch_interval_s=interval_s)
        workload = Workload(plan, n_envs=1, slots=slots, records_per_task=1)
        self.engine = ClusterEngine(*workload.cluster(), report_rows=n_batches)
        # Each of the 8 jobs sees every record.
        self.counts = np.full((1, n_batches), tasks // 8)
        self.plan, self.interval_s = plan, interval_s
        self.end_s = np.array([(n_batches + 1) * interval_s])
        self.work()
        self.tasks = int(self.engine.signals[0, SIGNAL_INDEX["tasks_ended"]])
        if self.tasks != n_batches * (tasks // 8) * 8:
            raise RuntimeError(f"{self.tasks} tasks ended; expected {n_batches} times {tasks}")

    def work(self) -> None:
        """Do what is measured."""
        self.engine.reset(np.zeros(1, np.uint64), self.counts, self.interval_s, self.plan)
        self.engine.advance(self.plan.to_row()[None], self.end_s)


def measure_all() -> list[BenchmarkRow]:
    """Return all rows; about a minute."""
    return measure_throughput() + measure_single() + measure_features() + measure_scaling()


def _median_us(timing: Timing) -> float:
    return float(np.median(timing.cpu_s)) * 1e6
