"""Question answering over retrieved passages: embedded town records, or SQuAD."""

import hashlib
import logging
from typing import Any

from edge_eval_lib.tasks.base import Example, Rule, TaskData, normalise, sentences, shared_words
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
    """Training and evaluation rows of the embedded set, each with its gold passage."""
    passages = {row["id"]: row for row in shipped_rows(SHIPPED_FILES[0])}
    train, evaluation = (
        [
            {**row, "answers": [row["answer"]], "passage": passages[row["passage_id"]]}
            for row in shipped_rows(name)
        ]
        for name in SHIPPED_FILES[1:]
    )
    return train, evaluation


def from_hub(row: Row) -> Row | None:
    """A SQuAD row in our shape; None if it has no answer.

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


def retrieve(questions: list[str], passages: list[Row], k: int) -> list[list[Row]]:
    """The k passages nearest to each question by BM25, best first."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs every index at DEBUG
    retriever = bm25s.BM25()
    retriever.index(
        bm25s.tokenize([passage["text"] for passage in passages], show_progress=False),
        show_progress=False,
    )
    found, _ = retriever.retrieve(
        bm25s.tokenize(questions, show_progress=False),
        k=min(k, len(passages)),
        show_progress=False,
    )
    return [[passages[index] for index in row] for row in found]


def build(train: list[Row], evaluation: list[Row], source: str) -> TaskData:
    """Examples whose prompts hold retrieved passages, in the order of the corpus.

    Not in the order of their rank: the first would then nearly always be the gold passage.
    Evaluation questions search every passage; training questions search the passages that are
    not an evaluation question's gold passage, so that training never shows one.
    """
    corpus = {row["passage"]["id"]: row["passage"] for row in train + evaluation}
    if source == "embedded":
        corpus = {row["id"]: row for row in shipped_rows(SHIPPED_FILES[0])}
    held_out = {row["passage"]["id"] for row in _held_out(evaluation, source)}
    evaluation_examples = _examples(evaluation, list(corpus.values()), source)
    train_examples = _examples(
        train, [passage for key, passage in corpus.items() if key not in held_out], source
    )
    details: dict[str, Any] = {"passages": len(corpus)}
    for k in range(1, PASSAGES_PER_PROMPT + 1):
        details[f"recall_at_{k}"] = sum(
            example.details["gold_passage_id"] in example.details["retrieved_ids"][:k]
            for example in evaluation_examples
        ) / len(evaluation_examples)
    return TaskData("rag", train_examples, evaluation_examples, details)


def _held_out(evaluation: list[Row], source: str) -> list[Row]:
    # All shipped evaluation questions count, also those that this study does not ask: the
    # training prompts then do not depend on how many are asked.
    return shipped()[1] if source == "embedded" else evaluation


def _examples(rows: list[Row], passages: list[Row], source: str) -> list[Example]:
    if not rows:
        return []
    found = retrieve([row["question"] for row in rows], passages, PASSAGES_PER_PROMPT)
    order = {passage["id"]: index for index, passage in enumerate(passages)}
    return [
        _example(row, retrieved, order, source) for row, retrieved in zip(rows, found, strict=True)
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


# --- answers without a model ------------------------------------------------------------------


def _best_sentence(example: Example) -> tuple[str, str]:
    """Title of the note, and its sentence, that shares most words with the question."""
    found = ((title, told) for title, text in example.details["shown"] for told in sentences(text))
    return max(found, key=lambda pair: shared_words(pair[1], example.details["question"]))


def _titled(example: Example, title: str, text: str) -> str:
    return f"{title}: {text}" if "title" in example.details else text


def _title(example: Example, _training: list[Example]) -> str | None:
    return _best_sentence(example)[0] if "title" in example.details else None


def _new_words(example: Example, _training: list[Example]) -> str:
    title, text = _best_sentence(example)
    asked = {*normalise(example.details["question"])}
    kept = [word for word in text.rstrip(".!?").split() if not {*normalise(word)} <= asked]
    return _titled(example, title, " ".join(kept))


def _copied(example: Example, _training: list[Example]) -> str:
    return _titled(example, *_best_sentence(example))


no_model_rules = [
    Rule("the title of the note that shares most words with the question", _title),
    Rule(
        "the sentence of the notes that shares most words with the question, without the "
        "question's words",
        _new_words,
    ),
    Rule("the sentence of the notes that shares most words with the question", _copied),
]
