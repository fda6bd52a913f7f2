"""Scraps: what a run recorded, kept in its executed notebook.

`record` is called in a notebook; `collect` reads many executed notebooks into one table. Their form
is scrapbook's, which reads them too; it is not imported: it brings papermill into every kernel.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    import pandas as pd

SCRAP_MIMES = tuple(f"application/scrapbook.scrap.{encoder}+json" for encoder in ("json", "text"))
RUN_COMPLETE = "run_complete"
MISSING = {"missing": True}  # scrapbook's schema has no null
recorded: dict[str, Any] = {}  # by this process, for the lab; `notebook.begin` empties it


def record(name: str, value: Any, shown: bool = True) -> None:
    """Keep `value` under `name` in the executed notebook; only for the lab where not `shown`.

    Takes None, booleans, text, numbers (NumPy's too), and lists and mappings of these. Raises
    ValueError for NaN, infinity or a type that would not come back as it went in.
    """
    from IPython.display import display

    plain = recorded[name] = _plain(value, name)
    if shown:
        display(_output(name, plain), raw=True)


def _output(name: str, value: Any) -> dict[str, Any]:
    """Return the output of a cell that keeps a value: shown by nothing, kept by everything."""
    encoder = "text" if isinstance(value, str) else "json"
    data = MISSING if value is None else value
    scrap = {"name": name, "data": data, "encoder": encoder, "version": 1}
    return {f"application/scrapbook.scrap.{encoder}+json": scrap}


def skip_uri_grammar() -> None:
    """Call before importing papermill: saves seconds in every process.

    It imports jsonschema, which builds a grammar (rfc3987_syntax) to check URI formats that no
    notebook has. Where that module cannot be imported, jsonschema leaves those formats unchecked.
    """
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


def record_all(values: dict[str, Any], shown: bool = True) -> None:
    """`record` every item of a mapping."""
    for name, value in values.items():
        record(name, value, shown)


def complete() -> None:
    """The last cell of a stage notebook: without it the runner does not publish the run."""
    record(RUN_COMPLETE, True)


def _plain(value: Any, name: str) -> Any:
    import numpy as np  # late, as pandas below: every run's start would pay for them

    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{name!r} is {value}; record None and the reason instead")
        return value
    if isinstance(value, list):
        return [_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{name}.{key}") for key, item in value.items()}
    raise ValueError(f"{name!r} is a {type(value).__name__}, which a scrap cannot keep")


def read_scraps(notebook: Path) -> dict[str, Any]:
    """The scraps of one executed notebook by name.

    Raises ValueError if it is not a notebook or records one name in two places: the second
    would hide the first.

    Reads the outputs directly: scrapbook's own reader checks the schema of every notebook, which
    takes minutes for a thousand runs.
    """
    try:
        cells = orjson.loads(notebook.read_bytes())["cells"]
        found: dict[str, Any] = {}
        for cell in cells:
            for output in cell.get("outputs", []):
                for mime in SCRAP_MIMES:
                    scrap = output.get("data", {}).get(mime)
                    if scrap is None:
                        continue
                    if scrap["name"] in found:
                        raise ValueError(f"{notebook} records {scrap['name']!r} twice")
                    found[scrap["name"]] = None if scrap["data"] == MISSING else scrap["data"]
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{notebook} is not an executed notebook: {error!r}") from error
    return found


def write_notebook(path: Path, cells: list[str], values: dict[str, Any]) -> None:
    """Write an executed notebook of these code cells, and a last one that recorded `values`."""

    def cell(source: str, outputs: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "cell_type": "code",
            "execution_count": None,
            "metadata": {},
            "source": source,
            "outputs": outputs,
        }

    outputs = [
        {"output_type": "display_data", "metadata": {}, "data": _output(name, value)}
        for name, value in values.items()
    ]
    content = {
        "cells": [*(cell(source, []) for source in cells), cell("# recorded", outputs)],
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "nbformat": 4,
        "nbformat_minor": 4,
    }
    path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))


def is_complete(notebook: Path) -> bool:
    """Whether the notebook ran to its last cell and recorded so."""
    try:
        return read_scraps(notebook).get(RUN_COMPLETE) is True
    except (OSError, ValueError):
        return False


def collect(directory: str | Path) -> pd.DataFrame:
    """One row a completed run below `directory`, a column a scrap, and `notebook` its path.

    Unreadable or incomplete notebooks are no runs; they are named in `.attrs["unreadable"]`.
    """
    import pandas as pd

    rows, unreadable = [], []
    for path in sorted(Path(directory).rglob("*.ipynb")):
        try:
            scraps = read_scraps(path)
        except (OSError, ValueError):
            scraps = {}
        if scraps.get(RUN_COMPLETE) is True:
            rows.append(scraps | {"notebook": str(path)})
        else:
            unreadable.append(str(path))
    table = pd.DataFrame(rows)
    table.attrs["unreadable"] = unreadable
    return table
