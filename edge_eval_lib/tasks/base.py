"""The shapes every task's data takes, and how texts are compared."""

import re
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Example:
    """One prompt and the answer wanted for it.

    messages: chat messages ({"role", "content"}) up to and including the last user turn.
    answer: the gold answer, which training learns from and scoring compares with.
    details: what a task adds, e.g. the retrieved passages, further accepted answers, or the part of
        the answer that is its content and not its form (see `scoring.CONTENT`).
    """

    id: str
    messages: list[dict[str, str]]
    answer: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskData:
    """A task's training and evaluation examples, and figures about the set as a whole.

    passed_over: how many training rows were left out because they have too many tokens.
    """

    task: str
    train: list[Example]
    evaluation: list[Example]
    details: dict[str, Any] = field(default_factory=dict)
    passed_over: int = 0


@dataclass(frozen=True)
class Rule:
    """A way to answer without a model, told in a sentence.

    `answer(example, training)` reads the example's prompt, and whole training examples; None where
    the data do not have what the rule goes by.
    """

    sentence: str
    answer: Callable[[Example, list[Example]], str | None]


def normalise(text: str) -> list[str]:
    """Tokens of a text as SQuAD compares them: lower case, no punctuation, no articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def sentences(text: str) -> list[str]:
    """The sentences of a text, parted behind full stops, question and exclamation marks."""
    return [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence]


def shared_words(one: str, other: str) -> int:
    """How many different normalised words two texts have in common."""
    return len({*normalise(one)} & {*normalise(other)})


def nearest(example: Example, training: list[Example]) -> Example | None:
    """The other training example whose prompt shares most words with this one's."""
    others = [other for other in training if other.id != example.id]
    prompt = _asked(example)
    return max(others, key=lambda other: shared_words(_asked(other), prompt), default=None)


def _asked(example: Example) -> str:
    return " ".join(m["content"] for m in example.messages if m["role"] != "system")
