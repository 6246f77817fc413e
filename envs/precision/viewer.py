"""Drawing of a simulated precision server: stages over time by level, queue below."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulators.precision.profile import PrecisionProfile

WAITING_COLOUR, MISSED_COLOUR, CORRUPTED_COLOUR = "#9D9DA1", "#E45756", "#F2E6CE"


class Served(NamedTuple):
    """One batch as it was served.

    Attributes:
        start_s: When it was dispatched.
        end_s: When its results were there.
        levels: Level index of each stage.
        waiting: Requests that waited at its dispatch.
        missed: Requests answered late or dropped with it.
        condition: True condition of its first request.
    """

    start_s: float
    end_s: float
    levels: tuple[int, ...]
    waiting: int
    missed: int
    condition: int


def level_colours(n_levels: int) -> list[str]:
    """Return a colour for each level, dark for the most precise."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["viridis"](place)) for place in np.linspace(0.1, 0.95, n_levels)]


def draw_levels(profile: PrecisionProfile, served: list[Served]) -> NDArray[np.uint8]:
    """Draw the last batches of a server.

    Args:
        profile: Names of stages, levels and conditions.
        served: The batches, in order.

    Returns:
        uint8 [height, width, 3].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(8.0, 4.5), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    colours = level_colours(len(profile.levels))
    starts = [batch.start_s for batch in served]
    widths = [batch.end_s - batch.start_s for batch in served]
    for stage in range(len(profile.stages)):
        hues = [colours[batch.levels[stage]] for batch in served]
        top.barh([stage] * len(served), widths, left=starts, color=hues, height=0.86)
    handles = [Patch(color=c, label=n) for c, n in zip(colours, profile.levels, strict=True)]
    handles += [
        Patch(color=WAITING_COLOUR, label="waiting"),
        Patch(color=MISSED_COLOUR, label="missed"),
        Patch(color=CORRUPTED_COLOUR, label="corrupted inputs"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=7, fontsize="x-small")
    top.set(ylabel="stage", yticks=range(len(profile.stages)), yticklabels=profile.stages)
    top.set_ylim(len(profile.stages) - 0.4, -0.6)  # the first stage on top
    waiting, missed = [b.waiting for b in served], [b.missed for b in served]
    bottom.step(starts, waiting, where="post", color=WAITING_COLOUR)
    bottom.fill_between(starts, waiting, step="post", color=WAITING_COLOUR, alpha=0.6)
    bottom.bar(starts, missed, widths, align="edge", color=MISSED_COLOUR)
    bottom.set(xlabel="simulated time (s)", ylabel="requests")
    bottom.set_ylim(bottom=0)
    for axes in (top, bottom):
        for batch, end_s in zip(served, [*starts[1:], *_last_end(served)], strict=True):
            if batch.condition > 0:
                axes.axvspan(batch.start_s, end_s, color=CORRUPTED_COLOUR, zorder=-1, lw=0)
    if served:
        last = served[-1]
        names = ", ".join(profile.levels[level] for level in last.levels)
        condition = profile.conditions[last.condition]
        top.set_title(f"t = {last.end_s:.2f} s   {names}   {condition}", fontsize="medium")
        top.set_xlim(starts[0], last.end_s)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return pixels[..., :3].copy()


def _last_end(served: list[Served]) -> list[float]:
    """Return the end of the last batch, or nothing."""
    return [batch.end_s for batch in served[-1:]]
