"""From a configuration to a simulated world, and to the episodes that everybody is evaluated on.

The nodes `env`, `application` and `workload` describe a world completely; measured data is found
through `data.root`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from omegaconf import DictConfig, OmegaConf

from agents.api import Episodes
from envs.cluster.config import CAPACITY_INTERVAL_S, StreamClusterConfig
from envs.cluster.reward import RewardWeights
from experiments.cli import DATA_VARIABLE, data_root
from experiments.errors import REPOSITORY, ConfigError, unknown_name
from experiments.schema import check_keys, plain_node, read_node
from experiments.workloads import (
    Part,
    Stretch,
    TraceWorkload,
    Workload,
    read_workload,
    shipped_workload,
)
from runtime.application import Application
from runtime.cluster.actions import ActionCodec, FieldActions, action_codec
from runtime.guards import GuardLimits
from runtime.plan import Plan
from simulators.cluster.application_config import parse_application
from simulators.cluster.bounds import capacity_per_s
from simulators.cluster.profile import Profile
from simulators.cluster.tpch import TpchScale, read_tpch

# Entropy of the evaluation episodes: a constant, so that no seed of a run changes them.
_EVALUATION_ENTROPY = 0x5248454F53544154


@dataclass(frozen=True)
class StreamClusterNode:
    """The node `env` of a stream cluster.

    Attributes:
        name: What the environment is called in run folders.
        slots: Worker slots; None: as many as the costs were measured or declared with.
        profile: File of a measured profile, looked for in the working directory and then in the
            repository; None: the costs of the application's file.
        period_s: Seconds between decisions.
        horizon_s: Length of an episode, seconds.
        max_open: Batches that may be open.
        initial_plan: Fields of the plan at the start.
        actions: What `action_codec` reads.
        guards: Fields of `GuardLimits`; null is infinity.
        reward: Weights of the reward.
    """

    name: str
    slots: int | None
    profile: str | None
    period_s: float
    horizon_s: float
    max_open: int
    initial_plan: dict[str, Any]
    actions: dict[str, Any]
    guards: dict[str, Any]
    reward: RewardWeights = field(default_factory=RewardWeights)


@dataclass(frozen=True)
class TpchQuery:
    """The key `query` of an application of kind tpch.

    Attributes:
        size: Input size as in the file, for instance "10g".
        number: Number of the query, for instance "7".
    """

    size: str
    number: str


def build_world(config: DictConfig, part: Part) -> StreamClusterConfig:
    """Build the world that a configuration describes.

    Args:
        config: With the nodes `env`, `application`, `workload` and `data`; left as it is.
        part: Which part of the workload's time episodes start in. Training episodes also draw from
            the workload's `load_factors`; held-out ones have the stated load.

    Returns:
        The world; `starts` covers the whole part.

    Raises:
        ValueError: A key, name or value is wrong, a file is missing, or the part is too short for
            an episode; the message names the place and how to mend it.
    """
    config = settled(config)
    env = read_node(StreamClusterNode, config.env, "env")
    application, profile = application_of(config)
    if env.profile is not None:
        profile = Profile.load(profile_path(env.profile))
        profile.check_covers(application)
    slots = profile.slots if env.slots is None else env.slots
    if slots < 1:
        raise ConfigError(f"env.slots is {slots}; expected at least 1")
    workload = read_workload(config.workload)
    capacity = capacity_per_s(application, profile, slots, CAPACITY_INTERVAL_S)
    if not 0.0 < capacity < math.inf:
        raise ConfigError(
            f"{slots} slots carry {capacity:g} records/s of {application.name} at an interval of "
            f"{CAPACITY_INTERVAL_S:g} s, so no load can be set; change env.slots or the costs"
        )
    stretch = workload.stretch(part, capacity, data_root(config))
    world = StreamClusterConfig(
        application=application,
        profile=profile,
        slots=slots,
        arrivals=stretch.arrivals,
        load_factors=tuple(workload.load_factors) if part is Part.TRAIN else (1.0,),
        period_s=env.period_s,
        horizon_s=env.horizon_s,
        max_open=env.max_open,
        initial_plan=_plan(env.initial_plan),
        actions=_actions(env.actions),
        guards=_guards(env.guards),
        reward=env.reward,
    )
    return replace(world, starts=starts_of(workload, part, stretch, world.n_ticks))


def evaluation_episodes(config: DictConfig, part: Part, n: int) -> Episodes:
    """Return the same n episodes to everybody who asks: common random numbers.

    Args:
        config: See `build_world`; its seed plays no part.
        part: TRAIN to tune constants on, HELD_OUT to report.
        n: Number of episodes, at least 1.

    Returns:
        Keys uint64 [n] and starts int64 [n], evenly spaced over the part (one alone: its middle).

    Raises:
        ValueError: n below 1, or see `build_world`.
    """
    return spaced_episodes(build_world(config, part).starts, part, n)


def spaced_episodes(starts: tuple[int, int], part: Part, n: int) -> Episodes:
    """Return n episodes evenly spaced over a part; see `evaluation_episodes`.

    Args:
        starts: First and last tick at which an episode of the part may start.
        part: Which part: each has its own keys.
        n: Number of episodes.

    Raises:
        ConfigError: n is below 1.
    """
    if n < 1:
        raise ConfigError(f"{n} evaluation episodes were asked for; expected at least 1")
    first, last = starts
    places = np.linspace(first, last, n) if n > 1 else np.array([(first + last) / 2])
    position = list(Part).index(part)
    sequence = np.random.SeedSequence(_EVALUATION_ENTROPY, spawn_key=(position,))
    keys = sequence.generate_state(n, np.uint64).astype(np.uint64)
    return Episodes(keys, places.astype(np.int64))


def settled(config: DictConfig, say: Callable[[str], None] = print) -> DictConfig:
    """Return the configuration of what will really run: the fallback of a trace that is not there.

    A command settles its configuration before it opens a run folder, so that the saved
    configuration tells which arrivals were used, and gives the same ones everywhere or an error.

    Args:
        config: A composed configuration; left as it is.
        say: Told about a fallback, once per call that finds one.

    Returns:
        A copy. A trace workload has lost its `fallback`: it is replayed, or (no data root) has been
        replaced by the fallback at the same load.

    Raises:
        ConfigError: The fallback is no synthetic workload, or see `read_workload`.
    """
    workload = read_workload(config.workload)
    if not isinstance(workload, TraceWorkload) or workload.fallback is None:
        return config
    result = copy.deepcopy(config)
    if data_root(config) is not None:
        result.workload.fallback = None
        return result
    content = shipped_workload(workload.fallback) | {
        "load": workload.load,
        "load_factors": list(workload.load_factors),
    }
    if isinstance(read_workload(content), TraceWorkload):
        raise ConfigError(
            f"workload.fallback is {workload.fallback!r}, a trace too; name a synthetic workload"
        )
    say(
        f"no data root is set ({DATA_VARIABLE} or data.root): {workload.fallback} stands in for "
        f"{workload.name}"
    )
    OmegaConf.update(result, "workload", content, merge=False)
    return result


def restored(saved: Mapping[str, Any] | DictConfig) -> DictConfig:
    """Return a saved configuration, which knows no folders, with this machine's data root.

    Args:
        saved: The content of a run folder's config.yaml.
    """
    node = saved if isinstance(saved, DictConfig) else OmegaConf.create(dict(saved))
    root = {"data": {"root": f"${{oc.env:{DATA_VARIABLE},null}}"}}
    return cast("DictConfig", OmegaConf.merge(node, root))


def _declared(content: dict[str, Any], config: DictConfig) -> tuple[Application, Profile]:
    return parse_application(content)


def _tpch(content: dict[str, Any], config: DictConfig) -> tuple[Application, Profile]:
    check_keys(content, "application", ("name", "query", "scale"), ("name", "query", "scale"))
    query = read_node(TpchQuery, content["query"], "application.query")
    scale = read_node(TpchScale, content["scale"], "application.scale")
    return read_tpch(data_root(config), query.size, query.number, scale)


APPLICATIONS: dict[str, Callable[[dict[str, Any], DictConfig], tuple[Application, Profile]]] = {
    "declared": _declared,
    "tpch": _tpch,
}
"""Builders of applications by the key `kind`; without one the costs are declared in the file."""


def application_of(config: DictConfig) -> tuple[Application, Profile]:
    """Return the configured application with its declared costs.

    Raises:
        ConfigError: The kind of application is unknown, or see its builder.
    """
    content = plain_node(config.application, "application")
    kind = str(content.pop("kind", "declared"))
    if kind not in APPLICATIONS:
        raise unknown_name("application.kind", kind, APPLICATIONS)
    return APPLICATIONS[kind](content, config)


def profile_path(
    setting: str,
    key: str = "env.profile",
    command: str = "measure",
    otherwise: str = "declared costs",
) -> Path:
    """Return the file of measured costs that a setting names.

    Args:
        setting: A path, from the working directory or from the repository.
        key: The setting's name, for messages.
        command: What makes such files.
        otherwise: What is used where the setting is null.

    Raises:
        ConfigError: There is no such file.
    """
    path = Path(setting).expanduser()
    for candidate in (path, REPOSITORY / path):
        if candidate.is_file():
            return candidate
    raise ConfigError(
        f"{key} is {setting!r}, which is no file; make a profile with "
        f"`python -m experiments.{command}`, or set it to null to use the {otherwise}"
    )


def _plan(node: dict[str, Any]) -> Plan:
    check_keys(node, "env.initial_plan", [f.name for f in fields(Plan)])
    try:
        return Plan.from_mapping(node)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"env.initial_plan: {error}") from error


def _actions(node: dict[str, Any]) -> ActionCodec:
    if node.get("kind") == "fields":
        names = [f.name for f in fields(FieldActions)]
        check_keys(node, "env.actions", ["kind", *names], names)
    try:
        return action_codec(node)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"env.actions: {error}") from error


def _guards(node: dict[str, Any]) -> GuardLimits:
    values = {key: math.inf if value is None else value for key, value in node.items()}
    return read_node(GuardLimits, values, "env.guards")


def starts_of(workload: Workload, part: Part, stretch: Stretch, n_ticks: int) -> tuple[int, int]:
    """Return the first and last tick at which an episode of a part may start.

    Args:
        workload: For the message.
        part: Which part.
        stretch: The part's ticks.
        n_ticks: Length of an episode.

    Raises:
        ConfigError: The part is shorter than an episode.
    """
    last = stretch.end_tick - n_ticks
    if last < stretch.first_tick:
        tick_s, ticks = workload.tick_s, stretch.end_tick - stretch.first_tick
        raise ConfigError(
            f"the {part.value} part of workload {workload.name} has {ticks * tick_s:g} s; an "
            f"episode needs {n_ticks * tick_s:g} s: shorten env.horizon_s, or stretch the "
            "workload's time"
        )
    return stretch.first_tick, last
