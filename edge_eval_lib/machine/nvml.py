"""NVIDIA's management library: the devices that this process may use, and why there are none."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pynvml


class Unavailable(Exception):
    """This machine does not have what was asked for; the message is the reason, for a person."""


@dataclass(frozen=True)
class Device:
    """One GPU: NVML's index (PCI order), its handle and name."""

    index: int
    handle: Any
    name: str

    @property
    def label(self) -> str:
        """Return the name that tables and messages use."""
        return f"GPU {self.index} ({self.name})"


def text(error: pynvml.NVMLError) -> str:
    """Return an error of NVML as a sentence's end."""
    return f"NVML says: {error}"


def all_devices() -> list[Device]:
    """Return every GPU of the machine; Unavailable if NVML or the driver is missing."""
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [
            Device(i, handle, _decoded(pynvml.nvmlDeviceGetName(handle)))
            for i, handle in enumerate(handles)
        ]
    except pynvml.NVMLError as error:
        raise Unavailable(text(error)) from error


def visible_devices() -> list[Device]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES leaves to this process; all if it is unset.

    Like CUDA, stop at the first entry that names no device; without the variable, SLURM_JOB_GPUS
    counts. Unavailable if there is no GPU, or CUDA's order may differ from NVML's.
    """
    devices = all_devices()
    if not devices:
        raise Unavailable("this machine has no NVIDIA GPU")
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES", os.environ.get("SLURM_JOB_GPUS"))
    if wanted is None:
        return devices
    entries = [entry.strip() for entry in wanted.split(",")]
    numbered = [entry for entry in entries if entry.isdecimal()]
    in_pci_order = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    unlike = len({device.name for device in devices}) > 1
    if numbered and unlike and not in_pci_order and len(numbered) < len(devices):
        raise Unavailable(
            "the GPUs differ and CUDA may number them otherwise than NVML does; "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )
    visible: list[Device] = []
    for entry in entries:
        device = _named(entry, devices)
        if device is None:
            break
        if device not in visible:
            visible.append(device)
    if not visible:
        name = "CUDA_VISIBLE_DEVICES" if "CUDA_VISIBLE_DEVICES" in os.environ else "SLURM_JOB_GPUS"
        raise Unavailable(f"{name}={wanted!r} hides every GPU")
    return visible


def absence() -> str:
    """Return why this process may use no GPU; empty if it may use one."""
    try:
        visible_devices()
    except Unavailable as why:
        return str(why)
    return ""


def visible_indices() -> list[int]:
    """Return NVML's indices of the GPUs that this process may use; empty where there is none."""
    try:
        return [device.index for device in visible_devices()]
    except Unavailable:
        return []


def _named(entry: str, devices: list[Device]) -> Device | None:
    """Return the device of an entry of CUDA_VISIBLE_DEVICES: index, UUID (or its start), MIG."""
    if entry.isdecimal():
        return devices[int(entry)] if int(entry) < len(devices) else None
    try:
        if entry.startswith("MIG-"):
            instance = pynvml.nvmlDeviceGetHandleByUUID(entry)
            parent = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance)
            return devices[pynvml.nvmlDeviceGetIndex(parent)]
        if entry.startswith("GPU-"):
            matching = [device for device in devices if uuid(device).startswith(entry)]
            return matching[0] if len(matching) == 1 else None
    except pynvml.NVMLError:
        return None
    return None


def uuid(device: Device) -> str:
    """Return the name that stays when neighbours are hidden, which changes the index."""
    return _decoded(pynvml.nvmlDeviceGetUUID(device.handle))


def mig_enabled(device: Device) -> bool:
    """Return whether the GPU is cut into instances, whose energies NVML cannot separate."""
    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(device.handle)
        return current == pynvml.NVML_DEVICE_MIG_ENABLE
    except pynvml.NVMLError:  # GPUs without the feature
        return False


def measurable_devices() -> list[Device]:
    """Return the visible devices; Unavailable if one is cut into MIG instances."""
    devices = visible_devices()
    for device in devices:
        if mig_enabled(device):
            raise Unavailable(
                f"{device.label} is in MIG mode: NVML gives the energy of the whole GPU, "
                "not of an instance"
            )
    return devices


def process_memory_bytes(device: Device) -> dict[int, int | None]:
    """Return bytes of device memory by process id; None where the driver hides them."""
    processes = pynvml.nvmlDeviceGetComputeRunningProcesses(device.handle)
    return {process.pid: process.usedGpuMemory for process in processes}


def _decoded(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name
