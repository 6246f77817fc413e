from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue

from experiments.errors import REPOSITORY, ConfigError
from experiments.record import (
    RunFolderError,
    config_hash,
    load_run,
    open_run,
    portable_config,
    results_root,
    run_path,
)


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    return {
        "size": {"name": "smoke", "seeds": 1},
        "study": {"name": "headline"},
        "env": {"name": "cluster", "slots": 8},
        "agent": {"name": "ppo", "learning_rate": 3e-4},
        "seed": 2,
        "record": False,
        "data": {"root": str(tmp_path)},
        "results": {"root": str(tmp_path / "results")},
    }


def changed(config: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """Copy the configuration with one dotted key set."""
    node = OmegaConf.create(deepcopy(config))
    OmegaConf.update(node, key, value, force_add=True)
    container = OmegaConf.to_container(node)
    assert isinstance(container, dict)
    return {str(name): part for name, part in container.items()}


def test_path_names_size_study_env_agent_hash_seed(config: dict[str, Any]) -> None:
    path = run_path(config)
    parts = path.relative_to(results_root(config)).parts
    assert parts[:5] == ("runs", "smoke", "headline", "cluster", "ppo")
    assert parts[5] == config_hash(config)
    assert parts[6] == "seed=2"
    assert not path.exists()


def test_absent_nodes_are_named_none_and_results_default_to_the_repository() -> None:
    path = run_path({"size": {"name": "quick"}, "seed": 0})
    assert path.parents[1] == REPOSITORY / "results/runs/quick/none/none/none"


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("seed", 3, True),
        ("record", True, True),
        ("data.root", "/elsewhere", True),
        ("results.root", "/elsewhere", True),
        ("agent.learning_rate", 1e-3, False),
        ("env.slots", 9, False),
        ("size.seeds", 2, False),
        ("workload", {"name": "sine"}, False),
    ],
)
def test_hash_depends_on_what_changes_results(
    config: dict[str, Any], key: str, value: object, same: bool
) -> None:
    assert (config_hash(changed(config, key, value)) == config_hash(config)) is same


def test_hash_ignores_order_and_container(config: dict[str, Any]) -> None:
    assert config_hash(dict(reversed(config.items()))) == config_hash(config)
    assert config_hash(OmegaConf.create(config)) == config_hash(config)


def test_config_is_not_mutated(config: dict[str, Any]) -> None:
    node = OmegaConf.create(config)
    before = deepcopy(node)
    open_run(node)
    assert node == before
    assert portable_config(node)["data"]["root"] is None
    assert node.data.root == config["data"]["root"]


def test_interpolations_are_resolved_and_missing_values_refused(config: dict[str, Any]) -> None:
    resolved = portable_config(changed(config, "agent.slots", "${env.slots}"))
    assert resolved["agent"]["slots"] == 8
    with pytest.raises(MissingMandatoryValue, match="slots"):
        portable_config(changed(config, "agent.slots", "???"))


def test_saved_config_alone_rebuilds_the_run(config: dict[str, Any]) -> None:
    run = open_run(config)
    rebuilt = load_run(run.path)
    assert rebuilt.config == run.config
    again = changed(rebuilt.config, "results.root", config["results"]["root"])
    assert open_run(again).path == run.path


def test_no_path_of_the_machine_is_saved(config: dict[str, Any], tmp_path: Path) -> None:
    run = open_run(config)
    assert str(tmp_path) not in (run.path / "config.yaml").read_text(encoding="utf-8")


def starts(path: Path) -> list[dict[str, Any]]:
    content = json.loads((path / "provenance.json").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = content["starts"]
    return found


def test_unfinished_run_is_resumed_and_a_complete_one_left_alone(config: dict[str, Any]) -> None:
    run = open_run(config)
    assert not run.complete
    assert not open_run(config).complete
    assert len(starts(run.path)) == 2
    run.mark_complete()
    before = {file: file.stat().st_mtime_ns for file in run.path.iterdir()}
    assert open_run(config).complete
    assert {file: file.stat().st_mtime_ns for file in run.path.iterdir()} == before


def test_folder_with_another_config_is_refused(config: dict[str, Any]) -> None:
    run = open_run(config)
    file = run.path / "config.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("slots: 8", "slots: 9"))
    with pytest.raises(RunFolderError, match=r"different: env\.slots\)"):
        open_run(config)
    assert "slots: 9" in file.read_text(encoding="utf-8")
    assert len(starts(run.path)) == 1


def test_folder_with_foreign_files_is_refused(config: dict[str, Any]) -> None:
    path = run_path(config)
    path.mkdir(parents=True)
    (path / "rows.csv").touch()
    with pytest.raises(RunFolderError, match=r"holds rows\.csv but no config\.yaml"):
        open_run(config)
    assert [file.name for file in path.iterdir()] == ["rows.csv"]


def test_start_cut_short_is_taken_up(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("experiments.record.write_yaml", crash)
        with pytest.raises(OSError, match="disk full"):
            open_run(config)
    run = open_run(config)
    assert len(starts(run.path)) == 2
    assert load_run(run.path).config == run.config


def test_load_refuses_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is no run folder"):
        load_run(tmp_path)


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", ".hidden", "a b", 3])
def test_names_that_leave_the_folder_are_refused(config: dict[str, Any], name: object) -> None:
    with pytest.raises(ConfigError, match=r"agent\.name is"):
        run_path(changed(config, "agent.name", name))


@pytest.mark.parametrize("seed", [-1, 1.5, "3", None, True])
def test_bad_seed_is_refused(config: dict[str, Any], seed: object) -> None:
    with pytest.raises(ConfigError, match="expected an int of at least 0"):
        run_path(changed(config, "seed", seed))
