"""Depth: the layers that change their input least are left out (ShortGPT, arXiv 2403.03853).

A layer's block influence is 1 - the mean cosine similarity of what goes into it and what comes out,
over the tokens of training prompts.
"""

from __future__ import annotations

from typing import Any

from edge_eval_lib.compressions import Given
from edge_eval_lib.errors import UserError

AFTER_QUANTISING = True
ROWS = 16  # training examples that influence is measured on


def dimensions(layers: int, inner: int, percent: int) -> tuple[int, int]:
    """How many layers stay: at least one."""
    return max(1, layers - round(layers * percent / 100)), inner


def apply(model: Any, percent: int, given: Given) -> None:
    """Drop that share of a decoder's layers, those of least influence."""
    import torch

    layers = decoder_layers(model)
    influence = block_influence(model, [row["input_ids"] for row in given.rows[:ROWS]])
    stay, _ = dimensions(len(layers), 0, percent)
    kept = sorted(sorted(range(len(layers)), key=lambda i: -influence[i])[:stay])
    model.model.layers = torch.nn.ModuleList(layers[i] for i in kept)
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place  # where its keys and values lie in the cache
    model.config.num_hidden_layers = stay
    if kinds := getattr(model.config, "layer_types", None):
        model.config.layer_types = [kinds[i] for i in kept]


def decoder_layers(model: Any) -> Any:
    """A decoder's layers; UserError for a model that keeps them elsewhere than Llama does."""
    layers = getattr(getattr(model, "model", None), "layers", None)
    if layers is None or not hasattr(layers[0], "self_attn"):
        raise UserError(
            "depth and width cut decoders with layers as Llama's; those of "
            f"{type(model).__name__} are others."
        )
    return layers


def block_influence(model: Any, texts: list[list[int]]) -> list[float]:
    """Block influence of each layer: 1 - mean over tokens of cos(input, output)."""
    import torch

    layers = decoder_layers(model)
    similar, tokens = [0.0] * len(layers), sum(map(len, texts))

    def hook(place: int):
        def add(_layer: Any, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
            similar[place] += cosine.sum().item()

        return add

    hooks = [
        layer.register_forward_hook(hook(place), with_kwargs=True)
        for place, layer in enumerate(layers)
    ]
    try:
        with torch.inference_mode():
            for text in texts:
                model(torch.tensor([text], device=model.device), logits_to_keep=1)
    finally:
        for each in hooks:
            each.remove()
    return [1 - total / tokens for total in similar]
