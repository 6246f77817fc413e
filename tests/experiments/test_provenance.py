from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from experiments.errors import REPOSITORY
from experiments.provenance import command_line, git_state, machine, machine_summary, provenance


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_git_state_of_a_checkout(tmp_path: Path) -> None:
    assert git_state(tmp_path) == (None, None)
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == (None, None)
    (tmp_path / "code.py").write_text("1", encoding="utf-8")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-q", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == (commit, False)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "rows.csv").touch()
    assert git_state(tmp_path) == (commit, False)
    (tmp_path / "new.py").touch()
    assert git_state(tmp_path) == (commit, True)


def test_provenance_is_json_and_names_every_direct_dependency() -> None:
    facts = json.loads(json.dumps(provenance()))
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert len(facts["packages"]) == len(pyproject["project"]["dependencies"])
    assert facts["packages"]["numpy"] == np.__version__
    assert facts["machine"]["cores"] >= 1
    assert facts["machine"]["memory_bytes"] > 2**28


def test_machine_summary_words_the_same_facts() -> None:
    facts = machine()
    assert machine_summary().startswith(f"{facts['cores']} cores, {facts['cpu']}, ")


def test_command_can_be_typed_again(tmp_path: Path) -> None:
    # A file's folder is left out: it belongs to the machine.
    script = tmp_path / "show.py"
    script.write_text(
        "from experiments.provenance import command_line\nprint(command_line())", encoding="utf-8"
    )
    command = [sys.executable, str(script), "agent=ppo", "note=a b"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert shown == "python show.py agent=ppo 'note=a b'"


def test_command_of_a_module_is_shown_as_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/train.py", "seed=1"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", sys.modules["json"].__spec__)
    assert command_line() == "python -m json seed=1"
