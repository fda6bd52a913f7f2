"""What this machine is, what a study's declared hardware is, and the state of both in a run."""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import importlib.metadata
import mmap
import os
import platform
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import pynvml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge_eval_lib.errors import UserError
from edge_eval_lib.machine import nvml
from edge_eval_lib.paths import project_root
from edge_eval_lib.study import Strict, read_yaml, validate

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
THIS_MACHINE = "this-machine"
Positive = Annotated[float, Field(gt=0)]


class Hardware(Strict):
    """Declared hardware: figures of one device (dense arithmetic) and how many there are.

    A figure that is not known is None; `purchase_usd` is of the whole set, and the source says
    why where it is None.
    """

    gpu_names: list[str] = Field(default_factory=list)
    gpus: Annotated[int, Field(ge=0)]
    memory_gb: Positive
    host_memory_gb: Positive | None = None
    bandwidth_gb_s: Positive | None
    fp16_tflops: Positive | None
    int8_tops: Positive | None
    power_limit_w: Positive | None
    compute_capability: str | None
    bf16: bool
    source: str
    purchase_usd: Positive | None
    purchase_usd_source: str

    @property
    def total_memory_gb(self) -> float:
        """Memory of all devices together."""
        return self.memory_gb * max(1, self.gpus)


class CpuModelParameters(Strict):
    """Watts of one busy logical CPU: a range, and where it comes from."""

    low_w: Positive
    typical_w: Positive
    high_w: Positive
    source: str

    @model_validator(mode="after")
    def _in_order(self) -> CpuModelParameters:
        if not self.low_w <= self.typical_w <= self.high_w:
            raise ValueError("low_w, typical_w and high_w must not fall")
        return self


class HardwareFile(Strict):
    """params/hardware.yaml."""

    devices: dict[str, Hardware]
    cpu_model: CpuModelParameters
    warm_range_c: Annotated[list[float], Field(min_length=2, max_length=2)]


class Described(BaseModel):
    """A description: never changed after it was made."""

    model_config = ConfigDict(frozen=True)


class Gpu(Described):
    """One GPU as NVML tells it; None for what it does not tell."""

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


class Host(Described):
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


def load_hardware(name: str, path: Path | None = None) -> Hardware:
    """The declared hardware of that name; `this-machine` is what `describe` finds.

    Raises UserError, with the nearest right name, for one that params/hardware.yaml does not have.
    """
    devices = _load(path).devices
    if name == THIS_MACHINE:
        return _this_machine(devices)
    if name not in devices:
        known = [*devices, THIS_MACHINE]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there is: {', '.join(known)}."
        raise UserError(f"there is no hardware {name!r} in params/hardware.yaml; {hint}")
    return devices[name]


def declared_names() -> list[str]:
    """What a study may say for `hardware`."""
    return [*_load(None).devices, THIS_MACHINE]


def load_measurement() -> HardwareFile:
    """What the meters assume: the CPU-time model's watts and the warm range, °C."""
    return _load(None)


def _load(path: Path | None) -> HardwareFile:
    path = path or project_root() / "params" / "hardware.yaml"
    return validate(HardwareFile, read_yaml(path), path)


def _this_machine(devices: dict[str, Hardware]) -> Hardware:
    """This machine's GPUs with the vendor's figures where declared, else its CPU and memory."""
    host = describe()
    visible = [gpu for gpu in host.gpus if gpu.index in gpu_indices()]
    if not visible:
        return Hardware(
            gpus=0,
            memory_gb=host.memory_gb,
            bandwidth_gb_s=None,
            fp16_tflops=None,
            int8_tops=None,
            power_limit_w=None,
            compute_capability=None,
            bf16=bool({"avx512_bf16", "amx"} & set(host.cpu_flags)),
            source="found on this machine",
            purchase_usd=None,
            purchase_usd_source="nobody has said what this machine cost",
        )
    first = visible[0]
    like = next((known for known in devices.values() if first.name in known.gpu_names), None)
    capability = first.compute_capability
    return Hardware(
        gpus=len(visible),
        memory_gb=min(gpu.memory_gb for gpu in visible if gpu.memory_gb),
        host_memory_gb=host.memory_gb,
        bandwidth_gb_s=like.bandwidth_gb_s if like else None,
        fp16_tflops=like.fp16_tflops if like else None,
        int8_tops=like.int8_tops if like else None,
        power_limit_w=first.power_limit_w,
        compute_capability=capability,
        bf16=capability is not None and int(capability.split(".")[0]) >= 8,
        source=f"found on this machine; {like.source if like else 'its datasheet is not declared'}",
        purchase_usd=None,
        purchase_usd_source="nobody has said what this machine cost",
    )


def describe() -> Host:
    """What this machine is: CPU, memory, system and GPUs (all of them, visible or not)."""
    gpus, reason = [], ""
    try:
        gpus = [_gpu(device) for device in nvml.all_devices()]
        reason = "" if gpus else "this machine has no NVIDIA GPU"
    except nvml.Unavailable as why:
        reason = str(why)
    cores = psutil.cpu_count(logical=False)
    logical = (
        len(psutil.Process().cpu_affinity())
        if hasattr(psutil.Process, "cpu_affinity")
        else (os.cpu_count() or 1)
    )
    names = sorted({gpu.name for gpu in gpus})
    label = (
        " + ".join(f"{sum(gpu.name == name for gpu in gpus)} x {name}" for name in names)
        if gpus
        else f"{cpu_name()}, {logical} logical CPUs"
    )
    return Host(
        label=label,
        cpu=cpu_name(),
        cores=cores,
        logical_cpus=logical,
        cpu_flags=cpu_flags(),
        memory_gb=psutil.virtual_memory().total / 1e9,
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        gpus=gpus,
        gpu_reason=reason,
    )


def gpu_indices() -> list[int]:
    """NVML indices of the GPUs that this process may use (CUDA_VISIBLE_DEVICES honoured)."""
    try:
        return [device.index for device in nvml.visible_devices()]
    except nvml.Unavailable:
        return []


def _cpu_threads() -> int | None:
    """Threads that libraries were told to compute with; None by hand, where they choose."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdecimal() else None


def provenance(study_hash: str) -> dict[str, Any]:
    """The state in which a run was made: code, packages, system, GPUs, and who else was there."""
    devices: list[nvml.Device] = []
    with contextlib.suppress(nvml.Unavailable):
        devices = nvml.visible_devices()
    commit, dirty = _git()
    host = describe()
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
        "cpu_threads": _cpu_threads(),
        "cpu_governor": cpu_governor(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "gpus": [gpu.model_dump() for gpu in host.gpus if gpu.index in {d.index for d in devices}],
        "co_tenants": _co_tenants(devices),
    }


@cache
def cpu_name() -> str:
    """The processor's model, or its architecture where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    if platform.system() == "Darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(
                command, capture_output=True, text=True, timeout=5, check=True
            ).stdout.strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """The instruction sets, of those that decide speed and precision, that the processor has."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                has = set(line.split(":", 1)[1].split())
                return [name for flag, name in CPU_FLAGS.items() if flag in has]
    return []


def cpu_governor() -> str | None:
    """How the kernel sets the CPU's clock (performance, powersave, ...); None if it is not told."""
    try:
        return (
            Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
            .read_text(encoding="ascii")
            .strip()
        )
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
    """None for what this GPU or driver does not tell."""
    try:
        return question(*arguments)
    except pynvml.NVMLError:
        return None


def _co_tenants(devices: list[nvml.Device]) -> list[dict[str, Any]]:
    """Processes on the visible devices other than this one; ids as the driver counts them."""
    found = []
    for device in devices:
        for pid, used in (_ask(nvml.process_memory_bytes, device) or {}).items():
            if pid != os.getpid():
                found.append(
                    {
                        "gpu": device.index,
                        "pid": pid,
                        "memory_gb": None if used is None else used / 1e9,
                    }
                )
    return found


def _git() -> tuple[str | None, bool | None]:
    """Commit and whether files differ from it; None outside a checkout or without git."""

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


@dataclass(frozen=True)
class Eviction:
    """Whether files left the page cache; residency is the share of their pages in it, 0..1."""

    evicted: bool
    residency_before: float | None
    residency_after: float | None
    reason: str


def evict_from_page_cache(paths: Iterable[str | Path]) -> Eviction:
    """Drops files from the page cache, so that reading them is a cold read; needs no privilege.

    `evicted` is told from the residency afterwards (<= 1 %), not believed. Raises ValueError for
    no paths and FileNotFoundError for one that is not there.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise ValueError("paths is empty: name the files to evict")
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not a file that could be evicted")
    before = _residency(files)
    if not hasattr(os, "posix_fadvise"):
        return Eviction(False, before, before, f"{platform.system()} has no posix_fadvise")
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages not yet written would stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    after = _residency(files)
    if after is None:
        return Eviction(False, before, None, "this system does not tell which pages are cached")
    if after > 0.01:
        reason = f"{after:.0%} of the pages stayed: another process holds them"
        return Eviction(False, before, after, reason)
    return Eviction(True, before, after, "")


def _residency(files: list[Path]) -> float | None:
    """Share of the files' pages in the page cache, by mincore(2)."""
    try:
        mincore = ctypes.CDLL(None, use_errno=True).mincore
    except (AttributeError, OSError):
        return None
    pages = resident = 0
    for file in files:
        size = file.stat().st_size
        if size == 0:
            continue
        with file.open("rb") as handle:
            mapping = mmap.mmap(handle.fileno(), size, access=mmap.ACCESS_READ)
        content = np.frombuffer(mapping, dtype=np.uint8)
        count = -(-size // mmap.PAGESIZE)
        flags = (ctypes.c_ubyte * count)()
        failed = mincore(
            ctypes.c_void_p(content.ctypes.data), ctypes.c_size_t(size), ctypes.byref(flags)
        )
        del content
        mapping.close()
        if failed:
            return None
        pages += count
        resident += int((np.frombuffer(flags, dtype=np.uint8) & 1).sum())
    return resident / pages if pages else 0.0
