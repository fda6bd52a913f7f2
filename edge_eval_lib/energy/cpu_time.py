"""CPU seconds of this process and its descendants between two moments."""

from __future__ import annotations

import time
from dataclasses import dataclass

from edge_eval_lib.energy import process_tree

CLOCK_TICK_S = 0.01  # in which Linux counts the time of other processes


@dataclass(frozen=True)
class CpuTime:
    """CPU seconds: of this process, of children that ended and were waited for, of live ones."""

    own_s: float
    ended_s: float
    live_s: dict[tuple[int, float], float]  # by (process id, start)
    complete: bool = True  # False: children that end leave no trace of their time

    @property
    def total_s(self) -> float:
        """Return the sum of all three."""
        return self.own_s + self.ended_s + sum(self.live_s.values())

    @property
    def pids(self) -> list[int]:
        """Return the ids of the live descendants."""
        return [pid for pid, _start in self.live_s]


def begin() -> CpuTime:
    """Read the CPU time, and inherit orphans until `end`."""
    process_tree.adopt_orphans()
    live = _live()  # before our own time, so that the search is not counted
    return CpuTime(time.process_time(), _ended_s(), live, _complete())


def end() -> CpuTime:
    """Read the CPU time, and stop inheriting orphans."""
    own, ended = time.process_time(), _ended_s()
    live = _live()
    process_tree.release_orphans()
    return CpuTime(own, ended, live, _complete())


def cpu_seconds(begin: CpuTime, end: CpuTime) -> float | None:
    """Return the CPU seconds between two readings.

    None if a process may have ended unseen and taken its time with it.
    """
    if not (begin.complete and end.complete):
        return None
    vanished_s = sum(used for key, used in begin.live_s.items() if key not in end.live_s)
    known_elsewhere_s = (
        end.ended_s
        - begin.ended_s
        + sum(max(0.0, used - begin.live_s.get(key, 0.0)) for key, used in end.live_s.items())
    )
    if vanished_s > known_elsewhere_s + CLOCK_TICK_S * (1 + len(begin.live_s)):
        return None
    return max(0.0, end.total_s - begin.total_s)


def _live() -> dict[tuple[int, float], float]:
    live: dict[tuple[int, float], float] = {}
    for pid in process_tree.descendants():
        process = process_tree.used_s(pid)
        if process is not None:  # else it ended meanwhile: its parent's waited-for time has it
            start, used = process
            live[pid, start] = used
    return live


def _complete() -> bool:
    return not process_tree.children_are_reaped_unseen()


def _ended_s() -> float:
    try:
        import resource
    except ImportError:  # Windows outside WSL
        return 0.0
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
