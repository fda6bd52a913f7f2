"""A finished picture: laid out once, then shown on pages and written to files."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

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


def lay_out(figure: Figure) -> None:
    """Lay a figure out for good: layouts are most of what drawing costs, so there is one."""
    figure.draw_without_rendering()
    figure.set_layout_engine(None)


def svg_of(figure: Figure) -> str:
    """Write a laid-out figure as SVG whose words are text, in the reader's typeface."""
    buffer = io.StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "edge-eval"}):
        # No date: the same table gives the same file.
        _save(figure, buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def write_png(figure: Figure, path: Path, alt: str = "", dpi: float | None = None) -> None:
    """Write a laid-out figure as PNG, whose description says what it shows; makes the directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(figure, path, metadata={"Description": alt}, dpi=dpi)


def keep(figure: Figure, svg: str, path: Path, alt: str = "", dpi: float | None = None) -> None:
    """Write a laid-out figure as PNG and its SVG, to a path without the suffix."""
    write_png(figure, Path(f"{path}.png"), alt, dpi)
    Path(f"{path}.svg").write_text(svg, encoding="utf-8")


def _save(figure: Figure, target: Path | io.StringIO, **form: Any) -> None:
    around = figure.get_tightbbox().padded(AROUND_INCHES)
    figure.savefig(target, facecolor="white", bbox_inches=around, **form)
