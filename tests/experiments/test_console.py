from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from experiments import console
from experiments.console import line_per_step, one_line, progress_bar


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    text = io.StringIO()
    own = Console(file=text, force_terminal=True, width=100, legacy_windows=False)
    monkeypatch.setattr(console, "CONSOLE", own)
    return text


def test_no_thread_draws_while_something_is_timed(screen: io.StringIO) -> None:
    before = threading.active_count()
    with progress_bar() as bar:
        report = line_per_step(bar)
        report("serving", 1, 2)
        drawn = screen.getvalue()
        assert threading.active_count() == before
        assert "serving" in drawn
        assert "1/2" in drawn
        report("serving", 2, 2)  # the end of a step is drawn at once
        assert "2/2" in screen.getvalue().removeprefix(drawn)


def test_steps_have_lines_of_their_own_or_share_one(screen: io.StringIO) -> None:
    with progress_bar() as bar:
        report = line_per_step(bar)
        for what in ("first", "second", "first"):
            report(what, 1, 3)
        assert [task.description for task in bar.tasks] == ["first", "second"]
    with progress_bar() as bar:
        report = one_line(bar)
        for what in ("first", "second"):
            report(what, 1, 3)
        assert [(task.description, task.completed) for task in bar.tasks] == [("second", 1)]


def test_displays_are_drawn_seldom(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now_s)
    with progress_bar() as bar:
        report = one_line(bar)
        report("passes", 0, 100)
        drawn = len(screen.getvalue())
        for k in range(1, 50):
            report("passes", k, 100)
        assert len(screen.getvalue()) == drawn
        now_s = 1.0
        report("passes", 50, 100)
        assert "50/100" in screen.getvalue()[drawn:]
