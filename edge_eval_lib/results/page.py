"""What a cell shows so that its page serves phone, paper, light and dark alike.

    page.fold("All 72 variants", show(table))          folded until somebody opens it
    page.sortable(show(table))                         with script, it sorts and filters
    figures.finish(fig, path)                          a picture: dark, narrow, described
    charts.beside(figures.finish(fig, path), chart)    with script, a chart in its place

Colours, type and the phone's layout are the page's concern (`report.render`), not a cell's.
"""

from __future__ import annotations

import html

from edge_eval_lib.results.readable import Prose

PICTURE = "application/vnd.edge-eval.picture+json"  # what a page needs beside the SVG
CHART = "application/vnd.vegalite.v6+json"  # what takes the picture's place where there is script


def fold(summary: str, *contents: object) -> Prose:
    """Show contents, Markdown or what `show` gives, folded below a line that says what they are.

    Args:
        summary: What a reader finds inside, with its size: `All 72 variants`.
        contents: Shown in this order when it is opened; what is None or empty is left out.
    """
    shown = [str(content) for content in contents if content is not None and str(content)]
    if not shown:
        return Prose("")
    body = "\n\n".join(shown)
    return Prose(f"<details>\n<summary>{html.escape(summary)}</summary>\n\n{body}\n\n</details>")


def sortable(table: str) -> Prose:
    """Show a table, as `show` gives it, that sorts and filters in a page with script."""
    return Prose(f'<div class="sortable">\n\n{table}\n\n</div>') if "|" in table else Prose(table)
