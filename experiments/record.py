"""Run folders: every run leaves its configuration, its provenance and its rows in one place.

`results/runs/<size>/<study>/<env>/<agent>/<config hash>/seed=<k>/` holds

- `config.yaml`: what rebuilds the run alone;
- `provenance.json`: one entry for each time the run was started or resumed;
- what the run writes: rows, figures, bundles;
- `complete.json`: last of all. A folder without it is resumed, a folder with it is skipped.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from experiments.errors import REPOSITORY, ConfigError
from experiments.files import write_json, write_yaml
from experiments.provenance import provenance

CONFIG, PROVENANCE, COMPLETE = "config.yaml", "provenance.json", "complete.json"
NO_NODE = "none"

# Where a machine keeps things changes no result: saved as null, and read anew on each machine.
_MACHINE_KEYS = (("data", "root"), ("results", "root"))
# Seeds share a folder, and recording claims changes no run.
_UNHASHED_KEYS = (*_MACHINE_KEYS, ("seed",), ("record",))
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class RunFolderError(ConfigError):
    """A run folder that holds something else than the run it should hold."""


@dataclass(frozen=True)
class RunFolder:
    """An open run folder.

    Attributes:
        path: The folder.
        config: The portable configuration, as in its config.yaml.
    """

    path: Path
    config: dict[str, Any]

    @property
    def complete(self) -> bool:
        """Whether the run ended; a complete run is skipped."""
        return (self.path / COMPLETE).exists()

    def mark_complete(self) -> None:
        """Say that everything is written; call it last."""
        write_json(self.path / COMPLETE, {"date": datetime.now(UTC).isoformat(timespec="seconds")})


def portable_config(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """Resolve a configuration and take out what belongs to this machine.

    Args:
        config: A composed configuration, or plain nested values.

    Returns:
        Plain nested values; enums by name; `data.root` and `results.root`, where there, are None.

    Raises:
        omegaconf.errors.OmegaConfBaseException: If a value is missing or cannot be resolved.
    """
    container = OmegaConf.to_container(
        _node(config), resolve=True, throw_on_missing=True, enum_to_str=True
    )
    plain = cast("dict[str, Any]", container)
    for *parents, last in _MACHINE_KEYS:
        branch = _branch(plain, parents)
        if last in branch:
            branch[last] = None
    return plain


def config_hash(config: DictConfig | Mapping[str, Any]) -> str:
    """Identify a configuration.

    Args:
        config: A composed configuration, or plain nested values.

    Returns:
        12 hexadecimal digits of the SHA-256 over the portable configuration without `seed` and
        `record`; the order of keys does not matter.
    """
    plain = portable_config(config)
    for *parents, last in _UNHASHED_KEYS:
        _branch(plain, parents).pop(last, None)
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def results_root(config: DictConfig | Mapping[str, Any]) -> Path:
    """Return the folder of results: `results.root`, or results/ of this repository where null."""
    root = OmegaConf.select(_node(config), "results.root")
    return Path(str(root)).expanduser() if root else REPOSITORY / "results"


def run_path(config: DictConfig | Mapping[str, Any]) -> Path:
    """Return where a run belongs.

    Args:
        config: With `size.name` and `seed` (an int >= 0); `study.name`, `env.name` and `agent.name`
            are `none` where the configuration has no such node.

    Returns:
        `<results>/runs/<size>/<study>/<env>/<agent>/<config hash>/seed=<k>`; nothing is written.

    Raises:
        ConfigError: If a name cannot be a folder's name, or the seed is not an int >= 0.
    """
    plain = portable_config(config)
    seed = plain.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ConfigError(f"seed is {seed!r}; expected an int of at least 0")
    segments = [_segment(plain, group) for group in ("size", "study", "env", "agent")]
    return results_root(config).joinpath("runs", *segments, config_hash(plain), f"seed={seed}")


def open_run(config: DictConfig | Mapping[str, Any]) -> RunFolder:
    """Make or reopen the folder of a run.

    Args:
        config: The configuration of one run, see `run_path`.

    Returns:
        The folder, with config.yaml written and this start noted in provenance.json. A complete
        run's folder is returned untouched: look at `complete` and skip it.

    Raises:
        RunFolderError: If the folder holds another configuration, or files but no configuration.
        ConfigError: See `run_path`.
    """
    run = RunFolder(run_path(config), portable_config(config))
    _refuse_other_content(run)
    if not run.complete:
        _note_start(run.path / PROVENANCE)
        # Last, so that a folder with a configuration has its provenance too.
        write_yaml(run.path / CONFIG, run.config)
    return run


def load_run(path: Path) -> RunFolder:
    """Read a run folder back.

    Args:
        path: The folder.

    Returns:
        The run with the configuration that rebuilds it.

    Raises:
        RunFolderError: If there is no config.yaml.
    """
    if not (path / CONFIG).is_file():
        raise RunFolderError(f"{path} is no run folder: it has no {CONFIG}")
    return RunFolder(path, portable_config(cast("DictConfig", OmegaConf.load(path / CONFIG))))


def _node(config: DictConfig | Mapping[str, Any]) -> DictConfig:
    return config if isinstance(config, DictConfig) else OmegaConf.create(dict(config))


def _note_start(path: Path) -> None:
    starts = json.loads(path.read_text(encoding="utf-8"))["starts"] if path.exists() else []
    write_json(path, {"starts": [*starts, provenance()]})


def _refuse_other_content(run: RunFolder) -> None:
    if not run.path.exists():
        return
    if not (run.path / CONFIG).exists():
        # A start that was cut short leaves provenance and hidden temporary files, nothing else.
        others = [file.name for file in run.path.iterdir() if not file.name.startswith(".")]
        if set(others) - {PROVENANCE}:
            raise RunFolderError(
                f"{run.path} holds {', '.join(sorted(others))} but no {CONFIG}; move it away"
            )
        return
    held = load_run(run.path).config
    # Whether claims are recorded may differ between a run and its resumption.
    changed = sorted(key for key in _differences(held, run.config) if key != "record")
    if changed:
        raise RunFolderError(
            f"{run.path} holds a run with another configuration (different: {', '.join(changed)}); "
            "move it away, or restore its config.yaml"
        )


def _differences(left: Any, right: Any, prefix: str = "") -> list[str]:
    """List the dotted keys at which two nested values differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        return [
            key
            for name in {*left, *right}
            for key in _differences(left.get(name), right.get(name), f"{prefix}.{name}".lstrip("."))
        ]
    return [] if left == right else [prefix]


def _branch(plain: dict[str, Any], parents: list[str]) -> dict[str, Any]:
    for name in parents:
        child = plain.get(name)
        plain = child if isinstance(child, dict) else {}
    return plain


def _segment(plain: dict[str, Any], group: str) -> str:
    node = plain.get(group)
    name = NO_NODE if node is None else node.get("name") if isinstance(node, dict) else node
    if not isinstance(name, str) or not _SEGMENT.fullmatch(name):
        raise ConfigError(
            f"{group}.name is {name!r}; expected letters, digits, '_', '.' and '-', because run "
            "folders are named after it"
        )
    return name
