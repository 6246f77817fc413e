"""What a staged-precision environment consists of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from envs.precision.reward import PrecisionWeights
from runtime.precision.actions import ActionCodec, LevelActions
from runtime.precision.guard_tables import BankTables, PrecisionLimits
from runtime.precision.observation import PrecisionScale
from runtime.precision.plan import PrecisionPlan
from runtime.precision.serving import Serving
from simulators.precision.profile import PrecisionProfile
from simulators.precision.synthetic import synthetic_profile
from simulators.precision.workload import PrecisionWorkload, Stream, stream_workload


@dataclass(frozen=True, eq=False)
class StagedPrecisionConfig:
    """One simulated server and the face that it shows to agents.

    Attributes:
        profile: Costs and answers of the bank.
        workload: When requests arrive and in which condition.
        serving: Deadline, batching, shadow checks.
        safe_plan: The plan in force at the start and whenever guards fall back: the training
            mode's table.
        actions: What the agent chooses from.
        guards: Limits that every proposed plan is projected onto.
        reward: Weights of the reward's terms.
        starts: First and last tick (included) at which an episode may start in the arrivals;
            equal numbers fix the start.
        load_factors: Factors of the arrival rate; every episode draws one of them.
        horizon_s: Length of an episode, seconds; rounded up to whole ticks of the arrivals.
        hidden: Groups of signals that the agent does not see (see `runtime.precision.observation`).
        calibrated: What agents and guards know about the bank, where that is not `profile`: costs
            and answers on calibration samples, while `profile` answers for held-out ones.
    """

    profile: PrecisionProfile
    workload: PrecisionWorkload
    serving: Serving
    safe_plan: PrecisionPlan
    actions: ActionCodec
    guards: PrecisionLimits = field(default_factory=PrecisionLimits)
    reward: PrecisionWeights = field(default_factory=PrecisionWeights)
    starts: tuple[int, int] = (0, 0)
    load_factors: tuple[float, ...] = (1.0,)
    horizon_s: float = 60.0
    hidden: tuple[str, ...] = ()
    calibrated: PrecisionProfile | None = None

    def __post_init__(self) -> None:
        """Refuse empty horizons and starts.

        Raises:
            ValueError: Names the field.
        """
        if not 0.0 < self.horizon_s < math.inf:
            raise ValueError(f"horizon_s is {self.horizon_s}; expected finite seconds > 0")
        if not 0 <= self.starts[0] <= self.starts[1]:
            raise ValueError(f"starts is {self.starts}; expected 0 <= first <= last tick")
        if not self.load_factors or min(self.load_factors) <= 0.0:
            raise ValueError(f"load_factors is {self.load_factors}; expected numbers > 0")
        if self.calibrated is not None:
            _refuse_another_bank(self.profile, self.calibrated)

    @property
    def n_ticks(self) -> int:
        """Ticks of arrivals in an episode; the stream ends with them."""
        return max(math.ceil(self.horizon_s / self.workload.arrivals.tick_s - 1e-9), 1)

    @property
    def n_segments(self) -> int:
        """Most stretches of conditions in an episode."""
        return self.workload.conditions.n_segments(self.horizon_s)

    @property
    def known_profile(self) -> PrecisionProfile:
        """What agents and guards know about the bank."""
        return self.profile if self.calibrated is None else self.calibrated

    def scale(self) -> PrecisionScale:
        """Return what observations are normalised by.

        Properties range between the 1st and 99th percentile over all samples and conditions that
        were calibrated with.
        """
        profile = self.known_profile
        values = profile.properties.reshape(-1, len(profile.property_names)).astype(np.float64)
        low, high = np.quantile(values, (0.01, 0.99), axis=0)
        high = np.where(high > low, high, low + 1.0)
        fastest = int(profile.latency_table_s()[:, -1].argmin())
        return PrecisionScale(
            n_stages=len(profile.stages),
            n_levels=len(profile.levels),
            properties=profile.property_names,
            property_low=tuple(low.tolist()),
            property_high=tuple(high.tolist()),
            deadline_s=self.serving.deadline_s,
            rate_per_s=profile.capacity_per_s(profile.levels_of(fastest), self.serving.max_batch),
            max_batch=self.serving.max_batch,
            hidden=self.hidden,
        )

    def bank_tables(self) -> BankTables:
        """Return what guards know about the bank: accuracy on clean inputs, mean latency."""
        profile = self.known_profile
        return BankTables(
            n_stages=len(profile.stages),
            n_levels=len(profile.levels),
            buckets=profile.buckets,
            accuracy=profile.accuracy()[0],
            latency_s=profile.latency_table_s(),
        )


def _refuse_another_bank(profile: PrecisionProfile, calibrated: PrecisionProfile) -> None:
    for name in ("network", "stages", "levels", "buckets", "property_names"):
        own, other = getattr(profile, name), getattr(calibrated, name)
        if own != other:
            raise ValueError(
                f"profile and calibrated differ in {name}: {own} and {other}; expected two "
                "profiles of one bank"
            )


def precision_config(
    profile: PrecisionProfile,
    stream: Stream = Stream.BOTH,
    load: float = 0.5,
    deadline_s: float = 0.15,
    max_batch: int = 16,
) -> StagedPrecisionConfig:
    """Return an environment of a profile under one of the four streams.

    Its safe plan is the uniform assignment of the last level but one (the coarsest that loses next
    to nothing, in the banks we know); guards enforce nothing.

    Args:
        profile: Costs and answers of the bank.
        stream: Kind of stream.
        load: Mean arrival rate over the capacity of the safe plan.
        deadline_s: Deadline of a request, seconds.
        max_batch: Largest batch.
    """
    safe = PrecisionPlan((max(len(profile.levels) - 2, 0),) * len(profile.stages))
    rate = load * profile.capacity_per_s(safe.levels, max_batch)
    return StagedPrecisionConfig(
        profile=profile,
        workload=stream_workload(stream, rate, len(profile.conditions)),
        serving=Serving(deadline_s, max_batch),
        safe_plan=safe,
        actions=LevelActions(len(profile.stages), len(profile.levels)),
        starts=(0, 100_000),
    )


def default_config() -> StagedPrecisionConfig:
    """Return the synthetic bank under bursts and drift at once; it describes no real network."""
    return precision_config(synthetic_profile())
