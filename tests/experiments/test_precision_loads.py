from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from agents.precision.known import known_of
from agents.precision.scores import row_accuracies
from experiments.precision.compare import ROWS
from experiments.precision.loads import compare_loads, finished_loads, joined
from experiments.precision.worlds import build_world, evaluation_episodes
from experiments.record import COMPLETE
from experiments.training import with_load
from experiments.workloads import Part
from tests.experiments.precision_configs import composing


def test_each_load_has_its_own_best_constant_rule_and_search(tmp_path: Path) -> None:
    words = ("size.precision.loads=[0.3,1.5]", "size.precision.tuning_episodes=3")
    with composing(tmp_path) as compose:
        config = compose("env.stream=burst", "size.precision.assignments=256", *words)
    told: list[str] = []
    run = compare_loads(config, lambda what, done, total: told.append(what))
    table = pd.read_csv(run.path / ROWS)
    agents = ["static_best", "slack_fit", "foresight_windows"]
    assert table["load"].tolist() == [0.3] * 9 + [1.5] * 9
    assert table["agent"].tolist() == [name for name in agents for _ in range(3)] * 2
    mean = table.groupby(["load", "agent"])["effective_accuracy"].mean().unstack()
    for load in (0.3, 1.5):
        setting = with_load(config, load)
        world = build_world(setting, Part.TRAIN)
        episodes = evaluation_episodes(setting, Part.TRAIN, 3)
        every = row_accuracies(world, known_of(world).rows, episodes).mean(axis=1)
        assert mean.loc[load, "static_best"] == pytest.approx(every.max())
    assert (mean.loc[1.5] < mean.loc[0.3]).all()
    assert told
    told.clear()
    assert compare_loads(config, lambda what, done, total: told.append(what)).path == run.path
    assert not told  # finished: nothing is done again
    found = finished_loads(config)
    assert found is not None
    pd.testing.assert_frame_equal(joined([found]), joined([run]))
    (run.path / COMPLETE).unlink()
    assert finished_loads(config) is None
