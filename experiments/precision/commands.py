"""The command that makes a result again, with all that its configuration has otherwise."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from experiments.cli import CONF

ENVIRONMENT = "staged_precision"
_BANK = ("network", "bank", "calibration", "size.network", "size.latencies")
_STREAMS = (*_BANK, "seed", "drive", "env", "workload", "size.precision")
"""What a bank and its streams depend on."""
_CHOSEN_BY_THE_FLOW = {"env.network", "env.profile", "env.held_out_profile", "env.stream"}


def bank_command(config: DictConfig) -> str:
    """Return the command that calibrates and records a network.

    Args:
        config: A settled configuration, with `network` and `size`.
    """
    words = [f"network={config.network.name}", "record=true", *_changed(config, _BANK)]
    return f'make calibrate SIZE=paper ARGS="{" ".join(words)}"'


def stream_command(config: DictConfig, goal: str = "reproduce") -> str:
    """Return the command that makes the streams of a network.

    Args:
        config: A settled configuration with `env=staged_precision`.
        goal: Of the Makefile.
    """
    words = [f"env={ENVIRONMENT}", f"network={config.network.name}"]
    if config.workload.name != _usual_workload():
        words.append(f"workload={config.workload.name}")
    words += _changed(config, _STREAMS)
    record = " record=true" if config.record else ""
    return f'make {goal} SIZE={config.size.name}{record} ARGS="{" ".join(words)}"'


def _usual_workload() -> str:
    """Return the workload that the environment chooses."""
    choices = _environment().defaults
    return next(str(c["override /workload"]) for c in choices if "override /workload" in c)


def _environment() -> DictConfig:
    return cast("DictConfig", OmegaConf.load(CONF / "env" / f"{ENVIRONMENT}.yaml"))


def _usual(config: DictConfig) -> DictConfig:
    """Return what the groups of a configuration hold where nothing is overridden."""
    root = OmegaConf.load(CONF / "config.yaml")
    usual = cast("DictConfig", OmegaConf.merge(root, _environment()))
    for group in ("size", "network", "workload"):
        path = CONF / group / f"{config[group].name}.yaml"
        usual[group] = OmegaConf.load(path) if path.exists() else config[group]
    return usual


def _changed(config: DictConfig, places: Iterable[str]) -> list[str]:
    """Return overrides that turn the usual configuration into another, ready for a shell."""
    usual = _usual(config)
    words = []
    for place in places:
        node = OmegaConf.select(config, place)
        words += _overrides(place, node, OmegaConf.select(usual, place))
    return [shlex.quote(word) for word in words]


def _overrides(place: str, value: Any, usual: Any) -> Iterator[str]:
    if place in _CHOSEN_BY_THE_FLOW or value == usual:
        return
    if isinstance(value, DictConfig) and isinstance(usual, DictConfig):
        for key, own in value.items():
            yield from _overrides(f"{place}.{key}", own, usual.get(key))
    else:
        yield f"{place}={_spelled(value)}"


def _spelled(value: Any) -> str:
    """Return a value in Hydra's grammar."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_spelled(own)}" for key, own in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_spelled, value)) + "]"
    if isinstance(value, str):
        return re.sub(r"[\\,:=()\[\]{}]", r"\\\g<0>", value)
    return "null" if value is None else str(value)
