from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from envs.cluster.config import shipped_application
from experiments.cli import CONF

Compose = Callable[..., DictConfig]


@pytest.fixture
def smoke(tmp_path: Path) -> Iterator[Compose]:
    """Compose configurations of size smoke on synthetic arrivals, with results in a folder."""
    GlobalHydra.instance().clear()
    fixed = [
        "size=smoke",
        "workload=steady",
        "data.root=null",
        f"results.root='{tmp_path / 'results'}'",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *words: compose("config", overrides=[*fixed, *words])


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """The declared costs of the application with real jobs, as a file like those of measure."""
    path = tmp_path / "profile.json"
    shipped_application("security_events")[1].save(path)
    return path
