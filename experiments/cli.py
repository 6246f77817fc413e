"""A thin layer over `hydra.main`: short messages for mistakes, and nothing littered.

Every command is a function of a DictConfig and ends in `run_main(function)`. Hydra's overrides and
sweeps (`-m`) work as documented by Hydra. Exit codes: 0 done, 1 a bug (with traceback), 2 a mistake
in the command or configuration, 130 interrupted. `HYDRA_FULL_ERROR=1` shows every traceback.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.claims import is_recorded
from experiments.errors import (
    REPOSITORY,
    ConfigError,
    explain_composition,
    explain_run,
    unknown_key,
    unknown_override,
)

CONF = REPOSITORY / "conf"
DATA_VARIABLE = "RHEOSTAT_DATA"
# conf/config.yaml points Hydra's sweep folder here: its multirun.yaml repeats what every run folder
# holds anyway, so it is thrown away.
SCRATCH_VARIABLE = "RHEOSTAT_SCRATCH"

Task = Callable[[DictConfig], None]


def run_main(task: Task, config_name: str = "config", config_dir: Path = CONF) -> NoReturn:
    """Run a command with the configuration that the command line asks for, then exit.

    Args:
        task: The command. It gets the composed configuration, whose data root and `record` were
            checked.
        config_name: Name of the primary configuration, without `.yaml`.
        config_dir: Folder of the configuration files.

    Raises:
        SystemExit: Always, with the exit code listed at the top of this file.
    """
    _refuse_pickles(sys.argv[1:])
    _refuse_unread_keys(sys.argv[1:], config_name, config_dir)
    started = False

    def checked_task(config: DictConfig) -> None:
        nonlocal started
        started = True
        data_root(config)
        is_recorded(config)  # a mistake shows before hours of work
        task(config)

    try:
        with _hydra_environment():
            decorate = hydra.main(
                version_base="1.3", config_path=str(config_dir), config_name=config_name
            )
            decorate(checked_task)()
    except KeyboardInterrupt:
        _leave("interrupted", 130)
    except Exception as error:
        if started and not isinstance(error, HydraException):
            message = explain_run(error)
        else:
            keys = known_keys(config_name, config_dir, unknown_override(error))
            message = explain_composition(error, keys)
        if message is None or _wants_traceback():
            traceback.print_exc()
            raise SystemExit(1 if message is None else 2) from error
        _leave(message, 2)
    raise SystemExit(0)


def data_root(config: DictConfig) -> Path | None:
    """Return the folder of measured traces.

    Args:
        config: A configuration with `data.root`, by default the environment variable
            RHEOSTAT_DATA. Null and the empty string both mean: no data.

    Returns:
        The folder, or None where none is set.

    Raises:
        ConfigError: If the setting names no folder.
    """
    setting = OmegaConf.select(config, "data.root")
    if not setting:
        return None
    folder = Path(str(setting)).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"data.root is {str(setting)!r}, which is not a folder; set {DATA_VARIABLE} or "
            f"data.root=... to the folder that holds the traces, or unset {DATA_VARIABLE} to run "
            "on synthetic arrivals"
        )
    return folder


def known_keys(config_name: str, config_dir: Path, wrong_key: str | None = None) -> set[str]:
    """List what may be overridden, for the closest match to a mistyped key.

    Args:
        config_name: Name of the primary configuration.
        config_dir: Folder of the configuration files.
        wrong_key: The key that was not found; the configuration is composed from the other
            overrides of the command line, or from the defaults where those fail too.

    Returns:
        Dotted keys of values and nodes, and names of groups.
    """
    groups = _groups(config_dir)
    given = [word for word in sys.argv[1:] if not word.startswith("-")]
    others = [word for word in given if word.lstrip("+~").split("=")[0] != wrong_key]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_dir), version_base="1.3"):
        for overrides in (others, []):
            try:
                config = hydra.compose(config_name, overrides=overrides)
            except (HydraException, OmegaConfBaseException):
                continue
            return groups | set(_dotted_keys(OmegaConf.to_container(config)))
    return groups


def _dotted_keys(node: Any, prefix: str = "") -> Iterator[str]:
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        yield f"{prefix}{key}"
        yield from _dotted_keys(value, f"{prefix}{key}.")


@contextmanager
def _hydra_environment() -> Iterator[None]:
    """Set what Hydra reads from the environment, for the time of one command."""
    before = {name: os.environ.get(name) for name in ("HYDRA_FULL_ERROR", SCRATCH_VARIABLE)}
    with tempfile.TemporaryDirectory(prefix="rheostat-") as scratch:
        # Hydra then raises the error itself instead of printing it and leaving with code 1.
        os.environ.update({"HYDRA_FULL_ERROR": "1", SCRATCH_VARIABLE: scratch})
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _wants_traceback() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def _refuse_pickles(words: list[str]) -> None:
    """Refuse Hydra's --experimental-rerun, in any abbreviation: it loads a pickle."""
    if any(word.startswith("--e") for word in words):
        _leave("--experimental-rerun is refused: it loads a pickle. Use the run's config.yaml", 2)


def _refuse_unread_keys(words: list[str], config_name: str, config_dir: Path) -> None:
    """Refuse `+typo=3`: Hydra would add the key, and nothing would ever read it."""
    for word in words:
        added = re.match(r"\+{1,2}([\w/]+)(?:@[\w.]+)?=", word)
        if added is None or added[1] in _groups(config_dir):
            continue
        known = known_keys(config_name, config_dir, added[1])
        if added[1] not in known:
            _leave(unknown_key(added[1], known), 2)


def _groups(config_dir: Path) -> set[str]:
    """Name the configuration groups: the folders that hold a YAML file."""
    return {
        folder.relative_to(config_dir).as_posix()
        for folder in config_dir.rglob("*")
        if folder.is_dir() and any(folder.glob("*.yaml"))
    }


def _leave(message: str, code: int) -> NoReturn:
    print(f"rheostat: {message}", file=sys.stderr)
    raise SystemExit(code)
