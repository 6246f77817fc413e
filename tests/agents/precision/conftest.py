"""A bank whose figures are round, and a short stream of the synthetic one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.precision.api import Episodes
from agents.precision.known import Known, known_of
from envs.precision.config import StagedPrecisionConfig, precision_config
from runtime.precision.guard_tables import BankTables
from runtime.precision.plan import all_assignments
from runtime.precision.snapshot import SignalLayout
from simulators.precision.synthetic import synthetic_profile

# Seconds and accuracy lost of each level of each stage; batches of 2 take twice as long.
STAGE_S = ((0.005, 0.003, 0.001), (0.003, 0.001, 0.001))
STAGE_LOSS = ((0.0, 0.1, 0.3), (0.0, 0.05, 0.08))


@pytest.fixture
def known() -> Known:
    """Return two stages of three levels: uniform tables take 8, 4 and 2 ms for one request."""
    levels = all_assignments(2, 3)
    first, second = levels.T
    latency_s = np.array(STAGE_S[0])[first] + np.array(STAGE_S[1])[second]
    accuracy = 0.9 - np.array(STAGE_LOSS[0])[first] - np.array(STAGE_LOSS[1])[second]
    tables = BankTables(2, 3, (1, 2), accuracy, latency_s[:, None] * np.array([1.0, 2.0]))
    return Known(SignalLayout(2, ("noise",)), tables, 2, (0.0,), (1.0,))


@pytest.fixture(scope="module")
def world() -> StagedPrecisionConfig:
    """Return 4 s of bursts and drift on the synthetic bank, many requests checked in shadow."""
    config = precision_config(synthetic_profile(), load=0.7)
    serving = replace(config.serving, shadow_fraction=0.2)
    return replace(config, horizon_s=4.0, serving=serving)


@pytest.fixture(scope="module")
def world_known(world: StagedPrecisionConfig) -> Known:
    return known_of(world)


@pytest.fixture(scope="module")
def episodes() -> Episodes:
    return Episodes(np.array([11, 12, 13], dtype=np.uint64), np.array([0, 500, 9000]))
