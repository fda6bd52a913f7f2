"""The code of a stage's notebook without its prose and layout, and whether it changed."""

from __future__ import annotations

import ast
import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from edge_eval_lib.artefacts.place import read_json
from edge_eval_lib.paths import project_root
from edge_eval_lib.study import EXPERIMENT, NOTEBOOKS, STAGES, Study

KEPT = "kept.json"  # below a study's outputs
PARAMETERS = {"parameters", "injected-parameters"}  # papermill's tags: a run's settings hold these


def notebook_source(stage: str, name: str = "") -> Path:
    """Return a run's notebook, in notebooks/ or the directory EDGE_EVAL_NOTEBOOKS names.

    It is its stage's, or the one that an experiment goes by.
    """
    folder = os.environ.get("EDGE_EVAL_NOTEBOOKS") or project_root() / "notebooks"
    return Path(folder) / (f"{name}.ipynb" if stage == EXPERIMENT else NOTEBOOKS[stage])


def code_of_stage(stage: str) -> str | None:
    """Identify the code that a stage's runs execute now; None if it has no readable notebook."""
    return code_of(notebook_source(stage))


def code_of(notebook: Path) -> str | None:
    """Identify a notebook's code by its syntax trees; None if it cannot be read.

    The `parameters` cell, prose, outputs, comments and layout do not count. It is the same in the
    notebook that a run executed and in the source that it was executed from.
    """
    try:
        return _code_of(notebook, notebook.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


@lru_cache(maxsize=64)
def _code_of(notebook: Path, _changed_ns: int) -> str:
    cells = [c for c in orjson.loads(notebook.read_bytes())["cells"] if c["cell_type"] == "code"]
    counted = [c for c in cells if PARAMETERS.isdisjoint(c["metadata"].get("tags", []))]
    trees = [tree for c in counted if (tree := _tree_of("".join(c["source"])))]
    return hashlib.sha256(repr(trees).encode()).hexdigest()[:16]


def _tree_of(cell: str) -> Any:
    """Give a cell as nested lists of its syntax; as its words where that is no Python."""
    if cell.lstrip().startswith("%%"):  # a magic of the whole cell
        magic, _, body = cell.strip().partition("\n")
        return [magic.split(), _tree_of(body)]
    try:
        return _plain(ast.parse(cell))
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager  # for %magic, !command, x?

        try:
            return _plain(ast.parse(TransformerManager().transform_cell(cell)))
        except SyntaxError:
            return cell.split()


def _plain(node: Any) -> Any:
    """Strip a tree of positions and of what is empty: versions of Python differ in that."""
    if isinstance(node, ast.AST):
        fields = {name: _plain(value) for name, value in ast.iter_fields(node)}
        return [type(node).__name__, {n: v for n, v in fields.items() if v not in (None, [])}]
    return [_plain(item) for item in node] if isinstance(node, list) else repr(node)


# --- runs that are kept although it changed ---------------------------------------------------


def accepted_code(study: Study) -> dict[str, set[str | None]]:
    """By stage, the code by which a finished run may have been made; stages of any code left out.

    None among it stands for runs of a version that noted no code.
    """
    kept = kept_code(study)
    now = {stage: code_of_stage(stage) for stage in STAGES}
    return {
        stage: {code, None, *kept.get(stage, {}).get("earlier", [])}
        for stage, code in now.items()
        if code is not None
    }


def kept_code(study: Study) -> dict[str, dict[str, Any]]:
    """Read which stages' runs are kept although their notebook's code changed, while it stays so.

    By stage: its `code` now, the `earlier` code of its runs, and `at`, when it was said.
    """
    kept = read_json(study.directory / KEPT)
    return {stage: k for stage, k in kept.items() if k["code"] == code_of_stage(stage)}


def kept_warnings(study: Study) -> list[str]:
    """Say, a sentence a stage, which runs were kept although their notebook's code changed."""
    return [
        f"The code of {NOTEBOOKS[stage]} changed after {kept['runs']:,} of the {stage} runs were "
        f"made; they were kept (KEEP={stage}, {kept['at'][:10]})."
        for stage, kept in kept_code(study).items()
    ]
