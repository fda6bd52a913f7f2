"""`rag` and its further questions, answered from one retrieved passage by the adapter of `rag`."""

from edge_eval_lib.tasks.rag import HUB, PROMPT
from edge_eval_lib.tasks.rag_further import with_passages

__all__ = ["HUB", "PASSAGES_PER_PROMPT", "PROMPT", "task"]  # capitals are in data_fingerprint

PASSAGES_PER_PROMPT = 1

task = with_passages("onepassage", PASSAGES_PER_PROMPT, adapter_of="rag")
