"""What this machine is, and the state in which a run was made."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pynvml
from pydantic import BaseModel

from edge_eval_lib.machine import nvml
from edge_eval_lib.paths import project_root

CPUINFO = Path("/proc/cpuinfo")
CPU_FLAGS = {  # what decides which arithmetic a CPU uses, by the kernel's name for it
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx_tile": "amx",
}
PACKAGES = (
    "edge-eval",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "accelerate",
    "vllm",
    "nvidia-ml-py",
    "numpy",
)


class Gpu(BaseModel, frozen=True):
    """One GPU as NVML describes it; None for what it does not show."""

    index: int
    name: str
    memory_gb: float | None
    driver: str | None
    compute_capability: str | None
    power_limit_w: float | None
    persistence: bool | None
    graphics_clock_mhz: int | None
    memory_clock_mhz: int | None
    max_graphics_clock_mhz: int | None
    temperature_c: int | None
    mig: bool


class Host(BaseModel, frozen=True):
    """This machine without its name: a label, so that tables can be shared."""

    label: str
    cpu: str
    cores: int | None
    logical_cpus: int
    cpu_flags: list[str]
    memory_gb: float
    os: str
    python: str
    gpus: list[Gpu]
    gpu_reason: str  # why there is no GPU, if there is none


def describe() -> Host:
    """Return what this machine is: CPU, memory, system and all GPUs, visible or not."""
    gpus, reason = [], ""
    try:
        gpus = [_gpu(device) for device in nvml.all_devices()]
        reason = "" if gpus else "this machine has no NVIDIA GPU"
    except nvml.Unavailable as why:
        reason = str(why)
    process = psutil.Process()
    may_use = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else os.cpu_count()
    logical = may_use or 1
    names = sorted({gpu.name for gpu in gpus})
    counted = (f"{sum(gpu.name == name for gpu in gpus)} x {name}" for name in names)
    return Host(
        label=" + ".join(counted)
        or f"{cpu_name()}, {logical} logical CPU{'s' if logical > 1 else ''}",
        cpu=cpu_name(),
        cores=psutil.cpu_count(logical=False),
        logical_cpus=logical,
        cpu_flags=cpu_flags(),
        memory_gb=psutil.virtual_memory().total / 1e9,
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        gpus=gpus,
        gpu_reason=reason,
    )


def provenance(study_hash: str) -> dict[str, Any]:
    """Return the state in which a run is made: code, packages, system, GPUs and other processes."""
    devices: list[nvml.Device] = []
    with contextlib.suppress(nvml.Unavailable):
        devices = nvml.visible_devices()
    visible = {device.index for device in devices}
    commit, dirty = _git()
    host = describe()
    threads = os.environ.get("OMP_NUM_THREADS", "")  # not set by hand, where libraries choose
    return {
        "study_hash": study_hash,
        "git_commit": commit,
        "git_dirty": dirty,
        "packages": {name: _version(name) for name in PACKAGES},
        "python": host.python,
        "os": host.os,
        "host": host.label,
        "cpu": host.cpu,
        "cpu_flags": host.cpu_flags,
        "logical_cpus": host.logical_cpus,
        "cpu_threads": int(threads) if threads.isdecimal() else None,
        "cpu_governor": cpu_governor(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "gpus": [gpu.model_dump() for gpu in host.gpus if gpu.index in visible],
        "co_tenants": _co_tenants(devices),
    }


@cache
def _cpu() -> tuple[str, frozenset[str]]:
    """Return the processor's model (or its architecture) and all its flags."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in CPUINFO.read_text().partition("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            fields[name.strip()] = value.strip()
    if "model name" in fields and "flags" in fields:
        return fields["model name"], frozenset(fields["flags"].split())
    import cpuinfo  # knows other systems and processors, and takes two seconds

    known: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # how it refuses a processor that it does not know
        known = cpuinfo.get_cpu_info()
    name = known.get("brand_raw") or platform.processor() or platform.machine()
    return name, frozenset(known.get("flags", ()))


def cpu_name() -> str:
    """Return the processor's model, or its architecture where the system does not show it."""
    return _cpu()[0]


def cpu_flags() -> list[str]:
    """Return the processor's instruction sets, of those that decide speed and precision."""
    return [name for flag, name in CPU_FLAGS.items() if flag in _cpu()[1]]


def cpu_governor() -> str | None:
    """Return how the kernel sets the CPU's clock (performance, powersave, ...), or None."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    try:
        return governor.read_text(encoding="ascii").strip()
    except OSError:
        return None


def _gpu(device: nvml.Device) -> Gpu:
    handle = device.handle
    memory = _ask(pynvml.nvmlDeviceGetMemoryInfo, handle)
    capability = _ask(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    limit = _ask(pynvml.nvmlDeviceGetPowerManagementLimit, handle)
    persistence = _ask(pynvml.nvmlDeviceGetPersistenceMode, handle)
    driver = _ask(pynvml.nvmlSystemGetDriverVersion)
    return Gpu(
        index=device.index,
        name=device.name,
        memory_gb=memory.total / 1e9 if memory is not None else None,
        driver=driver.decode() if isinstance(driver, bytes) else driver,
        compute_capability=".".join(map(str, capability)) if capability else None,
        power_limit_w=limit / 1e3 if limit is not None else None,
        persistence=bool(persistence) if persistence is not None else None,
        graphics_clock_mhz=_ask(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_GRAPHICS),
        memory_clock_mhz=_ask(pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM),
        max_graphics_clock_mhz=_ask(
            pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_GRAPHICS
        ),
        temperature_c=_ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        mig=nvml.mig_enabled(device),
    )


def _ask(question: Callable[..., Any], *arguments: Any) -> Any:
    """Return the answer, or None where this GPU or driver has none."""
    try:
        return question(*arguments)
    except pynvml.NVMLError:
        return None


def _co_tenants(devices: list[nvml.Device]) -> list[dict[str, Any]]:
    """Return the processes on the devices other than this one; ids as the driver counts them."""
    return [
        {"gpu": device.index, "pid": pid, "memory_gb": None if used is None else used / 1e9}
        for device in devices
        for pid, used in (_ask(nvml.process_memory_bytes, device) or {}).items()
        if pid != os.getpid()
    ]


def _git() -> tuple[str | None, bool | None]:
    """Return the commit and whether files differ from it; None outside a checkout."""

    def ask(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(project_root()), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout.strip()

    try:
        return ask("rev-parse", "HEAD"), bool(ask("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
