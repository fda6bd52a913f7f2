"""Compressions, one file each, and what a study's `precision` means.

    precision: int4            merge the adapter, quantise to 4 bits
    precision: prune50-int4    merge, then what prune50.py does to the weights, then quantise

The last word is how weights are stored: a file with `LAYER`, `LARGEST_SHARE` and
`configuration(compressor, compute_dtype)`, as int8.py. Every word before it changes the merged
weights in place: a file with a function `apply(model)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from edge_eval_lib import extensions

__path__ += extensions.folders("compressions")


def names() -> list[str]:
    """Every compression that there is."""
    return extensions.names(__path__)


def storage(precision: str) -> str:
    """How the weights of a precision are stored: `int4` of `prune50-int4`."""
    return precision.rsplit("-", 1)[-1]


def estimated_as(precision: str) -> str:
    """Whose bytes and speed stand for a precision's in estimates: `int4` for `prune50-int4`.

    A file's `ESTIMATED_AS` says it of a storage of its own; without one, estimates are of FP16.
    """
    stored = storage(precision)
    if stored in ("fp32", "fp16", "int8", "int4"):
        return stored
    return getattr(_load(stored), "ESTIMATED_AS", "fp16")


def transformations(precision: str) -> list[Callable[[Any], None]]:
    """What is done to the merged weights, in order, before they are stored."""
    return [_load(name).apply for name in precision.split("-")[:-1]]


def is_merged(precision: str) -> bool:
    """Whether a precision is the merged weights themselves, as they are."""
    return precision == "fp16"


def configuration(precision: str, compressor: str, compute_dtype: str) -> Any:
    """How weights of a precision are quantised; None for FP16.

    Args:
        precision: A study's word, `int4` or `prune50-int4`.
        compressor: What quantises for the engine that will serve them: bitsandbytes, or
            llm-compressor.
        compute_dtype: What quantised layers compute in.

    Returns:
        transformers' quantisation configuration or llm-compressor's scheme.
    """
    return _load(storage(precision)).configuration(compressor, compute_dtype)


def layer_kind(precision: str) -> str:
    """The class of linear layers that transformers makes of a precision."""
    return _load(storage(precision)).LAYER


def largest_share(precision: str) -> float:
    """The most that quantised layers may take of their bytes in FP16."""
    return _load(storage(precision)).LARGEST_SHARE


def problem(precision: str) -> str | None:
    """What is wrong with a study's word for a precision, in a sentence; None if nothing is."""
    known = names()
    *changes, stored = precision.split("-")
    for name in (*changes, stored):
        if name not in known:
            return f"there is no compression {name!r}; there are {', '.join(known)}"
    if not hasattr(_load(stored), "configuration"):
        return f"{precision!r} does not say how weights are stored; write {precision}-fp16"
    wrong = next((name for name in changes if not hasattr(_load(name), "apply")), None)
    return wrong and f"in {precision!r}, {wrong} is how weights are stored, and stands last"


def _load(name: str) -> ModuleType:
    if name not in names():
        raise ValueError(f"there is no compression {name!r}; there are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
