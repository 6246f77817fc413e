from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

from experiments.errors import ConfigError, explain_run
from experiments.export import export
from experiments.record import results_root
from experiments.training import BUNDLE, train_agent, training_part, tuned_plans
from runtime.policy import POLICY, WEIGHTS, Bundle, BundleError, Network

Compose = Callable[..., DictConfig]
SMALL = (
    "env.horizon_s=40",
    "size.timesteps=64",
    "agent.preset.n_envs=4",
    "agent.preset.n_steps=16",
    "agent.preset.batch_size=32",
    "agent.preset.n_epochs=1",
)


def test_a_finished_policy_is_exported_whatever_other_commands_are_set_to(
    smoke: Compose, tmp_path: Path
) -> None:
    run = train_agent(training_part(smoke(*SMALL, "seed=4")))
    to = tmp_path / "exported" / "policy"
    config = smoke(*SMALL, "seed=4", f"export.to='{to}'", "size.drive.seconds=9", "drive.plans=[]")
    assert export(config) == to
    kept, written = Bundle.load(run.path / BUNDLE), Bundle.load(to)
    assert isinstance(kept.policy, Network)
    assert isinstance(written.policy, Network)
    for ours, theirs in zip(written.policy.layers, kept.policy.layers, strict=True):
        assert np.array_equal(ours[0], theirs[0])
        assert np.array_equal(ours[1], theirs[1])
    assert written.provenance["config"]["seed"] == 4

    with pytest.raises(ConfigError, match="which exists; name another folder"):
        export(config)
    with (run.path / BUNDLE / WEIGHTS).open("ab") as file:
        file.write(b"x")
    again = smoke(*SMALL, "seed=4", f"export.to='{tmp_path / 'again'}'")
    with pytest.raises(BundleError, match="was changed after its export"):
        export(again)
    assert not (tmp_path / "again").exists()


def test_a_tuned_constant_is_exported(smoke: Compose, tmp_path: Path) -> None:
    grid = ("env.horizon_s=40", "size.grid.parallelism=[1]", "size.grid.interval_s=[0.5,1.0]")
    config = smoke(*grid, "export.agent=spark_default", f"export.to='{tmp_path / 'plan'}'")
    with pytest.raises(ConfigError, match=r"experiments\.train agent=constants"):
        export(config)
    plan = tuned_plans(config)["spark_default"]
    bundle = Bundle.load(export(config))
    assert (bundle.name, bundle.policy) == ("spark_default", plan)
    assert bundle.provenance["config"]["agent"]["name"] == "constants"
    assert sorted(path.name for path in (tmp_path / "plan").iterdir()) == [POLICY, WEIGHTS]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "export.to is null"),
        (["export.to=there"], "ppo has not been made with these settings"),
        (["export.to=there", "export.agent=static_bets"], "did you mean 'static_best'?"),
        (["export.to=there", "export.agent=random"], "it is code, not data"),
        (["export.to=there", "export.agent=clairvoyant"], "it knows the future"),
        (["export.to=there", "agent=constants"], "agent to export (export.agent) 'constants'"),
    ],
)
def test_mistakes_are_named_and_write_nothing(
    smoke: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = smoke(*words)
    with pytest.raises(ConfigError) as caught:
        export(config)
    shown = explain_run(caught.value)
    assert shown is not None
    assert message in shown
    assert list(tmp_path.iterdir()) == []
    assert not results_root(config).exists()
