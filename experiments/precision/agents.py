"""The kinds of agents of staged precision that can be made."""

from __future__ import annotations

from collections.abc import Callable

from omegaconf import DictConfig

from experiments.precision.learning import check_start, learn, read_preset
from experiments.precision.tuning import tune_rules
from experiments.precision.worlds import build_world
from experiments.record import RunFolder
from experiments.training import Report
from experiments.workloads import Part

KINDS: dict[str, Callable[[DictConfig, RunFolder, Report], None]] = {
    "rules": tune_rules,
    "learned": learn,
}
"""What makes an agent, by the key `agent.kind`."""


def check_agent(config: DictConfig, part: Part) -> None:
    """Refuse the configuration of an agent that could not be made, before anything is written.

    Raises:
        ConfigError: Names the key.
    """
    build_world(config, part)
    if config.agent.get("kind") == "learned":
        read_preset(config.agent)
        check_start(config.agent)
