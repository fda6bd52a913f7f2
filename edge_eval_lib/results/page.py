"""What a cell shows so that its page serves phone, paper, light and dark alike.

    page.fold("All 72 variants", show(table))          folded until somebody opens it
    figures.finish(fig, path)                          a picture: dark, narrow, described

Colours, type and the phone's layout are the page's concern (`report.render`), not a cell's.
"""

from __future__ import annotations

import html

from edge_eval_lib.results.readable import Prose

PICTURE = "application/vnd.edge-eval.picture+json"  # what a page needs beside the SVG


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
