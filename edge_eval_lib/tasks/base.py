"""The two shapes every task's data takes."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """One prompt and the answer wanted for it.

    messages: chat messages ({"role", "content"}) up to and including the last user turn.
    answer: the gold answer, which training learns from and scoring compares with.
    details: what a task adds, e.g. the retrieved passages or further accepted answers.
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
