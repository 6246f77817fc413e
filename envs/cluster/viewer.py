"""Drawing of a simulated cluster: slots over time, queue below."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.snapshot import Report
from simulators.cluster.reference import ReferenceCluster
from simulators.cluster.reference_runs import TaskLog

INDEPENDENT_COLOUR, DEPENDENT_COLOUR = "#4C78A8", "#F58518"


def lanes(tasks: list[TaskLog], slots: int) -> list[int]:
    """Return a slot for each task (in order of start) so that tasks in a slot do not overlap."""
    free_s = [-np.inf] * slots
    chosen = []
    for task in tasks:
        lane = next(k for k in range(slots) if free_s[k] <= task.start_s + 1e-12)
        free_s[lane] = task.end_s
        chosen.append(lane)
    return chosen


def draw_gantt(
    cluster: ReferenceCluster, reports: list[Report], window_s: float
) -> NDArray[np.uint8]:
    """Draw the last seconds of a cluster.

    Args:
        cluster: Cluster with its task log.
        reports: All batches that ended since its reset.
        window_s: Length of the time axis, seconds.

    Returns:
        uint8 [height, width, 3].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    end_s = max(cluster.now_s, window_s)
    begin_s = end_s - window_s
    figure = Figure(figsize=(8.0, 4.5), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    dependent = cluster.application.dependent
    for task, lane in zip(cluster.task_log, lanes(cluster.task_log, cluster.slots), strict=True):
        if task.end_s > begin_s:
            colour = DEPENDENT_COLOUR if dependent[task.job] else INDEPENDENT_COLOUR
            width = task.end_s - task.start_s
            top.barh(lane, width, left=task.start_s, color=colour, edgecolor="white", lw=0.3)
    hues = (INDEPENDENT_COLOUR, DEPENDENT_COLOUR)
    names = ("independent", "dependent")
    handles = [Patch(color=hue, label=name) for hue, name in zip(hues, names, strict=True)]
    figure.legend(handles=handles, loc="outside lower right", ncols=2, fontsize="small")
    top.set(ylabel="slot", ylim=(-0.6, cluster.slots - 0.4), yticks=range(cluster.slots))
    plan = cluster.plan
    top.set_title(
        f"t = {cluster.now_s:.1f} s   {plan.pools.name.lower()} pools, share {plan.share:g}, "
        f"P = {plan.parallelism}, interval {plan.batch_interval_s:g} s, idle {plan.idle_batches}",
        fontsize="medium",
    )
    times = np.linspace(max(begin_s, 0.0), cluster.now_s, 200)
    end = np.array([report.end_s for report in reports])
    records = np.array([report.records for report in reports])
    waiting = [cluster.arrivals.until(t)[0] - records[end <= t].sum() for t in times]
    bottom.fill_between(times, waiting, step="post", color="#9D9DA1")
    bottom.set(xlabel="simulated time (s)", ylabel="records\nin system", xlim=(begin_s, end_s))
    bottom.set_ylim(bottom=0)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return pixels[..., :3].copy()
