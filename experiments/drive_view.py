"""The live view of a real run: what arrives, what waits, how late it is and who decided what."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from experiments.console import say
from runtime.cluster.executor import LocalExecutor
from runtime.controller import Decision
from runtime.plan import Plan, Pools

SHOWN_BATCHES = 6
REFRESH_PER_SECOND = 2
"""Drawing takes a core for some milliseconds, which the run that is watched has to share."""


class DriveView:
    """Shows the run that goes on, above a progress bar; see `experiments.real_run.Watch`."""

    def __init__(self, progress: Progress) -> None:
        """Show nothing but the bar until a run begins."""
        self._title = ""
        self._progress = progress
        self._executor: LocalExecutor | None = None
        self._horizon_s = 0.0
        self._decisions: list[Decision] = []

    def begins(self, title: str, executor: LocalExecutor, horizon_s: float) -> None:
        """Show another run."""
        self._title, self._decisions = title, []
        self._executor, self._horizon_s = executor, horizon_s

    def decided(self, decision: Decision) -> None:
        """Take a decision into the view."""
        self._decisions.append(decision)

    def ended(self, measured: dict[str, Any], simulated: dict[str, Any]) -> None:
        """Print what came out, and show the bar alone again."""
        self._executor = None
        left = f"; {measured['unfinished']} records never left" if measured["unfinished"] else ""
        say(
            f"{self._title}: mean latency {measured['mean_s']:.2f} s, "
            f"predicted {simulated['mean_s']:.2f} s{left}"
        )

    def __rich__(self) -> RenderableType:
        """Draw; called from the thread that refreshes the screen."""
        executor, decisions = self._executor, self._decisions
        if executor is None or not decisions:
            return self._progress
        lines = Table.grid(padding=(0, 2))
        lines.add_column(style="dim", no_wrap=True)
        lines.add_column()
        for name, words in self._lines(executor, decisions):
            lines.add_row(name, Text(words))
        return Group(Panel(lines, title=self._title, title_align="left"), self._progress)

    def _lines(
        self, executor: LocalExecutor, decisions: list[Decision]
    ) -> tuple[tuple[str, str], ...]:
        """Return what is said about the run, name and words."""
        last = decisions[-1]
        time_s, reports = executor.time_s, executor.reports
        state = f"{time_s:.1f} of {self._horizon_s:g} s"
        if time_s > self._horizon_s:
            state = f"{time_s:.1f} s: nothing more arrives, waiting for the last batches"
        snapshot = last.snapshot
        waiting = snapshot["records_uncut"] + snapshot["records_pending"]
        latest = " ".join(f"{report.latency_s:.2f}" for report in reports[-SHOWN_BATCHES:])
        return (
            ("time", state),
            ("latency of the last batches", f"{latest or '-'} s"),
            ("plan in force", plan_words(executor.plan)),
            ("last decision", _decision_words(last, executor.plan)),
            ("arrivals before it", f"{_rate_per_s(decisions):,.0f} records/s"),
            ("backlog then", f"{waiting:,.0f} records, {snapshot['batches_pending']:.0f} batches"),
        )


def plan_words(plan: Plan) -> str:
    """Word a plan in a line, without what it does not use."""
    first, second = plan.independent_policy.name, plan.dependent_policy.name
    if plan.pools is Pools.SINGLE:
        pools = f"single pool {first}"
    else:
        pools = f"{plan.pools.name.lower()} pools {first}/{second}, share {plan.share:.2f}"
    each = " in each pool" if plan.per_pool_parallelism else ""
    cut = f"every {plan.batch_interval_s:g} s"
    if plan.idle_batches:
        cut = f"below {plan.idle_batches} open batches, at least {plan.batch_interval_s:g} s apart"
    return f"{pools}, {plan.parallelism} jobs at once{each}, cut {cut}"


def _decision_words(decision: Decision, in_force: Plan) -> str:
    if not decision.changed:
        what = "kept"
    elif decision.applied.to_row().tolist() == in_force.to_row().tolist():
        what = "changed"
    else:
        what = f"would change to {plan_words(decision.applied)}"
    causes = f"; not as proposed: {', '.join(decision.causes)}" if decision.causes else ""
    took = f"in {1000.0 * decision.decision_s:.1f} ms"
    return f"{what} at {decision.time_s:.1f} s, {took}{causes}"


def _rate_per_s(decisions: list[Decision]) -> float:
    """Return the arrivals per second between the last two decisions."""
    if len(decisions) < 2:
        return 0.0
    before, now = decisions[-2].snapshot, decisions[-1].snapshot
    passed_s = now["time_s"] - before["time_s"]
    return (now["records_in"] - before["records_in"]) / passed_s if passed_s > 0.0 else 0.0
