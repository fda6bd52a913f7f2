"""The QLoRA paradox, taken apart: which part of QLoRA costs how much time and energy?

Notebook 08_qlora_ablation trains a full factorial of three factors, everything else equal (data,
batches, tokens, adapter, gradient checkpointing, device): the base in FP16 or in 4-bit NF4;
autocast to float16 or to bfloat16; and whether the parameters beside the linear layers (norms,
embeddings, output head) are cast to float32, as peft's `prepare_model_for_kbit_training` does for a
4-bit base. A CPU computes in float32, so that autocast is no factor there and the casts have
nothing to do: their effect then shows what the measurement can resolve.
"""

from __future__ import annotations

import gc
import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edge_eval_lib import models
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle import adapt
from edge_eval_lib.study import Study

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from edge_eval_lib.energy import Measurement

# A factor's levels: the first is what the second is compared with.
FACTORS: dict[str, tuple[str | None, ...]] = {
    "base": ("fp16", "nf4"),
    "autocast": ("float16", "bfloat16"),
    "casts": ("without", "with"),
}


@dataclass(frozen=True)
class Cell:
    """One combination of levels. `autocast` is None where nothing is cast on the way: on a CPU."""

    base: str
    autocast: str | None
    casts: str

    def __str__(self) -> str:
        dtype = self.autocast or "float32"
        return f"{self.base} base, {dtype}, {self.casts} casts"


def factorial(factors: Mapping[str, Sequence[str | None]]) -> list[Cell]:
    """Return every combination of the factors' levels."""
    return [
        Cell(**cast(dict[str, Any], dict(zip(factors, levels, strict=True))))
        for levels in itertools.product(*factors.values())
    ]


def blocks(cells: Sequence[Cell], repetitions: int, seed: int) -> list[tuple[int, Cell]]:
    """Return (repetition, cell) in the order in which they are measured.

    Every repetition holds each cell once, in a random order of its own, so that drift falls on none
    more than on another.
    """
    order = []
    for repetition in range(1, repetitions + 1):
        shuffled = list(cells)
        random.Random(f"{seed}/{repetition}").shuffle(shuffled)
        order += [(repetition, cell) for cell in shuffled]
    return order


def cast_all_but_layers(model: PreTrainedModel) -> None:
    """Cast to float32 what `prepare_model_for_kbit_training` casts of a 4-bit model.

    That is every parameter of half precision but the weights of the layers that are quantised
    there.
    """
    import torch

    head = model.get_output_embeddings()
    quantised = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    for parameter in model.parameters():
        half = parameter.dtype in (torch.float16, torch.bfloat16)
        if half and id(parameter) not in quantised:
            parameter.data = parameter.data.to(torch.float32)


def load_cell(directory: Path, cell: Cell, study: Study) -> PeftModel:
    """Return the base as the cell wants it with a fresh adapter, ready to train.

    Where there is autocast, an FP16 base is stored in float16 whatever it is cast to. What a 4-bit
    base leaves unquantised is stored in autocast's own type: 4-bit layers answer in the type that
    they are asked in, and autocast refuses to join its own type and another 16-bit one.
    """
    stored, quantization = "float16", None
    if cell.base == "nf4":
        stored = cell.autocast or "float32"
        quantization = adapt.nf4(stored)
    elif cell.autocast is None:
        stored = "float32"
    base = models.load_model(directory, stored, quantization)
    if cell.casts == "with":
        cast_all_but_layers(base)
    model = adapt.add_adapter(base, adapt.lora_config(study.training, directory), study.seed)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    return model.train()


def batches_of(tokenizer: Any, encoded: list[dict[str, list[int]]], size: int) -> list[Any]:
    """Return padded batches of tensors, in the examples' order, without a rest that fills none."""
    collate = adapt.answer_batches(tokenizer)
    if len(encoded) < size:
        raise UserError(
            f"data.train_examples gives {len(encoded)} examples, less than one batch of "
            f"training.batch_size = {size}."
        )
    return [collate(encoded[i : i + size]) for i in range(0, len(encoded) - size + 1, size)]


def figures(
    cell: Cell,
    window: Measurement,
    losses: Sequence[torch.Tensor],
    batches: Sequence[Any],
    model: PreTrainedModel,
) -> dict[str, Any]:
    """Return what a window over the training of a cell measured, and what was trained in it.

    Args:
        cell: What was trained.
        window: The measured window.
        losses: Of every step, those of the warm-up first.
        batches: Of the steps within the window.
        model: The trained model.

    Raises:
        UserError: A loss is not a number.
    """
    of_steps = [float(loss) for loss in losses]
    if not np.isfinite(of_steps).all():
        raise UserError(f"The loss of the cell '{cell}' is not a number: {of_steps}.")
    kept = ["energy_j", "energy_source", "energy_reason", "power_w", "cpu_s", "peak_memory_gb"]
    doubts = (c for c in window.checks if c.verdict in ("warning", "invalid"))
    return {
        "cell": str(cell),
        "base": cell.base,
        "autocast": cell.autocast or "none",
        "casts": cell.casts,
        "seconds": window.seconds,
        **{name: window.as_dict()[name] for name in kept},
        "steps": len(batches),
        "tokens": int(sum(batch["attention_mask"].sum() for batch in batches)),
        "executed_dtype": cell.autocast or models.executed_dtype(model),
        "loss_first": of_steps[0],
        "loss_last": of_steps[-1],
        "validity": "; ".join(f"{check.verdict}: {check.name}" for check in doubts) or "ok",
    }


def free_memory() -> None:
    """Give back what a cell took, so that the next one's peak is its own."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
