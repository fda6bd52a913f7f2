"""What the pictures of the paper's page share: panels, words around them, a phone's version."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edge_eval_lib.paper.analysis import Paper
from edge_eval_lib.results import figures
from edge_eval_lib.results.columns import configuration_name
from edge_eval_lib.results.drawn import Drawn, LaidOut, keep, lay_out, svg_of, write_png

STAMP = "Published figures of two Tesla T4 (arXiv 2604.19342); energy from NVML power, "
STAMP += "load estimated"
PHONE_INCHES = 3.9  # about 375 CSS pixels: a phone's text is then as large as the page's
DPI = 130
_INCH_CHARACTERS = {"title": 8.2, "reading": 14.5, "legend": 13.5}

Legend = dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Picture:
    """A drawn picture and what it says, in words made from its numbers."""

    laid_out: LaidOut
    title: str
    alt: str

    @property
    def figure(self) -> Figure:
        """What it is drawn on."""
        return self.laid_out.figure

    @property
    def words(self) -> str:
        """Its alternative text, which the title begins."""
        return f"{self.title} {self.alt}"

    def write_png(self, file: Path) -> None:
        """Write it as PNG, whose description is the alternative text; makes the directory."""
        write_png(self.laid_out, file, self.words, DPI)

    def shown(self, phone: Picture, path: Path | None = None) -> Drawn:
        """Show it, on a narrow screen its twin; keep it as PNG and SVG at `path`."""
        svg = svg_of(self.laid_out)
        if path is not None:
            keep(self.laid_out, svg, path, self.words, DPI)
        return Drawn(self.figure, svg, self.words, svg_of(phone.laid_out))


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
    fig: Figure, title: str, reading: str, alt: str, legend: Legend | None = None
) -> Picture:
    """Set title, reading and legend above a figure, and below it whose figures they are."""
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
        foot = textwrap.fill(STAMP, int(width * _INCH_CHARACTERS["reading"] * 1.1))
        fig.supxlabel(foot, x=0.01, ha="left", fontsize=8, color=figures.GREY)
        picture = lay_out(fig)
    plt.close(fig)
    return Picture(picture, title, alt)


def _rows(names: list[str], width: int) -> list[list[str]]:
    """A legend's names in as few rows as fit."""
    rows: list[list[str]] = []
    for name in names:
        if rows and sum(len(n) + 4 for n in [*rows[-1], name]) <= width:
            rows[-1].append(name)
        else:
            rows.append([name])
    return rows


def shown(draw: Callable[..., Picture], study: Paper, directory: Path | None = None) -> Drawn:
    """Draw a picture, wide and for a phone, keep the wide one, and show both.

    Args:
        draw: One of the pictures' functions; its name is the file's.
        study: What is drawn.
        directory: Where it is kept; by default nowhere.
    """
    path = directory / draw.__name__ if directory else None
    return draw(study).shown(draw(study, phone=True), path)


def models_of(rows: pd.DataFrame) -> pd.Series:
    """Return `llama-1B` of each row."""
    return rows["family"] + "-" + rows["size"]


def configurations(study: Paper) -> Legend:
    """Colour and marker of each published configuration, as everywhere in the kit."""
    pairs = study.variants[["method", "precision"]].drop_duplicates()
    return {configuration_name(*p): figures.look(*p) for p in pairs.itertuples(index=False)}


def span(values: Sequence[float] | pd.Series) -> str:
    """Return `2.1 to 48`."""
    return f"{figures.number(np.min(values))} to {figures.number(np.max(values))}"
