"""Guards and fail-safes of the server, on a bank of real kernels."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from runtime.precision import shadow
from runtime.precision.bank import Bank, BankOptions
from runtime.precision.guard_tables import BankTables, Conflict, PrecisionLimits
from runtime.precision.guards import PrecisionGuards
from runtime.precision.plan import PrecisionPlan
from runtime.precision.properties import PROPERTY_NAMES
from runtime.precision.server import PrecisionServer, batch_properties
from runtime.precision.serving import Drop, Serving
from runtime.precision.shadow import ShadowCheck
from runtime.precision.snapshot import REPORT_INDEX, PrecisionSnapshot, SignalLayout
from runtime.precision.staging import StagedNetwork
from runtime.precision.streams import RequestStream, Served
from tests.runtime.precision.nets import cnn, inputs

LEVELS = ("fp32", "int8")
S, P, BATCH = 4, 2, 8
LAYOUT = SignalLayout(S, PROPERTY_NAMES)
SAFE = PrecisionPlan((0, 1, 1, 0))
FAST, EXACT = PrecisionPlan((1,) * S), PrecisionPlan((0,) * S)
Rule = Callable[[PrecisionSnapshot], Any]


@pytest.fixture(scope="module")
def bank() -> Bank:
    modules, shape = cnn()
    torch.set_num_threads(1)
    network = StagedNetwork.from_modules(modules, shape)
    bank = Bank(network, inputs(shape, 64), BankOptions(levels=LEVELS, buckets=(1, 4, BATCH)))
    bank.warm_up()
    return bank


class Agent:
    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def decide(self, snapshot: PrecisionSnapshot) -> PrecisionPlan:
        plan: PrecisionPlan = self.rule(snapshot)
        return plan


def _tables() -> BankTables:
    """Each lowered stage costs a hundredth of accuracy and saves a quarter of a millisecond."""
    lowered = np.array([sum(levels) for levels in itertools.product(range(P), repeat=S)])
    latency_s = np.repeat(1e-3 * (2.0 - lowered / 4.0)[:, None], 3, axis=1)
    return BankTables(S, P, (1, 4, BATCH), 0.9 - 0.01 * lowered, latency_s)


def _serve(
    bank: Bank,
    rule: Rule,
    limits: PrecisionLimits | None = None,
    batches: int = 12,
    fraction: float = 0.0,
    properties: Callable[[torch.Tensor], np.ndarray] = batch_properties,
) -> Served:
    """Serve full batches that are all there at the start; every request is answered once."""
    n = BATCH * batches
    x = inputs(bank.network.input_shape, n)
    guards = PrecisionGuards(limits or PrecisionLimits(), _tables(), SAFE, LAYOUT)
    serving = Serving(deadline_s=1e3, max_batch=BATCH, drop=Drop.NEVER)
    with ShadowCheck(bank, S, fraction) as shadow:
        server = PrecisionServer(bank, Agent(rule), guards, serving, shadow, properties)
        served = server.serve(
            RequestStream(np.zeros(n), lambda first, last: x[first:last]), LAYOUT, 0.05
        )
    assert served.reports[:, REPORT_INDEX["requests"]].sum() == n
    assert (served.answers >= 0).all()
    for switch in served.switches:
        # what happened is what was proposed, or the causes say why not
        assert switch.after == switch.proposed or switch.causes
    return served


def _levels(served: Served, batches: int = 12) -> list[tuple[int, ...]]:
    """Return the levels of each batch."""
    result = [SAFE.levels] * batches
    for switch in served.switches:
        result[switch.batch :] = [switch.after] * (batches - switch.batch)
    return result


def test_answers_are_those_of_the_levels_in_force(bank: Bank) -> None:
    turns = itertools.cycle([EXACT, FAST, PrecisionPlan((0, 1, 0, 1))])
    before = bank.builds
    served = _serve(bank, lambda s: next(turns))
    assert bank.builds == before
    x = inputs(bank.network.input_shape, 12 * BATCH)
    for k, levels in enumerate(_levels(served)):
        batch = slice(k * BATCH, (k + 1) * BATCH)
        expected = bank.run(x[batch], levels).argmax(dim=1).numpy()
        np.testing.assert_array_equal(served.answers[batch], expected)
    assert len(served.switches) == 12


def _broken(x: torch.Tensor) -> np.ndarray:
    raise RuntimeError("the monitor is gone")


@pytest.mark.parametrize("silent", [lambda x: np.full(5, np.nan), _broken])
def test_a_silent_monitor_leads_to_the_training_modes_table(
    bank: Bank, silent: Callable[[torch.Tensor], np.ndarray]
) -> None:
    calls = itertools.count()

    def dies(x: torch.Tensor) -> np.ndarray:
        return batch_properties(x) if next(calls) < 5 else silent(x)

    served = _serve(bank, lambda s: FAST, properties=dies)
    assert _levels(served) == [FAST.levels] * 5 + [SAFE.levels] * 7
    assert served.switches[-1].causes == ("missing_signal",)
    assert served.causes == {"missing_signal": 7}


def test_failing_shadow_checks_are_a_silent_monitor(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(x: torch.Tensor, assignment: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(bank, "probe", fails)
    monkeypatch.setattr(shadow, "PATIENCE_S", 0.0)  # this server is never idle

    def waits(snapshot: PrecisionSnapshot) -> PrecisionPlan:
        time.sleep(0.01)  # long enough for checks to fail
        return FAST

    served = _serve(bank, waits, fraction=1.0)
    assert _levels(served)[0] == FAST.levels
    assert _levels(served)[-1] == SAFE.levels
    assert served.switches[-1].causes == ("missing_signal",)


def _fail(snapshot: PrecisionSnapshot) -> PrecisionPlan:
    raise RuntimeError("no idea")


def test_a_failing_agent_leaves_the_training_modes_table_in_force(bank: Bank) -> None:
    served = _serve(bank, _fail)
    assert _levels(served) == [SAFE.levels] * 12
    assert served.causes == {"agent_error": 12}


def test_a_slow_agent_is_left_alone(bank: Bank) -> None:
    asked = []

    def slow(snapshot: PrecisionSnapshot) -> PrecisionPlan:
        asked.append(snapshot)
        time.sleep(0.06)
        return FAST

    served = _serve(bank, slow)
    assert len(asked) == 3
    assert _levels(served) == [FAST.levels] * 3 + [SAFE.levels] * 9
    assert served.switches[-1].causes == ("agent_slow",)


def test_levels_stay_between_floor_and_ceiling(bank: Bank) -> None:
    turns = itertools.cycle([EXACT, FAST])
    limits = PrecisionLimits(finest=(0, 0, 1, 0), coarsest=(0, 1, 1, 1))
    served = _serve(bank, lambda s: next(turns), limits)
    assert set(_levels(served)) == {(0, 0, 1, 0), (0, 1, 1, 1)}
    assert set(served.causes) == {"bounds"}


def test_floor_and_target_hold_and_the_rule_decides_a_conflict(bank: Bank) -> None:
    floor = PrecisionLimits(accuracy_floor=0.875)  # at most two stages lowered
    assert {sum(levels) for levels in _levels(_serve(bank, lambda s: FAST, floor))} == {2}
    target = PrecisionLimits(latency_target_s=1.3e-3)  # at least three stages lowered
    assert {sum(levels) for levels in _levels(_serve(bank, lambda s: EXACT, target))} == {3}
    for rule, lowered in ((Conflict.ACCURACY_FIRST, 2), (Conflict.DEADLINE_FIRST, 3)):
        both = PrecisionLimits(accuracy_floor=0.875, latency_target_s=1.3e-3, conflict=rule)
        served = _serve(bank, lambda s: EXACT, both)
        assert {sum(levels) for levels in _levels(served)} == {lowered}
        assert served.causes["conflict"] == 12


def test_opposite_moves_keep_their_distance(bank: Bank) -> None:
    turns: Iterator[PrecisionPlan] = itertools.cycle([EXACT, FAST])
    served = _serve(bank, lambda s: next(turns), PrecisionLimits(dwell_requests=4 * BATCH))
    first = [s for s in served.switches if s.after[0] != s.before[0]]
    gaps = np.diff([switch.batch for switch in first])
    assert len(gaps) > 0
    assert gaps.min() >= 4
    assert served.causes["dwell"] > 0
