"""The kinds of agents of staged precision that can be made."""

from __future__ import annotations

from collections.abc import Callable

from omegaconf import DictConfig

from experiments.precision.learning import learn
from experiments.precision.tuning import tune_rules
from experiments.record import RunFolder
from experiments.training import Report

KINDS: dict[str, Callable[[DictConfig, RunFolder, Report], None]] = {
    "rules": tune_rules,
    "learned": learn,
}
"""What makes an agent, by the key `agent.kind`."""
