"""Notebooks as somebody runs them in JupyterLab: cell by cell, outside the grid."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from edge_eval_lib.paths import project_root

# What tqdm writes over and over: `Tokenizing inputs: 100%|####| 30/30 [00:00<00:00, 3405.67it/s]`.
PROGRESS_BAR = re.compile(r"\r[^\r\n]*\d+%\|[^\r\n]*\|[^\r\n]*\]")
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
    streams = _streams(executed(file_name, outputs, monkeypatch, edits, **parameters))
    return "".join(output.text for output in streams)


def executed(
    file_name: str,
    outputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    edits: dict[str, str] | None = None,
    **parameters: object,
) -> nbformat.NotebookNode:
    """`by_hand`, but the executed notebook itself."""
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
    return notebook


def complaints(notebook: nbformat.NotebookNode) -> str:
    """Return what an executed notebook wrote to its error stream, without progress bars."""
    written = "".join(o.text for o in _streams(notebook) if o.name == "stderr")
    return PROGRESS_BAR.sub("", written).strip()


def _streams(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [o for cell in code for o in cell.outputs if o.output_type == "stream"]


def folder_of(printed: str) -> Path:
    """Where a notebook said that its run is kept."""
    (folder,) = re.findall(r"^kept in (.+)$", printed, re.MULTILINE)
    return Path(folder)
