"""Compression: merge an adapter into its base, then FP16, INT8 (LLM.int8) and INT4 (NF4)."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle import adapt
from edge_eval_lib.models import load as models
from edge_eval_lib.models import weights
from edge_eval_lib.models.weights import INT4_LARGEST_SHARE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edge_eval_lib.energy import Window

# Both methods' adapters are merged into the unquantised base: an adapter that was trained on the
# 4-bit base meets the 4-bit rounding again when the merged weights are quantised.
MERGE_BASE = "fp16"


@dataclass(frozen=True)
class Artefact:
    """Weights on disk, and what was found in them.

    `linear_layers` counts the layers of each kind (`Linear4bit`, `Linear8bitLt`, `Linear`);
    `layers_share_of_fp16` is the bytes of the quantised layers over the same layers in FP16.
    """

    precision: str
    directory: Path
    disk_bytes: int
    linear_layers: dict[str, int]
    layers_share_of_fp16: float


def merge(base_directory: Path, adapter_directory: Path, target: Path) -> Artefact:
    """Add the adapter to the base in float32 and write the sum as FP16 to `target`.

    On the GPU if the float32 weights have room there, else on the CPU.
    """
    import torch

    free = models.free_device_bytes()
    stored = sum(path.stat().st_size for path in base_directory.glob("*.safetensors"))
    # Stored in 16 bits, twice as large in float32; a layer's product needs some room as well.
    base = models.load_model(
        base_directory, "float32", on_cpu=free is not None and free < 2.2 * stored
    )
    merged = adapt.load_adapter(base, adapter_directory, base_directory).merge_and_unload()
    models.require_logits(merged, target.name)
    return _save(merged.to(torch.float16), base_directory, target, "fp16", fp16_directory=target)


def quantize(fp16_directory: Path, precision: str, compute_dtype: str, target: Path) -> Artefact:
    """Write the FP16 weights at `precision` (`int8` or `int4`) to `target`, checked.

    Raises RuntimeError if a layer was left unquantised or the file is larger than it may be, and
    UserError if the quantised model does not compute numbers (four tokens are tried).
    """
    model = models.load_model(fp16_directory, compute_dtype, quantization(precision, compute_dtype))
    return _save(model, fp16_directory, target, precision, fp16_directory)


def verify(artefacts: Iterable[Artefact], base_directory: Path) -> None:
    """Read back what was written, outside the measured windows: every tensor of the base is there,
    and every value is a number; UserError otherwise."""
    base = weights.read_tensors(base_directory)
    for artefact in artefacts:
        written = weights.require_sound(artefact.directory)
        # vLLM's 4-bit layers have a weight_packed; an output head tied to the embedding is left out
        # by who saves.
        absent = {
            name
            for name in base
            if not {name, f"{name}_packed"} & set(written) and not name.startswith("lm_head.")
        }
        if absent:
            raise UserError(f"{artefact.directory}: {models.difference(absent, set(), set())}.")


def quantization(precision: str, compute_dtype: str) -> Any:
    """The transformers quantisation configuration of a precision."""
    from transformers import BitsAndBytesConfig

    if precision == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if precision == "int4":
        return adapt.nf4(compute_dtype)
    raise ValueError(f"precision is {precision!r}; it is 'int8' or 'int4'")


def count_linear_layers(model: PreTrainedModel) -> dict[str, int]:
    """How many linear layers of each kind a model has, its output head left out."""
    import torch

    head = model.get_output_embeddings()
    kinds = [
        type(module).__name__
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def _save(
    model: PreTrainedModel, tokenizer_from: Path, target: Path, precision: str, fp16_directory: Path
) -> Artefact:
    layers = count_linear_layers(model)
    expected = {"fp16": "Linear", "int8": "Linear8bitLt", "int4": "Linear4bit"}[precision]
    if set(layers) != {expected}:
        raise RuntimeError(f"{target.name}: expected only {expected} layers, found {layers}")
    with models.published_directory(target) as directory:
        model.save_pretrained(directory)
        if precision != "fp16":  # after it was saved: bfloat16 kernels repack 4-bit layers
            models.require_logits(model, target.name)
        models.load_tokenizer(tokenizer_from).save_pretrained(directory)
        share = 1.0 if precision == "fp16" else layers_share(directory, fp16_directory)
        if precision == "int4" and share > INT4_LARGEST_SHARE:
            raise RuntimeError(
                f"{target.name}: the 4-bit layers take {share:.2f} of their FP16 bytes, more than "
                f"{INT4_LARGEST_SHARE}"
            )
    return Artefact(precision, target, adapt.directory_bytes(target), layers, share)


def tensor_bytes(directory: Path) -> dict[str, int]:
    """Bytes of every tensor in a directory of safetensors, by name."""
    return {name: tensor.nbytes for name, tensor in weights.read_tensors(directory).items()}


def layers_share(quantized_directory: Path, fp16_directory: Path) -> float:
    """Bytes of the quantised layers, scales included, over the same layers' bytes in FP16."""
    quantized, fp16 = tensor_bytes(quantized_directory), tensor_bytes(fp16_directory)
    # A quantised layer has tensors beside its weight: `...q_proj.weight.absmax`, `...q_proj.SCB`.
    layers = {name.split(".weight.")[0] for name in quantized if ".weight." in name}
    layers |= {name.removesuffix(".SCB") for name in quantized if name.endswith(".SCB")}
    if not layers:
        raise RuntimeError(f"{quantized_directory.name} holds no quantised layer")
    taken = sum(size for name, size in quantized.items() if _layer_of(name, layers))
    before = sum(fp16[f"{layer}.weight"] for layer in layers)
    return taken / before


def _layer_of(tensor: str, layers: set[str]) -> bool:
    return tensor.rsplit(".", 1)[0] in layers or tensor.split(".weight.")[0] in layers


def artefact_table(artefacts: Iterable[Artefact], windows: Mapping[str, Window]) -> pd.DataFrame:
    """A row a precision: what was written and what writing it took."""
    return pd.DataFrame(
        [
            {
                "precision": artefact.precision,
                "disk_mb": artefact.disk_bytes / 1e6,
                "layers_share_of_fp16": artefact.layers_share_of_fp16,
                "linear_layers": sum(artefact.linear_layers.values()),
                "layer_kind": ", ".join(artefact.linear_layers),
                "seconds": windows[artefact.precision].seconds,
                "energy_j": windows[artefact.precision].energy_j,
            }
            for artefact in artefacts
        ]
    )


def drop_unserved(directories: Mapping[str, Path], served: Iterable[str]) -> None:
    """Delete the weights of precisions that no variant serves."""
    for precision in set(directories) - set(served):
        shutil.rmtree(directories[precision])
