"""Convert a GGUF file to safetensors, in a process of its own.

What a conversion leaves behind in a process (gguf's tables, freed memory that stays resident) would
count in the peaks of whatever is measured there next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

from edge_eval_lib import apart
from edge_eval_lib.models.libraries import leanly
from edge_eval_lib.models.load import load_weights, published_directory, require_whole


def convert_apart(file: Path, target: Path) -> None:
    """`convert` in a process of its own."""
    otherwise = f"The conversion of {file} was stopped."
    apart.run_module("edge_eval_lib.models", str(file), str(target), otherwise=otherwise)


def convert(file: Path, target: Path) -> None:
    """Write the FP16 of a GGUF file's dequantised weights to a directory, with its tokenizer.

    Raises:
        UserError: transformers does not load the file, or what it holds is no whole model.
    """
    with published_directory(target) as directory, leanly(), _read_quickly():
        import torch
        from transformers import AutoTokenizer, GgufConfig

        base = load_weights(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(gguf_file=file.name, dequantize=True),
            dtype=torch.float16,
        )
        base.hf_quantizer = None  # or save_pretrained would try to write GGUF
        base.save_pretrained(directory)
        AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, trust_remote_code=False
        ).save_pretrained(directory)
    require_whole(target)  # remembered: where torch is imported already it takes no process more


@contextmanager
def _read_quickly() -> Iterator[None]:
    """Read a GGUF file's head once, as a plain array, and make the table of tensors' names once.

    transformers does the first three times and the second for every layer it looks at, and each of
    a vocabulary's words is a slice of a memory map: two thirds of the time that a conversion takes.
    """
    import gguf
    import numpy as np

    class Reader(gguf.GGUFReader):
        """Slices of `data` are arrays, and not memory maps, which take ten times as long."""

        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: Any) -> None:
            self._data = np.asarray(mapped)

    faster: dict[str, Any] = {"GGUFReader": Reader, "get_tensor_name_map": gguf.get_tensor_name_map}
    with ExitStack() as patches:
        for name, function in faster.items():
            patches.enter_context(mock.patch.object(gguf, name, cache(function)))
        yield
