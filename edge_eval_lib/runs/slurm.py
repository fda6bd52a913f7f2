"""SLURM for Snakemake's executor `cluster-generic`: submit a run's job, tell how it stands.

    python -m edge_eval_lib.runs.slurm submit GPUS settings/STAGE/NAME.json [OPTIONS] SCRIPT
    python -m edge_eval_lib.runs.slurm status JOB

profiles/slurm calls both in the directory of the study's outputs. A job that ends without a word
of its own (cancelled, out of time, its node lost) leaves the reason in `failed/`, as every failed
run does.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from edge_eval_lib.artefacts.place import Place, write_failure

# SLURM's states of a job that will not run again; every other one is on its way.
ENDED_BADLY = {
    "BOOT_FAIL": "did not start",
    "CANCELLED": "was cancelled",
    "DEADLINE": "missed its deadline",
    "FAILED": "failed",
    "NODE_FAIL": "was lost with its node",
    "OUT_OF_MEMORY": "ran out of memory",
    "PREEMPTED": "had to make room for another job",
    "TIMEOUT": "reached its time limit",
}
SEEN_WITHIN_S = 20.0  # a network file system may show another machine's new file this much later


def submit(gpus: int, output: str, options: list[str], jobscript: str) -> str:
    """Submit the job of the run whose settings file is `output`; SLURM's number of the job.

    A job that an earlier, killed `make` left behind for the same run is cancelled, and this one
    starts when that one has ended: no two jobs work on one run. Raises CalledProcessError if
    SLURM refuses it.
    """
    stage, name = _run_of(output)
    log = _log(stage, name)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)  # a new one proves that the job sees this directory
    _place(stage, name).failure.unlink(missing_ok=True)
    job_name = f"edge-eval/{_directory_digest()}/{stage}/{name}"
    _tell("scancel", "--quiet", f"--user={os.getuid()}", f"--name={job_name}")
    return _tell(
        *("sbatch", "--parsable", "--export=ALL", "--no-requeue", "--nodes=1", "--ntasks=1"),
        *(f"--job-name={job_name}", "--dependency=singleton", f"--output={log}"),
        *wanted(gpus, _tell("sinfo", "--noheader", "--Node", "--format=%P %c %m %G")),
        *options,
        jobscript,
    ).partition(";")[0]


def wanted(gpus: int, nodes: str) -> list[str]:
    """sbatch's options for what a run has to itself, from sinfo's `%P %c %m %G` of every node.

    Where SLURM manages GPUs: as many as are given, each with an equal share of its node's
    processors and memory. Elsewhere: a whole node. Nodes are those of SBATCH_PARTITION, else of
    the default partition.
    """
    rows = [line.split(maxsplit=3) for line in nodes.splitlines() if line.strip()]
    partition = os.environ.get("SBATCH_PARTITION")
    chosen = partition.split(",") if partition else {r[0] for r in rows if r[0].endswith("*")}
    shares = []
    for row_partition, processors, memory_mb, resources in rows:
        if chosen and not {row_partition, row_partition.rstrip("*")} & set(chosen):
            continue
        owned = sum(int(count) for count in re.findall(r"\bgpu(?::[^:,(]+)?:(\d+)", resources))
        if owned:
            shares.append((max(int(processors) // owned, 1), int(memory_mb) // owned))
    if not shares:
        return ["--exclusive", "--mem=0"]
    processors, memory_mb = (min(share) for share in zip(*shares, strict=True))
    # SLURM says 1 MB where nobody told it how much there is.
    memory = [f"--mem-per-gpu={memory_mb}M"] if memory_mb > 1 else []
    return [f"--gpus={gpus}", f"--cpus-per-gpu={processors}", *memory]


def status(job: str) -> str:
    """`running`, `success` or `failed`, as Snakemake wants it; writes why a job failed.

    A job that SLURM has forgotten is a success: Snakemake then looks for its output. While
    SLURM does not answer, every job is running.
    """
    try:
        shown = _tell("scontrol", "--oneliner", "show", "job", job)
    except subprocess.CalledProcessError as error:
        return "success" if "Invalid job id" in error.stderr else "running"
    state = _field("JobState", shown)
    if state != "COMPLETED" and state not in ENDED_BADLY:
        return "running"
    _, _, stage, name = _field("JobName", shown).split("/", 3)
    node = _field("NodeList", shown)
    ran = node not in ("", "(null)")
    if ran and not _appears(_log(stage, name)):
        _keep_failure(
            stage,
            name,
            f"{node} does not share {Path.cwd()} with {socket.gethostname()}; let "
            "EDGE_EVAL_OUTPUTS name a directory of a file system that all nodes can write.",
        )
        return "failed"
    if state == "COMPLETED":
        return "success"
    where = f" on {node}" if ran else ""
    see = f" (see {_log(stage, name)})" if ran else ""
    _keep_failure(stage, name, f"SLURM's job {job} {ENDED_BADLY[state]}{where}{see}.")
    return "failed"


def _run_of(output: str) -> tuple[str, str]:
    path = Path(output)
    return path.parent.name, path.stem


def _log(stage: str, name: str) -> Path:
    return Path.cwd() / "slurm" / stage / f"{name}.log"


def _directory_digest() -> str:
    """Tells apart the jobs of studies that have one name and different outputs."""
    return hashlib.sha256(str(Path.cwd()).encode()).hexdigest()[:8]


def _appears(file: Path) -> bool:
    until = time.monotonic() + SEEN_WITHIN_S
    while file.name not in os.listdir(file.parent):  # a listing is not answered from a cache
        if time.monotonic() > until:
            return False
        time.sleep(0.5)
    return True


def _field(name: str, shown: str) -> str:
    found = re.search(rf"(?:^|\s){name}=(\S*)", shown)
    return found.group(1) if found else ""


def _place(stage: str, name: str) -> Place:
    outputs = Path.cwd()
    return Place(outputs.parent / "paper" if stage == "paper" else outputs, stage, name)


def _keep_failure(stage: str, name: str, reason: str) -> None:
    """Write why the run failed, unless it has written that itself."""

    at = _place(stage, name)
    if not at.failure.is_file():
        write_failure(at, reason)


def _tell(*command: str) -> str:
    """What a SLURM command answers; CalledProcessError if it refuses, or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        message = f"this machine has no {command[0]}: PROFILE=slurm is for a SLURM cluster"
        raise subprocess.CalledProcessError(127, command, stderr=message) from error
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, stderr=done.stderr)
    return done.stdout.strip()


def main(arguments: list[str]) -> None:
    if arguments[0] == "status":
        print(status(arguments[1]))
        return
    _, gpus, output, *options, jobscript = arguments
    # SLURM and NVML number GPUs in PCI order; CUDA does so only if told.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    try:
        print(submit(int(gpus), output, options, jobscript))
    except subprocess.CalledProcessError as error:
        why = " ".join(error.stderr.split()) or f"{error.cmd[0]} failed ({error.returncode})"
        _keep_failure(*_run_of(output), f"SLURM takes no job: {why}.")
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
