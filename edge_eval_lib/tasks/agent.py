"""The questions of `twopassages`, answered in steps: retrieve, read, answer, check, retry.

An attempt shows the next passages of one search and has two calls. The model reads them and says
what it finds; then it answers from the note alone in which that is. The answer is checked without
a gold answer: every word of it has to be in one of the notes. An attempt that fails is followed by
the next, all former steps before it, so that the context grows.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

from edge_eval_lib.tasks import rag
from edge_eval_lib.tasks.base import Call, Example, Reply, TaskData, normalise
from edge_eval_lib.tasks.rag import HUB, PROMPT
from edge_eval_lib.tasks.rag_further import shipped, with_passages
from edge_eval_lib.tasks.sources import Row

__all__ = ["HUB", "PROMPT", "task"]  # capitals are in data_fingerprint

PASSAGES_PER_ATTEMPT = 2
ATTEMPTS = 3
CALLS_PER_ATTEMPT = 2

Note = tuple[str, str]  # title and text


def build(train: list[Row], evaluation: list[Row], source: str) -> TaskData:
    """Make the examples of `twopassages`, with what the same search finds after its two passages.

    `details["found"]` holds a list of notes for each attempt.
    """
    data = rag.build(
        train, evaluation, source, name="agent", shown=PASSAGES_PER_ATTEMPT, shipped=shipped
    )
    passages = rag.corpus(train, evaluation, source)
    order = {passage["id"]: index for index, passage in enumerate(passages)}
    questions = [example.details["question"] for example in data.evaluation]
    examples = []
    for example, found in zip(
        data.evaluation,
        rag.retrieve(questions, passages, PASSAGES_PER_ATTEMPT * ATTEMPTS),
        strict=True,
    ):
        attempts = [
            sorted(found[start : start + PASSAGES_PER_ATTEMPT], key=lambda p: order[p["id"]])
            for start in range(0, len(found), PASSAGES_PER_ATTEMPT)
        ]
        notes = [[(p["title"], p["text"]) for p in attempt] for attempt in attempts]
        examples.append(replace(example, details={**example.details, "found": notes}))
    return replace(data, evaluation=examples)


def converse(example: Example) -> Generator[Call, Reply, str]:
    """Read and answer until an answer is in a note, from two further notes each time.

    Returns:
        The first answer that is; without one, that of the first attempt, which saw the notes that
        were found nearest.
    """
    messages = example.messages[:-1]
    answers = []
    for notes in example.details["found"]:
        messages, read = yield from _ask(messages, notes, example)
        note = note_that_says(read, notes) or notes[0]
        messages, answer = yield from _ask(messages, [note], example)
        answers.append(answer)
        if note_that_says(answer, notes) is not None:
            return answer
    return answers[0]


def _ask(
    messages: list[dict[str, str]], notes: list[Note], example: Example
) -> Generator[Call, Reply, tuple[list[dict[str, str]], str]]:
    """Ask the example's question of some notes; returns the chat so far and the answer."""
    passages = "\n".join(PROMPT["passage"].format(title=title, text=text) for title, text in notes)
    asked = PROMPT["user"].format(passages=passages, question=example.details["question"])
    messages = [*messages, {"role": "user", "content": asked}]
    reply = yield Call(messages)
    return [*messages, {"role": "assistant", "content": reply.text}], reply.text


def note_that_says(answer: str, notes: list[Note]) -> Note | None:
    """Return the note that holds every word of an answer; None of none, and of no answer.

    The title that an answer begins with is no part of what it says, whichever note's it is.
    """
    said = {*normalise(answer.partition(": ")[2] or answer)}
    return next((note for note in notes if said and said <= {*normalise(note[1])}), None)


task = replace(
    with_passages("agent", PASSAGES_PER_ATTEMPT, adapter_of="twopassages"),
    build=build,
    converse=converse,
    usual_calls=3,  # of six at most: most answers pass the first check
)
