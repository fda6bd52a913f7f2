"""How likely a model finds the gold answers, teacher-forced: what 24 scores cannot resolve."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge_eval_lib import bars
from edge_eval_lib.models import prefixes
from edge_eval_lib.models.tokens import answer_ids, prompt_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

    from edge_eval_lib.tasks import Example


# Rows of logits (one a token of a text) computed at a time: 2048 take 0.6 GB in FP16 where the
# vocabulary has 150,000 tokens. Gold dialogue replies may have a thousand tokens each.
LOGITS_AT_ONCE = 2048


@dataclass(frozen=True)
class Reading:
    """A text after its prompt, read by a model.

    `nll` is the mean negative log-likelihood per token of the text in nats, `argmax_ids` the
    model's own most likely token at each of its places. NaN and none where it was not read.
    Of each place `token_nlls` keeps the negative log-likelihood, `token_margins` how far the most
    likely token's probability is above the next one's; empty where an engine does not say so much.
    """

    nll: float
    argmax_ids: list[int]
    token_nlls: list[float] = field(default_factory=list, kw_only=True)
    token_margins: list[float] = field(default_factory=list, kw_only=True)


NOT_READ = Reading(math.nan, [])


@dataclass(frozen=True)
class Likelihood(Reading):
    """The reading of an example's gold answer, the end-of-sequence position included."""

    prompt_id: str


def gold_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Iterable[Example],
    batch_size: int,
) -> list[Likelihood]:
    """The likelihood of each example's gold answer after its prompt, in order."""
    examples = list(examples)
    prompts = [prompt_ids(tokenizer, example.messages) for example in examples]
    texts = [[answer_ids(tokenizer, example.answer)] for example in examples]
    readings = read_texts(model, tokenizer, prompts, texts, batch_size)
    return [
        Likelihood(gold.nll, gold.argmax_ids, example.id)
        for example, (gold,) in zip(examples, readings, strict=True)
    ]


def read_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    texts: list[list[list[int]]],
    batch_size: int,
) -> list[list[Reading]]:
    """Read texts after their prompts, each prompt once however many texts follow it.

    Where several are read at a time, what all prompts begin with is computed once.

    Args:
        model: The model.
        tokenizer: Its tokenizer, which pads on the left.
        prompts: Token ids.
        texts: The token ids of the texts to read after each prompt, each apart from the others.
        batch_size: Prompts in a pass; fewer where texts are long (`LOGITS_AT_ONCE`).

    Returns:
        The readings of each prompt's texts.
    """
    readings: list[list[Reading]] = []
    begun = _begin(model, prompts) if batch_size > 1 and prompts else None
    with bars.counted("answers read", len(prompts)) as count:
        while len(readings) < len(prompts):
            batch = texts[len(readings) : len(readings) + batch_size]
            while len(batch) > 1 and len(batch) * _longest(batch) > LOGITS_AT_ONCE:
                batch.pop()
            asked = prompts[len(readings) : len(readings) + len(batch)]
            readings += _read_batch(model, tokenizer, asked, batch, begun)
            count(len(batch))
    return readings


def _begin(model: PreTrainedModel, prompts: list[list[int]]) -> Cache | None:
    """Read what all prompts begin with; None if that is nothing, or cannot be gone on from.

    A row then holds what is shared, padding and the rest, so that the model must take places and
    keep all keys and values.
    """
    import torch

    shared = prefixes.common_beginning(prompts)
    of_peft = getattr(model, "get_base_model", None)
    forward = (of_peft() if of_peft else model).forward
    takes_places = "position_ids" in inspect.signature(forward).parameters
    if not shared or not takes_places or not prefixes.has_whole_cache(model):
        return None
    with torch.inference_mode():
        ids = torch.tensor([prompts[0][:shared]], device=model.device)
        return model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values


def _read_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    texts: list[list[list[int]]],
    begun: Cache | None,
) -> list[list[Reading]]:
    import torch

    readings: list[list[Reading]] = [[] for _ in prompts]
    shared = begun.get_seq_length() if begun else 0
    rest = [prompt[shared:] for prompt in prompts]
    inputs = dict(tokenizer.pad({"input_ids": rest}, return_tensors="pt").to(model.device))
    with torch.inference_mode():
        if begun:
            inputs["past_key_values"] = copy.deepcopy(begun)
            inputs["past_key_values"].batch_repeat_interleave(len(prompts))
            mask = inputs["attention_mask"]
            inputs["attention_mask"] = torch.cat([mask.new_ones(len(prompts), shared), mask], dim=1)
            inputs["position_ids"] = _places(inputs["attention_mask"])[:, shared:]
        read = model(**inputs, use_cache=True, logits_to_keep=1)
        places = max(map(len, texts))
        for place in range(places):
            rows = [text[place] if place < len(text) else [] for text in texts]
            logits = read.logits
            # The last token predicts nothing; what pads a shorter text comes after it.
            following = [row[:-1] for row in rows]
            if any(following):
                ids = torch.zeros((len(rows), max(map(len, following))), dtype=torch.long)
                mask = torch.zeros_like(ids)
                for i, row in enumerate(following):
                    ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
                cache = read.past_key_values  # reading fills it further
                mask = torch.cat([inputs["attention_mask"], mask.to(model.device)], dim=1)
                more = model(
                    input_ids=ids.to(model.device),
                    attention_mask=mask,
                    past_key_values=cache if place == places - 1 else copy.deepcopy(cache),
                    use_cache=True,
                    **({"position_ids": _places(mask)[:, -ids.shape[1] :]} if begun else {}),
                )
                logits = torch.cat([logits, more.logits], dim=1)
            for i, (row, scores) in enumerate(zip(rows, logits.cpu().float(), strict=True)):
                if row:
                    scores = scores[: len(row)].log_softmax(-1)
                    nlls = -scores[torch.arange(len(row)), torch.tensor(row)]
                    first, second = scores.topk(2).values.exp().T
                    readings[i].append(
                        Reading(
                            nlls.mean().item(),
                            scores.argmax(-1).tolist(),
                            token_nlls=nlls.tolist(),
                            token_margins=(first - second).tolist(),
                        )
                    )
    return readings


def _places(mask: Tensor) -> Tensor:
    """Number the tokens of each row from 0, whatever padding is between them."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _longest(texts: list[list[list[int]]]) -> int:
    return max((len(text) for of_prompt in texts for text in of_prompt), default=0)


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
