"""Floating-point operations of prompts, answers and training; a multiply-add counts as two.

2 a parameter and token (forward), twice that backward, and attention's 4 x layers x heads x head
size x context a token, which arXiv 2506.04645 adds. Arguments may be numbers or arrays.
"""

from __future__ import annotations

from edge_eval_lib.bounds import NonNegative, Positive, Whole, checked
from edge_eval_lib.economics.shape import ModelShape

# Forward 2; backward 2 for what flows through a layer and, where its weights learn, 2 for them.
TRAINING_PER_PARAMETER = {"lora": 4.0, "qlora": 4.0, "full": 6.0}
RECOMPUTED_PER_PARAMETER = 2.0  # gradient checkpointing goes forward once more


@checked
def prefill_flop(
    parameters: Positive, prompt_tokens: NonNegative, attention_width: NonNegative = 0
):
    """Compute the operations of a prompt: 2 P S + 2 w S^2 (a token attends to half of S).

    Args:
        parameters: P, that a token is multiplied with.
        prompt_tokens: S.
        attention_width: w, layers x heads x head size (`attention_width`); 0 leaves attention out.

    Returns:
        Floating-point operations.
    """
    return 2 * parameters * prompt_tokens + 2 * attention_width * prompt_tokens**2


@checked
def decode_flop(
    parameters: Positive,
    context_tokens: NonNegative = 0,
    attention_width: NonNegative = 0,
    concurrency: Whole = 1,
):
    """Compute the operations of one decoding step of a batch: B (2 P + 4 w context)."""
    return concurrency * (2 * parameters + 4 * attention_width * context_tokens)


def training_flop_per_parameter(method: str, gradient_checkpointing: bool) -> float:
    """Return operations a parameter and trained token: 4 (LoRA, QLoRA) or 6, 2 more checkpointed.

    Raises:
        ValueError: The method is not known.
    """
    if method not in TRAINING_PER_PARAMETER:
        raise ValueError(f"method must be one of {list(TRAINING_PER_PARAMETER)}, not {method!r}")
    again = RECOMPUTED_PER_PARAMETER if gradient_checkpointing else 0.0
    return TRAINING_PER_PARAMETER[method] + again


@checked
def training_flop(
    parameters: Positive, tokens: NonNegative, method: str, gradient_checkpointing: bool = True
):
    """Compute the operations to train on `tokens`: those a parameter x P x tokens."""
    return training_flop_per_parameter(method, gradient_checkpointing) * parameters * tokens


def attention_width(shape: ModelShape):
    """Return layers x heads x head size: what attention's operations grow with."""
    return shape.layers * shape.attention_heads * shape.head_dim
