"""Compression: merge an adapter into its base, then write each precision as its engine reads it.

What a precision is stands in the room `compressions`: a chain, each step of which makes a directory
of weights of another. What quantises is bitsandbytes for the engine transformers, and
llm-compressor (llm_compressor.py) for vLLM.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
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
from edge_eval_lib.tensors import read_config

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
        precision: A study's word, `int4` or `depth25-int4`.
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
    source: Path,
    precision: str,
    compute_dtype: str,
    target: Path,
    engine: str = "transformers",
    configuration: Any = None,
    calibration: Sequence[Sequence[int]] | None = None,
) -> Artefact:
    """Write FP16 weights at a precision to `target`, checked.

    Args:
        source: The FP16 weights (`compressions.source` of the precision).
        precision: `int8`, `int4`, or any that the room `compressions` stores, as `depth25-int4`.
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
    with models.published_directory(target) as directory:
        if configuration is None or compressor == "bitsandbytes":
            model = models.load_model(
                source, compute_dtype if configuration else "float16", configuration, to_write=True
            )
            layers = _checked_kinds(model, precision, target.name)
            in_fp16 = _fp16_bytes(model)
            _write(model, source, directory)
        else:
            names = llm_compressor.quantize(source, directory, configuration, calibration)
            models.load_tokenizer(source).save_pretrained(directory)
            layers = {configuration["scheme"]: len(names)}
            fp16 = tensor_bytes(source)
            in_fp16 = {name: fp16[f"{name}.weight"] for name in names}
        share = 1.0
        if configuration is not None:
            share = layers_share(directory, in_fp16)
        most = compressions.largest_share(precision)
        if share > most:
            raise RuntimeError(
                f"{target.name}: the quantised layers take {share:.2f} of their FP16 bytes, more "
                f"than {most}"
            )
    return Artefact(precision, target, adapt.directory_bytes(target), layers, share, model)


def change(
    source: Path, precision: str, compute_dtype: str, target: Path, given: compressions.Given
) -> Artefact:
    """Write what a word of a chain, as `depth25` or `distil`, makes of the weights before it.

    Args:
        source: The weights before it (`compressions.source` of the precision).
        precision: The chain up to that word, as `depth25-fp16` or `int4-depth25`.
        compute_dtype: What quantised layers compute in; unquantised ones are changed in float32.
        target: The directory to write.
        given: What it may learn from.
    """
    import torch

    apply = compressions.change(precision)
    assert apply is not None
    is_quantised = compressions.storage(precision) != "fp16"
    model = models.load_model(source, compute_dtype if is_quantised else "float32", to_write=True)
    with torch.no_grad():
        model = apply(model.eval(), given) or model
    layers = _checked_kinds(model, precision, target.name)
    if is_quantised:  # transformers would undo how it read quantised weights, and cannot
        model._weight_conversions = [
            conversion
            for conversion in getattr(model, "_weight_conversions", None) or []
            if type(conversion).__name__ != "WeightConverter"
        ]
    with models.published_directory(target) as directory:
        _write(model if is_quantised else model.to(torch.float16), source, directory)
    share = layers_share(target, _fp16_bytes(model)) if is_quantised else 1.0
    return Artefact(precision, target, adapt.directory_bytes(target), layers, share, model)


def given(study: Study, task: str, fp16_directory: Path) -> compressions.Given:
    """Return what compressions of an adapted model may learn from: its adapter's training data."""
    tokenizer = models.load_tokenizer(fp16_directory)
    whole = study.training.model_copy(update={"adapted_share": 1.0})  # a student has other layers
    trained, _, _ = task_examples(study, task, tokenizer)
    return compressions.Given(
        rows=adapt.encode(tokenizer, trained, study.training.max_tokens),
        collate=adapt.answer_batches(tokenizer),
        teacher=lambda: models.load_model(fp16_directory, study.training.compute_dtype),
        training=study.training,
        lora=adapt.lora_config(whole, fp16_directory),
        seed=study.seed,
    )


def step_of_study(
    study: Study,
    task: str,
    folder: Path,
    precision: str,
    target: Path,
    recorded: Mapping[str, Any] | None = None,
) -> Artefact:
    """Make a precision as a study asks, of its source in `folder`, a directory a precision.

    `recorded` is how an earlier run quantised it.
    """
    made_of = compressions.source(precision)
    assert made_of is not None
    source, compute_dtype = folder / made_of, study.training.compute_dtype
    if compressions.change(precision):
        learnt_from = given(study, task, folder / "fp16")
        return change(source, precision, compute_dtype, target, learnt_from)
    return quantize(
        source,
        precision,
        compute_dtype,
        target,
        study.workload.engine,
        configuration=recorded and _configuration_of(recorded),
        calibration=calibration(study, task, folder / "fp16"),
    )


def left_to_make(precisions: Iterable[str], there: Collection[str]) -> list[str]:
    """What is to be made for `precisions` beyond what is `there`, each after its source."""
    order: dict[str, None] = {}
    for precision in precisions:
        if precision not in there:
            source = compressions.source(precision)
            order |= dict.fromkeys(left_to_make([source] if source else [], there))
            order[precision] = None
    return list(order)


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
    layers = read_config(base_directory).get("num_hidden_layers")
    for artefact in artefacts:
        written = weights.require_sound(artefact.directory)
        stay = layers and compressions.dimensions(artefact.precision, layers, 1)[0]
        # vLLM's 4-bit layers have a weight_packed; an output head tied to the embedding is left out
        # by who saves.
        absent = {
            name
            for name in base
            if not {name, f"{name}_packed"} & set(written)
            and not name.startswith("lm_head.")
            and not (stay and _layer(name) >= stay)
        }
        if absent:
            raise UserError(f"{artefact.directory}: {models.difference(absent, set(), set())}.")


def _layer(name: str) -> int:
    """The place of the decoder layer that a tensor belongs to; -1 for one of no layer."""
    found = re.search(r"\.layers\.(\d+)\.", name)
    return int(found[1]) if found else -1


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


def _write(model: PreTrainedModel, tokenizer_from: Path, directory: Path) -> None:
    model.save_pretrained(directory)
    models.load_tokenizer(tokenizer_from).save_pretrained(directory)


def tensor_bytes(directory: Path) -> dict[str, int]:
    """Bytes of every tensor in a directory of safetensors, by name."""
    return {name: tensor.nbytes for name, tensor in weights.read_tensors(directory).items()}


def _fp16_bytes(model: PreTrainedModel) -> dict[str, int]:
    """Bytes that each linear layer but the output head takes in FP16."""
    modules = dict(model.named_modules())
    return {
        name: 2 * modules[name].in_features * modules[name].out_features
        for name in _linear_layers(model)
    }


def layers_share(directory: Path, fp16_bytes: Mapping[str, int]) -> float:
    """Bytes of the quantised layers, scales included, over the same layers' bytes in FP16.

    Raises:
        RuntimeError: A layer has no scales beside its weight: it was left unquantised.
    """
    quantized = tensor_bytes(directory)
    # Beside its weight: `q_proj.weight.absmax` (NF4), `q_proj.SCB`, `q_proj.weight_scale`.
    parts: dict[str, list[str]] = {layer: [] for layer in fp16_bytes}
    for name in quantized:
        for layer in (name.rsplit(".", 1)[0], name.split(".weight.")[0]):
            if layer in parts:
                parts[layer].append(name)
                break
    left = [layer for layer in parts if {*parts[layer]} <= {f"{layer}.weight", f"{layer}.bias"}]
    if left or not parts:
        raise RuntimeError(f"left unquantised: {', '.join(left) or 'every layer'}")
    taken = sum(quantized[name] for names in parts.values() for name in names)
    return taken / sum(fp16_bytes.values())


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
        shutil.rmtree(directories[precision], ignore_errors=True)  # one that was not made
