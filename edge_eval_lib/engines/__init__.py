"""Serving engines, one file each, behind the interface of base.py."""

from pathlib import Path

from edge_eval_lib.engines.base import Engine


def open_engine(
    name: str,
    directory: Path,
    compute_dtype: str,
    prefix_caching: bool = False,
    served_name: str | None = None,
) -> Engine:
    """The engine called `name` in a study, with nothing loaded yet.

    `served_name` is what an endpoint calls the weights, by default as `directory`. Raises
    ValueError for an unknown name, and for `prefix_caching` where the engine has none.
    """
    if prefix_caching and name != "vllm":
        raise ValueError(f"prefix_caching is for the engine 'vllm', not {name!r}")
    if name == "transformers":
        from edge_eval_lib.engines.transformers import TransformersEngine

        return TransformersEngine(directory, compute_dtype)
    if name == "vllm":
        from edge_eval_lib.engines.vllm import VllmEngine

        return VllmEngine(directory, compute_dtype, prefix_caching)
    if name == "openai":
        from edge_eval_lib.engines.openai import OpenAiEngine

        return OpenAiEngine(directory, served_name or directory.name)
    raise ValueError(f"there is no engine {name!r}")
