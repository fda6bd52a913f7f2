"""Scripts that stand in a page: what draws its charts, and what sorts and filters its tables.

They come from packages that are installed (vl-convert-python, itables), never from the network.
"""

from __future__ import annotations

import os
import re
import tempfile
from importlib.metadata import version
from importlib.resources import files

from edge_eval_lib.paths import user_directory

VEGA_NOTICE = (
    "Vega, Vega-Lite and Vega-Embed: Copyright University of Washington Interactive Data Lab and "
    "contributors; BSD-3-Clause"
)
_EXPORTS = re.compile(r"export\{([^{}]*)\};?")
_DEFAULT = re.compile(r"([\w$]+) as default\b")


def inline(vega_lite: str | None, tables: bool) -> str:
    """Return the script elements of a page, in the order that they run in.

    Args:
        vega_lite: The version that its charts are written in, `6.4`; None without charts.
        tables: Whether it has tables that sort and filter.
    """
    if vega_lite is None and not tables:
        return ""
    own = (files("edge_eval_lib") / "templates" / "page.js").read_text(encoding="utf-8")
    parts = [vega(vega_lite)] if vega_lite else []
    parts += [datatables()] if tables else []
    return "".join(f'<script type="module">{_within(part)}</script>\n' for part in [*parts, own])


def vega(vega_lite: str) -> str:
    """Return the script that draws charts of this version of Vega-Lite; it sets `window.vegaEmbed`.

    Putting it together takes seconds, so that it is kept until the machine is started anew.
    """
    kept = user_directory() / f"vega-{vega_lite}-{version('vl-convert-python')}.js"
    if not kept.is_file():
        import vl_convert

        own = "window.vegaEmbed = vegaEmbed;"
        bundle = vl_convert.javascript_bundle(own, vl_version=vega_lite)
        text = f"/*! {VEGA_NOTICE} */\n{bundle}"
        handle, temporary = tempfile.mkstemp(dir=kept.parent, suffix=".js")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, kept)
    return kept.read_text(encoding="utf-8")


def datatables() -> str:
    """Return the script that sorts and filters tables; it sets `window.DataTable`."""
    text = (files("itables") / "html" / "dt_bundle.js").read_text(encoding="utf-8")
    exports = _EXPORTS.search(text)
    default = _DEFAULT.search(exports[1]) if exports else None
    if exports is None or default is None:
        raise ValueError(
            f"The script of itables {version('itables')} exports no table as its default; "
            "constraints.txt names a version that does."
        )
    return f"{text[: exports.start()]}window.DataTable={default[1]};{text[exports.end() :]}"


def _within(script: str) -> str:
    """Return a script that an element of a page may hold: it neither ends it nor hides its end."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
