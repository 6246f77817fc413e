"""From a configuration to a simulated precision server, and to the episodes of its evaluation.

The nodes `env` and `workload` describe a world completely. What is held out: other samples, later
arrivals, other keys.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig

from agents.api import Episodes
from agents.precision.known import known_of
from agents.precision.tables import verified_tables
from envs.precision.config import StagedPrecisionConfig
from envs.precision.reward import PrecisionWeights
from experiments.cli import data_root
from experiments.errors import ConfigError, unknown_name
from experiments.schema import read_node
from experiments.workloads import (
    Part,
    Stretch,
    SyntheticWorkload,
    Workload,
    read_workload,
)
from experiments.worlds import profile_path, settled, spaced_episodes, starts_of
from runtime.precision.actions import ActionCodec, LevelActions
from runtime.precision.guard_tables import Conflict, PrecisionLimits
from runtime.precision.plan import PrecisionPlan
from runtime.precision.serving import Drop, Serving
from simulators.precision.profile import PrecisionProfile
from simulators.precision.synthetic import SyntheticParameters, synthetic_profile
from simulators.precision.workload import (
    ConditionSchedule,
    ListedConditions,
    PrecisionWorkload,
    Stream,
    SwitchingConditions,
)

CALIBRATION = "calibration.json"
"""Beside a profile: who chose which levels."""
DEADLINE_BATCHES = 3.0
"""Deadline where none is given, in full batches of the safe plan: a request may just miss one batch
and be served in the next, with the time of one more to spare."""

E = TypeVar("E", bound=Enum)


@dataclass(frozen=True)
class ConditionsNode:
    """Mean length of the stretches of a drifting stream.

    Attributes:
        clean_s: Of clean inputs, seconds.
        corrupted_s: Of corrupted ones, seconds.
    """

    clean_s: float = 12.0
    corrupted_s: float = 8.0


@dataclass(frozen=True)
class TablesNode:
    """The node `actions` of kind tables; see `agents.precision.tables.verified_tables`.

    Attributes:
        kind: tables.
        most: Longest list.
        margins: Margins of the cascades.
    """

    kind: str
    most: int
    margins: list[float]


@dataclass(frozen=True)
class LevelsNode:
    """The node `actions` of kind levels; see `runtime.precision.actions.LevelActions`.

    Attributes:
        kind: levels.
        escalate_below: Margins on offer for the second pass.
        escalate_levels: Level names of the second pass: one for all stages, or one per stage.
    """

    kind: str
    escalate_below: list[float] = field(default_factory=lambda: [0.0])
    escalate_levels: list[str] | None = None


@dataclass(frozen=True)
class GuardsNode:
    """The node `guards`; see `runtime.precision.guard_tables.PrecisionLimits`.

    Attributes:
        finest: Level names, one for all stages or one per stage; null: no limit.
        coarsest: As `finest`.
        accuracy_floor: Lowest accuracy of an assignment.
        latency_target_s: Highest mean service time of a batch, seconds; null: infinity.
        conflict: accuracy_first or deadline_first.
        dwell_s: Minimum time between opposite moves of a stage, seconds.
        dwell_requests: Minimum number of requests between them.
    """

    finest: list[str] | None = None
    coarsest: list[str] | None = None
    accuracy_floor: float = 0.0
    latency_target_s: float | None = None
    conflict: str = Conflict.ACCURACY_FIRST.value
    dwell_s: float = 0.0
    dwell_requests: int = 0


@dataclass(frozen=True)
class StagedPrecisionNode:
    """The node `env` of a precision server; conf/env/staged_precision.yaml explains the keys."""

    name: str
    domain: str
    network: str | None
    profile: str | None
    held_out_profile: str | None
    stream: str
    deadline_s: float | None
    max_batch: int
    drop: str
    horizon_s: float
    safe: Any
    actions: dict[str, Any]
    shadow_fraction: float
    hidden: list[str] = field(default_factory=list)
    conditions: ConditionsNode = field(default_factory=ConditionsNode)
    guards: GuardsNode = field(default_factory=GuardsNode)
    reward: PrecisionWeights = field(default_factory=PrecisionWeights)


def build_world(config: DictConfig, part: Part) -> StagedPrecisionConfig:
    """Build the world that a configuration describes.

    Args:
        config: With the nodes `env`, `workload` and `data`; left as it is.
        part: TRAIN: samples of `env.profile`, earlier arrivals, and the workload's `load_factors`.
            HELD_OUT: samples of `env.held_out_profile`, later arrivals, the stated load; agents
            and guards know what was calibrated all the same.

    Returns:
        The world; `starts` covers the whole part.

    Raises:
        ValueError: A key, name or value is wrong, a file is missing, or the part is too short for
            an episode; the message names the place and how to mend it.
    """
    config = settled(config)
    node = read_node(StagedPrecisionNode, config.env, "env")
    calibrated, held_out = _profiles(node)
    workload = read_workload(config.workload)
    safe = _safe_plan(node, calibrated)
    if not 1 <= node.max_batch <= calibrated.buckets[-1]:
        raise ConfigError(
            f"env.max_batch is {node.max_batch}; expected 1 to {calibrated.buckets[-1]}, the "
            "profile's largest batch"
        )
    capacity = calibrated.capacity_per_s(safe.levels, node.max_batch)
    stream = _named(Stream, node.stream, "env.stream")
    varies = stream in (Stream.BURST, Stream.BOTH)
    source = workload if varies else _constant(workload)
    stretch = source.stretch(part, capacity, data_root(config))
    batch_s = calibrated.predict_latency_s(safe.levels, node.max_batch)
    deadline_s = DEADLINE_BATCHES * batch_s if node.deadline_s is None else node.deadline_s
    world = StagedPrecisionConfig(
        profile=calibrated if part is Part.TRAIN else held_out,
        calibrated=calibrated,
        workload=_stream(stream, node, stretch, calibrated),
        serving=Serving(
            deadline_s,
            node.max_batch,
            drop=_named(Drop, node.drop, "env.drop"),
            shadow_fraction=node.shadow_fraction,
        ),
        safe_plan=safe,
        actions=LevelActions(len(calibrated.stages), len(calibrated.levels)),
        guards=_guards(node.guards, calibrated),
        reward=node.reward,
        load_factors=tuple(workload.load_factors) if part is Part.TRAIN else (1.0,),
        horizon_s=node.horizon_s,
        hidden=tuple(node.hidden),
    )
    starts = starts_of(source, part, stretch, world.n_ticks)
    world.scale()  # refuses unknown groups
    return replace(world, actions=_actions(node.actions, world), starts=starts)


def evaluation_episodes(config: DictConfig, part: Part, n: int) -> Episodes:
    """Return the same n episodes to everybody who asks: common random numbers.

    Args:
        config: See `build_world`; its seed plays no part.
        part: TRAIN to tune on, HELD_OUT to report.
        n: Number of episodes, at least 1.

    Returns:
        Keys uint64 [n] and starts int64 [n], evenly spaced over the part.

    Raises:
        ValueError: n below 1, or see `build_world`.
    """
    return spaced_episodes(build_world(config, part).starts, part, n)


def _profiles(node: StagedPrecisionNode) -> tuple[PrecisionProfile, PrecisionProfile]:
    """Return the calibrated and the held-out profile."""
    if node.profile is None:
        if node.held_out_profile is not None:
            raise ConfigError(
                f"env.held_out_profile is {node.held_out_profile!r} but env.profile is null; give "
                "both, or neither for the synthetic bank"
            )
        # Other samples of the same declared bank.
        calibrated, held_out = (synthetic_profile(SyntheticParameters(seed=k)) for k in (0, 1))
    else:
        calibrated = _profile(node.profile, "env.profile")
        held_out = calibrated
        if node.held_out_profile is not None:
            held_out = _profile(node.held_out_profile, "env.held_out_profile")
        if calibrated.conditions != held_out.conditions:
            raise ConfigError(
                f"env.profile has the conditions {list(calibrated.conditions)}, "
                f"env.held_out_profile {list(held_out.conditions)}; calibrate again"
            )
    if node.network not in (None, calibrated.network):
        raise ConfigError(
            f"env.network is {node.network!r}, but the profile is one of {calibrated.network!r}; "
            "give the profile of this network, or set env.network to null"
        )
    return calibrated, held_out


def _profile(setting: str, key: str) -> PrecisionProfile:
    return PrecisionProfile.load(profile_path(setting, key, "calibrate", "synthetic bank"))


def _safe_plan(node: StagedPrecisionNode, profile: PrecisionProfile) -> PrecisionPlan:
    """Return the plan that `env.safe` names."""
    if not isinstance(node.safe, str):
        return PrecisionPlan(_assignment(node.safe, profile, "env.safe"))
    if node.safe in profile.levels:
        return PrecisionPlan(profile.assignment(node.safe))
    if node.profile is None:
        return PrecisionPlan((max(len(profile.levels) - 2, 0),) * len(profile.stages))
    path = profile_path(node.profile).parent / CALIBRATION
    chosen = _chosen(path)
    own = [tuple(levels) for name, levels in chosen.items() if name.startswith(node.safe)]
    if node.safe in chosen:
        own = [tuple(chosen[node.safe])]
    if not own:
        who = {part for name in chosen for part in (name, name.split(",")[0])}
        raise unknown_name("chosen levels (env.safe)", node.safe, who | set(profile.levels))
    return PrecisionPlan(min(own, key=lambda a: profile.predict_latency_s(a, node.max_batch)))


def _chosen(path: Path) -> dict[str, list[int]]:
    """Return who chose which levels in a calibration."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))["chosen"]
        return {str(name): [int(level) for level in levels] for name, levels in content.items()}
    except FileNotFoundError as error:
        raise ConfigError(
            f"env.safe names who chose the safe levels, but there is no {path}; keep it beside the "
            "profile, or give env.safe as level names"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no calibration ({error}); calibrate again") from error


def _assignment(names: Any, profile: PrecisionProfile, where: str) -> tuple[int, ...]:
    """Return the levels that names give: one for all stages, or one per stage."""
    if not isinstance(names, Sequence) or not names:
        raise ConfigError(f"{where} is {names!r}; expected level names, of {list(profile.levels)}")
    try:
        return profile.assignment(*(str(name) for name in names))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _constant(workload: Workload) -> Workload:
    """Return constant arrivals at the load of a workload, split as a synthetic one is."""
    if isinstance(workload, SyntheticWorkload):
        return replace(workload, factors=[])
    return SyntheticWorkload(
        name=workload.name,
        kind="synthetic",
        load=workload.load,
        tick_s=workload.tick_s,
        train_fraction=workload.train_fraction,
        load_factors=workload.load_factors,
    )


def _stream(
    stream: Stream, node: StagedPrecisionNode, stretch: Stretch, profile: PrecisionProfile
) -> PrecisionWorkload:
    conditions: ConditionSchedule = ListedConditions()
    if stream in (Stream.DRIFT, Stream.BOTH):
        corrupted = tuple(range(1, len(profile.conditions)))
        if not corrupted:
            raise ConfigError(
                f"env.stream is {node.stream}, but the profile has no corrupted condition; "
                "calibrate with some (calibration.conditions), or choose steady or burst"
            )
        lengths = node.conditions
        try:
            conditions = SwitchingConditions(corrupted, lengths.clean_s, lengths.corrupted_s)
        except ValueError as error:
            raise ConfigError(f"env.conditions: {error}") from error
    return PrecisionWorkload(stream.value, stretch.arrivals, conditions)


def _actions(node: Mapping[str, Any], world: StagedPrecisionConfig) -> ActionCodec:
    """Return what agents choose from, as the calibrated bank has it."""
    profile, kind = world.known_profile, str(node.get("kind"))
    try:
        if kind == "tables":
            tables = read_node(TablesNode, node, "env.actions")
            return verified_tables(known_of(world), profile.levels, tables.margins, tables.most)
        if kind == "levels":
            # The keys of tables are there by default and mean nothing here.
            own = {k: v for k, v in node.items() if k not in ("most", "margins")}
            levels = read_node(LevelsNode, own, "env.actions")
            again = levels.escalate_levels
            return LevelActions(
                len(profile.stages),
                len(profile.levels),
                tuple(levels.escalate_below),
                () if again is None else _assignment(again, profile, "env.actions.escalate_levels"),
            )
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"env.actions: {error}") from error
    raise unknown_name("env.actions.kind", kind, ("tables", "levels"))


def _guards(node: GuardsNode, profile: PrecisionProfile) -> PrecisionLimits:
    finest, coarsest = (
        () if names is None else _assignment(names, profile, f"env.guards.{key}")
        for key, names in (("finest", node.finest), ("coarsest", node.coarsest))
    )
    target_s = math.inf if node.latency_target_s is None else node.latency_target_s
    try:
        return PrecisionLimits(
            finest=finest,
            coarsest=coarsest,
            accuracy_floor=node.accuracy_floor,
            latency_target_s=target_s,
            conflict=_named(Conflict, node.conflict, "env.guards.conflict"),
            dwell_s=node.dwell_s,
            dwell_requests=node.dwell_requests,
        )
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"env.guards: {error}") from error


def _named(kind: type[E], value: str, where: str) -> E:
    """Return the member of an enumeration with a value."""
    known = [str(member.value) for member in kind]
    if value not in known:
        raise unknown_name(where, value, known)
    return kind(value)
