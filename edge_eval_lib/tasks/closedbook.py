"""Questions about sixteen things of one town, to be answered from memory alone.

The adapter learns these very facts, in other wordings than those that are asked: the question is
whether fine-tuning can take the place of retrieval. `openbook` asks the same with passages shown.
"""

from __future__ import annotations

from edge_eval_lib.tasks.base import (
    Example,
    Figures,
    Rule,
    Task,
    TaskData,
    nearest,
    normalise,
    token_overlap,
)
from edge_eval_lib.tasks.sources import Row, shipped_rows

# How a prompt is made; part of data_fingerprint.
PROMPT = {"system": "Answer the question about the town in a few words."}
SHIPPED_FILES = ("facts_passages.jsonl", "facts_train.jsonl", "facts_evaluation.jsonl")
FIGURES = {
    "f1": "token F1",
    "states": "the fact is stated, and not the other fact about the same thing",
    "recall": "recall of tokens",
}


def shipped() -> tuple[list[Row], list[Row]]:
    """Read training and evaluation rows: every fact in four wordings, and in two others."""
    passages = {row["id"]: row for row in shipped_rows(SHIPPED_FILES[0])}
    train, evaluation = (
        [{**row, "passage": passages[row["passage_id"]]} for row in shipped_rows(name)]
        for name in SHIPPED_FILES[1:]
    )
    return train, evaluation


def build(train: list[Row], evaluation: list[Row], source: str) -> TaskData:
    """Make examples whose prompts hold the question alone."""
    return TaskData("closedbook", [*map(example, train)], [*map(example, evaluation)])


def example(row: Row) -> Example:
    """Make the example of a row."""
    return Example(
        id=row["id"],
        messages=[
            {"role": "system", "content": PROMPT["system"]},
            {"role": "user", "content": row["question"]},
        ],
        answer=row["answer"],
        details={"other": row["other"], "gold_passage_id": row["passage"]["id"]},
    )


def score(answers: list[str], examples: list[Example]) -> list[Figures]:
    """Compare tokens with the answer wanted; `states` is 1 where it is said, and no more."""
    return [
        {
            "f1": overlap["f1"],
            "states": float(_says(answer, asked.answer) and not _says(answer, _other(asked))),
            "recall": overlap["recall"],
        }
        for answer, asked in zip(answers, examples, strict=True)
        for overlap in [token_overlap(answer, asked.answer)]
    ]


def _other(asked: Example) -> str:
    return str(asked.details["other"])


def _says(answer: str, fact: str) -> bool:
    return {*normalise(fact)} <= {*normalise(answer)}


def _looked_up(asked: Example, training: list[Example]) -> str | None:
    like = nearest(asked, training)
    return None if like is None else like.answer


task = Task(
    shipped=shipped,
    build=build,
    score=score,
    figures=FIGURES,
    content="states",
    shipped_files=SHIPPED_FILES,
    no_model_rules=[
        Rule("the answer to the training question that shares most words", _looked_up),
    ],
)
