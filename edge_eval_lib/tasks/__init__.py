"""The three tasks of a study: their data, prompts and gold answers.

data = load_task("rag", evaluation_examples=24)
data.evaluation[0].messages, data.evaluation[0].answer
"""

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from edge_eval_lib.errors import UserError
from edge_eval_lib.tasks import dialogue, rag, sources, summarization
from edge_eval_lib.tasks.base import Example, Rule, TaskData

__all__ = [
    "TASKS",
    "Example",
    "TaskData",
    "data_fingerprint",
    "load_task",
    "no_model_rules",
    "require_examples",
]

_MODULES = {"rag": rag, "summarization": summarization, "dialogue": dialogue}
TASKS = tuple(_MODULES)

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
    """Training and evaluation examples of a task.

    source: "embedded" (shipped with this package), "hub" (the public set), or the path of a local
        copy of the hub set (see docs/data-card.md).
    train_examples, evaluation_examples: how many; None means all that are shipped, or 512 and 400
        from a hub.
    seed: which training examples are drawn, and in what order. Evaluation examples do not
        depend on it, so that every run answers the same prompts.
    max_tokens, count_tokens: training examples of more tokens than `max_tokens`, by `count_tokens`,
        are passed over and counted, and the next rows of the source take their place. Evaluation
        examples, and the passages that their prompts hold, do not depend on it.

    Raises UserError for an unknown task, an unreadable source, or too few examples.
    """
    module = _module(task)
    train, evaluation, further = _chosen_rows(
        module, task, source, train_examples, evaluation_examples, seed
    )
    data = module.build(train, evaluation, source)
    if max_tokens is None or count_tokens is None:
        return data
    asked = len(train)
    short = [example for example in data.train if count_tokens(example) <= max_tokens]
    while len(short) < asked and train_examples is not None:
        more = list(itertools.islice(further, asked - len(short)))
        if not more:
            raise UserError(
                f"The task {task} has {len(short)} training examples of at most {max_tokens} "
                f"tokens in the source {source}, {asked} are asked for (train_examples and "
                f"heldout_examples); {len(train) - len(short)} longer ones were passed over. "
                "Raise training.max_tokens, or ask for fewer."
            )
        train += more
        # What was built before stays as it is: only a retriever's passages become more.
        built = module.build(train, evaluation, source).train[-len(more) :]
        short += [example for example in built if count_tokens(example) <= max_tokens]
    return replace(data, train=short, passed_over=len(train) - len(short))


def require_examples(
    task: str, source: str, train_examples: int, evaluation_examples: int, seed: int = 0
) -> None:
    """UserError if the source has too few rows; nothing is known of a hub before it is read.

    It reads no further than it must, and needs no tokenizer: rows may be passed over later.
    """
    if source != "hub":
        _chosen_rows(_module(task), task, source, train_examples, evaluation_examples, seed)


def data_fingerprint(
    task: str,
    source: str = "embedded",
    train_examples: int | None = None,
    evaluation_examples: int | None = None,
    seed: int = 0,
) -> str:
    """Hash of everything that decides the examples `load_task` returns for these arguments.

    It changes with the task's data files (or the pinned hub revision), its prompt texts and the
    selection; it reads no model and opens no connection.
    """
    module = _module(task)
    digest = hashlib.sha256()
    if source == "embedded":
        for name in module.SHIPPED_FILES:
            digest.update(sources.shipped_bytes(name))
    elif source != "hub":
        for split, file in sorted(sources.local_files(Path(source), module.HUB).items()):
            digest.update(split.encode())
            digest.update(file.read_bytes())
    # Module constants in capitals are what prompts and selection are made from.
    constants = {name: value for name, value in vars(module).items() if name.isupper()}
    selection = [source == "embedded", train_examples, evaluation_examples, seed]
    digest.update(json.dumps([task, constants, selection], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def no_model_rules(task: str) -> list[Rule]:
    """The task's ways to answer without a model: what a score has to be compared with."""
    return _module(task).no_model_rules


def _module(task: str) -> ModuleType:
    if task not in _MODULES:
        raise UserError(f"There is no task {task!r}; the tasks are {', '.join(TASKS)}.")
    return _MODULES[task]


def _chosen_rows(
    module: ModuleType,
    task: str,
    source: str,
    train_examples: int | None,
    evaluation_examples: int | None,
    seed: int,
) -> tuple[list[sources.Row], list[sources.Row], Iterator[sources.Row]]:
    """Training rows, evaluation rows, and the training rows that come next."""
    for name, count in (
        ("train_examples", train_examples),
        ("evaluation_examples", evaluation_examples),
    ):
        if count is not None and count < 1:
            raise UserError(f"{name} of the task {task} is {count}; it must be 1 or more.")
    if source == "embedded":
        shipped, evaluation = module.shipped()
        evaluation = _take(evaluation, evaluation_examples, "evaluation", task, source)
        random.Random(seed).shuffle(shipped)
        further = iter(shipped)
        return _take(further, train_examples, "training", task, source), evaluation, further
    return _public_rows(
        module,
        task,
        source,
        HUB_TRAIN_EXAMPLES if train_examples is None else train_examples,
        HUB_EVALUATION_EXAMPLES if evaluation_examples is None else evaluation_examples,
        seed,
    )


def _public_rows(
    module: ModuleType,
    task: str,
    source: str,
    train_examples: int,
    evaluation_examples: int,
    seed: int,
) -> tuple[list[sources.Row], list[sources.Row], Iterator[sources.Row]]:
    """Evaluation rows first, then training rows that share no key with them."""
    hub_set = module.HUB
    if source == "hub":
        # A fixed seed: the first rows of a hub set are often about one subject.
        evaluation_rows = sources.hub_rows(hub_set, hub_set.evaluation_split, seed=0)
        train_rows = sources.hub_rows(hub_set, hub_set.train_split, seed=seed)
    else:
        files = sources.local_files(Path(source), hub_set)
        evaluation_rows = sources.local_rows(files[hub_set.evaluation_split])
        train_rows = sources.local_rows(files[hub_set.train_split])
    seen: set[str] = set()
    unseen = _unseen(module, evaluation_rows, source, seen)
    evaluation = _take(unseen, evaluation_examples, "evaluation", task, source)
    unseen = _unseen(module, train_rows, source, seen)
    train = _take(unseen, train_examples, "training", task, source)
    if source != "hub":
        random.Random(seed).shuffle(train)
        return train, evaluation, unseen
    return train, evaluation, itertools.islice(unseen, (HUB_ROWS_PER_EXAMPLE - 1) * train_examples)


def _unseen(
    module: ModuleType, rows: Iterable[sources.Row], source: str, seen: set[str]
) -> Iterator[sources.Row]:
    for row in rows:
        try:
            converted = module.from_hub(row)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"A row of {source} has not the columns of {module.HUB.repository} "
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
