"""Serving engines, one file each, behind the interface of base.py.

A study's `workload.engine` is the name of a file here, or in a folder `engines` of a directory that
EDGE_EVAL_EXTENSIONS names. Its `ENGINE` is a subclass of `base.Engine`.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from edge_eval_lib import extensions
from edge_eval_lib.engines.base import Engine
from edge_eval_lib.errors import nearest

__path__ += extensions.folders("engines")


def names() -> list[str]:
    """Return every engine that there is; none is imported."""
    return extensions.names(__path__, but=("base",))


def kind(name: str) -> type[Engine]:
    """Return the class of an engine, which says what it can; its libraries are not imported.

    Raises:
        ValueError: There is no engine of that name.
    """
    if name not in names():
        raise ValueError(f"there is no engine {name[:60]!r}; {nearest(name, names())}")
    return importlib.import_module(f"{__name__}.{name}").ENGINE


def able(fact: str, value: object = True) -> str:
    """Return the engines of which a class attribute has that value, as `a, b or c`."""
    able_names = [name for name in names() if getattr(kind(name), fact) == value]
    *rest, last = able_names or ["none"]
    return f"{', '.join(rest)} or {last}" if rest else last


def open_engine(
    name: str,
    directory: Path,
    compute_dtype: str,
    prefix_caching: bool = False,
    served_name: str | None = None,
) -> Engine:
    """Return the engine called `name` in a study, with nothing loaded yet.

    Args:
        name: The engine.
        directory: The weights to serve.
        compute_dtype: What to compute in.
        prefix_caching: Whether what prompts have in common may be computed once.
        served_name: What an endpoint calls the weights; by default as `directory`.

    Raises:
        ValueError: The name is unknown, or the engine has no prefix caching.
    """
    return kind(name)(directory, compute_dtype, prefix_caching, served_name)
