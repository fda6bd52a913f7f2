"""The questions of `closedbook`, asked with the passages that a search finds for them."""

from __future__ import annotations

from dataclasses import replace

from edge_eval_lib.tasks import closedbook
from edge_eval_lib.tasks.base import Example, Rule, TaskData, shared_words
from edge_eval_lib.tasks.rag import retrieve
from edge_eval_lib.tasks.sources import Row, shipped_rows

# How a prompt is made; part of data_fingerprint.
PROMPT = {
    "system": "Answer the question about the town from the notes, in a few words.",
    "user": "Notes:\n{passages}\nQuestion: {question}",
}
PASSAGES_PER_PROMPT = 2


def corpus() -> list[Row]:
    """Read the passages that are searched."""
    return shipped_rows(closedbook.SHIPPED_FILES[0])


def build(train: list[Row], evaluation: list[Row], source: str) -> TaskData:
    """Make examples whose prompts hold the passages that BM25 finds, in the corpus's order."""
    examples = _examples(evaluation)
    found = sum(e.details["gold_passage_id"] in e.details["retrieved_ids"] for e in examples)
    details = {"passages": len(corpus()), f"recall_at_{PASSAGES_PER_PROMPT}": found / len(examples)}
    return TaskData("openbook", _examples(train), examples, details)


def _examples(rows: list[Row]) -> list[Example]:
    if not rows:
        return []
    passages = corpus()
    questions = [row["question"] for row in rows]
    retrieved = retrieve(questions, passages, PASSAGES_PER_PROMPT)
    return [_example(row, found, passages) for row, found in zip(rows, retrieved, strict=True)]


def _example(row: Row, found: list[Row], passages: list[Row]) -> Example:
    closed = closedbook.example(row)
    texts = [passage["text"] for passage in sorted(found, key=passages.index)]
    user = PROMPT["user"].format(passages="\n".join(texts), question=row["question"])
    shown = {"retrieved_ids": [passage["id"] for passage in found], "shown": texts}
    return replace(
        closed,
        messages=[
            {"role": "system", "content": PROMPT["system"]},
            {"role": "user", "content": user},
        ],
        details=closed.details | shown | {"question": row["question"]},
    )


def _copied(asked: Example, _training: list[Example]) -> str:
    texts: list[str] = asked.details["shown"]
    return max(texts, key=lambda text: shared_words(text, asked.details["question"]))


task = replace(
    closedbook.task,
    build=build,
    no_model_rules=[Rule("the note that shares most words with the question", _copied)],
    adapter_of="closedbook",
)
