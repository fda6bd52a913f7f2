"""Magnitude pruning (Han et al., arXiv 1506.02626): the smallest weights of each layer become 0.

The layers keep their shape, so that nothing gets faster or smaller that knows no zeros.
"""

from __future__ import annotations

from typing import Any


def apply(model: Any, percent: int) -> None:
    """Set that share of each linear layer's weights, the output head left out, to zero."""
    import torch

    head = model.get_output_embeddings()
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, torch.nn.Linear) and layer is not head:
                size = layer.weight.abs()
                at = max(1, layer.weight.numel() * percent // 100)
                layer.weight[size <= size.flatten().kthvalue(at).values] = 0
