"""`cpu-model`: an estimate for machines without any meter: CPU time x watts of a busy core.

It says nothing of idle power, memory or the rest of the machine, so no idle can be subtracted.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import psutil

from edge_eval_lib.energy.meter import Reading

CLOCK_TICK_S = 0.01  # in which Linux counts the time of other processes


@dataclass(frozen=True)
class CpuTime:
    """CPU seconds: of this process, of children that ended and were waited for, of live ones."""

    own_s: float
    ended_s: float
    live_s: dict[tuple[int, float], float]  # by (process id, start time)

    @property
    def total_s(self) -> float:
        return self.own_s + self.ended_s + sum(self.live_s.values())


class CpuModel:
    """Joules by the CPU time of this process and its descendants.

    `low_w`, `typical_w` and `high_w` are watts of one busy logical CPU (params/hardware.yaml).
    """

    name = "cpu-model"
    resolution_s = 1e-4  # what a window itself takes of this process's CPU time
    poll_interval_s = None

    def __init__(self, low_w: float, typical_w: float, high_w: float, device: str) -> None:
        self._watts = (low_w, typical_w, high_w)
        self.devices = [device]
        self._process = psutil.Process()

    def begin(self) -> CpuTime:
        live = self._live()  # before our own time, so that the search is not counted
        return CpuTime(time.process_time(), _ended_s(), live)

    def end(self) -> CpuTime:
        own, ended = time.process_time(), _ended_s()
        return CpuTime(own, ended, self._live())

    def reading(self, begin: CpuTime, end: CpuTime) -> Reading:
        seconds = cpu_seconds(begin, end)
        if seconds is None:
            return Reading(None, "a child process ended without being waited for")
        low, typical, high = (watts * seconds for watts in self._watts)
        return Reading(typical, lo_j=low, hi_j=high)

    def poll(self) -> None:
        raise NotImplementedError("CPU time needs no visits")

    def _live(self) -> dict[tuple[int, float], float]:
        live: dict[tuple[int, float], float] = {}
        if _childless():
            return live
        for child in self._process.children(recursive=True):
            try:
                used = child.cpu_times()
                live[child.pid, child.create_time()] = (
                    used.user + used.system + used.children_user + used.children_system
                )
            except psutil.Error:  # it ended meanwhile; its parent's waited-for time has it
                continue
        return live


def cpu_seconds(begin: CpuTime, end: CpuTime) -> float | None:
    """CPU seconds between two marks; None if a process vanished and took its time with it."""
    vanished_s = sum(used for key, used in begin.live_s.items() if key not in end.live_s)
    known_elsewhere_s = (
        end.ended_s
        - begin.ended_s
        + sum(max(0.0, used - begin.live_s.get(key, 0.0)) for key, used in end.live_s.items())
    )
    if vanished_s > known_elsewhere_s + CLOCK_TICK_S * (1 + len(begin.live_s)):
        return None
    return max(0.0, end.total_s - begin.total_s)


def _childless() -> bool:
    """Whether this process has no child, at the price of one system call; a search reads all of
    /proc. False also where the system cannot tell."""
    if not hasattr(os, "waitid"):
        return False
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def _ended_s() -> float:
    try:
        import resource
    except ImportError:  # Windows outside WSL
        return 0.0
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
