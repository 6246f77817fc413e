"""Export an agent as a bundle: `python -m experiments.export agent=ppo seed=0 export.to=<folder>`.

`export.agent=static_best` exports a tuned constant plan instead. Either must have been made before
with the same settings (`python -m experiments.train`). What was written is loaded again and
compared.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from agents.export import ExportError, bundle_of
from experiments.cli import run_main
from experiments.console import say
from experiments.errors import ConfigError, unknown_name
from experiments.provenance import provenance
from experiments.record import COMPLETE, load_run, run_path
from experiments.roster import LEARNED, TUNED_NAMES
from experiments.training import BUNDLE, TUNED, training_part, with_agent
from experiments.worlds import Part, build_world, settled
from runtime.plan import Plan
from runtime.policy import Bundle, Network

CODE_ONLY = {
    "random": "it is code, not data; put it into drive.agents instead",
    "clairvoyant": "it knows the future, which no deployed agent does",
    "hindsight_search": "it knows the future, which no deployed agent does",
}
"""Why some agents have no bundle."""


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
    name = str(config.export.agent or config.agent.name)
    if name in CODE_ONLY:
        raise ConfigError(f"{name} cannot be exported: {CODE_ONLY[name]}")
    if name == LEARNED:
        bundle = Bundle.load(_finished(training_part(config)) / BUNDLE)
    elif name in TUNED_NAMES:
        bundle = _constant(config, name)
    else:
        raise unknown_name("agent to export (export.agent)", name, (LEARNED, *TUNED_NAMES))
    bundle.save(folder)
    if not _equal(Bundle.load(folder).policy, bundle.policy):
        raise ExportError(f"{folder} does not hold the policy that was exported; do not use it")
    return folder


def _constant(config: DictConfig, name: str) -> Bundle:
    """Return the bundle of a tuned constant plan."""
    tuning = with_agent(config, "constants")
    path = _finished(tuning)
    tuned = json.loads((path / TUNED).read_text(encoding="utf-8"))
    if name not in tuned:
        raise ConfigError(f"export.agent is {name!r}; tuned were {', '.join(tuned)}")
    origin = provenance() | {"config": load_run(path).config, "tuned": tuned[name]}
    world = build_world(config, Part.TRAIN)
    return bundle_of(name, Plan.from_mapping(tuned[name]["plan"]), world, origin)


def _finished(config: DictConfig) -> Path:
    path = run_path(config)
    if not (path / COMPLETE).exists():
        raise ConfigError(
            f"{config.agent.name} has not been made with these settings (no finished run in "
            f"{path}); run `python -m experiments.train agent={config.agent.name} "
            f"seed={config.seed}` with the same settings first"
        )
    return path


def _equal(left: Network | Plan, right: Network | Plan) -> bool:
    if isinstance(left, Network) and isinstance(right, Network):
        arrays: list[list[Any]] = [[a for pair in n.layers for a in pair] for n in (left, right)]
        return all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True))
    return left == right


def task(config: DictConfig) -> None:
    """Export, then say how the bundle is used."""
    folder = export(settled(config, say))
    bundle = Bundle.load(folder)
    kind = "one plan" if isinstance(bundle.policy, Plan) else "a network"
    say(f"wrote {folder}: {bundle.name}, {kind}, one decision every {bundle.period_s:g} s")
    say(
        f"to drive with it: python -m experiments.drive 'drive.agents=[\"{folder.resolve()}\"]' ..."
    )


if __name__ == "__main__":
    run_main(task)
