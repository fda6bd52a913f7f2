"""Reports: tables, figures and prose -> one HTML file that opens anywhere.

The file needs nothing beside it: pictures lie within, there is no script and no external
reference; links lead to files beside it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from edge_eval_lib.results.tables import heading, readable


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, then a figure and a table where there are any.

    A paragraph is a text, or a sequence of texts: a list. In a table's cell the first line is shown
    as it is and further lines, small, below it. `columns` chooses and orders the table's columns,
    `digits` rounds them (`tables.readable`); `caption` tells how to
    read figure or table; `csv` is a path beside the report at which the whole table lies.
    """

    title: str
    paragraphs: Sequence[str | Sequence[str]] = ()
    figure: Figure | None = None
    table: pd.DataFrame | None = None
    columns: Sequence[str] | None = None
    caption: str | None = None
    csv: str | None = None
    digits: int = 3


@dataclass(frozen=True)
class Report:
    """What a report says. `summary` is a text, or a sequence of texts: a list.

    `warnings` stand in a band at its top; `facts` say what ran on what; `links` are (text, path
    relative to the report).
    """

    title: str
    summary: str | Sequence[str]
    facts: dict[str, str]
    sections: Sequence[Section]
    warnings: Sequence[str] = ()
    links: Sequence[tuple[str, str]] = field(default_factory=tuple)


def render_report(path: str | Path, report: Report) -> Path:
    """Write `report` to `path`; makes the directory. A link whose file is absent is left out."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = Environment(
        loader=PackageLoader("edge_eval_lib"),
        autoescape=select_autoescape(["j2", "html"], default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    links = [(text, to) for text, to in report.links if (path.parent / to).exists()]
    html = environment.get_template("report.html.j2").render(
        report=report,
        links=links,
        sections=[
            {
                "section": section,
                "anchor": f"section-{number}",
                "picture": None if section.figure is None else picture(section.figure),
                "table": None if section.table is None else _table(section),
            }
            for number, section in enumerate(report.sections, start=1)
        ],
    )
    temporary = path.with_suffix(".tmp")
    temporary.write_text(html, encoding="utf-8")
    temporary.replace(path)
    return path


def picture(figure: Figure) -> str:
    """The figure as a data URI (SVG), to stand in an <img>."""
    buffer = io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "edge-eval"}):
        figure.savefig(
            buffer, format="svg", facecolor="white", bbox_inches="tight", pad_inches=0.15,
            metadata={"Date": None},
        )  # fmt: skip
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _table(section: Section) -> dict:
    """Headings, rows of text, and which columns are numbers (they are set to the right)."""
    table = section.table
    text = readable(table, section.columns, section.digits)
    numbers = {heading(c) for c in table if pd.api.types.is_numeric_dtype(table[c])}
    return {
        "headings": list(text.columns),
        "numeric": [column in numbers for column in text],
        "rows": text.to_numpy().tolist(),
    }
