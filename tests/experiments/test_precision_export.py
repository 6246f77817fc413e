from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig

from agents.precision.heuristics.static import Static
from agents.precision.known import known_of
from experiments.errors import ConfigError, explain_run
from experiments.export import export, task
from experiments.precision.exporting import TUNED_PLANS
from experiments.precision.roster import stream_drivers
from experiments.precision.tuning import read_rules
from experiments.precision.worlds import build_world
from experiments.record import results_root
from experiments.training import (
    BUNDLE,
    finished_run,
    silent,
    train_agent,
    training_part,
    with_agent,
)
from experiments.workloads import Part
from runtime.bundle_files import WEIGHTS, BundleError
from runtime.networks import RecurrentNetwork
from runtime.precision.policy import PrecisionBundle
from tests.experiments.precision_configs import composing

Compose = Callable[..., DictConfig]
SMALL = (
    "size.precision.timesteps=128",
    "agent.preset.n_envs=4",
    "agent.preset.n_steps=16",
    "agent.preset.batch_size=64",
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """Compose servers of the synthetic bank; all tests share the runs."""
    with composing(tmp_path_factory.mktemp("results")) as made:
        yield made


@pytest.fixture(scope="module")
def tuned(small: Compose) -> dict[str, Any]:
    """The tuned rules by name."""
    run = train_agent(with_agent(small(), "rules"))
    return dict(read_rules(run, known_of(build_world(small(), Part.TRAIN))))


def _arrays(bundle: PrecisionBundle) -> dict[str, Any]:
    return dict(bundle.policy.tensors())  # type: ignore[union-attr]


@pytest.mark.parametrize("agent", ["ppo", "recurrent_ppo"])
def test_a_finished_policy_is_exported_and_drives(
    small: Compose, tmp_path: Path, agent: str
) -> None:
    words = (f"agent=precision/{agent}", *SMALL, "seed=4")
    run = train_agent(training_part(small(*words)))
    to = tmp_path / "exported" / "policy"
    config = small(*words, f"export.to='{to}'", "size.drive.seconds=9")
    assert export(config) == to
    kept, written = PrecisionBundle.load(run.path / BUNDLE), PrecisionBundle.load(to)
    ours, theirs = _arrays(written), _arrays(kept)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())
    assert isinstance(written.policy, RecurrentNetwork) == (agent == "recurrent_ppo")

    config = small(f"drive.agents=['{to}']")
    (driver,) = stream_drivers(config, build_world(config, Part.HELD_OUT), silent)
    assert (driver.name, driver.train_seed) == ("policy", 4)


def test_a_changed_policy_is_not_exported(small: Compose, tmp_path: Path) -> None:
    words = ("agent=precision/ppo", *SMALL, "seed=5", f"export.to='{tmp_path / 'policy'}'")
    run = train_agent(training_part(small(*words)))
    with (run.path / BUNDLE / WEIGHTS).open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match="was changed after its export"):
        export(small(*words))
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize(
    "name",
    ["static_best", "integer_programme", "confidence_cascade", "training_mode", "static_int8"],
)
def test_what_is_one_plan_is_exported(
    small: Compose, tuned: dict[str, Any], tmp_path: Path, name: str
) -> None:
    bundle = PrecisionBundle.load(
        export(small(f"export.agent={name}", f"export.to='{tmp_path / 'plan'}'"))
    )
    assert bundle.name == name
    assert bundle.policy == tuned[name].plan
    assert isinstance(tuned[name], Static) == (name != "confidence_cascade")
    assert bundle.provenance["config"]["env"]["stream"] == "both"
    assert ("tuned" in bundle.provenance) == (name in TUNED_PLANS)


def test_untuned_plans_need_no_run(small: Compose, tmp_path: Path) -> None:
    words = (f"results.root='{tmp_path / 'none'}'", f"export.to='{tmp_path / 'plan'}'")
    bundle = PrecisionBundle.load(export(small(*words, "export.agent=training_mode")))
    assert bundle.policy == bundle.safe
    assert not (tmp_path / "none").exists()


def test_the_command_says_how_to_drive(
    small: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task(small("export.agent=static_fp32", f"export.to='{tmp_path / 'plan'}'"))
    said = capsys.readouterr().out.replace("\n", "")
    assert "static_fp32, one plan, one decision for every batch" in said
    assert "python -m experiments.drive env=staged_precision 'drive.agents=[" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "export.to is null"),
        (["export.to=there"], "experiments.train agent=precision/ppo seed=0"),
        (["export.to=there", "export.agent=static_best"], "agent=precision/rules seed=0"),
        (["export.to=there", "export.agent=static_bets"], "did you mean 'static_best'?"),
        (["export.to=there", "export.agent=static_int9"], "did you mean 'static_int8'?"),
        (["export.to=there", "export.agent=alert"], "alert cannot be exported: it is code"),
        (["export.to=there", "export.agent=equal_duty"], "it is code, not data"),
        (["export.to=there", "export.agent=clairvoyant"], "it knows the future"),
        (["export.to=there", "export.agent=hindsight_windows"], "it knows the future"),
        (["export.to=there", "agent=precision/rules"], "agent to export (export.agent) 'rules'"),
    ],
)
def test_mistakes_are_named_and_write_nothing(
    small: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = small(f"results.root='{tmp_path / 'results'}'", *words)
    with pytest.raises(ConfigError) as caught:
        export(config)
    said = explain_run(caught.value)
    assert said is not None
    assert message in said
    assert list(tmp_path.iterdir()) == []
    assert not results_root(config).exists()


def test_a_learned_agent_is_found_by_its_name(small: Compose) -> None:
    with pytest.raises(ConfigError, match="agent=precision/bandit seed=7"):
        export(small("export.agent=bandit", "seed=7", "export.to=there"))
    with pytest.raises(ConfigError, match="agent=precision/dqn seed=7"):
        finished_run(with_agent(small(), "dqn", 7))
