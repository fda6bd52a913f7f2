"""The clocks that a window compares with the monotonic one."""

from __future__ import annotations

import contextlib
import time


def wall_s() -> float:
    """Return the time of day, which may be set meanwhile."""
    return time.time()


def boot_s() -> float | None:
    """Return the seconds since boot with sleep, in which the monotonic clock stops."""
    with contextlib.suppress(AttributeError, OSError):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return None
