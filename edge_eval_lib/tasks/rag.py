"""Question answering over retrieved passages: embedded town records, or SQuAD."""

from __future__ import annotations

import hashlib
import importlib
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from edge_eval_lib.tasks.base import (
    Example,
    Figures,
    Rule,
    Task,
    TaskData,
    normalise,
    sentences,
    shared_words,
    token_overlap,
)
from edge_eval_lib.tasks.sources import HubSet, Row, shipped_rows

# How a prompt is made; part of data_fingerprint.
PROMPT = {
    "embedded_system": "Answer from the notes and name the note.",
    "public_system": "Answer the question from the notes in a few words.",
    "passage": "{title}: {text}",
    "user": "Notes:\n{passages}\nQuestion: {question}",
}
PASSAGES_PER_PROMPT = 2

HUB = HubSet("rajpurkar/squad", "7b6d24c440a36b6815f21b70d25016731768db1f", "train", "validation")
SHIPPED_FILES = ("rag_passages.jsonl", "rag_train.jsonl", "rag_evaluation.jsonl")


def shipped() -> tuple[list[Row], list[Row]]:
    """Read training and evaluation rows of the embedded set, each with its gold passage."""
    _, train, evaluation = SHIPPED_FILES
    return questions(train), questions(evaluation)


def questions(file: str) -> list[Row]:
    """Read a file of questions, each with its gold passage."""
    passages = {row["id"]: row for row in shipped_rows(SHIPPED_FILES[0])}
    return [
        {**row, "answers": [row["answer"]], "passage": passages[row["passage_id"]]}
        for row in shipped_rows(file)
    ]


def from_hub(row: Row) -> Row | None:
    """Convert a SQuAD row; None if it has no answer.

    The key is its context, so that only one question about each context is taken.
    """
    answers = row["answers"]["text"]
    if not answers:
        return None
    passage_id = hashlib.sha256(row["context"].encode()).hexdigest()[:16]
    return {
        "id": row["id"],
        "key": passage_id,
        "question": row["question"].strip(),
        "answer": answers[0],
        "answers": sorted(set(answers)),
        "passage": {
            "id": passage_id,
            "title": row["title"].replace("_", " "),
            "text": row["context"],
        },
    }


def _bm25s() -> ModuleType:
    """Import bm25s without numba, which it would take along unused where it is installed.

    Numba would be 0.07 GB of the process whose memory is measured.
    """
    unwanted = "numba" not in sys.modules
    if unwanted:
        sys.modules["numba"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("bm25s")
    finally:
        if unwanted:
            del sys.modules["numba"]


def retrieve(questions: list[str], passages: list[Row], k: int) -> list[list[Row]]:
    """Return the k passages nearest to each question by BM25, best first."""
    bm25s = _bm25s()
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs every index at DEBUG
    retriever = bm25s.BM25()
    retriever.index(
        bm25s.tokenize([passage["text"] for passage in passages], show_progress=False),
        show_progress=False,
    )
    ranked, _ = retriever.retrieve(
        bm25s.tokenize(questions, show_progress=False),
        k=min(k, len(passages)),
        show_progress=False,
    )
    return [[passages[index] for index in row] for row in ranked]


def corpus(train: list[Row], evaluation: list[Row], source: str) -> list[Row]:
    """Return every passage that is searched: the shipped ones, or those of a public set's rows."""
    if source == "embedded":
        return shipped_rows(SHIPPED_FILES[0])
    return list({row["passage"]["id"]: row["passage"] for row in train + evaluation}.values())


def build(
    train: list[Row],
    evaluation: list[Row],
    source: str,
    *,
    name: str = "rag",
    shown: int = PASSAGES_PER_PROMPT,
    shipped: Callable[[], tuple[list[Row], list[Row]]] = shipped,
) -> TaskData:
    """Make examples whose prompts hold `shown` retrieved passages, in the order of the corpus.

    Not in the order of their rank: the first would then nearly always be the gold passage.
    Evaluation questions search every passage; training questions search the passages that are
    not an evaluation question's gold passage, so that training never shows one. All `shipped`
    evaluation questions count, also those that a study does not ask: its training prompts then do
    not depend on how many it asks.
    """
    passages = corpus(train, evaluation, source)
    held_out_rows = shipped()[1] if source == "embedded" else evaluation
    held_out = {row["passage"]["id"] for row in held_out_rows}
    evaluation_examples = _examples(evaluation, passages, source, shown)
    train_examples = _examples(
        train, [passage for passage in passages if passage["id"] not in held_out], source, shown
    )
    details: dict[str, Any] = {"passages": len(passages)}
    for k in range(1, shown + 1):
        details[f"recall_at_{k}"] = sum(
            example.details["gold_passage_id"] in example.details["retrieved_ids"][:k]
            for example in evaluation_examples
        ) / len(evaluation_examples)
    return TaskData(name, train_examples, evaluation_examples, details)


def _examples(rows: list[Row], passages: list[Row], source: str, shown: int) -> list[Example]:
    if not rows:
        return []
    found_passages = retrieve([row["question"] for row in rows], passages, shown)
    order = {passage["id"]: index for index, passage in enumerate(passages)}
    return [
        _example(row, retrieved, order, source)
        for row, retrieved in zip(rows, found_passages, strict=True)
    ]


def _example(row: Row, retrieved: list[Row], order: dict[str, int], source: str) -> Example:
    shown = sorted(retrieved, key=lambda passage: order[passage["id"]])
    passages = "\n".join(PROMPT["passage"].format(**passage) for passage in shown)
    system = PROMPT["embedded_system" if source == "embedded" else "public_system"]
    user = PROMPT["user"].format(passages=passages, question=row["question"])
    details = {
        "answers": row["answers"],
        "gold_passage_id": row["passage"]["id"],
        "retrieved_ids": [passage["id"] for passage in retrieved],
        "question": row["question"],
        "shown": [(passage["title"], passage["text"]) for passage in shown],
    }
    if source == "embedded":  # the house form: the note's title, then the fact
        details["title"] = row["passage"]["title"]
        details["fact"] = row["answer"].removeprefix(f"{row['passage']['title']}: ")
    return Example(
        id=row["id"],
        messages=[{"role": "system", "content": system}, {"role": "user", "content": user}],
        answer=row["answer"],
        details=details,
    )


def score(answers: list[str], examples: list[Example]) -> list[Figures]:
    """Take the best token F1 over the accepted answers, as SQuAD does, and that of the fact."""
    return [
        max(
            (
                token_overlap(answer, accepted)
                for accepted in example.details.get("answers", [example.answer])
            ),
            key=lambda figures: figures["f1"],
        )
        | _fact_overlap(answer, example)
        for answer, example in zip(answers, examples, strict=True)
    ]


def _fact_overlap(answer: str, example: Example) -> Figures:
    """Compare the answer without a note's title with the fact; NaN where no title is asked for."""
    if "fact" not in example.details:
        return {"fact_f1": float("nan"), "fact_exact_match": float("nan")}
    titles = [title for title, _ in example.details["shown"]]
    stripped = answer.strip()
    title = next((t for t in titles if stripped.lower().startswith(t.lower())), "")
    # A title that no shown note has is form all the same: what is before the first colon.
    fact = stripped[len(title) :] if title else stripped.partition(": ")[2] or stripped
    figures = token_overlap(fact, example.details["fact"])
    return {"fact_f1": figures["f1"], "fact_exact_match": figures["exact_match"]}


def _best_sentence(example: Example) -> tuple[str, str]:
    """Return the note's title, and its sentence, that shares most words with the question."""
    pairs = (
        (title, sentence)
        for title, text in example.details["shown"]
        for sentence in sentences(text)
    )
    return max(pairs, key=lambda pair: shared_words(pair[1], example.details["question"]))


def _titled(example: Example, title: str, text: str) -> str:
    return f"{title}: {text}" if "title" in example.details else text


def _title(example: Example, _training: list[Example]) -> str | None:
    return _best_sentence(example)[0] if "title" in example.details else None


def _new_words(example: Example, _training: list[Example]) -> str:
    title, text = _best_sentence(example)
    question = {*normalise(example.details["question"])}
    kept = [word for word in text.rstrip(".!?").split() if not {*normalise(word)} <= question]
    return _titled(example, title, " ".join(kept))


def _copied(example: Example, _training: list[Example]) -> str:
    return _titled(example, *_best_sentence(example))


task = Task(
    shipped=shipped,
    build=build,
    score=score,
    figures={
        "f1": "token F1",
        "exact_match": "exact match",
        "precision": "precision of tokens",
        "recall": "recall of tokens",
        "fact_f1": "token F1 of the fact without the note's title",
        "fact_exact_match": "exact match of the fact",
    },
    content="fact_f1",
    hub=HUB,
    from_hub=from_hub,
    shipped_files=SHIPPED_FILES,
    no_model_rules=[
        Rule("the title of the note that shares most words with the question", _title),
        Rule(
            "the sentence of the notes that shares most words with the question, without the "
            "question's words",
            _new_words,
        ),
        Rule("the sentence of the notes that shares most words with the question", _copied),
    ],
)
