"""Real runs in turn: who runs when, what is kept of each, and going on after an interruption."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import pandas as pd

from experiments.errors import ConfigError
from experiments.files import write_csv, write_json
from experiments.record import RunFolder
from experiments.training import Report

ROWS, REPORTS, INPUTS = "rows.csv", "reports.csv.gz", "inputs.json"


class Named(Protocol):
    """Who drives."""

    @property
    def name(self) -> str:
        """What it is called in tables and folders."""

    @property
    def identity(self) -> dict[str, Any]:
        """What distinguishes it from another one of this name (plain JSON values)."""


DriverT = TypeVar("DriverT", bound=Named)
EpisodeT = TypeVar("EpisodeT")


@dataclass(frozen=True, eq=False)
class Turn(Generic[DriverT, EpisodeT]):
    """One real run.

    Attributes:
        repetition: Which episode, from 0.
        driver: Who decides.
        episode: What happens in this repetition.
    """

    repetition: int
    driver: DriverT
    episode: EpisodeT

    def folder(self, run: RunFolder) -> Path:
        """Return where the run is kept."""
        return run.path / f"repetition={self.repetition}" / self.driver.name

    @property
    def title(self) -> str:
        """What the run is called on the screen."""
        return f"repetition {self.repetition + 1}, {self.driver.name}"


def alternated(
    episodes: Sequence[EpisodeT], roster: Sequence[DriverT]
) -> list[Turn[DriverT, EpisodeT]]:
    """Return all runs in the order in which they take place: A B C, B C A, C A B, ...

    What changes on the machine in the course of time so hits all agents alike.

    Args:
        episodes: What happens in each repetition.
        roster: Who drives.
    """
    turns = []
    for r, episode in enumerate(episodes):
        first = r % len(roster)
        for driver in (*roster[first:], *roster[:first]):
            turns.append(Turn(r, driver, episode))
    return turns


def check_inputs(run: RunFolder, inputs: Mapping[str, Any]) -> None:
    """Refuse to go on with another profile or other agents than the runs before.

    Args:
        run: The folder of the runs.
        inputs: What the runs depend on beside the configuration, by name (plain JSON values).

    Raises:
        ConfigError: Names what has changed.
    """
    path = run.path / INPUTS
    if not path.exists():
        write_json(path, dict(inputs))
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in inputs if before.get(name) != inputs[name]]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)} changed since the runs in {run.path} began; move that folder "
            "away to begin anew"
        )


def take_turns(
    run: RunFolder,
    turns: Sequence[Turn[DriverT, EpisodeT]],
    warm_up: Callable[[Turn[DriverT, EpisodeT]], None],
    take: Callable[[Turn[DriverT, EpisodeT]], None],
    report: Report,
) -> None:
    """Take the turns that are missing, and write the table of all.

    Args:
        run: The folder of the runs.
        turns: All of them, in order.
        warm_up: Called once with the first missing turn, if there is one.
        take: Runs a turn and keeps it; nothing may be kept of an interrupted one.
        report: Told about progress.
    """
    missing = [turn for turn in turns if not turn.folder(run).exists()]
    if missing:
        report("real runs", len(turns) - len(missing), len(turns))
        warm_up(missing[0])
    for k, turn in enumerate(missing, start=1 + len(turns) - len(missing)):
        take(turn)
        report("real runs", k, len(turns))
    tables = [pd.read_csv(turn.folder(run) / ROWS) for turn in turns]
    write_csv(run.path / ROWS, pd.concat(tables, ignore_index=True))
    run.mark_complete()


def keep(folder: Path, write: Callable[[Path], None]) -> None:
    """Write the folder of a run under another name, then rename it: it is there whole or not.

    Args:
        folder: Where it is kept.
        write: Writes the files of the run into the folder that it is given.
    """
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    write(temporary)
    os.replace(temporary, folder)
