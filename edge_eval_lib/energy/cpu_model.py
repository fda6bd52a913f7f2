"""`cpu-model`: an estimate for machines without any meter: CPU time x watts of a busy thread.

The watts are a whole server's at full load, shared out over its hardware threads: idle power,
memory, fans and power supply are in them. What of it the machine would have drawn without the work
is not known, so no idle can be subtracted.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from edge_eval_lib.energy import process_tree
from edge_eval_lib.energy.meter import Reading

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
        return self.own_s + self.ended_s + sum(self.live_s.values())

    @property
    def pids(self) -> list[int]:
        """Of the live descendants."""
        return [pid for pid, _start in self.live_s]


class CpuModel:
    """Joules by the CPU time of this process and its descendants, orphaned ones included.

    `low_w`, `typical_w` and `high_w` are watts of one busy logical CPU (params/hardware.yaml).
    """

    name = "cpu-model"
    resolution_s = 1e-4  # what a window itself takes of this process's CPU time
    poll_interval_s = None

    def __init__(self, low_w: float, typical_w: float, high_w: float, device: str) -> None:
        self._watts = (low_w, typical_w, high_w)
        self.devices = [device]

    def begin(self) -> CpuTime:
        process_tree.adopt_orphans()
        live = self._live()  # before our own time, so that the search is not counted
        return CpuTime(time.process_time(), _ended_s(), live, _complete())

    def end(self) -> CpuTime:
        own, ended = time.process_time(), _ended_s()
        live = self._live()
        process_tree.release_orphans()
        return CpuTime(own, ended, live, _complete())

    def reading(self, begin: CpuTime, end: CpuTime) -> Reading:
        seconds = cpu_seconds(begin, end)
        if seconds is None:
            if not (begin.complete and end.complete):
                return Reading(None, "SIGCHLD is ignored: child processes leave no trace")
            return Reading(None, "a child process ended without being waited for")
        low, typical, high = (watts * seconds for watts in self._watts)
        return Reading(typical, lo_j=low, hi_j=high)

    def poll(self) -> None:
        raise NotImplementedError("CPU time needs no visits")

    def _live(self) -> dict[tuple[int, float], float]:
        live: dict[tuple[int, float], float] = {}
        for pid in process_tree.descendants():
            found = process_tree.used_s(pid)
            if found is not None:  # else it ended meanwhile; its parent's waited-for time has it
                start, used = found
                live[pid, start] = used
        return live


def cpu_seconds(begin: CpuTime, end: CpuTime) -> float | None:
    """CPU seconds between two marks; None if a process may have taken its time with it unseen."""
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


def _complete() -> bool:
    return not process_tree.children_are_reaped_unseen()


def _ended_s() -> float:
    try:
        import resource
    except ImportError:  # Windows outside WSL
        return 0.0
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
