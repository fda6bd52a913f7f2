"""A finished picture: laid out once, then shown on pages and written to files."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from edge_eval_lib.results import page

AROUND_INCHES = 0.1


@dataclass(frozen=True)
class Drawn:
    """A picture as a notebook shows it, and for its page words and a phone's version."""

    figure: Figure
    svg: str
    alt: str = ""
    narrow: str | None = None  # the phone's, where the wide one would be illegible

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        beside = {"alt": self.alt} | ({"narrow": self.narrow} if self.narrow else {})
        return {"image/svg+xml": self.svg, page.PICTURE: beside, "text/plain": repr(self)}

    def __repr__(self) -> str:
        return self.alt


@dataclass(frozen=True)
class LaidOut:
    """A figure whose layout is final, and how much of the paper it takes, inches."""

    figure: Figure
    around: Bbox


def lay_out(figure: Figure) -> LaidOut:
    """Lay a figure out for good: layouts are most of what drawing costs, so there is one."""
    if engine := figure.get_layout_engine():
        engine.execute(figure)
        figure.set_layout_engine(None)
    return LaidOut(figure, figure.get_tightbbox().padded(AROUND_INCHES))


def svg_of(picture: LaidOut) -> str:
    """Write a picture as SVG whose words are text, in the reader's typeface."""
    buffer = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "edge-eval"}):
        # No date: the same table gives the same file.
        _save(picture, buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def write_png(picture: LaidOut, path: Path, alt: str = "", dpi: float | None = None) -> None:
    """Write a picture as PNG, whose description says what it shows; makes the directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(picture, path, metadata={"Description": alt}, dpi=dpi)


def keep(picture: LaidOut, svg: str, path: Path, alt: str = "", dpi: float | None = None) -> None:
    """Write a picture as PNG and its SVG, to a path without the suffix."""
    write_png(picture, Path(f"{path}.png"), alt, dpi)
    Path(f"{path}.svg").write_text(svg, encoding="utf-8")


def _save(picture: LaidOut, target: Path | io.StringIO, **form: Any) -> None:
    picture.figure.savefig(target, facecolor="white", bbox_inches=picture.around, **form)
