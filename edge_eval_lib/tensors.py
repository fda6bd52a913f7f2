"""What lies in a directory of safetensors, by the files' headers: no value is read, nor torch.

What is wrong is a UserError that names the directory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from edge_eval_lib.errors import UserError

# What a file of weights is called without its ending: a model's, an adapter's.
STEMS = ("model", "adapter_model")
OTHER_FORMATS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf")


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
        """Bytes in the file."""
        return self.end - self.start

    @property
    def elements(self) -> int:
        """How many values it holds."""
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
            index = read_json(index_file).get("weight_map")
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
    from safetensors import SafetensorError, safe_open

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
            entry["dtype"],
            tuple(entry["shape"]),
            file,
            *(8 + length + offset for offset in entry["data_offsets"]),
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def read_config(directory: Path, name: str = "config.json") -> dict[str, Any]:
    """What a directory's configuration file says; UserError if it cannot be read."""
    file = directory / name
    if not file.is_file():
        raise UserError(f"{directory} has no {name}.")
    return read_json(file)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; UserError for whatever else the file holds."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object.")
    return content
