"""How likely a model finds the gold answers, teacher-forced: what 24 scores cannot resolve."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_eval_lib.errors import UserError
from edge_eval_lib.models.tokens import answer_ids, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from edge_eval_lib.tasks import Example


# Rows of logits (one a token of an answer) computed at a time: 2048 take 0.6 GB in FP16 where the
# vocabulary has 150,000 tokens. Gold dialogue replies may have a thousand tokens each.
LOGITS_AT_ONCE = 2048


@dataclass(frozen=True)
class Likelihood:
    """One gold answer under a model.

    `nll` is the mean negative log-likelihood per gold token in nats, `argmax_ids` the model's own
    most likely token at each gold position (the end-of-sequence position included).
    """

    prompt_id: str
    nll: float
    argmax_ids: list[int]


def gold_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Iterable[Example],
    batch_size: int,
) -> list[Likelihood]:
    """The likelihood of each example's gold answer after its prompt, in order.

    At most `batch_size` at a time, fewer where answers are long (`LOGITS_AT_ONCE`).
    """
    import torch

    examples = list(examples)
    likelihoods: list[Likelihood] = []
    while len(likelihoods) < len(examples):
        batch = examples[len(likelihoods) : len(likelihoods) + batch_size]
        answers = [answer_ids(tokenizer, example.answer) for example in batch]
        while len(answers) > 1 and len(answers) * max(map(len, answers)) > LOGITS_AT_ONCE:
            answers.pop()
        batch = batch[: len(answers)]
        sequences = [
            prompt_ids(tokenizer, example.messages) + answer
            for example, answer in zip(batch, answers, strict=True)
        ]
        inputs = tokenizer.pad({"input_ids": sequences}, return_tensors="pt").to(model.device)
        longest = max(map(len, answers))
        # Padding is on the left, so the answers end together: only their logits are computed.
        with torch.inference_mode():
            logits = model(**inputs, logits_to_keep=longest + 1).logits.cpu().float()
        for example, answer, row in zip(batch, answers, logits, strict=True):
            scores = row[-len(answer) - 1 : -1].log_softmax(-1)
            gold = scores[torch.arange(len(answer)), torch.tensor(answer)]
            likelihoods.append(
                Likelihood(example.id, -gold.mean().item(), scores.argmax(-1).tolist())
            )
    return likelihoods


def require_numbers(likelihoods: list[Likelihood], directory: Path) -> list[Likelihood]:
    """The likelihoods; UserError if one is no number: the model's logits were none."""
    wrong = [one.prompt_id for one in likelihoods if not math.isfinite(one.nll)]
    if wrong:
        raise UserError(
            f"{directory}: the likelihood of the gold answer to {wrong[0]} is no number, so the "
            "model's logits are NaN or infinite; its weights overflow training.compute_dtype, or "
            "are damaged."
        )
    return likelihoods


@contextmanager
def evaluating(model: PreTrainedModel):
    """`model` in evaluation mode, but its 4-bit layers as they train.

    In evaluation mode bitsandbytes repacks 4-bit weights for bfloat16 on CPUs that have it, and
    training on would then silently compute in bfloat16.
    """
    import bitsandbytes as bnb

    was_training = model.training
    model.eval()
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.train()
    try:
        yield model
    finally:
        model.train(was_training)
