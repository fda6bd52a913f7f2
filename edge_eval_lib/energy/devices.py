"""Where the work runs, and what has to be waited for there."""

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from collections.abc import Callable
from typing import Literal

from edge_eval_lib.energy import memory, meter

ELSEWHERE = "the work runs elsewhere, where this process measures nothing"
Device = Literal["auto", "gpu", "cpu", "elsewhere"]


def where(device: Device) -> tuple[bool, dict[str, str]]:
    """Return whether the work runs on a GPU, and why which sources are not used."""
    kinds = meter.in_order()
    on_gpus = [kind for kind in kinds if kind.device == "gpu"]
    if device == "elsewhere":
        return False, {kind.name: ELSEWHERE for kind in kinds}
    if device == "cpu":
        return False, {kind.name: "the work runs on the CPU" for kind in on_gpus}
    if device == "gpu":
        return True, {}
    absent = {kind.name: why for kind in on_gpus if (why := kind.absence())}
    if len(absent) == len(on_gpus):
        return False, absent
    if _torch_is_cpu_only():
        why = "torch is a build without CUDA: the work runs on the CPU"
        return False, {kind.name: why for kind in on_gpus}
    return True, absent


def _torch_is_cpu_only() -> bool:
    torch = sys.modules.get("torch")
    if torch is not None and getattr(torch, "cuda", None) is not None:
        return not torch.cuda.is_available()
    try:
        return importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False


def synchronise() -> str | None:
    """Wait until torch's devices have finished; return what went wrong, if anything.

    Devices on which torch holds no memory are left alone: touching one would take some.
    """
    torch = memory.torch_in_use()
    if torch is None:
        return None
    try:
        for index in range(torch.cuda.device_count()):
            if torch.cuda.memory_reserved(index) > 0:
                torch.cuda.synchronize(index)
    except RuntimeError as error:  # how CUDA reports an error of earlier work
        return f"the device reports an error: {str(error).splitlines()[0]}"
    return None


def open_watches(clock: Callable[[], float]) -> list[meter.Watch]:
    """Return what observes the GPUs of this machine."""
    opened = []
    for kind in meter.WATCHES.values():
        with contextlib.suppress(meter.Unavailable):  # such GPUs are not there: nothing to observe
            opened.append(kind(clock))
    return opened
