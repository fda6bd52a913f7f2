"""The tasks that a study can name: one file each, with its data, its prompts and its scores.

    data = load_task("rag", evaluation_examples=24)
    find("rag").score(["an answer"], data.evaluation[:1])

A file of this room, or of a folder `tasks/` that EDGE_EVAL_EXTENSIONS names, is a task by its name
and has a `task`, a `Task`. Rows that it reads lie in `data/` beside it.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType

from edge_eval_lib import extensions
from edge_eval_lib.errors import UserError, nearest
from edge_eval_lib.tasks import sources
from edge_eval_lib.tasks.base import (
    Call,
    CallFailedError,
    Converse,
    Example,
    Figures,
    Reply,
    Rule,
    Score,
    Task,
    TaskData,
)

__all__ = [
    "Call",
    "CallFailedError",
    "Converse",
    "Example",
    "Figures",
    "Reply",
    "Rule",
    "Score",
    "Task",
    "TaskData",
    "data_fingerprint",
    "find",
    "load_task",
    "names",
    "require_examples",
    "trained_as",
]

__path__ += extensions.folders("tasks")

PUBLISHED = ("rag", "summarization", "dialogue")  # in the paper's order
# How many examples a hub set gives where the study does not say.
HUB_TRAIN_EXAMPLES = 512
HUB_EVALUATION_EXAMPLES = 400
# How many training rows of a hub are read at most for each that is asked for: where nearly all are
# too long, a whole set would be fetched before that is said.
HUB_ROWS_PER_EXAMPLE = 20


def load_task(
    task: str,
    source: str = "embedded",
    train_examples: int | None = None,
    evaluation_examples: int | None = None,
    seed: int = 0,
    max_tokens: int | None = None,
    count_tokens: Callable[[Example], int] | None = None,
) -> TaskData:
    """Load the training and evaluation examples of a task.

    Args:
        task: One of `names()`.
        source: "embedded" (shipped with the task), "hub" (the public set), or the path of a local
            copy of the hub set (see docs/data-card.md).
        train_examples: How many; None means all that are shipped, or 512 from a hub.
        evaluation_examples: How many; None means all that are shipped, or 400 from a hub.
        seed: Which training examples are drawn, and in what order. Evaluation examples do not
            depend on it, so that every run answers the same prompts.
        max_tokens: Longer training examples are passed over and counted, and the next rows of the
            source take their place. Evaluation examples, and the passages that their prompts hold,
            do not depend on it.
        count_tokens: How many tokens an example has.

    Returns:
        The examples, and figures about the set.

    Raises:
        UserError: The task is unknown, its source cannot be read, or has too few examples.
    """
    definition = find(task)
    train, evaluation, further = _chosen_rows(
        task, source, train_examples, evaluation_examples, seed
    )
    data = definition.build(train, evaluation, source)
    if max_tokens is None or count_tokens is None:
        return data
    wanted = len(train)
    short = [example for example in data.train if count_tokens(example) <= max_tokens]
    while len(short) < wanted and train_examples is not None:
        more = list(itertools.islice(further, wanted - len(short)))
        if not more:
            raise UserError(
                f"The task {task} has {len(short)} training examples of at most {max_tokens} "
                f"tokens in the source {source}, {wanted} are asked for (train_examples and "
                f"heldout_examples); {len(train) - len(short)} longer ones were passed over. "
                "Raise training.max_tokens, or ask for fewer."
            )
        train += more
        # What was built before stays as it is: only a retriever's passages become more.
        built = definition.build(train, evaluation, source).train[-len(more) :]
        short += [example for example in built if count_tokens(example) <= max_tokens]
    return replace(data, train=short, passed_over=len(train) - len(short))


def require_examples(
    task: str, source: str, train_examples: int, evaluation_examples: int, seed: int = 0
) -> None:
    """Raise UserError if the source has too few rows; a hub is not read, and so not judged.

    It reads no further than it must, and needs no tokenizer: rows may be passed over later.
    """
    if source == "hub":
        _hub_set(task)
    else:
        _chosen_rows(task, source, train_examples, evaluation_examples, seed)


def data_fingerprint(
    task: str,
    source: str = "embedded",
    train_examples: int | None = None,
    evaluation_examples: int | None = None,
    seed: int = 0,
) -> str:
    """Hash everything that decides the examples `load_task` returns for these arguments.

    It changes with the task's data files (or the pinned hub revision), its prompt texts and the
    selection; it reads no model and opens no connection.
    """
    definition, module = find(task), _module(task)
    digest = hashlib.sha256()
    if source == "embedded":
        for name in definition.shipped_files:
            digest.update(sources.shipped_bytes(name))
        if not definition.shipped_files:
            digest.update(json.dumps(definition.shipped()).encode())
    elif source != "hub":
        hub_set = _hub_set(task)
        for split, file in sorted(sources.local_files(Path(source), hub_set).items()):
            digest.update(split.encode())
            digest.update(file.read_bytes())
    # Module constants in capitals are what prompts and selection are made from.
    constants = {name: value for name, value in vars(module).items() if name.isupper()}
    selection = [source == "embedded", train_examples, evaluation_examples, seed]
    digest.update(json.dumps([task, constants, selection], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def names() -> list[str]:
    """Return the names of all tasks, those of the paper first, without importing any file.

    A name holds no underscore, which separates the parts of a variant's name.
    """
    files = extensions.names(__path__, but=("base", "sources", "data"))
    known = [name for name in files if "_" not in name]
    return sorted(known, key=lambda name: (PUBLISHED.index(name) if name in PUBLISHED else 9, name))


def find(task: str) -> Task:
    """Return a task's data, prompts and scores.

    Raises:
        UserError: There is no such task, or its file cannot be used.
    """
    definition = getattr(_module(task), "task", None)
    if not isinstance(definition, Task):
        raise UserError(
            f"{_module(task).__file__} has no `task`, a Task with its data, prompts and scores."
        )
    return definition


@cache
def trained_as(task: str) -> str:
    """Return the task whose adapter answers `task`: itself, unless its file names another."""
    return find(task).adapter_of or task


def _module(task: str) -> ModuleType:
    if task not in names():
        raise UserError(f"There is no task {task!r}; {nearest(task, names())}")
    try:
        return importlib.import_module(f"{__name__}.{task}")
    except (ImportError, TypeError, SyntaxError) as error:
        raise UserError(f"The file of the task {task} cannot be used: {error}.") from error


def _hub_set(task: str) -> sources.HubSet:
    definition = find(task)
    if definition.hub is None or definition.from_hub is None:
        raise UserError(f"The task {task} has no public set; its source can be 'embedded' only.")
    return definition.hub


def _chosen_rows(
    task: str,
    source: str,
    train_examples: int | None,
    evaluation_examples: int | None,
    seed: int,
) -> tuple[list[sources.Row], list[sources.Row], Iterator[sources.Row]]:
    """Return training rows, evaluation rows, and the training rows that come next."""
    for name, count in (
        ("train_examples", train_examples),
        ("evaluation_examples", evaluation_examples),
    ):
        if count is not None and count < 1:
            raise UserError(f"{name} of the task {task} is {count}; it must be 1 or more.")
    if source == "embedded":
        shipped, evaluation = find(task).shipped()
        evaluation = _take(evaluation, evaluation_examples, "evaluation", task, source)
        random.Random(seed).shuffle(shipped)
        further: Iterator[sources.Row] = iter(shipped)
        return _take(further, train_examples, "training", task, source), evaluation, further
    return _public_rows(
        task,
        source,
        HUB_TRAIN_EXAMPLES if train_examples is None else train_examples,
        HUB_EVALUATION_EXAMPLES if evaluation_examples is None else evaluation_examples,
        seed,
    )


def _public_rows(
    task: str,
    source: str,
    train_examples: int,
    evaluation_examples: int,
    seed: int,
) -> tuple[list[sources.Row], list[sources.Row], Iterator[sources.Row]]:
    """Take evaluation rows first, then training rows that share no key with them."""
    hub_set = _hub_set(task)
    if source == "hub":
        # A fixed seed: the first rows of a hub set are often about one subject.
        evaluation_rows = sources.hub_rows(hub_set, hub_set.evaluation_split, seed=0)
        train_rows = sources.hub_rows(hub_set, hub_set.train_split, seed=seed)
    else:
        files = sources.local_files(Path(source), hub_set)
        evaluation_rows = sources.local_rows(files[hub_set.evaluation_split])
        train_rows = sources.local_rows(files[hub_set.train_split])
    seen: set[str] = set()
    unseen = _unseen(task, evaluation_rows, source, seen)
    evaluation = _take(unseen, evaluation_examples, "evaluation", task, source)
    unseen = _unseen(task, train_rows, source, seen)
    train = _take(unseen, train_examples, "training", task, source)
    if source != "hub":
        random.Random(seed).shuffle(train)
        return train, evaluation, unseen
    return train, evaluation, itertools.islice(unseen, (HUB_ROWS_PER_EXAMPLE - 1) * train_examples)


def _unseen(
    task: str, rows: Iterable[sources.Row], source: str, seen: set[str]
) -> Iterator[sources.Row]:
    hub_set, from_hub = _hub_set(task), find(task).from_hub
    assert from_hub is not None  # as _hub_set says
    for row in rows:
        try:
            converted = from_hub(row)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"A row of {source} has not the columns of {hub_set.repository} "
                f"({error!r}, found {', '.join(row)})."
            ) from error
        if converted is not None and converted["key"] not in seen:
            seen.add(converted["key"])
            yield converted


def _take(
    rows: Iterable[sources.Row], count: int | None, part: str, task: str, source: str
) -> list[sources.Row]:
    # islice asks for no row beyond the last: _unseen would mark it as used.
    taken = list(itertools.islice(rows, count))
    if count is not None and len(taken) < count:
        raise UserError(
            f"The task {task} has {len(taken)} {part} examples in the source {source}, "
            f"{count} are asked for."
        )
    return taken
