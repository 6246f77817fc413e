"""A small world that trains and evaluates in seconds."""

from __future__ import annotations

import numpy as np
import pytest

from agents.api import Episodes
from envs.cluster.config import StreamClusterConfig
from runtime.application import Application, Job, Stage
from runtime.cluster.actions import FieldActions
from runtime.plan import Plan
from simulators.arrivals import PoissonArrivals
from simulators.cluster.profile import Profile, StageCost
from simulators.rate_factors import Sine


@pytest.fixture
def world() -> StreamClusterConfig:
    side = Job("side", (Stage("main", records_per_task=20),))
    first = Job("first", (Stage("main", records_per_task=20),))
    last = Job("last", (Stage("main", records_per_task=1000, max_tasks=1),), stateful=True)
    application = Application("small", (side, first, last), (("first", "last"),))
    costs = {(job.name, "main"): StageCost(0.05, 0.02, 0.001) for job in application.jobs}
    return StreamClusterConfig(
        application=application,
        profile=Profile("small", costs, 4, 4),
        slots=4,
        arrivals=PoissonArrivals(1.0, 200.0, (Sine(0.5, 60.0),)),
        horizon_s=60.0,
        initial_plan=Plan(parallelism=2, batch_interval_s=1.0),
        actions=FieldActions(
            share=(0.3, 0.7), parallelism=(1, 4), interval_s=(0.5, 2.0), idle_batches=(0, 1)
        ),
    )


@pytest.fixture
def episodes() -> Episodes:
    return Episodes(np.array([1, 2, 3], dtype=np.uint64), np.array([0, 10, 20]))
