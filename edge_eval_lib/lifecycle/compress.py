"""Compression: merge an adapter into its base, then write each precision as its engine reads it.

What a precision is stands in the room `compressions`; what quantises is bitsandbytes for the engine
transformers, and llm-compressor (llm_compressor.py) for vLLM.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from edge_eval_lib import compressions, engines, models
from edge_eval_lib.errors import UserError
from edge_eval_lib.lifecycle import adapt, llm_compressor
from edge_eval_lib.lifecycle.data import task_examples
from edge_eval_lib.models import weights
from edge_eval_lib.study import Study

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edge_eval_lib.energy import Window

# Both methods' adapters are merged into the unquantised base: an adapter that was trained on the
# 4-bit base meets the 4-bit rounding again when the merged weights are quantised.
MERGE_BASE = "fp16"


@dataclass
class Artefact:
    """Weights on disk, and what is known of them.

    Attributes:
        precision: A study's word, `int4` or `prune50-int4`.
        directory: Where they lie.
        disk_bytes: Bytes of all files there.
        linear_layers: How many layers of each kind (`Linear4bit`, `Linear8bitLt`, `Linear`).
        layers_share_of_fp16: Bytes of the quantised layers over the same layers' in FP16.
        model: What was written, until `require_answers` has tried it; None for vLLM.
    """

    precision: str
    directory: Path
    disk_bytes: int
    linear_layers: dict[str, int]
    layers_share_of_fp16: float
    model: PreTrainedModel | None = field(default=None, repr=False, compare=False)


def merge(base_directory: Path, adapter_directory: Path, target: Path) -> Artefact:
    """Add the adapter to the base in float32 and write the sum as FP16 to `target`.

    On the GPU if the float32 weights have room there, else on the CPU.

    Raises:
        UserError: The adapter is not one for this base, or not whole.
    """
    import torch

    free = models.free_device_bytes()
    stored = sum(path.stat().st_size for path in base_directory.glob("*.safetensors"))
    # Stored in 16 bits, twice as large in float32; a layer's product needs some room as well.
    base = models.load_model(
        base_directory, "float32", on_cpu=free is not None and free < 2.2 * stored
    )
    merged = adapt.load_adapter(base, adapter_directory, base_directory).merge_and_unload()
    layers = _checked_kinds(merged, "fp16", target.name)
    with models.published_directory(target) as directory:
        _write(merged.to(torch.float16), base_directory, directory)
    return Artefact("fp16", target, adapt.directory_bytes(target), layers, 1.0, merged)


def quantize(
    fp16_directory: Path,
    precision: str,
    compute_dtype: str,
    target: Path,
    engine: str = "transformers",
    configuration: Any = None,
    calibration: Sequence[Sequence[int]] | None = None,
) -> Artefact:
    """Write the FP16 weights at a precision to `target`, checked.

    Args:
        fp16_directory: The merged weights.
        precision: `int8`, `int4`, or any that the room `compressions` makes, as `prune50-int4`.
        compute_dtype: What the layers will compute in.
        target: The directory to write.
        engine: What will serve the weights.
        configuration: How they are quantised, if not as the precision's own file says.
        calibration: Token ids of texts as the model will see them (vLLM alone): weights are then
            rounded by GPTQ, not to nearest.

    Raises:
        RuntimeError: A layer was left unquantised, or the file is larger than it may be.
        UserError: llm-compressor is missing or fails.
    """
    compressor = engines.kind(engine).compressor
    if configuration is None:
        configuration = compressions.configuration(precision, compressor, compute_dtype)
    model = None
    with (
        _transformed(fp16_directory, precision, target.parent) as source,
        models.published_directory(target) as directory,
    ):
        if configuration is None or compressor == "bitsandbytes":
            model = models.load_model(
                source, compute_dtype if configuration else "float16", configuration
            )
            layers = _checked_kinds(model, precision, target.name)
            names = list(_linear_layers(model))
            _write(model, source, directory)
        else:
            names = llm_compressor.quantize(source, directory, configuration, calibration)
            models.load_tokenizer(source).save_pretrained(directory)
            layers = {configuration["scheme"]: len(names)}
        share = 1.0
        if configuration is not None:
            share = layers_share(directory, source, names)
        most = compressions.largest_share(precision)
        if share > most:
            raise RuntimeError(
                f"{target.name}: the quantised layers take {share:.2f} of their FP16 bytes, more "
                f"than {most}"
            )
    return Artefact(precision, target, adapt.directory_bytes(target), layers, share, model)


def quantize_for_study(
    study: Study,
    task: str,
    fp16_directory: Path,
    precision: str,
    target: Path,
    recorded: Mapping[str, Any] | None = None,
) -> Artefact:
    """Quantise as a study's engine needs it, `recorded` being how an earlier run did."""
    return quantize(
        fp16_directory,
        precision,
        study.training.compute_dtype,
        target,
        study.workload.engine,
        configuration=recorded and _configuration_of(recorded),
        calibration=calibration(study, task, fp16_directory),
    )


def calibration(study: Study, task: str, directory: Path) -> list[list[int]] | None:
    """Return token ids of the first `calibration_examples` that an adapter was trained on.

    None if the study asks for none.
    """
    if not study.calibration_examples:
        return None
    tokenizer = models.load_tokenizer(directory)
    trained = task_examples(study, task, tokenizer)[0][: study.calibration_examples]
    encoded = adapt.encode(tokenizer, trained, study.training.max_tokens)
    return [row["input_ids"] for row in encoded]


def require_answers(artefact: Artefact) -> None:
    """Let the written model compute the logits of four tokens, outside every measured window.

    Raises:
        UserError: They are no numbers; the weights are then removed.
    """
    model, artefact.model = artefact.model, None
    if model is None:
        return
    try:
        if not getattr(model, "is_quantized", False):  # 16 bits are no arithmetic of a CPU
            model = model.float()
        models.require_logits(model, artefact.directory.name)
    except UserError:
        shutil.rmtree(artefact.directory)
        raise


def verify(artefacts: Iterable[Artefact], base_directory: Path) -> None:
    """Read back what was written, outside the measured windows.

    Raises:
        UserError: A tensor of the base is missing, or a value is no number.
    """
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


def plain(configuration: Any) -> dict[str, Any] | None:
    """How weights were quantised, as a record keeps it."""
    if configuration is None or isinstance(configuration, dict):
        return configuration
    settings = configuration.to_dict().items()
    return {name: v for name, v in settings if v is not None and not name.startswith("_")}


def _configuration_of(recorded: Mapping[str, Any]) -> Any:
    if "scheme" in recorded:
        return dict(recorded)
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig.from_dict(dict(recorded))


def count_linear_layers(model: PreTrainedModel) -> dict[str, int]:
    """How many linear layers of each kind a model has, its output head left out."""
    return dict(sorted(Counter(_linear_layers(model).values()).items()))


def _linear_layers(model: PreTrainedModel) -> dict[str, str]:
    """The linear layers but the output head: name -> class."""
    import torch

    head = model.get_output_embeddings()
    return {
        name: type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def _checked_kinds(model: PreTrainedModel, precision: str, name: str) -> dict[str, int]:
    layers, expected = count_linear_layers(model), compressions.layer_kind(precision)
    if set(layers) != {expected}:
        raise RuntimeError(f"{name}: expected only {expected} layers, found {layers}")
    return layers


@contextmanager
def _transformed(fp16_directory: Path, precision: str, beside: Path) -> Iterator[Path]:
    """The merged weights after what comes before storing them, in a temporary directory."""
    transformations = compressions.transformations(precision)
    if not transformations:
        yield fp16_directory
        return
    import torch

    model = models.load_model(fp16_directory, "float32")
    with torch.no_grad():
        for apply in transformations:
            apply(model)
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=".transformed-") as directory:
        _write(model.to(torch.float16), fp16_directory, Path(directory))
        del model
        yield Path(directory)


def _write(model: PreTrainedModel, tokenizer_from: Path, directory: Path) -> None:
    model.save_pretrained(directory)
    models.load_tokenizer(tokenizer_from).save_pretrained(directory)


def tensor_bytes(directory: Path) -> dict[str, int]:
    """Bytes of every tensor in a directory of safetensors, by name."""
    return {name: tensor.nbytes for name, tensor in weights.read_tensors(directory).items()}


def layers_share(directory: Path, fp16_directory: Path, layers: Sequence[str]) -> float:
    """Bytes of the quantised layers, scales included, over the same layers' bytes in FP16.

    Raises:
        RuntimeError: A layer has no scales beside its weight: it was left unquantised.
    """
    quantized, fp16 = tensor_bytes(directory), tensor_bytes(fp16_directory)
    # Beside its weight: `q_proj.weight.absmax` (NF4), `q_proj.SCB`, `q_proj.weight_scale`.
    parts: dict[str, list[str]] = {layer: [] for layer in layers}
    for name in quantized:
        for layer in (name.rsplit(".", 1)[0], name.split(".weight.")[0]):
            if layer in parts:
                parts[layer].append(name)
                break
    left = [layer for layer in layers if {*parts[layer]} <= {f"{layer}.weight", f"{layer}.bias"}]
    if left or not layers:
        raise RuntimeError(f"left unquantised: {', '.join(left) or 'every layer'}")
    taken = sum(quantized[name] for names in parts.values() for name in names)
    return taken / sum(fp16[f"{layer}.weight"] for layer in layers)


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
