"""Keys and values kept between calls, so that what prompts have in common is computed once."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_eval_lib.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache


@dataclass(frozen=True)
class Kept:
    """A sequence that was computed: its tokens, and (keys, values) of shape heads x tokens x width.

    One pair for each layer. Keys are rotated by their tokens' places in the sequence.
    """

    token_ids: list[int]
    layers: list[tuple[Tensor, Tensor]]


class PrefixStore:
    """The sequences computed last, at most `sequences` of them.

    A prompt takes over its longest common beginning with any of them, but never its last token: the
    first new one follows from that.
    """

    def __init__(self, sequences: int) -> None:
        self.kept: deque[Kept] = deque(maxlen=sequences)

    def reusable(self, prompt: list[int]) -> tuple[int, Kept | None]:
        """Return how many tokens of a prompt are computed already, and in which sequence."""
        lengths = [_common(kept.token_ids, prompt[:-1]) for kept in self.kept]
        longest = max(lengths, default=0)
        return longest, self.kept[lengths.index(longest)] if longest else None

    def inputs(self, prompts: list[list[int]], pad_id: int) -> tuple[dict[str, Any], int]:
        """Return what `generate` takes to compute only what is new, and the tokens taken over.

        A row holds padding, the tokens taken over, padding, the new ones. Its places follow from
        the attention mask, so that padding within it changes nothing.
        """
        import torch
        from transformers import DynamicCache

        found = [self.reusable(prompt) for prompt in prompts]
        before = max(length for length, _ in found)
        after = max(len(p) - length for p, (length, _) in zip(prompts, found, strict=True))
        ids = torch.full((len(prompts), before + after), pad_id)
        mask = torch.zeros_like(ids)
        for row, (prompt, (length, _)) in enumerate(zip(prompts, found, strict=True)):
            for part, end in ((prompt[:length], before), (prompt[length:], before + after)):
                ids[row, end - len(part) : end] = torch.tensor(part, dtype=torch.long)
                mask[row, end - len(part) : end] = 1
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        example = next((kept for _, kept in found if kept is not None), None)
        if example is not None:
            cache = DynamicCache()
            for layer, (keys, _) in enumerate(example.layers):
                heads, _, width = keys.shape
                both = keys.new_zeros((2, len(prompts), heads, before, width))
                for row, (length, kept) in enumerate(found):
                    if kept is not None:
                        for which, tensor in enumerate(kept.layers[layer]):
                            both[which, row, :, before - length :] = tensor[:, :length]
                cache.update(both[0], both[1], layer)
            inputs["past_key_values"] = cache
        return inputs, sum(length for length, _ in found)

    def keep(self, sequences: list[list[int]], mask: Tensor, cache: Cache) -> None:
        """Keep what was computed of some sequences.

        Args:
            sequences: Their tokens, in the rows' order; the last token of each was not computed.
            mask: Which of the prompts' places in the cache hold a token.
            cache: Keys and values after generation.
        """
        import torch

        for row, token_ids in enumerate(sequences):
            prompt_places = mask[row].nonzero().flatten()
            new = torch.arange(len(token_ids) - 1 - len(prompt_places)) + mask.shape[1]
            places = torch.cat([prompt_places, new.to(prompt_places.device)])
            layers = [(layer.keys[row, :, places], layer.values[row, :, places])
                      for layer in cache.layers]  # fmt: skip
            self.kept.append(Kept(token_ids[:-1], layers))


def require_whole_cache(model: Any) -> None:
    """UserError for a model that forgets: one with sliding windows or a state instead of keys."""
    if not has_whole_cache(model):
        raise UserError(
            f"workload.prefix_caching: a {model.config.model_type} model does not keep all keys "
            "and values (sliding windows or states), and the engine transformers cannot share them."
        )


def has_whole_cache(model: Any) -> bool:
    """Return whether a model keeps the keys and values of all tokens."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    return {type(layer) for layer in DynamicCache(config=model.config).layers} <= {DynamicLayer}


def common_beginning(prompts: list[list[int]]) -> int:
    """Return how many first tokens all prompts share; none of them ends there."""
    first, *others = prompts
    return min((_common(first[:-1], other[:-1]) for other in others), default=0)


def _common(tokens: list[int], others: list[int]) -> int:
    pairs = zip(tokens, others, strict=False)
    differing = (place for place, (token, other) in enumerate(pairs) if token != other)
    return next(differing, min(len(tokens), len(others)))
