"""Frames of pictures: panels beside each other, or for a phone below; title, legend, foot, words.

both(["rag", "dialogue"], draw, title, reading, alt, path, stamp)   # draw(axes), called twice
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edge_eval_lib.results import figures, page

PHONE_INCHES = 3.9  # about 375 CSS pixels: a phone's text is then as large as the page's
_INCH_CHARACTERS = {"title": 8.2, "reading": 14.5, "legend": 13.5}

Legend = dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Shown:
    """A picture as a notebook shows it, and for its page words and a phone's version."""

    svg: str
    title: str
    alt: str
    narrow: str

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        beside = {"alt": f"{self.title} {self.alt}", "narrow": self.narrow}
        return {"image/svg+xml": self.svg, page.PICTURE: beside, "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"{self.title} {self.alt}"


@dataclass(frozen=True)
class Picture:
    """A drawn picture and what it says, in words made from its numbers."""

    figure: Figure
    title: str
    alt: str

    def write_png(self, file: Path) -> None:
        """Write it as PNG, whose description is the alternative text; makes the directory."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self.figure.savefig(
            file, dpi=130, facecolor="white", bbox_inches="tight", pad_inches=0.12,
            metadata={"Title": self.title, "Description": self.alt},
        )  # fmt: skip

    def keep(self, path: Path) -> None:
        """Write it as PNG and SVG, to a path without the suffix."""
        self.write_png(Path(f"{path}.png"))
        Path(f"{path}.svg").write_text(svg_of(self.figure), encoding="utf-8")

    def shown(self, phone: Picture) -> Shown:
        """Show it, on a narrow screen its twin."""
        return Shown(svg_of(self.figure), self.title, self.alt, svg_of(phone.figure))


def svg_of(figure: Figure) -> str:
    """Write a laid-out figure as SVG whose words are text, in the reader's typeface."""
    buffer = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "edge-eval"}):
        figure.savefig(
            buffer, format="svg", metadata={"Date": None}, facecolor="white",
            bbox_inches="tight", pad_inches=0.08,
        )  # fmt: skip
    return buffer.getvalue()


def panels(
    names: Sequence[str], phone: bool, wide: tuple[float, float], tall: float, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """Start a figure with a titled panel a name: beside each other, on a phone one below another.

    Args:
        names: A panel each.
        phone: Whether to draw for a narrow screen.
        wide: Width and height of the wide figure, inches.
        tall: Height of one panel on a phone, inches.
        shared: `sharex`, `sharey`, `width_ratios`.
    """
    count = len(names)
    if phone:
        shared.pop("width_ratios", None)
        grid, size = (count, 1), (PHONE_INCHES, tall * count + 1.2)
    else:
        grid, size = (1, count), wide
    with plt.rc_context(figures.STYLE):
        fig, axes = plt.subplots(*grid, figsize=size, layout="constrained", squeeze=False, **shared)
    fig.get_layout_engine().set(w_pad=0.08, wspace=0.03)
    for axis, name in zip(axes.flat, names, strict=True):
        axis.set_title(name, loc="left", fontsize=10, fontweight="bold")
    return fig, list(axes.flat)


def finish(
    fig: Figure, title: str, reading: str, alt: str, legend: Legend | None = None, stamp: str = ""
) -> Picture:
    """Set title, what it shows and a legend above a figure, as wide as it is; say whose it is."""
    width = fig.get_figwidth()
    lines = textwrap.wrap(title, int(width * _INCH_CHARACTERS["title"]))
    below = textwrap.wrap(reading, int(width * _INCH_CHARACTERS["reading"]))
    rows = _rows(list(legend or {}), int(width * _INCH_CHARACTERS["legend"]))
    high = [0.25 * len(lines), 0.17 * len(below), 0.21 * len(rows)]
    with plt.rc_context(figures.STYLE):
        top = fig.get_figheight() + sum(high) - 0.3 * (width > PHONE_INCHES)
        fig.set_figheight(top)
        fig.get_layout_engine().set(rect=(0, 0, 1, 1 - (sum(high) + 0.1) / top))
        fig.text(0.01, 1, "\n".join(lines), va="top", fontsize=13, fontweight="bold")
        fig.text(
            0.01, 1 - high[0] / top, "\n".join(below), va="top", fontsize=9, color=figures.GREY
        )
        for number, names in enumerate(rows):
            looks = [(legend or {})[name] for name in names]
            handles = [plt.Line2D([], [], color=c, marker=m, ls="", ms=6.5) for c, m in looks]
            fig.legend(
                handles, names, loc="upper left", ncols=len(names), frameon=False, fontsize=9,
                handletextpad=0.1, columnspacing=1.2, borderaxespad=0, borderpad=0,
                bbox_to_anchor=(0.005, 1 - (high[0] + high[1] + 0.04 + 0.21 * number) / top),
            ).set_in_layout(False)  # fmt: skip
        foot = textwrap.fill(stamp, int(width * _INCH_CHARACTERS["reading"] * 1.1))
        fig.supxlabel(foot, x=0.01, ha="left", fontsize=8, color=figures.GREY)
        fig.draw_without_rendering()
        fig.set_layout_engine("none")
    plt.close(fig)
    return Picture(fig, title, alt)


def _rows(names: list[str], width: int) -> list[list[str]]:
    """A legend's names in as few rows as fit."""
    rows: list[list[str]] = []
    for name in names:
        if rows and sum(len(n) + 4 for n in [*rows[-1], name]) <= width:
            rows[-1].append(name)
        else:
            rows.append([name])
    return rows


def both(
    names: Sequence[str],
    draw: Callable[[list[Axes]], None],
    title: str,
    reading: str,
    alt: str,
    path: Path,
    stamp: str,
    wide: tuple[float, float] = (9.5, 3.4),
    tall: float = 3.0,
    legend: Legend | None = None,
    **shared: Any,
) -> Shown:
    """Draw a picture twice, wide and for a phone, keep the wide one and show both.

    Args:
        names: A panel each, by its title.
        draw: Draws on the panels' axes.
        title: The question that the picture answers.
        reading: What it shows, in a line or two.
        alt: What it says, in words made from its numbers.
        path: Where it is kept as PNG and SVG, without the suffix.
        stamp: The host and where its energy comes from.
        wide: Width and height of the wide figure, inches.
        tall: Height of one panel on a phone, inches.
        legend: Names with colour and marker.
        shared: `sharex`, `sharey`, `width_ratios`.
    """
    drawn = []
    for phone in (False, True):
        fig, axes = panels(names, phone, wide, tall, **shared)
        with plt.rc_context(figures.STYLE):
            draw(axes)
        drawn.append(finish(fig, title, reading, alt, legend, stamp))
    drawn[0].keep(path)
    return drawn[0].shown(drawn[1])
