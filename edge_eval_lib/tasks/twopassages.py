"""`rag` and its further questions, answered from two retrieved passages."""

from edge_eval_lib.tasks.rag import HUB, PROMPT
from edge_eval_lib.tasks.rag_further import with_passages

__all__ = ["HUB", "PASSAGES_PER_PROMPT", "PROMPT", "task"]  # capitals are in data_fingerprint

PASSAGES_PER_PROMPT = 2

task = with_passages("twopassages", PASSAGES_PER_PROMPT)
