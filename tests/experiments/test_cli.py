from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from experiments.cli import CONF, data_root, run_main
from experiments.errors import ConfigError

# A command like those of experiments/: it fails in the three ways that a command can fail.
COMMAND = """
from __future__ import annotations
import sys
import numpy as np
from experiments.cli import run_main
from experiments.errors import ConfigError
def command(config):
    if config.seed == 7:
        raise ConfigError("seed is 7; expected any other")
    if config.seed == 8:
        np.zeros(3) + np.zeros(4)
    if config.seed == 9:
        config.absent
    if config.seed == 10:
        raise KeyboardInterrupt
    print("ran", config.seed, config.size.name)
if __name__ == "__main__":
    run_main(command)
"""


class Shell:
    """Runs the command in an empty working directory and looks at what it left there."""

    def __init__(self, folder: Path) -> None:
        self.cwd = folder / "cwd"
        self.cwd.mkdir()
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.script = folder / "command.py"
        self.script.write_text(COMMAND, encoding="utf-8")

    def __call__(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        names = ("RHEOSTAT_DATA", "HYDRA_FULL_ERROR")
        environment = {name: value for name, value in os.environ.items() if name not in names}
        result = subprocess.run(
            [sys.executable, str(self.script), *words],
            cwd=self.cwd,
            env=environment | {"TMPDIR": str(self.scratch)} | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert list(self.cwd.iterdir()) == [], "the working directory was littered"
        assert list(self.scratch.iterdir()) == [], "scratch was left behind"
        return result


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_runs_and_sweeps_leaving_nothing_behind(shell: Shell) -> None:
    single = shell("seed=3", "size=smoke")
    assert (single.returncode, single.stdout) == (0, "ran 3 smoke\n")
    sweep = shell("-m", "seed=1,2")
    assert (sweep.returncode, sweep.stdout) == (0, "ran 1 quick\nran 2 quick\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sed=1"], "unknown key 'sed'; did you mean 'seed'?"),
        (["size=smoke", "sed=1"], "unknown key 'sed'; did you mean 'seed'?"),
        (["-m", "sed=1,2"], "unknown key 'sed'; did you mean 'seed'?"),
        (["data.rot=x"], "unknown key 'data.rot'; did you mean 'data.root'?"),
        (
            ["evaluation_sed=1"],
            "unknown key 'evaluation_sed'; did you mean 'size.evaluation_seeds'?",
        ),
        (["+sed=1"], "unknown key 'sed'; did you mean 'seed'?"),
        (["qqqqqq=1"], "unknown key 'qqqqqq'; --cfg job lists the keys"),
        (["size=quik"], "unknown size 'quik'; did you mean 'quick'? expected one of"),
        (["seed"], "Error parsing override 'seed'"),
        (["--cfg", "job", "--run"], "Only one of --run"),
        (["data.root=${absent}"], "Interpolation key 'absent' not found; full_key: data.root"),
        (["data.root=/absent/folder"], "data.root is '/absent/folder', which is not a folder"),
        (["--exp=run.pickle"], "--experimental-rerun is refused"),
    ],
)
def test_mistakes_on_the_command_line(
    words: list[str],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # In this process: a fresh interpreter for each would take ten times as long.
    monkeypatch.setattr(sys, "argv", ["command", *words])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as left:
        run_main(lambda config: pytest.fail("the command ran"))
    assert left.value.code == 2
    assert f"rheostat: {expected}" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["seed=7"], ["-m", "seed=1,7"], ["sed=7"], ["-m", "sed=1,7"]])
def test_a_mistake_is_a_short_message_and_exit_code_2(shell: Shell, words: list[str]) -> None:
    result = shell(*words)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("rheostat: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("seed", "error"),
    [(8, "operands could not be broadcast"), (9, "Key 'absent' is not in struct")],
)
def test_a_bug_keeps_its_traceback_and_exit_code_1(shell: Shell, seed: int, error: str) -> None:
    result = shell(f"seed={seed}")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert error in result.stderr


def test_traceback_of_a_mistake_on_request(shell: Shell) -> None:
    result = shell("seed=7", HYDRA_FULL_ERROR="1")
    assert result.returncode == 2
    assert "Traceback" in result.stderr


def test_recording_at_another_size_is_refused_before_any_work(shell: Shell) -> None:
    result = shell("size=smoke", "record=true")
    assert result.returncode == 2
    assert "record=true with size=smoke; results/reference is made with size=paper" in result.stderr
    assert "ran" not in result.stdout
    assert shell("size=paper", "record=true").stdout.split() == ["ran", "0", "paper"]


def test_interrupt(shell: Shell) -> None:
    result = shell("seed=10")
    assert (result.returncode, result.stderr) == (130, "rheostat: interrupted\n")


def test_data_root_comes_from_the_environment(shell: Shell, tmp_path: Path) -> None:
    refused = shell(RHEOSTAT_DATA="/absent/folder")
    assert refused.returncode == 2
    assert "unset RHEOSTAT_DATA to run on synthetic arrivals" in refused.stderr
    assert shell(RHEOSTAT_DATA=str(tmp_path)).returncode == 0
    assert shell(RHEOSTAT_DATA="").returncode == 0


def test_data_root_values(tmp_path: Path) -> None:
    def root(value: str | None) -> Path | None:
        return data_root(OmegaConf.create({"data": {"root": value}}))

    assert root(None) is None
    assert root("") is None
    assert root(str(tmp_path)) == tmp_path
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match="not a folder"):
        root(str(file))


@pytest.mark.parametrize("size", ["smoke", "quick", "paper"])
def test_sizes_compose_under_their_own_name(size: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=[f"size={size}"])
    assert config.size.name == size
    assert config.size.headline_seeds >= config.size.seeds >= 1
