"""The settings of a GPU that trade speed for power: who may turn them, how far, and back again.

Nothing here turns one but `Knob.turn` and `Knob.put_back`, which machine/watchdog.py alone calls.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pynvml

from edge_eval_lib.machine import nvml
from edge_eval_lib.machine.nvml import Device

PROCESS_STATUS = Path("/proc/self/status")  # what this process may do, on Linux
SYS_ADMIN_BIT = 21  # of capabilities: what NVIDIA's driver takes for root
Found = list[int]  # a setting as NVML takes it; empty for the driver's own


@dataclass(frozen=True)
class Knob:
    """A setting of a GPU, in the unit that its name ends with; `turn`, `put_back` change it.

    `commands` are an administrator's, with {gpu} and {value}: to set it, and to take that back.
    `now` is None where NVML cannot tell the setting.
    """

    name: str
    what: str
    commands: tuple[str, str]
    settings: Callable[[Device], list[float]]  # every one that there is, or both ends
    in_steps: bool  # whether `settings` are all that there are
    now: Callable[[Device], float | None]
    found: Callable[[Device], Found]
    turn: Callable[[Device, float], None]
    put_back: Callable[[Device, Found], None]

    @property
    def unit(self) -> str:
        """Return the unit for people."""
        return {"mhz": "MHz", "w": "W"}[self.name.rsplit("_", 1)[1]]

    @property
    def what_capital(self) -> str:
        """Return what it is, as a sentence begins."""
        return self.what[0].upper() + self.what[1:]

    def command(self, device: Device, value: float | str) -> str:
        """Return what an administrator says to set it."""
        text = value if isinstance(value, str) else f"{value:g}"
        return self.commands[0].format(gpu=device.index, value=text)

    def command_back(self, device: Device, found: Found) -> str:
        """Return what an administrator says to have it as it was found."""
        return self.commands[1].format(gpu=device.index, value=",".join(_shown(self, found)))


def _shown(knob: Knob, found: Found) -> list[str]:
    return [f"{value / 1000:g}" if knob.unit == "W" else str(value) for value in found]


# --- what NVML knows of each ------------------------------------------------------------------


def _graphics_clocks_mhz(device: Device) -> list[float]:
    fastest = max(pynvml.nvmlDeviceGetSupportedMemoryClocks(device.handle))
    clocks = pynvml.nvmlDeviceGetSupportedGraphicsClocks(device.handle, fastest)
    return sorted(float(clock) for clock in clocks)


def _lock_clocks(device: Device, mhz: float) -> None:
    pynvml.nvmlDeviceSetGpuLockedClocks(device.handle, int(mhz), int(mhz))


def _unlock_clocks(device: Device, found: Found) -> None:
    if found:
        pynvml.nvmlDeviceSetGpuLockedClocks(device.handle, *found)
    else:
        pynvml.nvmlDeviceResetGpuLockedClocks(device.handle)


def _limits_w(device: Device) -> list[float]:
    return [mw / 1000 for mw in pynvml.nvmlDeviceGetPowerManagementLimitConstraints(device.handle)]


def _limit_mw(device: Device) -> int:
    return int(pynvml.nvmlDeviceGetPowerManagementLimit(device.handle))


def _set_limit(device: Device, watts: float) -> None:
    pynvml.nvmlDeviceSetPowerManagementLimit(device.handle, round(watts * 1000))


def _put_limit_back(device: Device, found: Found) -> None:
    pynvml.nvmlDeviceSetPowerManagementLimit(device.handle, found[0])
    if (now := _limit_mw(device)) != found[0]:
        raise nvml.Unavailable(f"it is {now / 1000:g} W and was {found[0] / 1000:g} W")


KNOBS = {
    knob.name: knob
    for knob in (
        Knob(
            "sm_clock_mhz",
            "the SM clock",
            ("sudo nvidia-smi -i {gpu} -lgc {value},{value}", "sudo nvidia-smi -i {gpu} -rgc"),
            settings=_graphics_clocks_mhz,
            in_steps=True,
            now=lambda _: None,  # NVML shows the clock that runs, and not what it is locked to
            found=lambda _: [],
            turn=_lock_clocks,
            put_back=_unlock_clocks,
        ),
        Knob(
            "power_limit_w",
            "the power limit",
            ("sudo nvidia-smi -i {gpu} -pl {value}", "sudo nvidia-smi -i {gpu} -pl {value}"),
            settings=_limits_w,
            in_steps=False,
            now=lambda device: _limit_mw(device) / 1000,
            found=lambda device: [_limit_mw(device)],
            turn=_set_limit,
            put_back=_put_limit_back,
        ),
    )
}


def sm_clock_mhz(device: Device) -> float:
    """Return the clock at which the GPU's SMs run now."""
    return float(pynvml.nvmlDeviceGetClockInfo(device.handle, pynvml.NVML_CLOCK_SM))


# --- who may turn one -------------------------------------------------------------------------


def lacking_right() -> str:
    """Return why this process may turn no knob, as far as the system tells; empty if it may.

    NVML wants root, which on Linux means the capability SYS_ADMIN: a container's root has it not.
    """
    why = "only an administrator may set it (NVML asks for root, or the capability SYS_ADMIN)"
    try:
        status = PROCESS_STATUS.read_text(encoding="ascii")
    except OSError:
        return "" if os.geteuid() == 0 else why
    held = (int(line.split()[1], 16) for line in status.splitlines() if "CapEff" in line)
    return "" if next(held, 0) >> SYS_ADMIN_BIT & 1 else why


def users(device: Device) -> list[str]:
    """Return the processes that compute or draw on a GPU, but this one."""
    running = [
        *pynvml.nvmlDeviceGetComputeRunningProcesses(device.handle),
        *pynvml.nvmlDeviceGetGraphicsRunningProcesses(device.handle),
    ]
    return [f"process {pid}" for pid in sorted({p.pid for p in running} - {os.getpid()})]


def refusal(knob_name: str, points: list[float], exclusive: bool) -> str:
    """Return why a sweep of these settings cannot run here, in one sentence; empty if it can.

    It only reads. A GPU is turned if the study says that nobody else uses it, NVML shows no other
    process on it, and this process has the right to.
    """
    knob = KNOBS[knob_name]
    try:
        devices = nvml.visible_devices()
    except nvml.Unavailable as why:
        return f"There is no GPU here of which {knob.what} could be swept: {why}."
    if not exclusive:
        return (
            f"power_sweep.exclusive is false, so that {knob.what} is left alone: say true on a "
            "machine whose GPU nobody else uses."
        )
    for device in devices:
        if nvml.mig_enabled(device):
            return f"{device.label} is in MIG mode: {knob.what} is that of all its instances."
        try:
            others = users(device)
            if others:
                return (
                    f"{', '.join(others[:3])} {'uses' if len(others) == 1 else 'use'} "
                    f"{device.label}: {knob.what} of a GPU that others use is not touched."
                )
            if outside := _outside(knob, device, points):
                return outside
        except pynvml.NVMLError as error:
            return f"{knob.what_capital} of {device.label} cannot be swept: {nvml.text(error)}."
    if lacking := lacking_right():
        return (
            f"You may not set {knob.what} of {devices[0].label}: {lacking}; ask the administrator "
            f"to run the study, or to set one point by `{knob.command(devices[0], points[0])}`."
        )
    return ""


def _outside(knob: Knob, device: Device, points: list[float]) -> str:
    """Return why a GPU has not all of these settings; empty if it has."""
    there = knob.settings(device)
    for point in points:
        known = point in there if knob.in_steps else there[0] <= point <= there[-1]
        if not known:
            nearest = min(there, key=lambda setting: abs(setting - point))
            return (
                f"power_sweep.points holds {point:g}, but {knob.what} of {device.label} goes from "
                f"{there[0]:g} to {there[-1]:g} {knob.unit}"
                + (f" in steps; the nearest is {nearest:g}." if knob.in_steps else ".")
            )
    return ""


def table() -> list[dict[str, str]]:
    """Return every knob of every GPU for a person: may it be turned, its range, the commands."""
    blank = dict.fromkeys(["knob", "may be turned", "range", "now", "to set it", "to undo"], "")
    try:
        devices = nvml.visible_devices()
    except nvml.Unavailable as reason:
        no = f"no: {reason}"
        return [blank | {"knob": knob.what, "may be turned": no} for knob in KNOBS.values()]
    why = lacking_right()
    return [
        blank
        | {
            "knob": f"{knob.what}, {device.label}",
            "may be turned": f"no: {why}" if why else "yes, where nobody else uses the GPU",
        }
        | _as_it_is(knob, device)
        for device in devices
        for knob in KNOBS.values()
    ]


def _as_it_is(knob: Knob, device: Device) -> dict[str, str]:
    try:
        there, now, found = knob.settings(device), knob.now(device), knob.found(device)
    except pynvml.NVMLError as error:
        return {"may be turned": f"no: {nvml.text(error)}"}
    return {
        "range": f"{there[0]:g} to {there[-1]:g} {knob.unit}",
        "now": "NVML does not tell" if now is None else f"{now:g} {knob.unit}",
        "to set it": knob.command(device, knob.unit),
        "to undo": knob.command_back(device, found),
    }
