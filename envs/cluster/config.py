"""What a stream-cluster environment consists of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from envs.cluster.reward import RewardWeights
from runtime.application import Application
from runtime.cluster.actions import ActionCodec, FieldActions
from runtime.cluster.observation import ObservationScale
from runtime.guards import GuardLimits
from runtime.plan import Plan
from simulators.arrivals import ArrivalProcess, worldcup_like
from simulators.cluster.application_config import parse_application
from simulators.cluster.bounds import capacity_per_s
from simulators.cluster.profile import Profile

CAPACITY_INTERVAL_S = 2.0
"""Loads refer to the capacity of the slots at this batch interval."""
_APPLICATIONS = Path(__file__).resolve().parents[2] / "conf" / "application"


@dataclass(frozen=True, eq=False)
class StreamClusterConfig:
    """One simulated world and the face that it shows to agents.

    Attributes:
        application: The jobs of every batch.
        profile: Costs of all its stages.
        slots: Worker slots.
        arrivals: When records arrive.
        starts: First and last tick (included) at which an episode may start in the arrivals;
            equal numbers fix the start.
        load_factors: Factors of the arrival rate; every episode draws one of them.
        period_s: Time between decisions, seconds.
        horizon_s: Length of an episode, seconds; rounded up to whole periods.
        max_open: Batches that may be open; beyond it records wait uncut.
        initial_plan: The plan in force at the start.
        actions: What the agent chooses from.
        guards: Limits that every proposed plan is projected onto.
        reward: Weights of the reward's terms.
    """

    application: Application
    profile: Profile
    slots: int
    arrivals: ArrivalProcess
    starts: tuple[int, int] = (0, 0)
    load_factors: tuple[float, ...] = (1.0,)
    period_s: float = 2.0
    horizon_s: float = 600.0
    max_open: int = 32
    initial_plan: Plan = field(default_factory=lambda: Plan(parallelism=4, batch_interval_s=2.0))
    actions: ActionCodec = field(default_factory=FieldActions)
    guards: GuardLimits = field(default_factory=lambda: GuardLimits(degradation=math.inf))
    reward: RewardWeights = field(default_factory=RewardWeights)

    def __post_init__(self) -> None:
        """Refuse empty periods and starts.

        Raises:
            ValueError: Names the field.
        """
        if not 0.0 < self.period_s <= self.horizon_s:
            raise ValueError(
                f"period_s is {self.period_s} and horizon_s {self.horizon_s}; expected "
                "0 < period_s <= horizon_s"
            )
        if not 0 <= self.starts[0] <= self.starts[1]:
            raise ValueError(f"starts is {self.starts}; expected 0 <= first <= last tick")

    @property
    def steps(self) -> int:
        """Decisions in an episode."""
        return math.ceil(self.horizon_s / self.period_s - 1e-9)

    @property
    def n_ticks(self) -> int:
        """Ticks of arrivals that an episode needs."""
        return math.ceil(self.steps * self.period_s / self.arrivals.tick_s - 1e-9) + 1

    @property
    def capacity_per_s(self) -> float:
        """Records per second that the slots can keep up with, the unit of load."""
        return capacity_per_s(self.application, self.profile, self.slots, CAPACITY_INTERVAL_S)

    def scale(self) -> ObservationScale:
        """Return what observations are normalised by."""
        return ObservationScale(
            slots=self.slots,
            rate_per_s=self.capacity_per_s,
            period_s=self.period_s,
            max_open=self.max_open,
            parallelism=self.guards.parallelism,
            interval_s=self.guards.interval_s[1],
            idle_batches=max(self.guards.idle_batches, 1),
        )


def shipped_application(name: str) -> tuple[Application, Profile]:
    """Return an application of conf/application with its declared profile.

    Raises:
        ValueError: There is no such file, or it describes no application.
    """
    known = sorted(path.stem for path in _APPLICATIONS.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"unknown application {name!r}; shipped are {known}")
    content = yaml.safe_load((_APPLICATIONS / f"{name}.yaml").read_text())
    return parse_application(content)


def default_config(load: float = 0.6) -> StreamClusterConfig:
    """Return `security_events` on 8 slots under synthetic bursts like worldcup98's.

    Args:
        load: Mean arrival rate over the capacity at an interval of `CAPACITY_INTERVAL_S`.
    """
    application, profile = shipped_application("security_events")
    rate = load * capacity_per_s(application, profile, profile.slots, CAPACITY_INTERVAL_S)
    return StreamClusterConfig(
        application=application,
        profile=profile,
        slots=profile.slots,
        arrivals=worldcup_like(tick_s=1.0, rate_per_s=rate),
        starts=(0, 100_000),
    )
