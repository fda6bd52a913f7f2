"""Students' copies of the workshop's notebooks: the source without its solutions."""

from __future__ import annotations

import copy

from nbformat import NotebookNode

SOLUTION = "solution"  # the tag of a cell that only the teacher's notebook has


def student_copy(source: NotebookNode) -> NotebookNode:
    """Return the notebook without its solutions and without outputs."""
    students = copy.deepcopy(source)
    students.cells = [
        cell for cell in students.cells if SOLUTION not in cell.metadata.get("tags", [])
    ]
    for cell in students.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return students
