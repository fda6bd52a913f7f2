"""Which examples of a task a study's runs train on, hold out and are asked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from edge_eval_lib import models, tasks
from edge_eval_lib.study import Study
from edge_eval_lib.tasks import Example, TaskData, load_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from edge_eval_lib.energy import Monitor


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
        evaluation_examples=study.evaluation_examples_of(task),
        seed=study.seed,
        **limit,
    )
    return loaded.train[data.heldout_examples :], loaded.train[: data.heldout_examples], loaded


@dataclass(frozen=True)
class PromptCost:
    """What making one prompt took, searching for what it shows included.

    `energy_j` is None where the energy source does not say, for a `reason`.
    """

    seconds: float
    energy_j: float | None
    reason: str = ""

    def __str__(self) -> str:
        energy = self.reason if self.energy_j is None else f"{1e3 * self.energy_j:.3g} mJ"
        return f"{1e3 * self.seconds:.3g} ms and {energy} a prompt"


def prompt_cost(study: Study, task: str, monitor: Monitor) -> PromptCost:
    """Measure what making a prompt of a task takes, over all that a study asks.

    Serving windows begin with finished prompts, so that a search is not in them. All prompts are
    made again and again until the energy source resolves it.
    """
    data, definition = study.data, tasks.find(task)
    count = data.evaluation_examples
    tasks.require_examples(task, data.source, data.train_examples, count, study.seed)
    rows = definition.shipped()[1][:count]
    definition.build([], rows, data.source)  # imports what the search needs
    window, times = monitor.repeat_until_resolved(
        f"prompts of {task}", lambda: definition.build([], rows, data.source)
    )
    made = times * len(rows)
    energy_j = None if window.energy_j is None else window.energy_j / made
    return PromptCost(float(window.seconds or 0.0) / made, energy_j, window.energy_reason or "")
