from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES: list[str] = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def run_python(code: str, cwd: Path) -> str:
    """Run code in a fresh interpreter and return its standard output."""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("package", PACKAGES)
def test_package_lies_in_the_repository(package: str, tmp_path: Path) -> None:
    # From a foreign folder: only the editable install can find it, not the working directory.
    found = run_python(f"import {package}; print({package}.__file__)", tmp_path)
    assert Path(found) == ROOT / package / "__init__.py"


@pytest.mark.parametrize("package", ["simulators", "envs"])
def test_imports_neither_torch_nor_stable_baselines3(package: str, tmp_path: Path) -> None:
    code = (
        "import importlib, pkgutil, sys\n"
        f"package = importlib.import_module({package!r})\n"
        f"walk = pkgutil.walk_packages(package.__path__, {package + '.'!r})\n"
        "names = [module.name for module in walk]\n"
        "for name in names: importlib.import_module(name)\n"
        "heavy = {'torch', 'stable_baselines3', 'sb3_contrib', 'hydra'} & set(sys.modules)\n"
        "print(len(names), sorted(heavy))"
    )
    count, heavy = run_python(code, tmp_path).split(maxsplit=1)
    assert int(count) > 0
    assert heavy == "[]"


@pytest.mark.parametrize("name", ["rheostat/StreamCluster-v0", "rheostat/StagedPrecision-v0"])
def test_gymnasium_finds_the_environments(name: str, tmp_path: Path) -> None:
    code = f"import gymnasium\nprint(gymnasium.make('envs:{name}').spec.id)"
    assert run_python(code, tmp_path) == name


def test_lock_pins_every_direct_dependency() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pinned = {line.split("==")[0] for line in lock.splitlines() if "==" in line}
    project = PYPROJECT["project"]
    direct = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = {re.split(r"[<>=!~ ;\[]", requirement)[0] for requirement in direct}
    assert names <= pinned
    assert re.search(r"^torch==2\.13\.0$", lock, flags=re.MULTILINE)


@pytest.mark.parametrize("package", [*PACKAGES, "conf"])
def test_top_level_names_are_guarded(package: str) -> None:
    guards = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"{package}<0" in guards
