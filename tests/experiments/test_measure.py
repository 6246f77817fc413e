from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest
from omegaconf import DictConfig

from experiments.measure import FIT, PROFILE, TASK_TIMES, measure
from experiments.record import COMPLETE, results_root
from experiments.worlds import Part, application_of, build_world
from runtime.cluster.jobs import WAIT_S
from simulators.cluster.profile import Profile

Compose = Callable[..., DictConfig]
SHORT = ("size.measure.seconds_per_level=0.35", "size.measure.seconds_per_run=0.4")


def test_real_jobs_become_a_profile_once(smoke: Compose) -> None:
    config = smoke(*SHORT)
    told: list[tuple[str, int, int]] = []
    run = measure(config, lambda *words: told.append(words))
    application, _ = application_of(config)
    profile = Profile.load(run.path / PROFILE)
    profile.check_covers(application)
    assert {key: cost.wait_s for key, cost in profile.costs.items()} == WAIT_S
    assert profile.slots == 8
    times = pd.read_csv(run.path / TASK_TIMES)
    assert (times["batch"] == -1).any(), "stages by themselves"
    assert (times["batch"] >= 0).any(), "streams"
    declared = [WAIT_S[key] for key in zip(times["job"], times["stage"], strict=True)]
    assert (times["duration_s"] >= declared).all()
    fit = pd.read_csv(run.path / FIT)
    assert len(fit) == len(profile.costs)
    assert fit["tasks"].sum() == len(times[(times["attempts"] == 1) & ~times["failed"]])
    assert told[-1] == ("measuring streams", 100, 100)

    world = build_world(smoke(*SHORT, f"env.profile='{run.path / PROFILE}'"), Part.TRAIN)
    assert world.profile.origin == profile.origin
    assert "measured on" in profile.origin

    before = (run.path / COMPLETE).read_text()
    told.clear()
    assert measure(config, lambda *words: told.append(words)).path == run.path
    assert told == [], "measured again"
    assert (run.path / COMPLETE).read_text() == before
    elsewhere = smoke("workload.load=0.2", "drive.agents=[ppo]", *SHORT)
    assert measure(elsewhere).path == run.path, "repeated for what it does not depend on"


def test_nothing_is_written_before_all_is_measured(smoke: Compose) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what == "measuring stages" and done > 0:
            raise KeyboardInterrupt

    config = smoke(*SHORT)
    with pytest.raises(KeyboardInterrupt):
        measure(config, interrupt)
    assert not results_root(config).exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("application=wide_independent",), "'wide_independent' exists in the simulator only"),
        (("size.measure.seconds_per_level=0.1",), "budget_s is 0.8; with 8 slots expected"),
    ],
)
def test_mistakes_leave_nothing(smoke: Compose, words: tuple[str, ...], message: str) -> None:
    config = smoke(*words)
    with pytest.raises(ValueError, match=message):
        measure(config)
    assert not results_root(config).exists()
