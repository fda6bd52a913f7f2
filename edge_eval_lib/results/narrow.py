"""A picture laid out anew for a phone: its panels below each other, its words wrapped."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.legend import Legend
from matplotlib.text import Text

from edge_eval_lib.results import drawn

WIDTH = 4.1  # inches: one point is then about one pixel and a quarter at 390 px
WIDE = 5.0  # a picture that is no wider is legible as it is
_ROW = 60  # characters of a row of the legend
HEADLINE = "edge_eval_headline"  # the attribute in which a figure keeps its title and legend


def narrow_svg(fig: Figure) -> str | None:
    """Lay a finished figure out for a phone, for good; None where it is narrow or cannot be."""
    axes = [axis for axis in fig.axes if axis.get_visible()]
    if fig.get_figwidth() <= WIDE or not axes or fig.subfigs:
        return None
    if any(axis.get_subplotspec() is None for axis in axes):
        return None
    foot = fig._supxlabel.get_text() if fig._supxlabel else ""
    heights = [axis.get_position().height * fig.get_figheight() for axis in axes]
    _restore_labels(axes)
    for text in list(fig.texts):
        text.remove()
    for legend in list(fig.legends):
        legend.remove()
    words = getattr(fig, HEADLINE, None) or (fig.get_suptitle().strip(), "", None)
    fig._suptitle = fig._supxlabel = None
    texts, handles, top = _words(fig, *words)
    lines = [textwrap.fill(" ".join(line.split()), 68) for line in foot.splitlines()]
    bottom = "\n".join(lines)
    room = sum(max(height, 1.2) + 0.75 for height in heights)
    below = 0.17 * (bottom.count("\n") + 1) if bottom else 0.0
    height = top + room + below
    fig.set_size_inches(WIDTH, height)
    fig.set_layout_engine("constrained", rect=(0, below / height, 1, 1 - (top + below) / height))
    grid = GridSpec(len(axes), 1, figure=fig, height_ratios=[max(h, 1.2) for h in heights])
    for axis, cell in zip(axes, grid, strict=True):
        axis.set_subplotspec(cell)
        axis.tick_params(axis="both", labelsize=8)
    for text, inches in texts:
        text.set_y(1 - inches / height)
    for legend, inches in handles:
        legend.set_bbox_to_anchor((0.0, 1 - inches / height), transform=fig.transFigure)
    if bottom:
        fig.text(0.01, 0.0, bottom, ha="left", va="bottom", fontsize=7, color="#666666")
    return drawn.svg_of(drawn.lay_out(fig))


def _restore_labels(axes: list[Axes]) -> None:
    """Give every panel the labels that only the outer ones needed beside each other."""
    for name in ("x", "y"):
        labels = [axis.yaxis.get_label_text() if name == "y" else axis.xaxis.get_label_text()
                  for axis in axes]  # fmt: skip
        first = next((label for label in labels if label), "")
        for axis, label in zip(axes, labels, strict=True):
            if not label and first:
                (axis.set_ylabel if name == "y" else axis.set_xlabel)(first)
    for axis in axes:
        if axis.yaxis.get_visible():
            axis.tick_params(labelleft=True)
        axis.tick_params(labelbottom=True)


def _words(
    fig: Figure, title: str, reading: str, legend: dict[str, tuple[str, str]] | None
) -> tuple[list[tuple[Text, float]], list[tuple[Legend, float]], float]:
    """Set title, reading and legend, wrapped: each with its inches from the top, and their sum."""
    texts, legends, used = [], [], 0.02
    for words, size, width, weight, colour in (
        (title, 11.5, 40, "bold", "#1f2328"),
        (reading, 8.5, 58, "normal", "#666666"),
    ):
        if wrapped := textwrap.fill(words, width):
            look = {"fontsize": size, "weight": weight, "color": colour}
            texts.append((fig.text(0.01, 1.0, wrapped, ha="left", va="top", **look), used))
            used += size * 1.25 / 72 * (wrapped.count("\n") + 1) + 0.05
    if legend:
        columns = max(1, min(len(legend), _ROW // (max(map(len, legend)) + 4)))
        marks = [plt.Line2D([], [], color=c, marker=m, ls="", ms=6) for c, m in legend.values()]
        shown = fig.legend(marks, list(legend), loc="upper left", ncols=columns, frameon=False,
                           handletextpad=0.1, columnspacing=1.0, fontsize=8.5, borderaxespad=0,
                           borderpad=0)  # fmt: skip
        legends.append((shown, used))
        used += 0.19 * -(-len(legend) // columns) + 0.05
    return texts, legends, used
