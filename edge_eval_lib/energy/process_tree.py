"""This process and its descendants: which they are, their CPU time, their wait for a core.

Read from /proc directly: a search by psutil reads every process of the machine, which costs more
than all the rest of a window.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterable
from functools import cache

import psutil

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_lock = threading.Lock()
_adopting = 0


def adopt_orphans() -> None:
    """Have this process inherit the descendants whose parent ends, until `release_orphans` (Linux).

    So daemons stay in sight. An inherited process that ends stays a zombie, its CPU time readable,
    for as long as this process lives: it looks like a child that other code here waits
    for, and which would lose its exit code. Calls nest.
    """
    global _adopting
    with _lock:
        _adopting += 1
        if _adopting == 1:
            _be_subreaper(True)


def release_orphans() -> None:
    """End what `adopt_orphans` began; those that were inherited stay."""
    global _adopting
    with _lock:
        _adopting -= 1
        if _adopting == 0:
            _be_subreaper(False)


def _be_subreaper(wanted: bool) -> None:
    if _LIBC is not None and os.getpid() != 1:  # the first process inherits them anyway
        _LIBC.prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def children_are_reaped_unseen() -> bool:
    """Return whether SIGCHLD is ignored: ended children and their CPU time are then lost."""
    return hasattr(signal, "SIGCHLD") and signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN


def descendants() -> list[int]:
    """Return the ids of all descendants, ended ones that were not waited for included."""
    if _childless():
        return []
    if not _tells_children():
        return [child.pid for child in psutil.Process().children(recursive=True)]
    descendant_ids: list[int] = []
    parents = [os.getpid()]
    while parents:
        for thread in _threads(parents.pop()):
            children = [int(pid) for pid in read(f"{thread}/children").split()]
            descendant_ids += children
            parents += children
    return descendant_ids


def used_s(pid: int) -> tuple[float, float] | None:
    """Return a process's start (in a unit of the system's own) and its CPU seconds.

    Those of the children that it has waited for are included. None if it is gone.
    """
    if sys.platform != "linux":
        try:
            process = psutil.Process(pid)
            used = process.cpu_times()
            seconds = used.user + used.system + used.children_user + used.children_system
            return process.create_time(), seconds
        except psutil.Error:
            return None
    # proc(5): after the name, which may hold anything, times are fields 14 to 17, the start is 22
    fields = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    if not fields:
        return None
    return float(fields[19]), sum(map(int, fields[11:15])) / _ticks_per_s()


def waits_s(pids: Iterable[int]) -> dict[str, float]:
    """Return the seconds that each thread of these processes has waited for a core.

    Of threads and not of processes: /proc/PID/schedstat is the first thread's alone. Empty where
    the kernel does not count them.
    """
    waited = {}
    for pid in pids:
        for thread in _threads(pid):
            fields = read(f"{thread}/schedstat").split()
            if len(fields) == 3:  # ns on a core, ns waiting for one, times scheduled
                waited[thread] = int(fields[1]) / 1e9
    return waited


def _childless() -> bool:
    """Return whether this process has no child, by one system call.

    False also where the system does not say.
    """
    if not hasattr(os, "waitid"):
        return False
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def _threads(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return [f"/proc/{pid}/task/{thread}" for thread in os.listdir(f"/proc/{pid}/task")]
    return []


def read(path: str) -> bytes:
    """Return a file of /proc; empty if its process or thread is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return b""
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


@cache
def _tells_children() -> bool:
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")


@cache
def _ticks_per_s() -> int:
    return os.sysconf("SC_CLK_TCK")
