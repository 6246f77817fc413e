"""Which domain a configuration is of: every command serves both."""

from __future__ import annotations

from enum import Enum

from omegaconf import DictConfig

from experiments.errors import unknown_name


class Domain(Enum):
    """What is controlled, by the key `env.domain`."""

    CLUSTER = "cluster"
    PRECISION = "precision"


def domain_of(config: DictConfig) -> Domain:
    """Return the domain of a configuration; without the key it is a cluster.

    Raises:
        ConfigError: There is no such domain.
    """
    name = str(config.env.get("domain", Domain.CLUSTER.value))
    known = [domain.value for domain in Domain]
    if name not in known:
        raise unknown_name("env.domain", name, known)
    return Domain(name)
