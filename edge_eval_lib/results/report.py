"""Reports: an executed notebook -> one HTML file that opens anywhere.

The file needs nothing beside it: pictures lie within, there is no script and no external
reference; links lead to files beside it.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from edge_eval_lib import redaction
from edge_eval_lib.results.tables import heading, readable

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

LONG_CELL = 40
_UNDESCRIBED = "No description has been provided for this image"  # nbconvert's
_TITLE = re.compile(r"^# (.+)", re.MULTILINE)
_FILE = re.compile(r"[\w./-]+\.(?:csv|png|svg|html|json)")
_NUMBER = re.compile(r"[<×~]?\s?[-−+]?[\d.,]*\d[\d.,]*(?:e[-−+]?\d+)?(?:\s?%)?(?:\s?[\[(].*)?$")


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


def render(notebook: Path, target: Path) -> Path:
    """Write an executed notebook as one HTML file: code folded, contents from its headings.

    What cells tagged `warnings` show stands in a band below the title. Names of files that lie
    beside the report (`tables/variants.csv`) become links.

    Args:
        notebook: The executed notebook.
        target: The HTML file; its directory is made. It is replaced only once all is rendered.

    Returns:
        `target`.
    """
    import nbformat
    from bs4 import BeautifulSoup
    from nbconvert import HTMLExporter

    node = nbformat.reads(redaction.redact_json(notebook.read_text(encoding="utf-8")), as_version=4)
    exporter = HTMLExporter(
        template_name="basic",
        template_file="notebook.html.j2",
        extra_template_paths=[str(Path(__file__).parents[1] / "templates")],
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    title = next((m[1] for c in node.cells if (m := _TITLE.search(c.source))), notebook.stem)
    study = node.metadata.get("papermill", {}).get("parameters", {}).get("study")
    name = f"{Path(study).stem}: {title}" if study else title
    html, _ = exporter.from_notebook_node(node, {"title": escape(name)})
    page = BeautifulSoup(html, "html.parser")
    for foreign in page.find_all(["script", "link", "iframe"]) + page.select("style[scoped]"):
        foreign.decompose()
    _describe_pictures(page)
    for table in page.find_all("table"):
        _align(table)
    for code in page.find_all("code"):
        if _FILE.fullmatch(code.text) and (target.parent / code.text).is_file():
            code.wrap(page.new_tag("a", href=code.text))
    _set_top(page)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".tmp")
    temporary.write_text(str(page), encoding="utf-8")
    return temporary.replace(target)


def _describe_pictures(page: BeautifulSoup) -> None:
    """Give every picture without one the heading that it stands under as alternative text."""
    for image in page.find_all("img"):
        above = image.find_previous(["h1", "h2", "h3"])
        if image.get("alt", _UNDESCRIBED) == _UNDESCRIBED:
            image["alt"] = above.get_text(strip=True) if above else "A picture"


def _align(table: Tag) -> None:
    """Set columns of numbers to the right, headings with them, and wrap long texts."""
    for part in [table, *table.find_all(["tr", "td", "th"])]:
        if "right" in part.get("style", "") and part.name != "tr":
            part["class"] = [*part.get("class", []), "number"]
        part.attrs = {name: value for name, value in part.attrs.items() if name == "class"}
    rows = [row.find_all(["td", "th"]) for row in table.find_all("tr")]
    bodies = [row for row in rows if any(cell.name == "td" for cell in row)]
    for number, cells in enumerate(zip(*bodies, strict=False)):
        texts = [cell.get_text(strip=True) for cell in cells if cell.name == "td"]
        known = [text for text in texts if text not in ("–", "", "NaN", "None", "never")]
        if known and all(_NUMBER.match(text) for text in known):
            for row in rows:
                if number < len(row) and "number" not in row[number].get("class", []):
                    row[number]["class"] = [*row[number].get("class", []), "number"]
        for cell in cells:
            if len(cell.get_text()) > LONG_CELL and "number" not in cell.get("class", []):
                cell["class"] = [*cell.get("class", []), "long"]


def _set_top(page: BeautifulSoup) -> None:
    """Set warnings and contents below the title and what stands with it."""
    first = page.find("h1")
    top = first.find_parent(class_="cell") if first else None
    nav = page.new_tag("nav", attrs={"aria-label": "Contents"})
    listed = page.new_tag("ol")
    for number, section in enumerate(page.find_all("h2"), start=1):
        section["id"] = f"section-{number}"
        entry, link = page.new_tag("li"), page.new_tag("a", href=f"#{section['id']}")
        link.string = section.get_text(strip=True)
        entry.append(link)
        listed.append(entry)
    nav.append(listed)
    parts = [nav] if listed.contents else []
    band = page.new_tag("div", attrs={"class": "warnings", "role": "note"})
    for cell in page.select(".celltag_warnings .output"):
        band.append(cell.extract())
    if band.get_text(strip=True):
        parts.insert(0, band)
    for part in reversed(parts):
        top.insert_after(part) if top else page.main.insert(0, part)
