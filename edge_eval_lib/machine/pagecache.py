"""The page cache: drop files from it, so that reading them is a cold read."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

EMPTY = 0.01  # share of the pages that may stay


@dataclass(frozen=True)
class Eviction:
    """Whether files left the page cache; residency is the share of their pages in it, 0..1."""

    evicted: bool
    residency_before: float | None
    residency_after: float | None
    reason: str


def evict(paths: Iterable[str | Path]) -> Eviction:
    """Drop files from the page cache, without privilege; `evicted` is by the residency afterwards.

    ValueError for no paths, FileNotFoundError for a path that is no file.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise ValueError("paths is empty: name the files to evict")
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not a file that could be evicted")
    before = _residency(files)
    if not hasattr(os, "posix_fadvise"):
        return Eviction(False, before, before, f"{platform.system()} has no posix_fadvise")
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages not yet written would stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    after = _residency(files)
    if after is None:
        reason = "this system does not show which pages are cached"
    else:
        reason = f"{after:.0%} of the pages stayed: another process holds them"
    evicted = after is not None and after <= EMPTY
    return Eviction(evicted, before, after, "" if evicted else reason)


def _residency(files: list[Path]) -> float | None:
    """Return the share of the files' pages in the page cache, by mincore(2)."""
    try:
        mincore = ctypes.CDLL(None, use_errno=True).mincore
    except (AttributeError, OSError):
        return None
    pages = resident = 0
    for file in files:
        size = file.stat().st_size
        if size == 0:
            continue
        with file.open("rb") as handle:
            mapping = mmap.mmap(handle.fileno(), size, access=mmap.ACCESS_READ)
        content = np.frombuffer(mapping, dtype=np.uint8)
        count = -(-size // mmap.PAGESIZE)
        flags = (ctypes.c_ubyte * count)()
        failed = mincore(
            ctypes.c_void_p(content.ctypes.data), ctypes.c_size_t(size), ctypes.byref(flags)
        )
        del content
        mapping.close()
        if failed:
            return None
        pages += count
        resident += int((np.frombuffer(bytes(flags), dtype=np.uint8) & 1).sum())
    return resident / pages if pages else 0.0
