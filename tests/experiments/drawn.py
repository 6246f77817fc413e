"""What every figure has to keep to: texts apart and inside, units on axes."""

from __future__ import annotations

from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def _boxes(figure: Figure) -> list[tuple[str, Bbox]]:
    """Return all texts that are drawn, with the pixels that they cover."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    hidden = set()  # ticks beyond the ends of an axis exist and are not drawn
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low <= tick.get_loc() <= high:
                    hidden |= {id(tick.label1), id(tick.label2)}
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    return [
        (text.get_text(), text.get_window_extent(canvas.get_renderer()))
        for text in texts
        if text.get_visible() and text.get_text().strip() and id(text) not in hidden
    ]


def check_texts(figure: Figure) -> None:
    """Refuse texts that overlap or leave the figure."""
    boxes = _boxes(figure)
    assert len(boxes) > 8
    for text, box in boxes:
        assert min(box.x0, box.y0) >= -1, text
        assert box.x1 <= figure.bbox.width + 1, text
        assert box.y1 <= figure.bbox.height + 1, text
    for (left, one), (right, two) in combinations(boxes, 2):
        across = min(one.x1, two.x1) - max(one.x0, two.x0)
        down = min(one.y1, two.y1) - max(one.y0, two.y0)
        assert min(across, down) <= 1, (left, right)


def check_units(figure: Figure) -> None:
    """Refuse numbers on axes without units."""
    for axes in figure.axes:
        if axes.get_xlabel():
            assert axes.get_xlabel().endswith((")", "reference")), axes.get_xlabel()
        names = [t.get_text() for t in axes.get_yticklabels()]
        if axes.get_ylabel() and not any(n and n[0].isalpha() for n in names):
            assert axes.get_ylabel().endswith(")"), axes.get_ylabel()
