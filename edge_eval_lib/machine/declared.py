"""params/hardware.yaml: the hardware that a study may name, and what the meters assume."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from edge_eval_lib.errors import pick
from edge_eval_lib.machine import host, nvml
from edge_eval_lib.paths import project_root
from edge_eval_lib.study import Strict, read_yaml, validate
from edge_eval_lib.study.files import THIS_MACHINE

DATASHEET = ("bandwidth_gb_s", "fp16_tflops", "int8_tops")
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
    fp32_tflops: Positive | None = None
    fp16_tflops: Positive | None
    int8_tops: Positive | None
    power_limit_w: Positive | None
    link_gb_s: Positive | None = None  # between two of them, one direction
    compute_capability: str | None
    bf16: bool
    source: str
    purchase_usd: Positive | None
    purchase_usd_source: str

    @property
    def total_memory_gb(self) -> float:
        """Return the memory of all devices together."""
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
    """params/hardware.yaml: devices, the CPU-time model's watts and the warm range, °C."""

    devices: dict[str, Hardware]
    cpu_model: CpuModelParameters
    warm_range_c: Annotated[list[float], Field(min_length=2, max_length=2)]


def load_hardware_file(path: Path | None = None) -> HardwareFile:
    """Read and check params/hardware.yaml, or another file like it."""
    path = path or project_root() / "params" / "hardware.yaml"
    return validate(HardwareFile, read_yaml(path), path)


def load_hardware(name: str, path: Path | None = None) -> Hardware:
    """Return the hardware that a file (params/hardware.yaml) declares, or `this-machine`'s.

    UserError for another name; the nearest right one is suggested.
    """
    devices = load_hardware_file(path).devices
    known = {**devices, THIS_MACHINE: None}
    return pick(known, name, "hardware", "params/hardware.yaml") or _this_machine(devices)


def _this_machine(devices: dict[str, Hardware]) -> Hardware:
    """Return this machine's GPUs with the vendor's figures where declared, else its CPU."""
    here = host.describe()
    indices = nvml.visible_indices()
    visible = [gpu for gpu in here.gpus if gpu.index in indices]
    machine = Hardware(
        gpus=0,
        memory_gb=here.memory_gb,
        bandwidth_gb_s=None,
        fp16_tflops=None,
        int8_tops=None,
        power_limit_w=None,
        compute_capability=None,
        bf16=bool({"avx512_bf16", "amx"} & set(here.cpu_flags)),
        source="found on this machine",
        purchase_usd=None,
        purchase_usd_source="what this machine cost is not declared",
    )
    if not visible:
        return machine
    first = visible[0]
    like = next((known for known in devices.values() if first.name in known.gpu_names), None)
    capability = first.compute_capability
    datasheet = {name: getattr(like, name) for name in DATASHEET} if like else {}
    source = like.source if like else "its datasheet is not declared"
    return machine.model_copy(
        update=datasheet
        | {
            "gpus": len(visible),
            "memory_gb": min(gpu.memory_gb for gpu in visible if gpu.memory_gb),
            "host_memory_gb": here.memory_gb,
            "power_limit_w": first.power_limit_w,
            "compute_capability": capability,
            "bf16": capability is not None and int(capability.split(".")[0]) >= 8,
            "source": f"{machine.source}; {source}",
        }
    )
