"""Peak memory of a window: resident memory on a CPU, device memory on a GPU. GB = 10^9 bytes.

Linux keeps a high-water mark of a process's resident memory (VmHWM) and torch one of its device
memory; both belong to the whole process. Before either is reset its value is handed to every open
window, so that windows may nest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from edge_eval_lib.energy import process_tree
from edge_eval_lib.energy.meter import MeterError, Watch

CLEAR_PEAK = b"5"  # proc(5): writing it to clear_refs resets VmHWM to the current resident memory


@dataclass(eq=False)
class Peak:
    """One open window's share of the process's high-water marks."""

    resident_bytes: int | None = None
    torch_bytes: int | None = None
    exact: bool = True  # False: the mark could not be reset, and may be older than the window


@dataclass(frozen=True)
class PeakMemory:
    """What a window's memory was: GB or None with the reason, and what it is the peak of."""

    gb: float | None
    source: str | None  # torch-allocated, device-process, resident
    reason: str = ""
    device_gb: float | None = None  # device memory of this process at the window's end


_lock = threading.Lock()
_open: list[Peak] = []


def begin() -> Peak:
    """Start to watch the peak; `end` ends it."""
    peak = Peak()
    with _lock:
        _hand_out()
        before = _resident_peak_bytes()
        peak.exact = _reset_resident_peak()
        if not peak.exact:
            peak.resident_bytes = before
        _reset_torch_peak()
        _open.append(peak)
    return peak


def end(peak: Peak, on_gpu: bool, watches: Sequence[Watch] = ()) -> PeakMemory:
    """Return the window's peak: of device memory where the work runs on a GPU, else resident."""
    with _lock:
        before = peak.resident_bytes
        _hand_out()
        _open.remove(peak)
    device_gb = _device_gb(watches)
    if on_gpu and peak.torch_bytes:
        return PeakMemory(peak.torch_bytes / 1e9, "torch-allocated", device_gb=device_gb)
    if device_gb:
        return PeakMemory(device_gb, "device-process", device_gb=device_gb)
    if peak.resident_bytes is None:
        return PeakMemory(None, None, "this system shows no peak of resident memory")
    if not peak.exact and peak.resident_bytes == before:
        return PeakMemory(
            None,
            None,
            "the peak could not be reset here, and an earlier one was higher than the window's",
        )
    bare = bare_interpreter_bytes()
    if bare is None:
        return PeakMemory(None, None, "the memory of a bare interpreter could not be measured")
    return PeakMemory(max(0, peak.resident_bytes - bare) / 1e9, "resident")


@cache
def bare_interpreter_bytes() -> int | None:
    """Return the resident memory of a Python that has imported nothing; measured once."""
    program = "print(open('/proc/self/status').read())"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", program],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return _field_bytes(done.stdout, "VmRSS")


def _hand_out() -> None:
    """Hand the marks as they stand to every open window."""
    resident, torch_bytes = _resident_peak_bytes(), _torch_peak_bytes()
    for peak in _open:
        if resident is not None:
            peak.resident_bytes = max(peak.resident_bytes or 0, resident)
        if torch_bytes is not None:
            peak.torch_bytes = max(peak.torch_bytes or 0, torch_bytes)


def _resident_peak_bytes() -> int | None:
    return _field_bytes(process_tree.read("/proc/self/status").decode(), "VmHWM")


def _field_bytes(status: str, name: str) -> int | None:
    """Return a field of /proc/PID/status in bytes; None if it is not there."""
    _before, present, after = status.partition(f"\n{name}:")
    return int(after.split(maxsplit=1)[0]) * 1024 if present else None


def _reset_resident_peak() -> bool:
    try:
        descriptor = os.open("/proc/self/clear_refs", os.O_WRONLY)
    except OSError:
        return False
    try:
        os.write(descriptor, CLEAR_PEAK)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def torch_in_use() -> Any:
    """Return the torch module if it is imported and uses CUDA, else None; import nothing."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)  # absent while torch is still being imported
    return torch if cuda is not None and cuda.is_initialized() else None


def _torch_peak_bytes() -> int | None:
    torch = torch_in_use()
    if torch is None:
        return None
    return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))


def _reset_torch_peak() -> None:
    torch = torch_in_use()
    if torch is not None:
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)


def _device_gb(watches: Sequence[Watch]) -> float | None:
    """Return the device memory of this process and its children (an engine's workers).

    None where the driver does not show it (in some containers).
    """
    if not watches:
        return None
    ours = {os.getpid(), *process_tree.descendants()}
    try:
        devices = [device for watch in watches for device in watch.process_memory_bytes()]
    except MeterError:
        return None
    used = [device[pid] for device in devices for pid in ours & set(device)]
    known = [size for size in used if size is not None]
    return sum(known) / 1e9 if known else None
