"""`onepassage`, answered several times by chance: what most of the answers say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator

from edge_eval_lib.tasks.base import Call, Example, Reply
from edge_eval_lib.tasks.rag import HUB, PROMPT
from edge_eval_lib.tasks.rag_further import with_passages

__all__ = ["HUB", "PASSAGES_PER_PROMPT", "PROMPT", "converse", "task"]

PASSAGES_PER_PROMPT = 1
SAMPLES = 2
TEMPERATURE = 0.7


def converse(example: Example) -> Generator[Call, Reply, str]:
    """Draw the answers, and return the most frequent: of equally frequent ones the first."""
    texts = []
    for seed in range(SAMPLES):
        reply = yield Call(example.messages, temperature=TEMPERATURE, seed=seed)
        texts.append(reply.text)
    return Counter(texts).most_common(1)[0][0]


task = with_passages(
    "sampled",
    PASSAGES_PER_PROMPT,
    adapter_of="rag",
    converse=converse,
    usual_calls=SAMPLES,
)
