from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from agents.export import bundle_of
from envs.cluster.config import default_config
from experiments.claims import README, ClaimError
from experiments.errors import REPOSITORY
from experiments.readme import draw_picture, observation_table, with_observation
from runtime.cluster.observation import ClusterCodec
from runtime.plan import Plan

TEXT = README.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def test_the_readme_holds_the_layout_of_the_codec() -> None:
    assert with_observation(TEXT) == TEXT, "run: make readme"
    lines = observation_table().splitlines()[2:]
    assert len(lines) == ClusterCodec(default_config().scale()).size
    assert all(len(line.split(" | ")) == 7 for line in lines)


def test_a_changed_table_and_missing_markers_are_seen() -> None:
    assert with_observation(TEXT.replace("| 0 | `records_uncut`", "| 0 | `other`")) == TEXT
    with pytest.raises(ClaimError, match="observation:begin"):
        with_observation("no markers")


def test_files_and_folders_that_the_readme_names_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT)
    named = re.findall(r"`((?:conf|runtime|simulators|envs|agents|experiments)/[\w/.]*)`", TEXT)
    assert len(links) > 3
    assert len(named) > 5
    missing = [path for path in links + named if not (REPOSITORY / path).exists()]
    assert missing == []


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(parallelism=8, batch_interval_s=0.5)
    bundle_of("static", plan, default_config(), {}).save(tmp_path / "policies" / "diurnal")
    monkeypatch.chdir(tmp_path)
    environment, deployment = BLOCKS
    found: dict[str, object] = {}
    exec(compile(environment, "README", "exec"), found)
    assert np.shape(found["reward"]) == (256,)
    # Ten seconds would be long for a test: the stream and the run are cut to three.
    short = deployment.replace("size=20", "size=4").replace("duration_s=10.0", "duration_s=3.0")
    assert short.count("size=4") == short.count("duration_s=3.0") == 1
    found = {}
    exec(compile(short, "README", "exec"), found)
    decision = found["decision"]
    assert decision.applied.parallelism == 8  # type: ignore[attr-defined]
    assert decision.causes == ()  # type: ignore[attr-defined]


def test_the_picture_shows_both_pools(tmp_path: Path) -> None:
    draw_picture(tmp_path / "gantt.png", steps=3)
    pixels = (255 * image.imread(tmp_path / "gantt.png")[..., :3]).round().astype(int)
    for colour in ((0x4C, 0x78, 0xA8), (0xF5, 0x85, 0x18)):
        assert (pixels == colour).all(axis=2).sum() > 500
