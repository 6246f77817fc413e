"""Export an agent as a bundle: `python -m experiments.export agent=ppo seed=0 export.to=<folder>`.

`export.agent=static_best` exports a tuned constant plan instead. Either must have been made before
with the same settings (`python -m experiments.train`). What was written is loaded again and
compared. With `env=staged_precision agent=precision/ppo` it is a bundle for precision servers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from agents.export import ExportError, bundle_of
from experiments.cli import run_main
from experiments.console import say
from experiments.domains import Domain, domain_of
from experiments.errors import ConfigError, unknown_name
from experiments.precision.exporting import REACTIVE, bundle_to_export
from experiments.precision.summary import SEARCHED
from experiments.provenance import provenance
from experiments.roster import LEARNED, TUNED_NAMES
from experiments.training import BUNDLE, finished_run, read_tuned, training_part, with_agent
from experiments.worlds import Part, build_world, settled
from runtime.networks import RecurrentNetwork
from runtime.plan import Plan
from runtime.policy import Bundle, Network
from runtime.precision.policy import PrecisionBundle

_CODE = "it is code, not data; put it into drive.agents instead"
_FUTURE = "it knows the future, which no deployed agent does"
CODE_ONLY = {
    Domain.CLUSTER: {"random": _CODE, "clairvoyant": _FUTURE, "hindsight_search": _FUTURE},
    Domain.PRECISION: dict.fromkeys(REACTIVE, _CODE) | dict.fromkeys(SEARCHED, _FUTURE),
}
"""Why some agents of a domain have no bundle."""


def export(config: DictConfig) -> Path:
    """Write the bundle of a finished run of a settled configuration.

    Args:
        config: With `export.to`, a folder that does not exist yet, and `export.agent`, or the
            agent of the group `agent` where that is null.

    Returns:
        The folder.

    Raises:
        ConfigError: No or a wrong setting, or the agent has not been made.
        BundleError: The run's bundle is not usable.
        ExportError: What was written is not what should have been.
    """
    if config.export.to is None:
        raise ConfigError("export.to is null; give the folder that the bundle shall be written to")
    folder = Path(str(config.export.to)).expanduser()
    if folder.exists():
        raise ConfigError(f"export.to is {str(folder)!r}, which exists; name another folder")
    name, domain = str(config.export.agent or config.agent.name), domain_of(config)
    if name in CODE_ONLY[domain]:
        raise ConfigError(f"{name} cannot be exported: {CODE_ONLY[domain][name]}")
    find = bundle_to_export if domain is Domain.PRECISION else _bundle
    bundle = find(config, name)
    bundle.save(folder)
    if not _equal(type(bundle).load(folder).policy, bundle.policy):
        raise ExportError(f"{folder} does not hold the policy that was exported; do not use it")
    return folder


def _bundle(config: DictConfig, name: str) -> Bundle:
    """Return the bundle of an agent of a cluster that has been made."""
    if name == LEARNED:
        return Bundle.load(finished_run(training_part(config)).path / BUNDLE)
    if name in TUNED_NAMES:
        return _constant(config, name)
    raise unknown_name("agent to export (export.agent)", name, (LEARNED, *TUNED_NAMES))


def _constant(config: DictConfig, name: str) -> Bundle:
    """Return the bundle of a tuned constant plan."""
    run = finished_run(with_agent(config, "constants"))
    tuned = read_tuned(run)
    if name not in tuned:
        raise ConfigError(f"export.agent is {name!r}; tuned were {', '.join(tuned)}")
    origin = provenance() | {"config": run.config, "tuned": tuned[name]}
    world = build_world(config, Part.TRAIN)
    return bundle_of(name, Plan.from_mapping(tuned[name]["plan"]), world, origin)


def _equal(left: Any, right: Any) -> bool:
    """Tell whether two policies, networks or constant plans, are the same."""
    if isinstance(left, Network | RecurrentNetwork) and type(left) is type(right):
        ours, theirs = left.tensors(), right.tensors()
        same_names = ours.keys() == theirs.keys()
        return same_names and all(np.array_equal(ours[name], theirs[name]) for name in ours)
    return bool(left == right)


def task(config: DictConfig) -> None:
    """Export, then say how the bundle is used."""
    folder = export(settled(config, say))
    bundle: Bundle | PrecisionBundle
    if domain_of(config) is Domain.PRECISION:
        bundle = PrecisionBundle.load(folder)
        when, env = "for every batch", f"env={config.env.name} "
    else:
        bundle = Bundle.load(folder)
        when, env = f"every {bundle.period_s:g} s", ""
    networks = isinstance(bundle.policy, Network | RecurrentNetwork)
    kind = "a network" if networks else "one plan"
    say(f"wrote {folder}: {bundle.name}, {kind}, one decision {when}")
    words = f"{env}'drive.agents=[\"{folder.resolve()}\"]' ..."
    say(f"to drive with it: python -m experiments.drive {words}")


if __name__ == "__main__":
    run_main(task)
