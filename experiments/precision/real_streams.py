"""The requests of a simulated stream, served in real time by the bank that the profile is of.

Arrivals, samples and conditions are those of the simulator, and the images those that the profile
was made with: simulated and measured figures of a stream differ by timing alone.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from agents.deciders import Constant
from agents.precision.api import (
    Episodes,
    PrecisionAgent,
    Separately,
    Streams,
    decides,
    run_streams,
)
from envs.precision.config import StagedPrecisionConfig
from experiments.errors import ConfigError
from experiments.precision.banks import SampleRows, StandInBank, TrainedBank
from experiments.precision.data import Part
from experiments.precision.profiling import shown
from runtime.precision.answers import answers_of
from runtime.precision.guards import PrecisionGuards
from runtime.precision.server import PrecisionServer
from runtime.precision.serving import Drop
from runtime.precision.shadow import ShadowCheck
from runtime.precision.snapshot import REPORT_INDEX
from runtime.precision.streams import RequestStream, Served
from simulators.precision.profile import PrecisionProfile
from simulators.precision.requests import Requests, requests_of

_SAME = 0.9
"""Share of the profile's answers that the bank must repeat: instruction sets round differently."""
_COMPARED = 64
WARM_UP_REQUESTS, _WARM_UP_GAP_S = 64, 0.001
_PACED_S = 0.2


class Episode(NamedTuple):
    """One stream.

    Attributes:
        key: Its random key.
        start: First tick in the arrivals.
    """

    key: np.uint64
    start: int

    def alone(self) -> Episodes:
        """Return it as the only one of several."""
        return Episodes(np.array([self.key], dtype=np.uint64), np.array([self.start]))


class RealRun(NamedTuple):
    """One stream, served.

    Attributes:
        served: What became of it.
        skipped: Batches whose shadow checks were left out because too many were under way.
        failed: Batches whose shadow check failed.
    """

    served: Served
    skipped: int
    failed: int

    @property
    def processor_share(self) -> float:
        """Processor time of the serving thread over the time in which it was busy, at most 1."""
        return min(self.served.cpu_s / max(self.served.busy_s, 1e-9), 1.0)


class ShownSamples:
    """The samples of a profile under each of its conditions, ready to be sent."""

    def __init__(self, part: Part, conditions: tuple[str, ...]) -> None:
        """Corrupt all of them once.

        Args:
            part: Samples of the profile, and no others.
            conditions: As the profile names them.
        """
        self._n, self._truth = len(part), part.y
        every = [shown(part, name, seed=k) for k, name in enumerate(conditions)]
        self._rows = SampleRows(torch.cat(every))

    def of(self, condition: int) -> Tensor:
        """Return all samples under a condition, float32 [n, ...]."""
        return self._rows.take(torch.arange(condition * self._n, (condition + 1) * self._n))

    def stream(self, requests: Requests) -> RequestStream:
        """Return requests for these samples."""
        place = torch.from_numpy(requests.condition * self._n + requests.sample)
        return RequestStream(
            arrival_s=requests.arrival_s,
            inputs=lambda first, last: self._rows.take(place[first:last]),
            truth=self._truth[requests.sample],
            condition=requests.condition,
        )


@dataclass(frozen=True, eq=False)
class RealBank:
    """What serves, and what can be sent to it.

    Attributes:
        bank: All levels of all stages.
        samples: Of the profile.
    """

    bank: StandInBank
    samples: ShownSamples


def open_real(trained: TrainedBank, profile: PrecisionProfile) -> RealBank:
    """Make a bank ready to serve the streams of a profile.

    Args:
        trained: The bank.
        profile: Made from held-out samples of this bank.

    Raises:
        ConfigError: The profile is of another bank, or of other samples.
    """
    own = trained.bank
    for what, profiled, here in (
        ("network", profile.network, trained.name),
        ("stages", profile.stages, own.stages),
        ("levels", profile.levels, tuple(level.name for level in own.levels)),
        ("batch sizes", profile.buckets, own.buckets),
    ):
        if profiled != here:
            raise _another(f"has the {what} {_say(profiled)}, the bank {_say(here)}")
    part = trained.data.validation.first(profile.n_samples)
    if not np.array_equal(part.y, profile.truth):
        raise _another("was made from other samples than the held-out ones of this bank")
    real = RealBank(StandInBank(trained.bank), ShownSamples(part, profile.conditions))
    _check_answers(real, profile)
    return real


def _check_answers(real: RealBank, profile: PrecisionProfile) -> None:
    """Refuse a profile of another training of the network."""
    x = real.samples.of(0)[:_COMPARED]
    classes, _ = answers_of(real.bank.run(x, (0,) * len(profile.stages)))
    same = float((classes == profile.label[0, 0, : len(classes)]).mean())
    if same < _SAME:
        raise _another(
            f"shares {100 * same:.0f} % of its answers with the bank: the network was trained anew"
        )


def _another(how: str) -> ConfigError:
    return ConfigError(
        f"env.held_out_profile is of another bank: it {how}; run `python -m experiments.calibrate` "
        "with the same network, size and bank, and give its profiles"
    )


def _say(value: str | tuple[Any, ...]) -> str:
    return value if isinstance(value, str) else ", ".join(map(str, value))


def episode_requests(world: StagedPrecisionConfig, episode: Episode) -> Requests:
    """Return the requests that the simulator serves in an episode of a world.

    Args:
        world: With the profile whose samples are sent.
        episode: Which one.

    Raises:
        ConfigError: No request arrives.
    """
    keys, starts = episode.alone()
    counts = world.workload.arrivals.counts(keys, starts, world.n_ticks)[0]
    if not counts.any():
        raise ConfigError(
            f"no request arrives in the {world.horizon_s:g} s from tick {episode.start} on; "
            "lengthen size.drive.seconds or raise workload.load"
        )
    segments = world.workload.conditions.segments(keys, world.horizon_s)
    tick_s, n = world.workload.arrivals.tick_s, world.profile.n_samples
    return requests_of(episode.key, counts, tick_s, segments, n)


def pace(real: RealBank, world: StagedPrecisionConfig) -> float:
    """Return how long full batches of the safe plan take now, over what the profile says.

    They are served, not only passed through the bank: what else a server does does not always get
    faster and slower with the passes. 1 on a machine that is as it was when it was profiled. Shared
    machines are not: on one, passes took 0.76 to 1.25 times as long as profiled within an hour.

    Args:
        real: Serves.
        world: With the profile, the safe plan and the largest batch.
    """
    profile, size, plan = world.profile, world.serving.max_batch, world.safe_plan
    expected_s = profile.predict_latency_s(plan.levels, size)
    n = size * max(round(_PACED_S / expected_s), 3)
    nothing = np.zeros(n, dtype=np.int64)
    requests = Requests(np.zeros(n), np.arange(n) % profile.n_samples, nothing)
    serving = replace(world.serving, deadline_s=1e6, drop=Drop.NEVER, shadow_fraction=0.0)
    agent = Constant("pace", plan)
    served = _serve(real, replace(world, serving=serving), agent, requests, 1.0).served
    start_s = served.reports[:, REPORT_INDEX["start_s"]]
    return float(np.median(np.diff(start_s))) / expected_s


def serve_for_real(
    real: RealBank,
    world: StagedPrecisionConfig,
    agent: PrecisionAgent,
    requests: Requests,
    second_s: float = 1.0,
) -> RealRun:
    """Serve requests in real time, after a moment that nobody counts.

    Args:
        real: Serves.
        world: Rules of serving, guards and safe plan.
        agent: Decides; its past is forgotten before.
        requests: What arrives.
        second_s: How long a second of the stream lasts: the machine's pace plays it as fast, for
            this machine, as it was on the one that was profiled.

    Raises:
        RuntimeError: A request was served twice, or never.
    """
    n = min(WARM_UP_REQUESTS, len(requests.arrival_s))
    soon_s = np.arange(n) * _WARM_UP_GAP_S
    warm_up = Requests(soon_s, requests.sample[:n], requests.condition[:n])
    _serve(real, world, agent, warm_up, second_s)
    # What lives by now lives on: without it a collection of garbage stops serving for long.
    gc.collect()
    gc.freeze()
    try:
        run = _serve(real, world, agent, requests, second_s)
    finally:
        gc.unfreeze()
    check_served(run.served, len(requests.arrival_s))
    return run


def _serve(
    real: RealBank,
    world: StagedPrecisionConfig,
    agent: PrecisionAgent,
    requests: Requests,
    second_s: float,
) -> RealRun:
    serving, layout = world.serving, world.scale().signals
    guards = PrecisionGuards(world.guards, world.bank_tables(), world.safe_plan, layout)
    agent.reset()
    with ShadowCheck(
        real.bank,
        layout.n_stages,
        serving.shadow_fraction,
        serving.shadow_window,
        serving.shadow_queue,
    ) as shadow:
        server = PrecisionServer(real.bank, agent, guards, serving, shadow)
        served = server.serve(real.samples.stream(requests), layout, second_s=second_s)
        return RealRun(served, shadow.skipped, shadow.failed)


def check_served(served: Served, expected: int) -> None:
    """Refuse a run that lost or doubled a request.

    Args:
        served: What became of the stream.
        expected: How many requests there were.

    Raises:
        RuntimeError: Says which counts disagree.
    """
    columns = [REPORT_INDEX[name] for name in ("first_request", "requests", "dropped")]
    first, requests, dropped = served.reports[:, columns].astype(np.int64).T
    twice = first[1:] < (first + requests)[:-1]
    answered = int(np.isfinite(served.latency_s).sum())
    if twice.any() or answered != requests.sum() or expected != (requests + dropped).sum():
        raise RuntimeError(
            f"{expected} requests arrived and {answered} were answered; the reports hold "
            f"{requests.sum()} answered and {dropped.sum()} dropped: the counts do not add up"
        )


def predict(world: StagedPrecisionConfig, agent: PrecisionAgent, episode: Episode) -> Streams:
    """Run the same episode in the simulator.

    Args:
        world: The world.
        agent: Decides; its past is forgotten before.
        episode: Which one.
    """
    alone = Separately(lambda k: agent, decides=decides(agent))
    return run_streams(world, alone, episode.alone())
