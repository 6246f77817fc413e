"""Where a result comes from: versions, commit, machine, command, date."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from experiments.errors import REPOSITORY


def provenance() -> dict[str, Any]:
    """Describe this process.

    Returns:
        `date` (UTC, ISO 8601, seconds), `command`, `python`, `packages` (name to version of every
        direct dependency), `commit` (None outside a git checkout), `dirty` (whether anything but
        results/ differs from the commit; None without git) and `machine`.
    """
    commit, dirty = git_state(REPOSITORY)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "commit": commit,
        "dirty": dirty,
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """Describe the machine.

    Returns:
        `cpu` (name, family and model), `gpu` (name; None without one), `cores` (logical ones this
        process may use), `memory_bytes`, `os`.
    """
    return {
        "cpu": _cpu_model(),
        "gpu": _gpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "os": platform.platform(),
    }


def machine_summary() -> str:
    """Word the machine for a table, such as `2 cores, Intel(R) Xeon(R), 23 GiB`."""
    facts = machine()
    said = f"{facts['cores']} cores, {facts['cpu']}, {facts['memory_bytes'] / 2**30:.0f} GiB"
    return said if facts["gpu"] is None else f"{said}, {facts['gpu']}"


def command_line() -> str:
    """Return the command of this process as one would type it in the repository."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", spec.name] if spec is not None else [Path(sys.argv[0]).name]
    return shlex.join(["python", *program, *sys.argv[1:]])


def package_versions() -> dict[str, str]:
    """Return name and installed version of every direct dependency, sorted by name."""
    requirements = importlib.metadata.requires("rheostat") or []
    names = sorted(
        {re.split(r"[<>=!~ ;\[]", line)[0] for line in requirements if "extra" not in line}
    )
    return {name: importlib.metadata.version(name) for name in names}


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Return the commit of a checkout and whether it is dirty.

    Args:
        folder: The root of the checkout.

    Returns:
        The commit's 40 hexadecimal digits and the flag, which leaves out results/: writing results
        does not change what made them. (None, None) where there is no git or no commit.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None, None
    changes = _git(folder, "status", "--porcelain", "--", ".", ":(exclude)results")
    return commit.strip(), bool(changes)


def _git(folder: Path, *words: str) -> str | None:
    try:
        # Optional locks off: looking must not disturb someone who commits at the same time.
        result = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout


def _gpu_model() -> str | None:
    # Here, not above: importing torch takes seconds, and not every command does.
    if "torch" not in sys.modules:
        return None
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _cpu_model() -> str:
    """Return name, family and model: virtual machines hide names, and speeds differ by 2 in one."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    name, family, model = (
        re.search(rf"^{key}\s*:\s*(.+)$", text, flags=re.MULTILINE)
        for key in ("model name", "cpu family", "model")
    )
    if name is None:
        return platform.processor() or platform.machine()
    if family is None or model is None:
        return name[1]
    return f"{name[1]} (family {family[1]}, model {model[1]})"
