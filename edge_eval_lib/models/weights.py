"""What lies in a directory of weights, read without torch: whether it is whole and made of numbers,
and what of it an engine or a method cannot use.

What is wrong is a UserError that names the directory; who asks adds which model it is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from edge_eval_lib.errors import UserError
from edge_eval_lib.paths import outputs_root

# What a file of weights is called without its ending: a model's, an adapter's.
STEMS = ("model", "adapter_model")
OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf")
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


@dataclass(frozen=True)
class Tensor:
    """One tensor of a safetensors file: its type there, its shape, and its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def elements(self) -> int:
        return prod(self.shape)


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of a directory's weights, by name, from the files' headers.

    Raises UserError for weights that are missing, of another format, cut short, or whose index
    names files or tensors that are not there.
    """
    files, index = _weight_files(directory)
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in _read_header(file).items():
            if name in tensors:
                raise UserError(f"{file} holds {name}, as {tensors[name].file.name} does.")
            tensors[name] = tensor
    if not tensors:
        raise UserError(f"{directory} holds weights without a single tensor.")
    for name, file_name in index.items():
        if name not in tensors or tensors[name].file.name != file_name:
            raise UserError(f"{directory / file_name} lacks {name}, which its index says it holds.")
    if index and (beyond := sorted(set(tensors) - set(index))):
        raise UserError(
            f"{tensors[beyond[0]].file} holds {beyond[0]}, which its index does not name; the file "
            "belongs to other weights."
        )
    return tensors


def _weight_files(directory: Path) -> tuple[list[Path], dict[str, str]]:
    """The files that transformers and vLLM read, and what an index says: tensor -> file."""
    if not directory.is_dir():
        raise UserError(f"there is no directory {directory}.")
    for stem in STEMS:
        if (directory / f"{stem}.safetensors").is_file():
            return [directory / f"{stem}.safetensors"], {}
        index_file = directory / f"{stem}.safetensors.index.json"
        if index_file.is_file():
            index = _read_json(index_file).get("weight_map")
            if not isinstance(index, dict) or not index:
                raise UserError(f"{index_file} has no weight_map.")
            files = [directory / str(name) for name in sorted(set(index.values()))]
            absent = [file.name for file in files if not file.is_file()]
            if absent:
                raise UserError(f"{index_file} names {', '.join(absent)}, which is not there.")
            return files, index
    other = sorted(file.name for kind in OTHER_FORMATS for file in directory.glob(kind))
    if other:
        raise UserError(
            f"{directory} holds weights as {other[0]} only; safetensors are needed: save the model "
            "again with save_pretrained."
        )
    shards = sorted(file.name for file in directory.glob("*.safetensors"))
    if shards:
        raise UserError(
            f"{directory} holds {shards[0]}, but neither model.safetensors nor "
            "model.safetensors.index.json, which says what belongs together."
        )
    raise UserError(f"{directory} holds no weights; model.safetensors is needed.")


def _read_header(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="np"):
            pass  # the library compares the file's size with its header, and types with shapes
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{file} is damaged or cut short ({error}).") from error
    return {
        name: Tensor(
            told["dtype"],
            tuple(told["shape"]),
            file,
            *(8 + length + offset for offset in told["data_offsets"]),
        )
        for name, told in header.items()
        if name != "__metadata__"
    }


def read_config(directory: Path, name: str = "config.json") -> dict[str, Any]:
    """What a directory's configuration file says; UserError if it cannot be read."""
    file = directory / name
    if not file.is_file():
        raise UserError(f"{directory} has no {name}.")
    return _read_json(file)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object.")
    return content


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
    told = [str(directory.resolve())]
    told += [f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files]
    identity = hashlib.sha256("\n".join(told).encode()).hexdigest()[:24]
    return outputs_root() / "models" / ".checked" / f"{identity}.{what}"


# --- whether they are what the study and its configuration say -----------------------------------


def linear_layers(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of each layer that is adapted and quantised: matrices that are neither
    embeddings nor the output head."""
    return {
        name.removesuffix(".weight"): (tensor.shape[0], tensor.shape[1])
        for name, tensor in tensors.items()
        if name.endswith(".weight") and len(tensor.shape) == 2 and not EMBEDDINGS.search(name)
    }


def contradiction(
    tensors: Mapping[str, Tensor], parameters: int, nominal_gb: Mapping[str, float]
) -> str | None:
    """What a study says of a model's size that is grossly wrong, beside what its unquantised
    weights hold: parameters twice or half as many, nominal bytes outside half of what the precision
    needs and twice what FP16 does."""
    held = sum(tensor.elements for tensor in tensors.values())
    if not held / 2 <= parameters <= 2 * held:
        return f"parameters is {parameters}, but its weights hold {held}; write {held}"
    for precision, bytes_each in {"fp16": 2.0, "int8": 1.0, "int4": 0.5}.items():
        told = nominal_gb.get(precision)
        least, right = bytes_each * held / 1e9 / 2, bytes_each * held / 1e9
        if told is not None and not least <= told <= 4 * held / 1e9:
            return (
                f"nominal_gb of {precision} is {told:g}, but its weights hold {held} parameters; "
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
    told = _read_json(file)
    added = {token["id"] for token in told.get("added_tokens") or []}
    vocabulary = (told.get("model") or {}).get("vocab") or {}
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    largest = max((i for i in ids if i not in added), default=-1)
    if largest >= size:
        raise UserError(
            f"{file} has token {largest}, but config.json gives the model {size} tokens; the "
            "tokenizer belongs to another model."
        )
