"""Serving engines, one file each, behind the interface of base.py."""

from pathlib import Path

from edge_eval_lib.engines.base import Engine


def open_engine(name: str, directory: Path, compute_dtype: str) -> Engine:
    """The engine called `name` in a study, with nothing loaded yet."""
    if name == "transformers":
        from edge_eval_lib.engines.transformers import TransformersEngine

        return TransformersEngine(directory, compute_dtype)
    raise ValueError(f"there is no engine {name!r}")
