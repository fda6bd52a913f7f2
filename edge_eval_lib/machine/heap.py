"""The process's heap: what was freed, and the allocator keeps all the same."""

from __future__ import annotations

import contextlib
import ctypes


def give_back() -> None:
    """Give the system back what was freed, of every thread's arena (glibc's malloc_trim).

    Loading frees tensors as large as a model's file. How much of that stays resident is chance: it
    depends on which thread freed what last. Without glibc nothing is done.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
