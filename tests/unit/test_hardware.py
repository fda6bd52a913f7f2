"""What the machine is, what is declared, and the page cache."""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import types

import psutil
import pynvml
import pytest
from fake_nvml import Clock, FakeDriver, FakeGpu, constant

from edge_eval_lib.errors import UserError
from edge_eval_lib.machine import declared, host, nvml, pagecache
from edge_eval_lib.paths import project_root

DECLARED = ("t4", "t4x2", "l4", "a10", "a30", "a100", "h100", "h200", "rtx4090", "rtx3090")


@pytest.fixture
def gpus(monkeypatch):
    """Two simulated GPUs, both visible."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    made = [FakeGpu(constant(40.0)), FakeGpu(constant(40.0))]
    FakeDriver(made, Clock()).install(monkeypatch)
    return made


@pytest.fixture
def fresh_cpu():
    """Forget the processor before and after a test that makes one up."""
    host._cpu.cache_clear()
    yield
    host._cpu.cache_clear()


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.parametrize("name", DECLARED)
def test_declared_hardware_is_whole_and_sourced(name):
    hardware = declared.load_hardware(name)
    assert hardware.source
    assert hardware.purchase_usd_source
    assert hardware.gpus >= 1
    assert hardware.total_memory_gb == hardware.gpus * hardware.memory_gb
    assert hardware.bf16 == (float(hardware.compute_capability) >= 8.0)


def test_declared_figures_are_the_published_ones():
    t4 = declared.load_hardware("t4")
    assert (t4.memory_gb, t4.bandwidth_gb_s, t4.power_limit_w) == (15.66, 320.0, 70.0)
    assert (t4.fp16_tflops, t4.int8_tops, t4.bf16) == (65.0, 130.0, False)
    assert declared.load_hardware("t4x2").total_memory_gb == 31.32


@pytest.mark.parametrize(("name", "requests"), [("t4", 203), ("a100", 153), ("h100", 295)])
def test_the_batch_at_which_fp16_turns_compute_bound(name, requests):
    """Arithmetic over bandwidth: published for these three."""
    hardware = declared.load_hardware(name)
    assert hardware.fp16_tflops * 1e3 / hardware.bandwidth_gb_s == pytest.approx(requests, abs=1)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match=r"no hardware 't4x3'.*did you mean 't4x2'"):
        declared.load_hardware("t4x3")
    with pytest.raises(UserError, match=r"there is: t4, t4x2, .*this-machine"):
        declared.load_hardware("quantum")


def test_a_broken_declaration_names_its_field(tmp_path):
    source = (project_root() / "params" / "hardware.yaml").read_text()
    for wrong, named in {
        "memory_gb: -16.0": "devices.t4.memory_gb",
        "memory_gb: sixteen": "devices.t4.memory_gb",
        "": "devices.t4.memory_gb",
    }.items():
        broken = tmp_path / "hardware.yaml"
        broken.write_text(source.replace("memory_gb: 15.66", wrong, 1))
        with pytest.raises(UserError, match=named):
            declared.load_hardware("t4", broken)
    broken.write_text(source.replace("low_w: 1.7", "low_w: 5.0"))
    with pytest.raises(UserError, match="must not fall"):
        declared.load_hardware("t4", broken)


def test_this_machine_is_what_it_is(no_gpu, monkeypatch):
    machine = declared.load_hardware("this-machine")
    assert machine.memory_gb == pytest.approx(psutil.virtual_memory().total / 1e9)
    assert machine.gpus == 0
    assert machine.purchase_usd is None
    assert machine.purchase_usd_source


def test_this_machine_with_gpus_has_the_declared_figures(gpus):
    machine = declared.load_hardware("this-machine")
    assert (machine.gpus, machine.bandwidth_gb_s, machine.bf16) == (2, 320.0, False)
    assert machine.memory_gb == pytest.approx(16.1, abs=0.1)
    for gpu in gpus:
        gpu.name = "NVIDIA Unheard-of"
    assert declared.load_hardware("this-machine").bandwidth_gb_s is None


def test_the_description_names_no_host():
    here = host.describe()
    assert here.logical_cpus >= 1
    assert here.memory_gb > 0
    assert here.python == platform.python_version()
    assert bool(here.gpus) != bool(here.gpu_reason)
    assert here.cpu in here.label or here.gpus
    told = json.dumps(here.model_dump())
    assert f'"{socket.gethostname()}"' not in told


def test_one_cpu_is_said_to_be_one(monkeypatch):
    monkeypatch.setattr(nvml, "all_devices", lambda: [])
    for cpus, words in (({0}, "1 logical CPU"), ({0, 1}, "2 logical CPUs")):
        monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda *_, cpus=cpus: list(cpus))
        assert host.describe().label.endswith(f", {words}")


def test_cpu_flags_are_those_of_the_kernel(fresh_cpu, tmp_path, monkeypatch):
    cpuinfo = tmp_path / "cpuinfo"
    flags = "fpu avx2 avx512f amx_tile avx512_bf16"
    cpuinfo.write_text(f"model name\t: Made-up: 7\nflags\t\t: {flags}\n\nmodel name\t: another\n")
    monkeypatch.setattr(host, "CPUINFO", cpuinfo)
    assert host.cpu_name() == "Made-up: 7"
    assert host.cpu_flags() == ["avx2", "avx512", "avx512_bf16", "amx"]


def test_where_the_kernel_does_not_list_them_py_cpuinfo_does(fresh_cpu, tmp_path, monkeypatch):
    monkeypatch.setattr(host, "CPUINFO", tmp_path / "absent")
    told = {"brand_raw": "Made-up M9", "flags": ["avx2", "fpu"]}
    monkeypatch.setitem(
        sys.modules, "cpuinfo", types.SimpleNamespace(get_cpu_info=lambda: dict(told))
    )
    assert (host.cpu_name(), host.cpu_flags()) == ("Made-up M9", ["avx2"])


def test_a_processor_that_nothing_knows_has_a_name_all_the_same(fresh_cpu, tmp_path, monkeypatch):
    def refuse():
        raise Exception("py-cpuinfo only works on X86 and some ARM")

    monkeypatch.setattr(host, "CPUINFO", tmp_path / "absent")
    monkeypatch.setitem(sys.modules, "cpuinfo", types.SimpleNamespace(get_cpu_info=refuse))
    assert host.cpu_name()
    assert host.cpu_flags() == []


def test_gpus_are_described(gpus):
    gpus[1].errors["temperature"] = pynvml.NVML_ERROR_NOT_SUPPORTED
    here = host.describe()
    assert here.label == "2 x Tesla T4"
    first, second = here.gpus
    assert (first.power_limit_w, first.compute_capability, first.driver) == (70.0, "7.5", "580.00")
    assert (first.persistence, first.temperature_c, first.mig) == (True, 60, False)
    assert second.temperature_c is None
    assert first.graphics_clock_mhz is None  # this driver does not tell


@pytest.mark.parametrize(
    ("visible", "indices"),
    [(None, [0, 1]), ("1", [1]), ("1,0", [1, 0]), ("0,-1,1", [0]), ("", []), ("7", []), ("-1", [])],
)
def test_visible_gpus(gpus, monkeypatch, visible, indices):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert nvml.visible_indices() == indices


def test_provenance_is_json_and_complete(gpus):
    gpus[0].processes = {os.getpid(): 10**9, 4_000_001: 2 * 10**9}
    told = host.provenance("abc123")
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["study_hash"] == "abc123"
    assert told["packages"]["numpy"]
    assert told["co_tenants"] == [{"gpu": 0, "pid": 4_000_001, "memory_gb": 2.0}]
    assert {"power_limit_w", "temperature_c", "persistence", "driver"} <= set(told["gpus"][0])
    assert {"git_commit", "git_dirty", "cpu_governor", "load_average", "cpu_flags"} <= set(told)


def test_outside_a_checkout_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "project_root", lambda: tmp_path)
    told = host.provenance("abc123")
    assert (told["git_commit"], told["git_dirty"]) == (None, None)


def test_files_leave_the_page_cache(tmp_path):
    files = [tmp_path / "weights.safetensors", tmp_path / "empty", tmp_path / "odd"]
    files[0].write_bytes(os.urandom(3_000_000))
    files[1].write_bytes(b"")
    files[2].write_bytes(b"x" * 5000)
    eviction = pagecache.evict(files)
    assert eviction.residency_before == pytest.approx(1.0)
    if eviction.evicted:
        assert eviction.residency_after <= 0.01
    else:  # a file system that lives in memory cannot let go
        assert eviction.reason
    files[0].read_bytes()
    assert pagecache.evict(str(file) for file in files).residency_before > 0.9


def test_pages_that_stay_are_reported(tmp_path, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(os.urandom(1_000_000))
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: None)
    eviction = pagecache.evict([file])
    assert not eviction.evicted
    assert eviction.residency_after == pytest.approx(1.0)
    assert "stayed" in eviction.reason


def test_a_system_without_fadvise_says_so(tmp_path, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(b"x")
    monkeypatch.delattr(os, "posix_fadvise")
    assert "posix_fadvise" in pagecache.evict([file]).reason


def test_eviction_refuses_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="paths is empty"):
        pagecache.evict([])
    with pytest.raises(FileNotFoundError, match="absent"):
        pagecache.evict([tmp_path / "absent"])
