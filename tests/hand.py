"""Notebooks as somebody runs them in JupyterLab: cell by cell, outside the grid."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from edge_eval_lib.paths import project_root

OF_A_RUN = ("EDGE_EVAL_RUN", "EDGE_EVAL_RUN_DIRECTORY", "EDGE_EVAL_SETTINGS_HASH")


def by_hand(
    file_name: str,
    outputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    edits: dict[str, str] | None = None,
    **parameters: object,
) -> str:
    """Execute a notebook with other parameters; what it printed.

    `edits` replace text in its code cells, each exactly once.
    """
    monkeypatch.setenv("EDGE_EVAL_OUTPUTS", str(outputs))
    for name in OF_A_RUN:
        monkeypatch.delenv(name, raising=False)
    notebook = nbformat.read(project_root() / "notebooks" / file_name, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for old, new in (edits or {}).items():
        (edited,) = [cell for cell in code if old in cell.source]
        edited.source = edited.source.replace(old, new)
    first = next(cell for cell in code if "parameters" in cell.metadata.get("tags", []))
    first.source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=600,
        resources={"metadata": {"path": str(project_root() / "notebooks")}},
    ).execute()
    printed = [o for cell in code for o in cell.outputs if o.output_type == "stream"]
    return "".join(output.text for output in printed)


def folder_of(printed: str) -> Path:
    """Where a notebook said that its run is kept."""
    (folder,) = re.findall(r"^kept in (.+)$", printed, re.MULTILINE)
    return Path(folder)
