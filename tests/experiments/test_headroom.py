from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from omegaconf import DictConfig

from experiments import headroom as command
from experiments.errors import ConfigError
from experiments.precision.calibration import HELD_OUT
from experiments.precision.reference import LOADS_FIGURE
from experiments.precision.stream_claims import LOADS
from experiments.record import RunFolder
from experiments.training import Report, silent
from tests.experiments.precision_configs import calibrated, composing


def test_all_streams_are_looked_at_at_each_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "calibration"
    folder.mkdir()
    calibrated(folder)
    (folder / "held_out_profile.npz").rename(folder / HELD_OUT)

    def finished(config: DictConfig, report: Report) -> RunFolder:
        return RunFolder(folder, {})

    monkeypatch.setattr(command, "calibrate_network", finished)
    words = ("size.precision.loads=[0.8,4.0]", "size.precision.streams=[steady,burst]")
    with composing(tmp_path) as compose:
        config = compose(*words, "network.name=synthetic")
        made = command.headroom(config, silent)
    table = pd.read_csv(made / LOADS)
    assert (made / LOADS_FIGURE).stat().st_size > 0
    assert set(zip(table["stream"], table["load"], strict=True)) == {
        (stream, load) for stream in ("steady", "burst") for load in (0.8, 4.0)
    }
    wide = table.pivot_table(
        index=["stream", "load"], columns="agent", values="effective_accuracy"
    ).to_dict("index")
    # Searches start from a constant plan; more load is never better.
    assert wide["burst", 4.0]["static_best"] < wide["burst", 0.8]["static_best"]
    assert command.shown(table).shape == (4, 5)


def test_gains_are_shown_in_points_and_small_ones_said_to_be_so() -> None:
    rows = [
        {"stream": "both", "load": load, "agent": agent, "train_seed": 0, "episode": k}
        | {"effective_accuracy": 0.7 + gain + 0.01 * k}
        for load, gains in ((0.3, (0.0, 0.004)), (0.8, (0.0, 0.03)))
        for agent, gain in zip(("static_best", "foresight_windows"), gains, strict=True)
        for k in range(3)
    ]
    shown = command.shown(pd.DataFrame(rows))
    assert shown["static best %"].tolist() == pytest.approx([71.0, 71.0])
    assert shown["foresight_windows"].tolist() == [
        "+0.4 (0.4 to 0.4) (small)",
        "+3.0 (3.0 to 3.0)",
    ]


def test_one_episode_has_no_interval() -> None:
    rows = [
        {"stream": "both", "load": 0.8, "agent": agent, "train_seed": 0, "episode": 0}
        | {"effective_accuracy": value}
        for agent, value in (("static_best", 0.7), ("slack_fit", 0.72))
    ]
    assert command.shown(pd.DataFrame(rows))["slack_fit"].tolist() == ["+2.0"]


def test_clusters_are_told_where_their_headroom_is_shown(tmp_path: Path) -> None:
    with composing(tmp_path) as compose:
        config = compose("env=stream_cluster")
    with pytest.raises(ConfigError, match=r"say env=staged_precision"):
        command.headroom(config, silent)
