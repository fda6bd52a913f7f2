"""What a run has to itself: its GPUs, or the machine where there is none.

Every device has a lock, in one directory a user whatever the checkout; it ends with its process.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from edge_eval_lib.errors import UserError
from edge_eval_lib.paths import user_directory
from edge_eval_lib.study import Run, Study

# Snakemake sets all of them to 1, whatever a run has to itself.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
POLL_S = 0.5

_by_hand: list[tuple[contextlib.ExitStack, tuple[Study, Run]]] = []


def devices() -> dict[str, dict[str, str]]:
    """Return each GPU that this process may use, else the machine: what a run has to itself.

    By the name of the device's lock, the environment that selects it. In a SLURM job the GPUs are
    those that SLURM gave to it; UserError if it gave none on a machine that has some.
    """
    from edge_eval_lib.machine import nvml

    try:
        gpus = nvml.visible_devices()
    except nvml.Unavailable:
        return {"machine": {}}
    given = {"CUDA_VISIBLE_DEVICES", "SLURM_JOB_GPUS"} & os.environ.keys()
    if "SLURM_JOB_ID" in os.environ and not given:
        raise UserError(
            f"This SLURM job has none of the {len(gpus)} GPUs of its node; submit it with "
            "--gpus=1, or, where SLURM does not manage GPUs, set CUDA_VISIBLE_DEVICES to those "
            "that it may use (empty: none)."
        )
    return {
        # not by index: SLURM may hide the GPUs of other jobs, and every job's is number 0
        f"gpu-{nvml.uuid(gpu)}": {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": str(gpu.index),
        }
        for gpu in gpus
    }


@contextlib.contextmanager
def hold(study: Study, run: Run, every: bool = False) -> Iterator[dict[str, str]]:
    """Hold `run.gpus` of the GPUs, or the machine; says who has them while it waits.

    `every` takes all GPUs: a notebook that is run by hand was given none as its own. Yields the
    environment that selects the devices, and their share of this machine's cores.
    """
    selecting = devices()
    count = len(selecting) if every else min(len(selecting), run.gpus)
    how = ", by hand" if every else ""
    owner = f"{study.name} {run.stage} {run.name} (process {os.getpid()}{how})"
    held = _take(selecting, count, owner)
    if held is None:
        what = "machine" if "machine" in selecting else "GPU"
        holder = owner_of(lock_file(next(iter(selecting))))
        print(f"{run.stage}  {run.name} waits: {holder} has the {what}", flush=True)
    while held is None:
        time.sleep(POLL_S)
        held = _take(selecting, count, owner)
    try:
        environments = [selecting[name] for name in held]
        variables = environments[0]  # each names the same ones; what differs is the GPU
        selected = {v: ",".join(dict.fromkeys(e[v] for e in environments)) for v in variables}
        yield selected | thread_environment(count, len(selecting))
    finally:
        for lock in held.values():
            lock.release()


def hold_device(study: Study, run: Run) -> None:
    """Keep other runs off this machine's devices while a notebook is run by hand.

    Until `release_device`, or the end of this process.
    """
    if not _by_hand:
        stack = contextlib.ExitStack()
        stack.enter_context(hold(study, run, every=True))
        _by_hand.append((stack, (study, run)))


def release_device() -> tuple[Study, Run] | None:
    """Let others have what `hold_device` holds; for whom it was held, None if it was not."""
    if not _by_hand:
        return None
    stack, held_for = _by_hand.pop()
    stack.close()
    return held_for


def thread_environment(devices_held: int = 1, devices_here: int = 1) -> dict[str, str]:
    """Return as many threads as the run has cores: its devices' share of this process's."""
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    cores = min(allowed, psutil.cpu_count(logical=False) or allowed)
    threads = max(1, cores * devices_held // devices_here)
    return dict.fromkeys(THREAD_VARIABLES, str(threads))


# --- locks ------------------------------------------------------------------------------------


def lock_file(device: str) -> Path:
    """Return the file that is locked while a device is held."""
    return user_directory() / f"{device}.lock"


def try_lock(file: Path, owner: str) -> FileLock | None:
    """Take a file's exclusive lock and write into it who has it; None if another process has it."""
    lock = FileLock(file, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    file.write_text(owner, encoding="utf-8")
    return lock


def owner_of(file: Path) -> str:
    """Return who holds a lock, in the words of whoever took it."""
    return file.read_text(encoding="utf-8") or "another process"


def _take(names: Mapping[str, object], count: int, owner: str) -> dict[str, FileLock] | None:
    """Lock `count` of the devices, all or none: two runs must not wait for each other's."""
    held: dict[str, FileLock] = {}
    for name in names:
        if len(held) < count and (lock := try_lock(lock_file(name), owner)):
            held[name] = lock
    if len(held) == count:
        return held
    for lock in held.values():
        lock.release()
    return None
