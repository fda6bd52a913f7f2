"""`rag` and its further questions, answered by the cloud from two retrieved passages."""

from __future__ import annotations

from collections.abc import Generator

from edge_eval_lib.tasks.base import Call, Example, Reply
from edge_eval_lib.tasks.rag import HUB, PROMPT
from edge_eval_lib.tasks.rag_further import with_passages

__all__ = ["HUB", "PASSAGES_PER_PROMPT", "PROMPT", "converse", "task"]

PASSAGES_PER_PROMPT = 2


def converse(example: Example) -> Generator[Call, Reply, str]:
    """Ask the study's role `cloud`, and it alone."""
    reply = yield Call(example.messages, role="cloud")
    return reply.text


task = with_passages(
    "oncloud", PASSAGES_PER_PROMPT, adapter_of="rag", converse=converse, roles=("cloud",)
)
