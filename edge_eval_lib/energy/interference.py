"""What other work takes of the cores that this process may use, by /proc/stat.

Cores that this process may not use do not count, nor does time in which a core waits for a disk or
serves interrupts, nor what a container's CPU quota leaves unused.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from edge_eval_lib.energy import process_tree
from edge_eval_lib.energy.cpu_time import CLOCK_TICK_S, CpuTime, cpu_seconds

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class CoreUse:
    """CPU seconds of a window on the cores that the process may use.

    `busy_s` is everybody's work on them and `own_s` that of our process tree; `idle_s` holds
    waiting for disks, and interrupts; `stolen_s` is what a hypervisor gave to others; `waited_s`
    how long our threads were ready and had no core; `held_s` how long a CPU quota held them back.
    `entitled` is the number of cores that the quota is worth, `error_s` how far busy and idle may
    be off by the ticks that they are counted in.
    """

    seconds: float
    cores: int
    entitled: float
    busy_s: float
    idle_s: float
    stolen_s: float
    own_s: float
    waited_s: float = 0.0
    held_s: float = 0.0
    error_s: float = 0.0

    @property
    def others_s(self) -> float:
        """Return the work of others, by the smaller of two counts; at least what was stolen.

        Ticks may miss short work, and time that is not idle holds the switching itself.
        """
        by_ticks = self.busy_s + self.stolen_s - self.own_s
        by_rest = self.cores * self.seconds - self.idle_s - self.own_s
        return max(self.stolen_s, min(by_ticks, by_rest), 0.0)

    @property
    def taken(self) -> float:
        """Return the share of our cores that others took; cores beyond a quota are not ours."""
        beyond_s = (self.cores - self.entitled) * self.seconds
        return max(0.0, self.others_s - beyond_s) / (self.entitled * self.seconds)

    @property
    def waited(self) -> float:
        """Return the share of the time that our threads wanted in which others made them wait.

        Threads also wait for one another: no more counts than others worked.
        """
        return min(self.waited_s, self.others_s) / max(self.seconds, self.own_s + self.waited_s)

    @property
    def held(self) -> float:
        """Return the share of the time that our threads wanted in which a quota held them."""
        return self.held_s / max(self.seconds, self.own_s + self.held_s)

    @property
    def error(self) -> float:
        """Return how far `taken` may be off."""
        return self.error_s / (self.entitled * self.seconds)


@dataclass(frozen=True)
class CoreLook:
    """What the system counted up to one moment; empty for what it does not count."""

    at_s: float
    own: CpuTime
    ticks: dict[int, list[int]]  # by core: user, nice, system, idle, iowait, irq, softirq, steal
    waits_s: dict[str, float]
    held_s: list[float]


class InterferenceWatch:
    """Looks at the cores at both ends of a window."""

    def __init__(self) -> None:
        self._stat: int | None = None
        with contextlib.suppress(OSError):
            self._stat = os.open("/proc/stat", os.O_RDONLY | os.O_CLOEXEC)
        self._quotas = quotas() if self._stat is not None else []

    def close(self) -> None:
        """Close /proc/stat; later looks are empty."""
        if self._stat is not None:
            os.close(self._stat)
            self._stat = None

    def look(self, own: CpuTime) -> CoreLook:
        """Return the state of the cores; `own` is the CPU time of our process tree, just read."""
        if self._stat is None:
            return CoreLook(time.monotonic(), own, {}, {}, [])
        at_s, ticks = time.monotonic(), core_ticks(os.pread(self._stat, 1 << 20, 0))
        cores = os.sched_getaffinity(0)
        return CoreLook(
            at_s,
            own,
            {core: counted for core, counted in ticks.items() if core in cores},
            process_tree.waits_s([os.getpid(), *own.pids]),
            [held_back_s(quota.directory) for quota in self._quotas],
        )

    def between(self, begin: CoreLook, end: CoreLook) -> CoreUse | str:
        """Return what happened between two looks, or why that is not known."""
        own_s = cpu_seconds(begin.own, end.own)
        cores = begin.ticks.keys() & end.ticks.keys()
        if not cores:
            return "this system does not show what its cores do"
        if own_s is None:
            return "our own CPU time is not known"
        seconds = end.at_s - begin.at_s
        tick_s = 1 / os.sysconf("SC_CLK_TCK")
        user, nice, system, idle, disk, irq, softirq, stolen = (
            sum(max(0, end.ticks[core][field] - begin.ticks[core][field]) for core in cores)
            * tick_s
            for field in range(8)
        )
        # Each core's count may be off by a tick at either end, and so may each child's.
        children = len(begin.own.live_s.keys() | end.own.live_s.keys())
        error_s = 2 * tick_s * len(cores) + CLOCK_TICK_S * children
        busy_s, idle_s = user + nice + system, idle + disk + irq + softirq
        counted_s = busy_s + idle_s + stolen
        if counted_s < 0.5 * len(cores) * seconds - 4 * error_s:
            return "this system does not count the time of its cores"
        return CoreUse(
            seconds,
            len(cores),
            min([len(cores), *(quota.cores for quota in self._quotas)]),
            busy_s,
            idle_s,
            stolen,
            own_s,
            sum(
                max(0.0, waited - begin.waits_s.get(thread, 0.0))
                for thread, waited in end.waits_s.items()
            ),
            max((b - a for a, b in zip(begin.held_s, end.held_s, strict=False)), default=0.0),
            error_s,
        )


def core_ticks(stat: bytes) -> dict[int, list[int]]:
    """Return the first eight counters of each core, from /proc/stat's text (proc(5))."""
    cores = {}
    for line in stat.split(b"\n"):
        if not line.startswith(b"cpu"):
            break  # the cores come first
        name, *counters = line.split()
        if len(name) > 3 and len(counters) >= 8:
            cores[int(name[3:])] = [int(counter) for counter in counters[:8]]
    return cores


@dataclass(frozen=True)
class Quota:
    """A control group that limits our CPU time to that of `cores` cores."""

    directory: Path
    cores: float


def quotas(root: Path = CGROUPS, membership: str | None = None) -> list[Quota]:
    """Return the CPU quotas that this process is under, by cgroup v2 or v1 (cgroups(7)).

    `membership` is the text of /proc/self/cgroup.
    """
    if membership is None:
        try:
            membership = Path("/proc/self/cgroup").read_text(encoding="utf-8")
        except OSError:
            return []
    limits: list[Quota] = []
    for line in membership.splitlines():
        _number, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in (root / controllers, root / "cpu") if controllers else (root,):
            if mount.is_dir():
                groups = [mount / path.lstrip("/"), *(mount / path.lstrip("/")).parents]
                groups = [group for group in groups if group.is_relative_to(mount)]
                limits += [Quota(group, cores) for group in groups if (cores := _limit(group))]
                break
    return limits


def _limit(group: Path) -> float | None:
    """Return how many cores a control group's quota is worth; None without one."""
    with contextlib.suppress(OSError, ValueError):
        limit, period = (group / "cpu.max").read_text(encoding="ascii").split()
        return None if limit == "max" else int(limit) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota_us = int((group / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period_us = int((group / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return None if quota_us < 0 else quota_us / period_us
    return None


def held_back_s(group: Path) -> float:
    """Return the seconds, over cores, for which a group's quota has held its threads back."""
    with contextlib.suppress(OSError, ValueError):
        text = (group / "cpu.stat").read_text(encoding="ascii")
        counters = dict(line.split() for line in text.splitlines())
        if "throttled_usec" in counters:
            return int(counters["throttled_usec"]) / 1e6
        return int(counters.get("throttled_time", 0)) / 1e9
    return 0.0
