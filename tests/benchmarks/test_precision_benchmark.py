from __future__ import annotations

import torch

from benchmarks.precision_bank import dispatch_us, make_bank
from benchmarks.precision_simulator import FEATURES, Load, Run, measure_throughput


def test_the_engine_is_far_faster_than_its_oracle() -> None:
    rows = {row.name: row for row in measure_throughput(repetitions=5, oracle_envs=2)}
    for name in ("budget's workload", "full batches"):
        steps = rows[f"precision steps, {name}, CPU time"]
        requests = rows[f"precision requests, {name}, CPU time"]
        assert requests.value >= steps.value
        assert steps.ratio is not None
        assert steps.ratio > 100  # a busy machine slows both alike
    full = rows["precision requests, full batches, CPU time"].value
    assert full / rows["precision steps, full batches, CPU time"].value > 15


def test_every_feature_can_be_run() -> None:
    base = Run(Load(n_envs=4))
    assert 1.0 < base.requests / base.steps < 4.0
    for load in FEATURES.values():
        if load.n_envs == 256:
            assert Run(Load(load.plan, load.rate_per_s, 4, load.stream, load.serving)).requests > 0


def test_dispatch_is_timed_on_a_bank_whose_stages_do_nothing() -> None:
    bank, _ = make_bank("small_cnn")
    x, levels = torch.rand(1, *bank.network.input_shape), (0,) * len(bank.stages)
    before = bank.run(x, levels).clone()
    assert dispatch_us(bank) > 0.0  # it refuses to time a pass that does something
    torch.testing.assert_close(bank.run(x, levels), before, rtol=0.0, atol=0.0)
