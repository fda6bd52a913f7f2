"""What lies in a directory of weights, read without torch.

Whether it is whole and made of numbers, and what of it an engine or a method cannot use.

What is wrong is a UserError that names the directory; who asks adds which model it is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from math import ceil
from pathlib import Path

from edge_eval_lib.errors import UserError
from edge_eval_lib.paths import outputs_root
from edge_eval_lib.tensors import Tensor, read_config, read_json, read_tensors

# Of each type that can hold NaN or infinity: an unsigned integer of its width, and the bits of its
# exponent, all of which are set in NaN and infinity alone (F8_E4M3: with its mantissa, in NaN).
EXPONENT = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),
}
CHUNK_BYTES = 1 << 26
EMBEDDINGS = re.compile(r"embed|wte|wpe|lm_head|output_layer|position")
INT4_LARGEST_SHARE = 0.45  # of the same layers in FP16: 4 bits and their scales make 0.26-0.29
GROUP_SIZE = 32  # the least number of weights that share a scale in vLLM's W4A16


# --- whether the values are numbers -----------------------------------------------------------


def require_numbers(tensors: Mapping[str, Tensor]) -> None:
    """UserError naming the first tensor that holds NaN or an infinite value. Reads every byte."""
    for name, tensor in tensors.items():
        bad = _not_numbers(tensor)
        if bad:
            raise UserError(
                f"{tensor.file}: {bad} of the {tensor.elements} values of {name} are NaN or "
                "infinite."
            )


def _not_numbers(tensor: Tensor) -> int:
    if tensor.dtype not in EXPONENT or not tensor.nbytes:
        return 0
    import numpy as np  # late: what starts a run would pay for it, and reads no weights

    kind, exponent = EXPONENT[tensor.dtype]
    values = np.memmap(
        tensor.file, np.uint8, "r", offset=tensor.start, shape=(tensor.nbytes,)
    ).view(kind)
    step = CHUNK_BYTES // values.itemsize
    mask = values.dtype.type(exponent)
    return sum(
        int(np.count_nonzero((values[start : start + step] & mask) == mask))
        for start in range(0, len(values), step)
    )


def require_sound(directory: Path) -> dict[str, Tensor]:
    """The tensors in a directory, once it is known that all of them are there and are numbers.

    The values are read once: that they are numbers is remembered beside outputs/models for as long
    as size and time of every file stay. UserError otherwise.
    """
    tensors = read_tensors(directory)
    if not is_known(directory, "numbers"):
        require_numbers(tensors)
        remember(directory, "numbers")
    return tensors


def is_sound(directory: Path) -> bool:
    """Whether weights lie in a directory, whole by their headers, and all of them numbers."""
    try:
        require_sound(directory)
    except UserError:
        return False
    return True


def is_readable(directory: Path) -> bool:
    """Whether weights lie in a directory, whole by their headers."""
    try:
        read_tensors(directory)
    except UserError:
        return False
    return True


def is_known(directory: Path, what: str) -> bool:
    """Whether `what` was remembered of what the directory still holds."""
    return _mark(directory, what).is_file()


def remember(directory: Path, what: str) -> None:
    """Remember that `what` holds of a directory, as long as its files stay as they are."""
    mark = _mark(directory, what)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(f"{directory}\n", encoding="utf-8")


def _mark(directory: Path, what: str) -> Path:
    files = sorted(f for kind in ("*.safetensors", "*.json") for f in directory.glob(kind))
    facts = [str(directory.resolve())]
    facts += [f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files]
    identity = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]
    return outputs_root() / "models" / ".checked" / f"{identity}.{what}"


# --- whether they are what the study and its configuration say -----------------------------------


def linear_layers(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Return outputs and inputs of each layer that is adapted and quantised.

    These are the matrices that are neither embeddings nor the output head.
    """
    return {
        name.removesuffix(".weight"): (tensor.shape[0], tensor.shape[1])
        for name, tensor in tensors.items()
        if name.endswith(".weight") and len(tensor.shape) == 2 and not EMBEDDINGS.search(name)
    }


def contradiction(
    tensors: Mapping[str, Tensor], parameters: int, nominal_gb: Mapping[str, float]
) -> str | None:
    """Return what a study says of a model's size that is grossly wrong; None if nothing is.

    Its unquantised weights are the measure: parameters twice or half as many, nominal bytes outside
    half of what the precision needs and twice what FP16 does.
    """
    held = sum(tensor.elements for tensor in tensors.values())
    if not held / 2 <= parameters <= 2 * held:
        return f"parameters is {parameters}, but its weights hold {held}; write {held}"
    for precision, bytes_each in {"fp16": 2.0, "int8": 1.0, "int4": 0.5}.items():
        stated = nominal_gb.get(precision)
        least, right = bytes_each * held / 1e9 / 2, bytes_each * held / 1e9
        if stated is not None and not least <= stated <= 4 * held / 1e9:
            return (
                f"nominal_gb of {precision} is {stated:g}, but its weights hold {held} parameters; "
                f"write {right:.3g}"
            )
    return None


def lacking_modules(layers: Iterable[str], wanted: Iterable[str]) -> str | None:
    """Which of the wanted target modules no layer is called, beside what there is; None if none.

    A layer is meant by its whole name or by the end of it, as peft understands it.
    """
    layers = list(layers)
    lacking = [
        module
        for module in wanted
        if not EMBEDDINGS.search(module)  # peft adapts these too, and `layers` leaves them out
        and not any(name == module or name.endswith(f".{module}") for name in layers)
    ]
    if not lacking:
        return None
    there = sorted({name.rsplit(".", 1)[-1] for name in layers})
    return (
        f"training.target_modules names {', '.join(lacking)}, which the model lacks; there is: "
        f"{', '.join(there)}, or all-linear for all of them"
    )


def nf4_share(layers: Mapping[str, tuple[int, int]]) -> float:
    """Bytes that the layers take as NF4 with double quantisation, over their bytes in FP16.

    As bitsandbytes stores a layer: two weights a byte, a byte of scale for each 64 weights, for
    each 256 of these four bytes, the two code tables (16 and 256 float32) and some 200 bytes that
    describe it.
    """
    taken = 0
    for outputs, inputs in layers.values():
        blocks = ceil(outputs * inputs / 64)
        taken += ceil(outputs * inputs / 2) + blocks + 4 * ceil(blocks / 256) + 4 * (16 + 256) + 200
    return taken / sum(2 * outputs * inputs for outputs, inputs in layers.values())


def ungrouped(layers: Mapping[str, tuple[int, int]]) -> str | None:
    """The first layer whose inputs vLLM's INT4 cannot group; None if all can be."""
    return next((name for name, (_, inputs) in layers.items() if inputs % GROUP_SIZE), None)


def require_vocabulary(directory: Path) -> None:
    """UserError if the tokenizer in a directory has tokens beyond its model's embedding.

    Added tokens are left out: some models name one that no text holds (an image's place).
    """
    file, config = directory / "tokenizer.json", read_config(directory)
    size = (config.get("text_config") or config).get("vocab_size")
    if not file.is_file() or not isinstance(size, int):
        return
    tokenizer = read_json(file)
    added = {token["id"] for token in tokenizer.get("added_tokens") or []}
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    largest = max((i for i in ids if i not in added), default=-1)
    if largest >= size:
        raise UserError(
            f"{file} has token {largest}, but config.json gives the model {size} tokens; the "
            "tokenizer belongs to another model."
        )
