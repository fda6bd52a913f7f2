"""The questions of `rag` and further ones over its notes, for tasks with other prompts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from edge_eval_lib.tasks import rag
from edge_eval_lib.tasks.base import Task
from edge_eval_lib.tasks.sources import Row

# Questions about the notes of which the files of `rag` ask nothing.
FURTHER_FILE = "rag_further.jsonl"


def shipped() -> tuple[list[Row], list[Row]]:
    """Read the rows of `rag`, and the further questions as evaluation rows after its own."""
    train, evaluation = rag.shipped()
    return train, evaluation + rag.questions(FURTHER_FILE)


def with_passages(name: str, shown: int, **changes: Any) -> Task:
    """Return `rag` with so many passages a prompt, and with the further questions.

    Its training prompts show the passage of none of them.

    Args:
        name: The task's name.
        shown: Passages a prompt.
        changes: Other fields of the `Task`.
    """
    return replace(
        rag.task,
        shipped=shipped,
        build=partial(rag.build, name=name, shown=shown, shipped=shipped),
        shipped_files=(*rag.SHIPPED_FILES, FURTHER_FILE),
        **changes,
    )
