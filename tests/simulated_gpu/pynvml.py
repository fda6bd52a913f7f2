"""One simulated GPU, a T4, whose state lies in a file, for every process that finds this module.

    PYTHONPATH=tests/simulated_gpu SIMULATED_GPU=gpu.json python ...

The rest of NVML is pynvml's own, and finds no driver. The GPU draws power by the SM clock that it
is locked to and never more than its limit; it outlives the processes that turn its knobs. Nothing
measured here counts as verified on hardware.
"""

import contextlib
import fcntl
import json
import os
import sys
import time
import types
from importlib.machinery import PathFinder
from pathlib import Path

HERE = str(Path(__file__).parent)
_real = PathFinder.find_spec("pynvml", [p for p in sys.path if os.path.realpath(p) != HERE])
exec(compile(Path(_real.origin).read_text(encoding="utf-8"), _real.origin, "exec"), globals())

CLOCKS_MHZ = list(range(300, 1591, 15))
MEMORY_MHZ = 5001
LIMITS_MW = (60_000, 70_000)
IDLE_W, BUSY_W = 14.0, 56.0  # at the highest clock both together
FREE = {
    "limit_mw": 70_000,
    "locked": None,
    "permitted": True,
    "others": [],
    "energy_j": 0.0,
    "since_s": 0.0,
    "turned": 0,
}


def _state_file():
    return Path(os.environ["SIMULATED_GPU"])


@contextlib.contextmanager
def state(file=None):
    """The GPU's state, for one process at a time; what is changed in it is kept."""
    file = file or _state_file()
    with open(f"{file}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        now = FREE | (json.loads(file.read_text()) if file.is_file() else {})
        before = json.dumps(now)
        yield now
        if json.dumps(now) != before:
            file.with_suffix(".new").write_text(json.dumps(now))
            file.with_suffix(".new").replace(file)


def settings(file=None):
    """What the GPU is set to: its limit and its lock."""
    with state(file) as now:
        return now["limit_mw"], now["locked"]


def clock_mhz(now):
    limited = CLOCKS_MHZ[-1]
    while _drawn_w(limited) > now["limit_mw"] / 1000:
        limited -= 15
    return min(limited, now["locked"][1]) if now["locked"] else limited


def _drawn_w(mhz):
    return IDLE_W + BUSY_W * (mhz / CLOCKS_MHZ[-1]) ** 2


def power_w(now):
    return _drawn_w(clock_mhz(now))


def _change(**fields):
    with state() as now:
        if not now["permitted"]:
            raise NVMLError(NVML_ERROR_NO_PERMISSION)  # noqa: F821
        moment = time.monotonic()
        now["energy_j"] += power_w(now) * (moment - now["since_s"])
        now |= fields | {"since_s": moment, "turned": now["turned"] + 1}


def nvmlInit():
    """Also let this process do what the simulated machine's user may."""
    knobs = sys.modules.get("edge_eval_lib.machine.knobs")
    if knobs is not None:
        with state() as now:
            rights = 1 << 21 if now["permitted"] else 0
        knobs.PROCESS_STATUS = _state_file().with_suffix(".status")
        knobs.PROCESS_STATUS.write_text(f"CapEff:\t{rights:016x}\n")


def nvmlDeviceGetCount():
    return 1


def nvmlDeviceGetHandleByIndex(index):
    return index


def nvmlDeviceGetName(handle):
    return "Tesla T4"


def nvmlDeviceGetUUID(handle):
    return "GPU-simulated"


def nvmlDeviceGetIndex(handle):
    return handle


def nvmlDeviceGetSupportedMemoryClocks(handle):
    return [MEMORY_MHZ, 405]


def nvmlDeviceGetSupportedGraphicsClocks(handle, memoryClockMHz):
    return CLOCKS_MHZ[::-1] if memoryClockMHz == MEMORY_MHZ else [645]


def nvmlDeviceSetGpuLockedClocks(handle, minGpuClockMHz, maxGpuClockMHz):
    _change(locked=[minGpuClockMHz, maxGpuClockMHz])


def nvmlDeviceResetGpuLockedClocks(handle):
    _change(locked=None)


def nvmlDeviceGetPowerManagementLimit(handle):
    return settings()[0]


def nvmlDeviceGetPowerManagementLimitConstraints(handle):
    return list(LIMITS_MW)


def nvmlDeviceSetPowerManagementLimit(handle, limit):
    if not LIMITS_MW[0] <= limit <= LIMITS_MW[1]:
        raise NVMLError(NVML_ERROR_INVALID_ARGUMENT)  # noqa: F821
    _change(limit_mw=limit)


def nvmlDeviceGetClockInfo(handle, type):
    with state() as now:
        return MEMORY_MHZ if type == NVML_CLOCK_MEM else clock_mhz(now)  # noqa: F821


def nvmlDeviceGetTotalEnergyConsumption(handle):
    with state() as now:
        since_s = time.monotonic() - now["since_s"]
        return round(1000 * (now["energy_j"] + power_w(now) * since_s))


def nvmlDeviceGetPowerUsage(handle):
    with state() as now:
        jitter = round(time.monotonic() * 100) % 7
        return round(1000 * power_w(now)) + jitter


def nvmlDeviceGetTemperature(handle, sensor):
    return 60


def nvmlDeviceGetUtilizationRates(handle):
    return types.SimpleNamespace(gpu=90)


def nvmlDeviceGetCurrentClocksEventReasons(handle):
    return 0


def nvmlDeviceGetMemoryInfo(handle, version=None):
    return types.SimpleNamespace(total=15_660_000_000, used=0, free=15_660_000_000)


def nvmlDeviceGetComputeRunningProcesses(handle):
    """Others, and this process where it has a model's library: as if that held memory."""
    with state() as now:
        pids = [*now["others"], *([os.getpid()] if "torch" in sys.modules else [])]
    return [types.SimpleNamespace(pid=pid, usedGpuMemory=1 << 30) for pid in pids]


def nvmlDeviceGetGraphicsRunningProcesses(handle):
    return []
