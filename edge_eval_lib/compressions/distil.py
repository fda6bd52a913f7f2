"""Distillation: what pruning lost is learnt back from the model as it was before.

On the gold answers of training prompts the student comes to predict what its teacher predicts:
forward Kullback-Leibler divergence of the logits (Hinton et al., arXiv 1503.02531), by a LoRA
adapter in every layer with the study's training settings, merged afterwards. On quantised weights
that is QLoRA (arXiv 2305.14314): merging rounds the weights once more.
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

from edge_eval_lib import bars
from edge_eval_lib.compressions import Given

if TYPE_CHECKING:
    import torch

AFTER_QUANTISING = True
TEMPERATURE = 1.0  # the teacher's own distribution, which gold answers' likelihood is about


def forward_kl(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = TEMPERATURE
) -> torch.Tensor:
    """KL(teacher || student) = T^2 sum p log(p / q) over the vocabulary, the mean over tokens.

    p and q are the softmax of the logits over the temperature T; T^2 keeps the gradients' size
    (arXiv 1503.02531).

    Args:
        student: Logits, vocabulary last; gradients flow into these.
        teacher: Logits of the same shape.
        temperature: T.

    Returns:
        Nats a token.
    """
    import torch

    q, p = ((logits.float() / temperature).log_softmax(-1) for logits in (student, teacher))
    nats = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    return temperature**2 * nats.mean()


def apply(model: Any, given: Given) -> Any:
    """Train an adapter on the teacher's logits, and return the model with it merged in."""
    import torch
    from peft import get_peft_model
    from transformers import get_cosine_schedule_with_warmup, set_seed

    teacher = given.teacher().eval()
    set_seed(given.seed)
    student = get_peft_model(model, copy.copy(given.lora)).train()  # peft notes the base in it
    batches = torch.utils.data.DataLoader(
        given.rows,
        given.training.batch_size,
        shuffle=True,
        collate_fn=given.collate,
        generator=torch.Generator().manual_seed(given.seed),
    )
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, given.training.learning_rate, weight_decay=0.0)
    steps = given.training.epochs * len(batches)
    schedule = get_cosine_schedule_with_warmup(optimizer, 1, steps)
    with torch.enable_grad(), bars.counted("distillation steps", steps) as count:
        for _ in range(given.training.epochs):
            for batch in batches:
                batch = {
                    name: value.to(student.device) if hasattr(value, "to") else value
                    for name, value in batch.items()
                }
                answered = predicts_answer(batch.pop("labels"))
                with torch.no_grad():
                    wanted = teacher(**batch).logits[answered]
                loss = forward_kl(student(**batch).logits[answered], wanted)
                loss.backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                count(1)
    with warnings.catch_warnings():  # that merging rounds quantised weights is said above
        warnings.filterwarnings("ignore", message="Merge lora module")
        return student.merge_and_unload().eval()


def predicts_answer(labels: torch.Tensor) -> torch.Tensor:
    """Whether the token after each place is one of the answer's, which the loss counts."""
    import torch

    return torch.nn.functional.pad(labels[:, 1:] != -100, (0, 1))
