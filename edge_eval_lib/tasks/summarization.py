"""Summaries in one line: embedded town notices, or XSum."""

from __future__ import annotations

from edge_eval_lib.tasks.base import (
    Example,
    Figures,
    Rule,
    Task,
    TaskData,
    nearest,
    normalise,
    sentences,
)
from edge_eval_lib.tasks.sources import HubSet, Row, shipped_rows

# How a prompt is made; part of data_fingerprint.
PROMPT = {
    "embedded_system": "Sum up the notice in one line, topic first.",
    "embedded_user": "Notice: {text}\nSummary:",
    "public_system": "Sum up the article in one sentence.",
    "public_user": "Article: {text}\nSummary:",
}
# A hub document is cut after this many words, so that the prompt fits small context windows.
MAX_DOCUMENT_WORDS = 400
# What a rule without a model leaves out.
SMALL_WORDS = ["a", "an", "the", "is", "are", "was", "were", "be", "been", "will"]

# The repository's own branch holds a loading script, which `datasets` no longer runs; the hub's
# automatic conversion has a branch name, no fixed commit.
HUB = HubSet("EdinburghNLP/xsum", "refs/convert/parquet", "train", "test")
SHIPPED_FILES = ("summarization_train.jsonl", "summarization_evaluation.jsonl")


def shipped() -> tuple[list[Row], list[Row]]:
    """Read training and evaluation rows of the embedded set."""
    train, evaluation = (shipped_rows(name) for name in SHIPPED_FILES)
    return train, evaluation


def from_hub(row: Row) -> Row | None:
    """Convert an XSum row; None if its document or summary is empty."""
    words = row["document"].split()
    summary = row["summary"].strip()
    if not words or not summary:
        return None
    text = " ".join(words[:MAX_DOCUMENT_WORDS])
    return {"id": str(row["id"]), "key": text, "text": text, "summary": summary}


def build(train: list[Row], evaluation: list[Row], source: str) -> TaskData:
    """Make examples whose prompt is the text and whose answer is its summary."""
    return TaskData(
        "summarization",
        [_example(row, source) for row in train],
        [_example(row, source) for row in evaluation],
    )


def _example(row: Row, source: str) -> Example:
    kind = "embedded" if source == "embedded" else "public"
    user = PROMPT[f"{kind}_user"].format(text=row["text"])
    return Example(
        id=row["id"],
        messages=[
            {"role": "system", "content": PROMPT[f"{kind}_system"]},
            {"role": "user", "content": user},
        ],
        answer=row["summary"],
        # The house form opens with a topic, which is not among the notice's words.
        details={"text": row["text"]}
        | ({"topic": row["summary"].split(": ")[0]} if source == "embedded" else {}),
    )


def score(answers: list[str], examples: list[Example]) -> list[Figures]:
    """Compute ROUGE-L (Lin 2004), and whether an answer opens with the reference's topic."""
    from rouge_score.rouge_scorer import RougeScorer

    rouge = RougeScorer(["rougeL"], use_stemmer=True)
    rows = []
    for answer, example in zip(answers, examples, strict=True):
        overlap = rouge.score(target=example.answer, prediction=answer)["rougeL"]
        rows.append(
            {
                "rouge_l": overlap.fmeasure,
                "precision": overlap.precision,
                "recall": overlap.recall,
                "topic": _topic_share(answer, example),
            }
        )
    return rows


def _topic_share(answer: str, example: Example) -> float:
    if "topic" not in example.details:
        return float("nan")
    topic, colon, _ = answer.partition(":")
    return float(bool(colon) and normalise(topic) == normalise(example.details["topic"]))


def _last(example: Example, _training: list[Example]) -> str:
    return sentences(example.details["text"])[-1]


def _last_shortened(example: Example, training: list[Example]) -> str:
    return " ".join(w for w in _last(example, training).split() if w.lower() not in SMALL_WORDS)


def _other_rule(example: Example, training: list[Example]) -> str:
    if "topic" not in example.details:
        return sentences(example.details["text"])[0]
    near = nearest(example, training)
    topic = near.details["topic"] if near else ""
    return f"{topic}: {_last_shortened(example, training)}"


task = Task(
    shipped=shipped,
    build=build,
    score=score,
    figures={
        "rouge_l": "ROUGE-L, F-measure",
        "precision": "ROUGE-L, precision",
        "recall": "ROUGE-L, recall",
        "topic": "share of answers that open with the right topic",
    },
    content="topic",
    hub=HUB,
    from_hub=from_hub,
    shipped_files=SHIPPED_FILES,
    no_model_rules=[
        Rule("the text's last sentence, copied", _last),
        Rule("the text's last sentence without articles and forms of 'to be'", _last_shortened),
        Rule(
            "the topic of the training notice that shares most words, then that shortened sentence "
            "(where texts have no topic: the first sentence)",
            _other_rule,
        ),
    ],
)
