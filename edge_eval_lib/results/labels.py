"""Names beside the marks of a picture: none on a mark, none on another name."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

# Where a name may stand, seen from its mark: nearest first, to the right before to the left.
_TURNS = np.deg2rad([0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90])
_POINTS = (9, 13, 18, 25, 33, 43, 55)
_AWAY = np.repeat(_POINTS, len(_TURNS)).astype(float)
_DIRECTIONS = np.tile(np.column_stack([np.cos(_TURNS), np.sin(_TURNS)]), (len(_POINTS), 1))
_TO_MARK = {"arrowstyle": "-", "color": "#999999", "lw": 0.6, "shrinkA": 1, "shrinkB": 4}
_FORBIDDEN = 1e4  # a name on a mark, on a name or outside


def place(
    axis: Axes, names: Sequence[tuple[float, float, str]], fontsize: float = 8
) -> list[Annotation]:
    """Name marks: each name where it covers no mark and no other name, a thin line to its mark.

    The layout must be final, all marks drawn.

    Args:
        axis: Where the marks are.
        names: Of each mark that gets a name: x, y, name.
        fontsize: Points.

    Returns:
        The names as drawn.
    """
    figure = axis.figure
    figure.draw_without_rendering()
    points = figure.dpi / 72
    frame, drawn = axis.get_window_extent().extents, []
    taken = np.array([box.extents for box in mark_boxes(axis)]).reshape(-1, 4)
    paths = [axis.transData.transform(line.get_xydata()) for line in axis.lines]
    lines = np.vstack([np.empty((0, 2)), *(_along(path) for path in paths if len(path))])
    for x, y, name in names:
        text = axis.annotate(
            name, (x, y), (0, 0), textcoords="offset points", fontsize=fontsize, ha="center",
            va="center", zorder=6, annotation_clip=False, arrowprops=_TO_MARK,
        )  # fmt: skip
        text.set_in_layout(False)
        size = Text.get_window_extent(text).size  # without its line
        # The name's nearer edge, not its middle, stands that far away.
        shifts = _AWAY[:, None] * points * _DIRECTIONS + _DIRECTIONS * size / 2
        low = axis.transData.transform((x, y)) + shifts - size / 2
        boxes = np.hstack([low, low + size])
        inside = (boxes[:, :2] >= frame[:2]).all(axis=1) & (boxes[:, 2:] <= frame[2:]).all(axis=1)
        bad = _overlaps(boxes + 2 * points * np.array([-1, -1, 1, 1]), taken).sum(axis=1)
        crossed = _holds(boxes, lines).sum(axis=1)
        best = int(np.argmin(_FORBIDDEN * (bad + ~inside) + _AWAY + 3 * crossed))
        text.set_position(tuple(shifts[best] / points))
        taken = np.vstack([taken, boxes[best]])
        drawn.append(text)
    return drawn


def _overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether each box (x0, y0, x1, y1) meets each of the others."""
    apart = (boxes[:, None, :2] > others[None, :, 2:]) | (boxes[:, None, 2:] < others[None, :, :2])
    return np.logical_not(apart.any(axis=2))


def _holds(boxes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Whether each box holds each of the points."""
    x, y = points.T
    across = (boxes[:, :1] < x) & (x < boxes[:, 2:3])
    return across & (boxes[:, 1:2] < y) & (y < boxes[:, 3:])


def mark_boxes(axis: Axes) -> list[Bbox]:
    """Return the boxes of the marks of an axis, pixels: scattered ones and lines' markers."""
    points = axis.figure.dpi / 72
    boxes = []
    for marks in axis.collections:
        if isinstance(marks, PathCollection):
            sides = np.broadcast_to(np.sqrt(marks.get_sizes()), len(marks.get_offsets()))
            places = marks.get_offset_transform().transform(marks.get_offsets())
            boxes += [_square(at, side * points) for at, side in zip(places, sides, strict=True)]
    for line in axis.lines:
        if line.get_marker() not in ("None", "", None, "|"):
            places = axis.transData.transform(line.get_xydata())
            boxes += [_square(at, line.get_markersize() * points) for at in places]
    return boxes


def _square(middle: np.ndarray, side: float) -> Bbox:
    return Bbox.from_bounds(*(np.asarray(middle) - side / 2), side, side)


def _along(corners: np.ndarray) -> np.ndarray:
    """Points every few pixels along a line."""
    if len(corners) < 2:
        return corners
    parts = [np.linspace(a, b, max(int(np.hypot(*(b - a)) / 4), 2)) for a, b in pairwise(corners)]
    return np.vstack(parts)
