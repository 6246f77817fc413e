"""What the real executor costs per task, and why its slots are threads.

    python -m benchmarks.executor_overhead

Overhead of a task is the time of its slot that neither the wait nor the computation uses: from
the end of one body to the start of the next one on the same slot while tasks are queued.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import defaultdict
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from benchmarks.rows import BenchmarkRow
from runtime.application import Application, Job, Stage
from runtime.cluster.events import N_FEATURES, create_events
from runtime.cluster.executor import LocalExecutor
from runtime.cluster.jobs import SecurityModel
from runtime.cluster.source import Source
from runtime.cluster.stream_jobs import StageCode, StreamJobs, TaskInput
from runtime.plan import Plan

OVERHEAD_AIM_US = 200
ROWS = 96


@dataclass(frozen=True)
class Overhead:
    """Overhead of one setting.

    Attributes:
        tasks: Number of gaps measured.
        median_s: Median time between two bodies on a slot, seconds.
        p99_s: Its 99th percentile, seconds.
        cpu_s: Processor time of the whole process per task, bodies included, seconds.
    """

    tasks: int
    median_s: float
    p99_s: float
    cpu_s: float


def measure_overhead(slots: int = 1, tasks: int = 2000, wait_s: float = 0.0) -> Overhead:
    """Run tasks that only wait, through the whole executor, and time the gaps between them.

    Args:
        slots: Number of worker slots.
        tasks: Number of tasks, all queued at once.
        wait_s: Wait of each task, seconds.
    """
    bodies: dict[int, list[tuple[float, float]]] = defaultdict(list)

    def body(task: TaskInput) -> None:
        start_s = time.perf_counter()
        if wait_s:
            time.sleep(wait_s)
        bodies[threading.get_ident()].append((start_s, time.perf_counter()))

    application = Application("overhead", (Job("job", (Stage("main", 1, max_tasks=tasks),)),))
    jobs = StreamJobs(application, {("job", "main"): StageCode(body)})
    source = Source(np.array([tasks]), tick_s=0.05)
    with LocalExecutor(jobs, source, Plan(batch_interval_s=0.05), slots) as executor:
        cpu_s = time.process_time()
        if not executor.wait(timeout_s=120.0):
            raise RuntimeError(f"{tasks} tasks did not end within 120 s")
        cpu_s = time.process_time() - cpu_s
    spans = [np.array(times) for times in bodies.values()]
    gaps = np.concatenate([times[1:, 0] - times[:-1, 1] for times in spans])
    return Overhead(
        tasks=len(gaps),
        median_s=float(np.median(gaps)),
        p99_s=float(np.quantile(gaps, 0.99)),
        cpu_s=cpu_s / tasks,
    )


def measure_all() -> list[BenchmarkRow]:
    """Return the median overhead of a task, wall time; a few seconds."""
    rows = []
    for setting, slots, wait_s in (
        ("1 slot, empty tasks", 1, 0.0),
        ("8 slots, 25 ms waits", 8, 0.025),
    ):
        wall_s = time.perf_counter()
        found = measure_overhead(slots, 2000, wait_s)
        wall_s = time.perf_counter() - wall_s
        note = (
            f"aim {OVERHEAD_AIM_US}; p99 {1e6 * found.p99_s:.0f}, CPU time of a task, body "
            f"included, {1e6 * found.cpu_s:.0f}"
        )
        name, value, cpu_s = f"overhead of a task, {setting}", 1e6 * found.median_s, found.cpu_s
        rows.append(BenchmarkRow(name, value, "us", wall_s, 2000 * cpu_s, None, note))
    return rows


def _score(features: Tensor, wait_s: float) -> tuple[tuple[int, int], float, Tensor]:
    """Body of a task in either kind of slot: return the slot's identity, seconds and errors."""
    start_s = time.perf_counter()
    time.sleep(wait_s)
    error = _prepare().reconstruction_error(features)
    return (os.getpid(), threading.get_ident()), time.perf_counter() - start_s, error


@cache
def _prepare() -> SecurityModel:
    """Return the model; a process cannot be handed it with each task."""
    torch.set_num_threads(1)
    return SecurityModel(create_events(), seed=0)


def measure_slots(executor: Executor, slots: int, tasks: int, wait_s: float) -> tuple[float, float]:
    """Keep slots of a pool filled with scoring tasks.

    Args:
        executor: A pool of threads or of processes.
        slots: Its size.
        tasks: How many tasks to run.
        wait_s: Wait of each task, seconds.

    Returns:
        Median time of a body and mean slot time beyond the body, seconds.
    """
    features = torch.zeros(ROWS, N_FEATURES)

    def run(n: int) -> list[tuple[tuple[int, int], float, Tensor]]:
        return list(executor.map(_score, [features] * n, [wait_s] * n))

    seen: set[tuple[int, int]] = set()
    while len(seen) < slots:  # every slot has started and prepared itself
        seen |= {slot for slot, _, _ in run(4 * slots)}
    start_s = time.perf_counter()
    body_s = [body for _, body, _ in run(tasks)]
    slot_s = (time.perf_counter() - start_s) * slots / tasks
    return float(np.median(body_s)), slot_s - float(np.mean(body_s))


def main() -> None:
    """Print the table."""
    print(f"{'setting':38s} {'median':>9s} {'p99':>9s} {'CPU/task':>9s}")
    for name, slots, wait_s in (
        ("1 slot, empty tasks", 1, 0.0),
        ("8 slots, 25 ms waits", 8, 0.025),
    ):
        found = measure_overhead(slots, 2000, wait_s)
        figures = (found.median_s, found.p99_s, found.cpu_s)
        print(f"{name:38s} " + " ".join(f"{1e6 * figure:6.0f} us" for figure in figures))
    _prepare()
    pools: tuple[tuple[str, Executor], ...] = (
        ("8 threads", ThreadPoolExecutor(8, initializer=_prepare)),
        (
            "8 processes",
            ProcessPoolExecutor(8, multiprocessing.get_context("spawn"), initializer=_prepare),
        ),
    )
    for name, pool in pools:
        with pool:
            body_s, beyond_s = measure_slots(pool, 8, 800, 0.025)
        label = f"{name}, 25 ms wait + score of {ROWS} records"
        print(f"{label:46s} body {1e3 * body_s:.2f} ms, beyond it {1e6 * beyond_s:.0f} us")


if __name__ == "__main__":
    main()
