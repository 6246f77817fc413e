from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig

from agents.precision.families import GRIDS
from experiments.errors import ConfigError
from experiments.precision.lineup import makers
from experiments.precision.reproduction import reproduce_streams, stream_settings, with_drive
from experiments.precision.roster import TUNED, untuned_plans
from experiments.precision.worlds import build_world
from experiments.training import silent
from experiments.workloads import Part
from tests.experiments.precision_configs import calibrated, composing

Compose = Callable[..., DictConfig]
PAPER = "size=paper"


@pytest.fixture
def compose(tmp_path: Path) -> Iterator[Compose]:
    with composing(tmp_path) as own:
        yield lambda *words: own(*calibrated(tmp_path), *words)


def test_all_learners_meet_the_main_stream_and_the_headline_agent_all(compose: Compose) -> None:
    settings = stream_settings(compose(PAPER))
    assert [str(setting.env.stream) for setting in settings] == ["steady", "burst", "drift", "both"]
    made = [[str(run.agent.name) for run in makers(setting)] for setting in settings]
    assert made[0] == ["rules", "ppo", "ppo"]
    learners = {"ppo", "maskable_ppo", "recurrent_ppo", "dqn", "qr_dqn", "bandit"}
    assert set(made[-1]) == {"rules", *learners}
    assert made[-1].count("ppo") == 8


def test_everybody_is_driven_on_the_main_stream(compose: Compose) -> None:
    steady, *_, both = stream_settings(compose(PAPER))
    driven = [str(name) for name in with_drive(both).drive.agents]
    assert len(driven) == len(set(driven))
    learners = list(both.size.precision.learners)
    untuned = untuned_plans(build_world(both, Part.HELD_OUT))
    assert set(driven) == {*untuned, *TUNED, *GRIDS, *learners}
    assert list(with_drive(steady).drive.agents) == list(steady.drive.agents)
    assert with_drive(steady).size.drive == {"seconds": 6.0, "repetitions": 8}
    assert with_drive(steady).drive.tries == with_drive(both).drive.tries == 3


def test_smaller_sizes_drive_the_agents_that_are_named(compose: Compose) -> None:
    both = stream_settings(compose("drive.agents=[slack_fit]"))[-1]
    assert list(with_drive(both).drive.agents) == ["slack_fit"]


def test_a_flow_without_the_best_constant_is_refused_before_any_work(compose: Compose) -> None:
    config = compose("size=smoke", "drive.agents=[ppo]")
    with pytest.raises(ConfigError, match=r"drive.agents is \[ppo\]; expected static_best"):
        reproduce_streams(config, silent)


def test_emulated_levels_are_not_reproduced(compose: Compose) -> None:
    config = compose("size=smoke", "bank.levels=[fp32,int8,int4_emulated]")
    with pytest.raises(ConfigError, match="reproduce serves in real time, and int4_emulated"):
        reproduce_streams(config, silent)
