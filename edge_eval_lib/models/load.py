"""Loading weights, and what the loaded layers really compute.

A directory of weights is refused unless it makes one whole model.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from edge_eval_lib import apart
from edge_eval_lib.errors import UserError, one_line
from edge_eval_lib.machine import heap
from edge_eval_lib.models import weights
from edge_eval_lib.tensors import read_config

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

UNPACKED_SHARE = 0.25  # of the free memory that unpacked weights may take


@contextmanager
def published_directory(target: Path) -> Iterator[Path]:
    """A temporary directory that takes the name `target` only when the body succeeded."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield temporary
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_whole(directory: Path) -> None:
    """UserError unless a directory's weights, configuration and tokenizer make one model.

    Every tensor that the configuration asks for must be there, in its shape, and no other; every
    value must be a number; the tokenizer's tokens must have an embedding. Found out once, outside
    every measured window, and remembered as long as the files stay (weights.remember).
    """
    weights.require_sound(directory)
    if weights.is_known(directory, "whole"):
        return
    if "quantization_config" in read_config(directory):
        raise UserError(f"{directory} is quantised already; give the unquantised weights.")
    weights.require_vocabulary(directory)
    if "torch" in sys.modules:
        require_complete(directory)
    else:  # neither planning nor a process that will load from cold may import it
        apart.run_module(
            "edge_eval_lib.models", str(directory), otherwise=f"{directory} cannot be checked."
        )
    weights.remember(directory, "whole")


def require_complete(directory: Path) -> None:
    """Load the weights without their values, which takes no memory."""
    model = load_weights(directory, dtype="auto", device_map="meta")
    declared = (read_config(directory).get("architectures") or [""])[0]
    built = type(model).__name__
    if declared.endswith("ForCausalLM") and declared.casefold() != built.casefold():
        raise UserError(
            f"{directory}/config.json declares {declared}, but its model_type is that of {built}."
        )


def load_model(
    directory: Path,
    compute_dtype: str,
    quantization: Any = None,
    on_cpu: bool = False,
    to_write: bool = False,
) -> PreTrainedModel:
    """A causal language model on the GPU if there is one, else on the CPU, ready to run.

    Where the GPUs that the runner left visible cannot hold it, the rest waits in host memory.
    `quantization` is None, or a transformers quantisation configuration for weights that are to be
    quantised while they load; a directory that holds quantised weights needs none. Raises UserError
    for weights that are not what the configuration asks for, and for a layer that bitsandbytes left
    unquantised. 4-bit layers compute in the type that was asked for (`keep_compute_dtype`), and on
    a CPU their scales are unpacked (`unpack_scales`) unless the model is `to_write`.
    """
    import torch

    # Naming it at all, even as None, would hide what a quantised directory says of itself.
    asked = {} if quantization is None else {"quantization_config": quantization}
    model = load_weights(
        directory,
        dtype=getattr(torch, compute_dtype),
        device_map="cpu" if on_cpu or default_device() == "cpu" else "auto",
        **asked,
    )
    keep_compute_dtype(model)
    if not to_write:
        unpack_scales(model)
    heap.give_back()  # or peaks of memory would hold what loading happened to leave
    return model


def quieten() -> None:
    """Keep libraries from filling a notebook with what this project checks or does without."""
    for name in (
        "bitsandbytes",  # INT8 warns at every product, and CPUs of kernels that are not installed
        "transformers.modeling_utils",  # its report of missing tensors: `load_weights` raises
        "transformers.distributed.tensor_parallel",  # layers that one device does not divide
    ):
        logging.getLogger(name).setLevel(logging.ERROR)


def load_weights(directory: Path, **options: Any) -> PreTrainedModel:
    """Load weights that are exactly the model's.

    from_pretrained initialises afresh what it does not find, and says so in passing: here whatever
    is missing, beyond the model or of another shape is a UserError that names it.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    transformers.utils.logging.disable_progress_bar()  # a bar a tensor drowns a notebook
    quieten()
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            directory,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with their names
            **options,
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a configuration or a file that no library class foresaw
        raise UserError(
            f"{directory}: transformers does not load it ({one_line(error)})."
        ) from error
    differing = {
        f"{name} ({list(stored)} instead of {list(asked)})"
        for name, stored, asked in found["mismatched_keys"]
    }
    problem = difference(found["missing_keys"], found["unexpected_keys"], differing)
    if problem:
        raise UserError(
            f"{directory}: the weights are not those of the {type(model).__name__} that "
            f"config.json describes: {problem}."
        )
    return model


def difference(missing: set[str], unexpected: set[str], differing: set[str]) -> str:
    """What keeps weights from being those of a model, in words; empty if nothing does."""
    kinds = {"missing": missing, "not the model's": unexpected, "of another shape": differing}
    return "; ".join(
        f"{what}: {min(names)}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for what, names in kinds.items()
        if names
    )


def keep_compute_dtype(model: PreTrainedModel) -> None:
    """Have 4-bit layers compute in their compute dtype, whatever the processor has.

    On a CPU with AVX512-BF16, bitsandbytes packs a 4-bit layer for a bfloat16 kernel when it is
    first used for inference: it then computes in bfloat16 whatever its compute dtype is, has its
    scales rounded to bfloat16, and fails for layers of other than a multiple of 32 outputs and of
    64 inputs. A layer asks its attribute `support_avx512bf16_for_cpu` whether to; it is left on
    only where bfloat16 is what was asked for. UserError for a layer that is not wholly quantised.
    """
    import torch

    for name, layer in model.named_modules():
        if type(layer).__name__ not in ("Linear4bit", "Linear8bitLt"):
            continue
        outputs, inputs = layer.out_features, layer.in_features
        if type(layer).__name__ == "Linear8bitLt":
            quantised = layer.weight.dtype == torch.int8 and layer.weight.SCB is not None
            shape = layer.weight.shape
        else:
            state = getattr(layer.weight, "quant_state", None)
            # Scales that are quantised themselves need what they were quantised with.
            quantised = state is not None and state.nested == (state.absmax.dtype == torch.uint8)
            shape = state.shape if state is not None and quantised else None
            packable = outputs % 32 == 0 and inputs % 64 == 0
            if layer.compute_dtype != torch.bfloat16 or not packable:
                layer.support_avx512bf16_for_cpu = False
        if not quantised or tuple(shape) != (outputs, inputs):
            raise UserError(
                f"{name} ({outputs} x {inputs}) is not a whole layer quantised by bitsandbytes; "
                "compress the model again, or leave this precision out."
            )
    vocabulary = model.config.get_text_config().vocab_size
    if len(model.get_input_embeddings().weight) != vocabulary:  # quantised weights do not say it
        raise UserError(
            f"The embedding has {len(model.get_input_embeddings().weight)} tokens, but config.json "
            f"says {vocabulary}."
        )


def unpack_scales(model: PreTrainedModel) -> None:
    """Undo the double quantisation of 4-bit layers' scales, of a model that runs on a CPU.

    Without a kernel that reads them as they are, bitsandbytes makes scales of them for every
    product anew: a tenth of a step. Made once they are the same numbers, four bytes instead of one
    for 64 weights.
    """
    import torch

    for layer in model.modules():
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        if state is None or not state.nested or layer.weight.device.type != "cpu":
            continue
        from bitsandbytes.functional import dequantize_blockwise  # 45 MB that other models spare

        scales = dequantize_blockwise(state.absmax, state.state2) + state.offset
        state.absmax = scales.to(torch.float32)
        state.nested, state.state2, state.offset = False, None, None


@contextmanager
def weights_unpacked(model: PreTrainedModel) -> Iterator[None]:
    """Have 4-bit layers multiply by weights that are unpacked once, for what is not measured.

    On a CPU bitsandbytes unpacks them for every product anew, then multiplies in the compute dtype:
    up to half of a step's time. The products here are the same to the bit. Nothing changes on a
    GPU, in bfloat16 (which has a kernel of its own), or where the unpacked weights would take more
    than a quarter of the free memory.
    """
    import torch
    from torch.nn import functional

    layers = [
        layer
        for layer in model.modules()
        if type(layer).__name__ == "Linear4bit"
        and layer.weight.device.type == "cpu"
        and layer.weight.quant_state.dtype == layer.compute_dtype  # of what is unpacked
        and not layer.support_avx512bf16_for_cpu
        and "forward" not in vars(layer)  # another library's hook
    ]
    unpacked_bytes = sum(
        layer.out_features * layer.in_features * layer.compute_dtype.itemsize for layer in layers
    )
    if unpacked_bytes > UNPACKED_SHARE * psutil.virtual_memory().available:
        layers = []

    def multiply(layer: Any) -> Callable[[Tensor], Tensor]:
        from bitsandbytes.functional import dequantize_4bit

        dtype, bias = layer.compute_dtype, layer.bias
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        bias = None if bias is None else bias.to(dtype)
        return lambda x: functional.linear(x.to(dtype), weight, bias).to(x.dtype)

    try:
        for layer in layers:
            with torch.no_grad():
                layer.forward = multiply(layer)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def require_logits(model: PreTrainedModel, name: str) -> None:
    """Raise UserError unless the model's logits of four tokens are numbers.

    That is one forward pass: milliseconds beside loading the model.
    """
    import torch

    try:
        with torch.inference_mode():
            logits = model(torch.arange(4, device=model.device)[None]).logits
    except (AssertionError, RuntimeError) as error:
        raise UserError(
            f"{name}: the model does not compute with these weights ({one_line(error)})."
        ) from error
    if not torch.isfinite(logits).all():
        raise UserError(
            f"{name}: the model's logits are NaN or infinite; its weights overflow "
            f"{str(model.dtype).removeprefix('torch.')}."
        )


def default_device() -> str:
    """`cuda:0` where the runner left a GPU visible, else `cpu`."""
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def free_device_bytes() -> int | None:
    """Free memory of the GPU that loading uses first; None where there is no GPU."""
    import torch

    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None


def executed_dtype(model: PreTrainedModel) -> str:
    """The arithmetic that the model's linear layers really execute, found by measuring one.

    Compares the first linear layer's output with the same product in float64 and reads
    the type off the relative error: 4-bit layers may compute in another type than was
    asked for (see `keep_compute_dtype`). INT8 layers quantise
    their input, which is reported as `int8`.
    """
    import torch

    name, layer = next(
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lora_" not in name
    )
    kind, weight = type(layer).__name__, layer.weight
    if kind == "Linear8bitLt":
        return "int8"
    if kind == "Linear4bit":
        import bitsandbytes as bnb

        if getattr(weight, "quant_state", None) is None:
            raise ValueError(f"{name} is not quantised yet")
        if getattr(weight.quant_state, "packing_format_for_cpu", False):
            return "bfloat16"  # the packed layout is read by the bfloat16 kernel alone
        weight = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(16, layer.in_features, generator=generator).to(weight.device)
    probe = probe.to(next(p.dtype for p in model.parameters() if p.is_floating_point()))
    with torch.no_grad():
        measured = layer(probe).double()
        exact = probe.double() @ weight.double().reshape(layer.out_features, -1).T
        if layer.bias is not None:
            exact = exact + layer.bias.double()
    return dtype_of_error(float((measured - exact).norm() / exact.norm()))


def dtype_of_error(relative_error: float) -> str:
    """The floating-point type whose rounding explains a product's relative error.

    Rounding to a type of unit roundoff u leaves a relative error of the order u: 6e-8 for
    float32, 4.9e-4 for float16, 3.9e-3 for bfloat16.
    """
    for dtype, bound in (("float32", 5e-6), ("float16", 9e-4), ("bfloat16", 1e-2)):
        if relative_error < bound:
            return dtype
    return "unknown"
