"""Compressions, one file each, and what a study's `precision` means: a chain, from left to right.

    precision: int4                  merge the adapter, quantise to 4 bits
    precision: depth25-distil-int4   merge, drop a quarter of the layers, distil, quantise
    precision: depth25-int4-distil   the same, but quantised before it is distilled

One word says how weights are stored: a file with `LAYER`, `LARGEST_SHARE` and
`configuration(compressor, compute_dtype)`, as int8.py. Every other word changes the model in place:
a file with `apply(model)`, which may also ask for `percent` (`depth25` is depth.py with 25) and for
`given` (`Given`). Where it can change quantised layers, `AFTER_QUANTISING = True`; where it changes
a model's shape, `dimensions(layers, inner, percent)` says to what.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any

from edge_eval_lib import extensions

__path__ += extensions.folders("compressions")


@dataclass(frozen=True)
class Given:
    """What a compression may learn from, beside the model that it changes.

    Attributes:
        rows: What the adapter was trained on: `input_ids`, and `labels`, which are -100 on prompts.
        collate: Makes a batch of rows.
        teacher: Loads the model as it was before every compression.
        training: The study's settings of training.
        lora: peft's configuration of the study's adapters.
        seed: The study's.
    """

    rows: Sequence[dict[str, list[int]]]
    collate: Callable[[list[dict[str, list[int]]]], Any]
    teacher: Callable[[], Any]
    training: Any
    lora: Any
    seed: int


def names() -> list[str]:
    """Every compression that there is, one with a percentage as `depthNN`."""
    return [f"{name}NN" if _takes_percent(name) else name for name in _files()]


def storages() -> list[str]:
    """The words that say how weights are stored."""
    return [name for name in _files() if hasattr(_import(name), "configuration")]


def storage(precision: str) -> str:
    """How the weights of a precision are stored: `int4` of `depth25-int4-distil`."""
    return _stored(precision) or precision.rsplit("-", 1)[-1]


def source(precision: str) -> str | None:
    """What a precision is made of in one step: `depth25-fp16` for `depth25-int4`.

    None for `fp16`, the merged weights.
    """
    if is_merged(precision):
        return None
    *before, last = precision.split("-")
    if last != storage(precision):  # a change of quantised weights
        return "-".join(before)
    if last == "fp16":
        before = before[:-1]
    return "-".join([*before, "fp16"])


def path(precision: str) -> list[str]:
    """What is made on the way to a precision, the merged weights first and itself last."""
    made_of = source(precision)
    return [*path(made_of), precision] if made_of else [precision]


def change(precision: str) -> Callable[[Any, Given], Any | None] | None:
    """What turns the model of `source(precision)` into this; None where quantising or merging does.

    The function changes the model in place, or returns another.
    """
    *before, last = precision.split("-")
    stored = storage(precision)
    if last != stored:
        return _apply(last)
    return _apply(before[-1]) if last == "fp16" and before else None


def changes_quantised(precision: str) -> bool:
    """Whether a chain goes on after its weights were quantised."""
    return not precision.endswith(storage(precision))


def estimated_as(precision: str) -> str:
    """Whose bytes and speed stand for a precision's in estimates: `int4` for `prune50-int4`.

    A file's `ESTIMATED_AS` says it of a storage of its own; without one, estimates are of FP16.
    """
    stored = storage(precision)
    if stored in ("fp32", "fp16", "int8", "int4"):
        return stored
    return getattr(_load(stored), "ESTIMATED_AS", "fp16")


@cache
def dimensions(precision: str, layers: int, inner: int) -> tuple[int, int]:
    """How many layers, and how wide inside, a model is after a chain; both as before for `int4`."""
    for word in precision.split("-"):
        name, percent = _parsed(word)
        if reshape := getattr(_import(name), "dimensions", None):
            layers, inner = reshape(layers, inner, percent)
    return layers, inner


def changes_shape(precision: str) -> bool:
    """Whether a chain cuts layers or neurons."""
    return dimensions(precision, 1000, 1 << 20) != (1000, 1 << 20)


def distils(precision: str) -> bool:
    """Whether the last step to a precision trains it on the answers of its teacher."""
    return precision.removesuffix("-fp16").endswith("distil")


def is_merged(precision: str) -> bool:
    """Whether a precision is the merged weights themselves, as they are."""
    return precision == "fp16"


def configuration(precision: str, compressor: str, compute_dtype: str) -> Any:
    """How weights of a precision are quantised; None for FP16.

    Args:
        precision: A study's word, `int4` or `depth25-int4`.
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
    words = precision.split("-")
    known = _files()
    for word in words:
        name, percent = _parsed(word)
        if name not in known:
            return f"there is no compression {word!r}; there are {', '.join(names())}"
        if not {"apply", "configuration"} & set(vars(_import(name))):
            return f"{name}.py has neither an apply(model) nor a configuration(...)"
        if _takes_percent(name) and not (percent and 1 <= percent <= 99):
            return f"{word!r} does not say how much; write a percentage from 1 to 99, as {name}25"
    stored = [word for word in words if word in storages()]
    if not stored:
        return f"{precision!r} does not say how weights are stored; write {precision}-fp16"
    if len(stored) > 1:
        return f"{precision!r} says twice how weights are stored: {' and '.join(stored)}"
    after = words[words.index(stored[0]) + 1 :]
    if after and stored[0] == "fp16":
        return f"in {precision!r}, fp16 stands last: nothing was quantised before {after[0]}"
    unable = [w for w in after if not getattr(_load(w), "AFTER_QUANTISING", False)]
    if unable:
        return (
            f"in {precision!r}, {unable[0]} cannot change quantised weights; it comes before "
            f"{stored[0]}"
        )
    return None


@cache
def _stored(precision: str) -> str | None:
    return next((word for word in precision.split("-") if word in storages()), None)


def _files() -> list[str]:
    return extensions.names(__path__)


def _parsed(word: str) -> tuple[str, int | None]:
    """A word's file and percentage: `depth25` is depth.py with 25 where there is no depth25.py."""
    found = re.fullmatch(r"(.*?\D)(\d{1,2})", word)
    if found and word not in _files() and _takes_percent(found[1]):
        return found[1], int(found[2])
    return word, None


def _takes_percent(name: str) -> bool:
    apply = getattr(_import(name), "apply", None) if name in _files() else None
    return apply is not None and "percent" in inspect.signature(apply).parameters


def _apply(word: str) -> Callable[[Any, Given], Any | None]:
    """A word's `apply` with its percentage, called with as much of what is given as it asks for."""
    percent = _parsed(word)[1]
    apply = _load(word).apply
    if percent is not None:
        apply = partial(apply, percent=percent)
    if "given" in inspect.signature(apply).parameters:
        return lambda model, given: apply(model, given=given)
    return lambda model, given: apply(model)


def _import(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def _load(word: str) -> ModuleType:
    name, _ = _parsed(word)
    if name not in _files():
        raise ValueError(f"there is no compression {word!r}; there are {', '.join(names())}")
    return _import(name)
