from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from benchmarks.executor_overhead import measure_overhead, measure_slots


def test_the_executor_costs_little_per_task() -> None:
    found = measure_overhead(slots=4, tasks=400, wait_s=0.005)
    assert found.tasks == 400 - 4  # gaps on four slots
    assert 0.0 < found.median_s <= found.p99_s
    # The aim is 200 us on an idle machine; tests share theirs.
    assert found.median_s < 1e-3
    assert found.cpu_s < 2e-3


def test_slots_of_a_pool_are_timed_beyond_their_bodies() -> None:
    with ThreadPoolExecutor(2) as pool:
        body_s, beyond_s = measure_slots(pool, slots=2, tasks=40, wait_s=0.01)
    assert body_s >= 0.01
    assert -1e-3 < beyond_s < 0.05
