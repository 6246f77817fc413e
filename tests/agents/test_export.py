from __future__ import annotations

from pathlib import Path

import pytest

from agents import export
from agents.learned import PPOPreset, make_ppo
from envs.cluster.config import StreamClusterConfig
from runtime.policy import Network


def test_an_export_that_decides_differently_is_not_written(
    world: StreamClusterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_ppo(PPOPreset(n_envs=4, n_steps=8, batch_size=16), world, seed=1)
    right = export.network_of(model)
    weight, bias = right.layers[-1]
    wrong = Network((*right.layers[:-1], (-weight, -bias)))
    monkeypatch.setattr(export, "network_of", lambda model: wrong)
    with pytest.raises(export.ExportError, match="nothing was written"):
        export.export_ppo(model, world, tmp_path / "bundle", {})
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(export, "network_of", lambda model: right)
    export.export_ppo(model, world, tmp_path / "bundle", {})
    assert (tmp_path / "bundle").is_dir()
