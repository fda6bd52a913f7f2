"""Reports: an executed notebook -> one HTML file that opens anywhere.

The file needs nothing beside it: pictures lie within as SVG, and only where it has charts or tables
that sort is there a script, which lies within too. Links lead to files beside it.
"""

from __future__ import annotations

import itertools
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edge_eval_lib import redaction
from edge_eval_lib.results import pictures, scripts
from edge_eval_lib.results.page import CHART, PICTURE

if TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

LONG_CELL = 40
WIDE_TABLE, PHONE = 4, 345  # columns, pixels: what is wider scrolls on a phone
KEYS = 3  # columns at most that stay in view on a phone while others scroll
KEYS_REM, KEY_REM, ONLY_KEY_REM = 14.2, 6.9, 9.0  # what all may take, one of several, a single one
WIDEST = 1150  # pixels that a table may take beside each other on a desk
_UNDESCRIBED = "No description has been provided for this image"  # nbconvert's
_TITLE = re.compile(r"^# (.+)", re.MULTILINE)
_FILE = re.compile(r"[\w./-]+\.(?:csv|png|svg|html|json)")
_VERSION = re.compile(r"/v(\d+)\.(\d+)")
_NUMBER = re.compile(r"[<×~]?\s?[-−+]?[\d.,]*\d[\d.,]*(?:e[-−+]?\d+)?(?:\s?%)?(?:\s?[\[(].*)?$")


def render(notebook: Path, target: Path) -> Path:
    """Write an executed notebook as one HTML file: code folded, contents from its headings.

    Cells tagged `answer` stand right below the title, and what cells tagged `warnings` show in a
    band beneath. Names of files that lie
    beside the report (`tables/variants.csv`) become links.

    `target` is replaced only once all is rendered; its directory is made.
    """
    import nbformat
    from bs4 import BeautifulSoup
    from nbconvert import HTMLExporter

    node = nbformat.reads(redaction.redact_json(notebook.read_text(encoding="utf-8")), as_version=4)
    drawn: list[str] = []
    written: set[str] = set()  # the versions of Vega-Lite that its charts are written in

    def picture(output: Any) -> str:
        """A place for a picture, which is set once nothing else reads the page's markup."""
        data = output["data"]
        chart = data.get(CHART)
        if chart:
            written.add(".".join(_VERSION.findall(chart["$schema"])[-1]))
        svg = data["image/svg+xml"]
        drawn.append(pictures.inline(data.get(PICTURE, {}), svg, len(drawn), chart))
        return f'<div class="drawn">{len(drawn) - 1}</div>'

    exporter = HTMLExporter(
        filters={"picture": picture},
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
    for cell in node.cells:  # a path of this machine stays out of the report
        if study and "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = cell.source.replace(study, Path(study).name)
        if "outputs" in cell:  # records for synthesis, which a page cannot show
            cell.outputs = [output for output in cell.outputs if not _is_scrap(output)]
    html, _ = exporter.from_notebook_node(node, {"title": escape(name)})
    page = BeautifulSoup(html, "html.parser")
    for foreign in page.find_all(["script", "link", "iframe"]) + page.select("style[scoped]"):
        foreign.decompose()
    for cell in page.select('[id^="cell-id="]'):  # drawn anew each time: the report must not differ
        del cell["id"]
    _describe_pictures(page)
    for table in page.find_all("table"):
        _align(table)
        _keep_keys_in_view(page, table)
    for code in page.find_all("code"):
        if _FILE.fullmatch(code.text) and (target.parent / code.text).is_file():
            code.wrap(page.new_tag("a", href=code.text))
    _set_top(page)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".tmp")
    tables = page.select_one(".sortable table") is not None
    text = re.sub(r'<div class="drawn">(\d+)</div>', lambda m: drawn[int(m[1])], str(page))
    script = scripts.inline(max(written, default=None), tables)
    temporary.write_text(text.replace("</body>", f"{script}</body>"), encoding="utf-8")
    return temporary.replace(target)


def _is_scrap(output: Any) -> bool:
    kinds = output.get("data", {}).keys()
    return bool(kinds) and all(kind.startswith("application/scrapbook") for kind in kinds)


def _keep_keys_in_view(page: BeautifulSoup, table: Tag) -> None:
    """Let a wide table scroll within the page, what its rows are of held in view.

    That are its first columns of words; those that say the same of every row may scroll away.
    """
    rows = [row.find_all(["td", "th"]) for row in table.find_all("tr")]
    widest = max((len(row) for row in rows), default=0)
    frame = page.new_tag("div", attrs={"class": "scroll", "tabindex": "0", "role": "region"})
    fold = table.find_parent("details")
    above = fold.summary if fold else table.find_previous(["h3", "h2", "h1"])
    frame["aria-label"] = "Table" + (f": {above.get_text(strip=True)}" if above else "")
    table.wrap(frame)
    columns = [[row[at] for row in rows if len(row) > at] for at in range(widest)]
    if widest <= WIDE_TABLE and sum(map(_least_pixels, columns)) <= PHONE:
        return
    hint = page.new_tag("p", attrs={"class": "hint"})
    hint.string = f"{widest} columns: the table scrolls sideways →"
    frame.insert_before(hint)
    _add_class(table, "wide-table")
    if sum(map(_pixels, columns)) > WIDEST:
        _add_class(hint, "always")
    words = list(itertools.takewhile(lambda column: not _has_numbers(column), columns))
    words = words or columns[:1]
    differing = [column for column in words if len({cell.get_text() for cell in column[1:]}) > 1]
    keys = _keys(differing or words)
    table["style"] = "; ".join(f"--w{n}: {rem:.1f}rem" for n, (_, rem) in enumerate(keys, start=1))
    for number, (column, _) in enumerate(keys, start=1):
        for cell in column:
            _add_class(cell, f"key key{number}" + " last" * (number == len(keys)))
    for heading, *cells in [column for column in words if differing and column not in differing]:
        said = page.new_tag("span", attrs={"class": "same"})
        said.string = f"{heading.get_text(strip=True)}: {cells[0].get_text(strip=True)}. "
        hint.insert(len(hint.contents) - 1, said)
        for cell in (heading, *cells):  # on a phone it stands above alone
            _add_class(cell, "same")


def _keys(columns: list[list[Tag]]) -> list[tuple[list[Tag], float]]:
    """As many of the columns as a phone has room for, each with its width, rem."""
    room = KEYS_REM
    keys = []
    for column in columns[:KEYS]:
        letters = max(len(cell.get_text(strip=True)) for cell in column)
        most = ONLY_KEY_REM if len(columns) == 1 else KEY_REM
        width = min(0.5 * letters + 0.8, most)
        if width > room:
            break
        room -= width
        keys.append((column, width))
    return keys


def _pixels(column: list[Tag]) -> int:
    """About as wide as a column is on a desk: its longest cell, long words wrapped."""
    letters = [min(len(cell.get_text(strip=True)), LONG_CELL) for cell in column[1:]]
    return 7 * max([*letters, 9]) + 16


def _least_pixels(column: list[Tag]) -> int:
    """About as narrow as a column can be: words wrap, very long ones within; numbers do not."""
    heading, *cells = (cell.get_text(strip=True) for cell in column)
    words = [word for text in [heading, *cells] for word in text.split()]
    texts = cells if _has_numbers(column) else [word[: LONG_CELL // 2] for word in words]
    return 7 * max(len(text) for text in [*heading.split(), *texts, ""]) + 14


def _has_numbers(cells: list[Tag]) -> bool:
    return any("number" in cell.get_attribute_list("class") for cell in cells)


def _describe_pictures(page: BeautifulSoup) -> None:
    """Give every picture without one the heading that it stands under as alternative text."""
    for image in page.find_all("img"):
        above = image.find_previous(["h1", "h2", "h3"])
        if image.get("alt", _UNDESCRIBED) == _UNDESCRIBED:
            image["alt"] = above.get_text(strip=True) if above else "A picture"


def _add_class(tag: Tag, name: str) -> None:
    classes = tag.get_attribute_list("class")
    classes.append(name)
    tag["class"] = classes


def _align(table: Tag) -> None:
    """Set columns of numbers to the right, headings with them, and wrap long texts."""
    for part in [table, *table.find_all(["tr", "td", "th"])]:
        if "right" in str(part.get("style", "")) and part.name != "tr":
            _add_class(part, "number")
        part.attrs = {name: value for name, value in part.attrs.items() if name == "class"}
    rows = [row.find_all(["td", "th"]) for row in table.find_all("tr")]
    bodies = [row for row in rows if any(cell.name == "td" for cell in row)]
    for number, cells in enumerate(zip(*bodies, strict=False)):
        texts = [cell.get_text(strip=True) for cell in cells if cell.name == "td"]
        known = [text for text in texts if text not in ("–", "", "NaN", "None", "never")]
        if known and all(_NUMBER.match(text) for text in known):
            for row in rows:
                if number < len(row) and "number" not in row[number].get_attribute_list("class"):
                    _add_class(row[number], "number")
            if table.find_parent(class_="sortable"):
                for cell in cells:
                    if cell.name == "td":
                        cell["data-order"] = _value(cell.get_text(strip=True))
        for cell in cells:
            if len(cell.get_text()) > LONG_CELL and "number" not in cell.get("class", ""):
                _add_class(cell, "long")


def _value(text: str) -> str:
    """What a cell of a column of numbers is sorted by; nothing where nothing is known."""
    if text == "never":
        return "1e300"
    found = re.search(r"-?\d[\d.]*(?:e-?\d+)?", text.replace(",", "").replace("−", "-"))
    if not found:
        return ""
    return f"{found[0]}e-3" if text.startswith("<") and "e" not in found[0] else found[0]


def _set_top(page: BeautifulSoup) -> None:
    """Set the answer, warnings and contents below the title and what stands with it."""
    first = page.find("h1")
    top = first.find_parent(class_="cell") if first else None
    answers = [cell.extract() for cell in page.select(".cell.celltag_answer")]
    _insert_below(page, top, answers)
    nav = page.new_tag("nav", attrs={"aria-label": "Contents"})
    listed = page.new_tag("ol")
    for number, section in enumerate(page.find_all("h2"), start=1):
        section["id"] = f"section-{number}"
        entry, link = page.new_tag("li"), page.new_tag("a", href=f"#{section['id']}")
        link.string = section.get_text(strip=True)
        entry.append(link)
        listed.append(entry)
    nav.append(listed)
    parts: list[Tag] = [nav] if listed.contents else []
    band = page.new_tag("div", attrs={"class": "warnings", "role": "note"})
    for cell in page.select(".celltag_warnings .output"):
        band.append(cell.extract())
    if band.get_text(strip=True):
        parts.insert(0, band)
    _insert_below(page, answers[-1] if answers else top, parts)


def _insert_below(page: BeautifulSoup, above: Tag | None, parts: list[Tag]) -> None:
    """Insert parts below an element, or where there is none at the page's beginning."""
    for part in reversed(parts):
        above.insert_after(part) if above else cast("Tag", page.main).insert(0, part)
