"""Width: the least important inner neurons of every feed-forward layer are cut out.

torch-pruning (DepGraph, arXiv 2301.12900) finds what depends on a neuron, ranks neurons by the loss
that their removal should cost (Taylor importance, arXiv 1906.10771, of gradients on training
examples), and cuts.
"""

from __future__ import annotations

import warnings
from typing import Any

from edge_eval_lib.compressions import Given
from edge_eval_lib.compressions.depth import decoder_layers

ROWS = 16  # training examples that gradients are taken on


def dimensions(layers: int, inner: int, percent: int) -> tuple[int, int]:
    """How wide feed-forward layers stay: a multiple of 256, of less where they are narrow."""
    multiple = next(m for m in (256, 128, 64, 32, 16, 8, 4, 2, 1) if inner >= 4 * m or m == 1)
    return layers, max(multiple, round(inner * (1 - percent / 100) / multiple) * multiple)


def apply(model: Any, percent: int, given: Given) -> None:
    """Cut that share of the inner neurons of every layer."""
    import torch
    import torch_pruning

    layers = decoder_layers(model)
    was = [parameter.requires_grad for parameter in model.parameters()]
    with torch.enable_grad():
        model.requires_grad_(True)
        for row in given.rows[:ROWS]:
            ids, labels = (
                torch.tensor([row[c]], device=model.device) for c in ("input_ids", "labels")
            )
            model(input_ids=ids, labels=labels).loss.backward()
    inner = layers[0].mlp.gate_proj.out_features
    _, stay = dimensions(len(layers), inner, percent)
    importance = torch_pruning.importance.GroupTaylorImportance()
    for layer in layers:
        gate = layer.mlp.gate_proj
        probe = torch.zeros(1, gate.in_features, dtype=gate.weight.dtype, device=gate.weight.device)
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph().build_dependency(layer.mlp, probe)
        cut = torch_pruning.prune_linear_out_channels
        scores = importance(graph.get_pruning_group(gate, cut, list(range(inner))))
        graph.get_pruning_group(gate, cut, scores.argsort()[: inner - stay].tolist()).prune()
        layer.mlp.intermediate_size = stay
    model.config.intermediate_size = stay
    model.zero_grad(set_to_none=True)
    for parameter, trains in zip(model.parameters(), was, strict=True):
        parameter.requires_grad_(trains)
