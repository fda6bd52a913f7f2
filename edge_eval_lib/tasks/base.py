"""What a task is, the shapes that its data take, and how texts are compared."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_eval_lib.tasks.sources import HubSet, Row

# Columns that stand beside a task's figures.
RESERVED = {"prompt_id", "score", "content", "score_reason", "answer", "reference", "failure"}

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Example:
    """One prompt and the answer wanted for it.

    Attributes:
        id: Unique within the task.
        messages: Chat messages ({"role", "content"}) up to and including the last user turn.
        answer: The gold answer, which training learns from and scoring compares with.
        details: What a task adds, e.g. the retrieved passages, further accepted answers, or the
            part of the answer that is its content and not its form.
    """

    id: str
    messages: list[dict[str, str]]
    answer: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskData:
    """A task's training and evaluation examples, and figures about the set as a whole.

    `passed_over` is how many training rows were left out because they have too many tokens.
    """

    task: str
    train: list[Example]
    evaluation: list[Example]
    details: dict[str, Any] = field(default_factory=dict)
    passed_over: int = 0


@dataclass(frozen=True)
class Rule:
    """A way to answer without a model, described in a sentence.

    `answer(example, training)` reads the example's prompt, and whole training examples; None where
    the data do not have what the rule goes by.
    """

    sentence: str
    answer: Callable[[Example, list[Example]], str | None]


@dataclass(frozen=True)
class Call:
    """One call of a conversation, which a model answers.

    Attributes:
        messages: Chat messages, those of former steps among them.
        output_tokens: How many tokens the answer has; None: the workload's.
        role: Which of the study's `roles` answers; None: the run's own variant.
        temperature: Above 0, tokens are drawn at it; at 0 the likeliest is taken.
        seed: What they are drawn by.
        confidence: Whether the reply is to say how likely its tokens were.
    """

    messages: list[dict[str, str]]
    output_tokens: int | None = None
    role: str | None = None
    temperature: float = 0.0
    seed: int = 0
    confidence: bool = False


@dataclass(frozen=True)
class Reply:
    """What a call was answered: the text up to the first end-of-sequence.

    Of each of its tokens, where the call asked for it and the engine tells: `logprobs`, the natural
    logarithm of its probability, and `margins`, the probability of the likeliest token less that of
    the second.
    """

    text: str
    logprobs: list[float] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)


class CallFailedError(Exception):
    """A call that was not answered, thrown into its conversation at the call.

    A conversation that does not catch it has no answer; it may also raise it, of an answer that
    nothing can be done with.
    """


# Yields calls, is sent the reply to each, and returns the answer that is scored. Beside the example
# it takes the task's `settings` by their names.
Converse = Callable[..., Generator[Call, Reply, str]]

Figures = dict[str, float]
# From a set of answers and their examples to each answer's figures, of which the first is its
# score, 0..1. NaN is a figure that the data do not allow.
Score = Callable[[list[str], list[Example]], list[Figures]]


@dataclass(frozen=True)
class Task:
    """What a task's file offers, as its `task`: data, prompts, scores.

    Attributes:
        shipped: Returns the training and evaluation rows of the task's own set.
        build: Makes examples of training and evaluation rows of a source: its prompts.
        score: Scores answers.
        figures: Every figure of `score` in words, the score first.
        content: Which of them counts an answer's content alone, so that form earns nothing.
        hub: A public set, where there is one, which `source: hub` reads.
        from_hub: Converts a row of it; None for a row that cannot be used.
        shipped_files: Names of the files in data/ that `shipped` reads.
        no_model_rules: Ways to answer without a model, which a score has to be compared with.
        longest_answer_share: How much of training.max_tokens the longest answer of a batch takes:
            ASSUMED, for memory estimates. SQuAD's answers and XSum's sentences are short.
        adapter_of: The task whose adapter answers this one, where that is another: the same
            questions asked in another way, e.g. with retrieved passages.
        converse: Asks a model several times for one answer. Without it, it is asked once, by the
            example's messages.
        roles: Which of a study's `roles` a conversation may call.
        settings: Names of the numbers that a study's `task_settings` must give to `converse`.
        usual_calls: How many calls a conversation makes, about: estimates of time take so many.
    """

    shipped: Callable[[], tuple[list[Row], list[Row]]]
    build: Callable[[list[Row], list[Row], str], TaskData]
    score: Score
    figures: Mapping[str, str]
    content: str | None = None
    hub: HubSet | None = None
    from_hub: Callable[[Row], Row | None] | None = None
    shipped_files: Sequence[str] = ()
    no_model_rules: Sequence[Rule] = ()
    longest_answer_share: float = 0.1
    adapter_of: str | None = None
    converse: Converse | None = None
    roles: Sequence[str] = ()
    settings: Sequence[str] = ()
    usual_calls: int = 1

    def __post_init__(self) -> None:
        if not self.figures or (self.content or next(iter(self.figures))) not in self.figures:
            raise TypeError(f"content is {self.content!r}, figures are {list(self.figures)}")
        if taken := RESERVED & set(self.figures):
            raise TypeError(f"figures may not be called {', '.join(sorted(taken))}")


def normalise(text: str) -> list[str]:
    """Return the tokens that SQuAD compares: lower case, no punctuation, no articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def sentences(text: str) -> list[str]:
    """Split a text after full stops, question and exclamation marks."""
    return [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence]


def token_overlap(answer: str, reference: str) -> Figures:
    """Compare normalised tokens as SQuAD does (Rajpurkar et al. 2016).

    Returns:
        f1, exact_match, precision, recall. Two texts without tokens are equal (1); one without
        tokens shares nothing (0).
    """
    answer_tokens, reference_tokens = normalise(answer), normalise(reference)
    exact = float(answer_tokens == reference_tokens)
    common = (Counter(answer_tokens) & Counter(reference_tokens)).total()
    if common == 0:
        return {"f1": exact, "exact_match": exact, "precision": exact, "recall": exact}
    precision, recall = common / len(answer_tokens), common / len(reference_tokens)
    f1 = 2 * precision * recall / (precision + recall)
    return {"f1": f1, "exact_match": exact, "precision": precision, "recall": recall}


def shared_words(text: str, other: str) -> int:
    """Count the different normalised words that two texts have in common."""
    return len({*normalise(text)} & {*normalise(other)})


def nearest(example: Example, training: list[Example]) -> Example | None:
    """Return the other training example whose prompt shares most words with this one's."""
    others = [other for other in training if other.id != example.id]
    prompt = _prompt_words(example)
    return max(others, key=lambda other: shared_words(_prompt_words(other), prompt), default=None)


def _prompt_words(example: Example) -> str:
    return " ".join(m["content"] for m in example.messages if m["role"] != "system")
