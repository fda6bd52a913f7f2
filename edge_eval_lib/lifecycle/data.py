"""Which examples of a task a study's runs train on, hold out and are asked."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from edge_eval_lib import models
from edge_eval_lib.study import Study
from edge_eval_lib.tasks import Example, TaskData, load_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def task_examples(
    study: Study, task: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[list[Example], list[Example], TaskData]:
    """Training examples, held-out examples (never trained on), and the whole task.

    Held out are the first that the seed draws, so that they are the same however many are trained
    on: training settings are chosen on them. With a model's tokenizer, rows of more than
    training.max_tokens are passed over, the same for every method; without one they are not, which
    the evaluation examples do not depend on.
    """
    data = study.data
    limit: dict[str, Any] = {}
    if tokenizer is not None:
        limit = {
            "max_tokens": study.training.max_tokens,
            "count_tokens": partial(models.count_tokens, tokenizer),
        }
    loaded = load_task(
        task,
        source=data.source,
        train_examples=data.train_examples + data.heldout_examples,
        evaluation_examples=data.evaluation_examples,
        seed=study.seed,
        **limit,
    )
    return loaded.train[data.heldout_examples :], loaded.train[: data.heldout_examples], loaded
