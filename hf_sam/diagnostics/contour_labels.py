"""Labels of contour lines that do not overlap."""

from collections.abc import Sequence
from typing import Any

FONT = 6  # points
CLEAR = 2  # points, between two labels
MARK = 5  # points, from the middle of the model's mark


def label_contours(axes: Any, drawn: Any, levels: Sequence[float]) -> None:
    """Label contour lines, except where labels would overlap or leave the axes.

    Args:
        axes: The axes, after their layout.
        drawn: The result of `contour`.
        levels: The levels to label where there is room.
    """
    pixels = axes.figure.dpi / 72
    middle = axes.transData.transform((0.0, 0.0))
    taken: list[Any] = []
    for text in drawn.clabel(levels, fontsize=FONT, fmt="%.2g", inline=False):
        box = text.get_window_extent().padded(CLEAR * pixels)
        is_inside = axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1)
        is_inside &= axes.bbox.containsy(box.y0) and axes.bbox.containsy(box.y1)
        on_mark = box.padded(MARK * pixels).contains(*middle)
        if not is_inside or on_mark or any(box.overlaps(other) for other in taken):
            text.remove()
            continue
        taken.append(box)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
