"""A report's static edition: one small page for docs/ or a mail, of what a reader sees unasked.

    python -m edge_eval_lib example embedded

No script, no code, no link to files beside the report; pictures stand as they do where there is no
script.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path

from edge_eval_lib.errors import UserError

LARGEST_BYTES = 1_000_000
_PATH = re.compile(r"(?<![\w./:])/(?:home|root|tmp|usr|opt|work|mnt|var|etc|Users)/[^\s<>\"'&]+")


def static_edition(report: Path, target: Path) -> Path:
    """Write the static edition of a report.

    Args:
        report: A study's report.html.
        target: The page to write.

    Returns:
        The target.

    Raises:
        UserError: Without a report; or if the page would name a path or this host, or be larger
            than 1 MB.
    """
    from bs4 import BeautifulSoup

    if not report.is_file():
        raise UserError(f"There is no {report}; run make all first.")
    page = BeautifulSoup(report.read_text(encoding="utf-8"), "html.parser")
    for part in page.find_all(["script", "template"]) + page.select("details.code"):
        part.decompose()
    for part in page.find_all("noscript"):
        part.unwrap()
    for link in page.find_all("a", href=True):
        if not re.match(r"#|https://", str(link["href"])):
            link.unwrap()
    if len(str(page).encode()) > LARGEST_BYTES:
        for picture in page.select("figure.picture > .phone"):  # the wide one fits there, smaller
            wide = picture.find_previous_sibling(class_="wide")
            if wide is not None:
                wide["class"] = "only"
                picture.decompose()
    text = str(page)
    words = page.get_text(" ")
    if named := _PATH.search(text):
        raise UserError(f"The report names the path {named[0]}, which a page for others must not.")
    host = socket.gethostname()
    if len(host) > 3 and re.search(rf"\b{re.escape(host)}\b", words):
        raise UserError(f"The report names the host {host}, which a page for others must not.")
    size = len(text.encode())
    if size > LARGEST_BYTES:
        raise UserError(
            f"The static edition of {report.name} would have {size / 1e6:.2f} MB, more than "
            f"{LARGEST_BYTES / 1e6:.0f}; leave pictures out, or draw them smaller."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return target
