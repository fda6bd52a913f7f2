"""SLURM for Snakemake's executor `cluster-generic`: submit a run's job, report its state.

    python -m edge_eval_lib.runs.slurm submit GPUS settings/STAGE/NAME.json [OPTIONS] SCRIPT
    python -m edge_eval_lib.runs.slurm status JOB

profiles/slurm calls both in the directory of the study's outputs. A job that ends without giving
a reason (cancelled, out of time, its node lost) leaves one in `failed/`, as every failed run does.
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
JOB = ".job"  # a file beside the job's log: its number
SEEN_WITHIN_S = 20.0  # a network file system may show another machine's new file this much later


def submit(gpus: int, output: str, options: list[str], jobscript: str) -> str:
    """Submit the job of the run whose settings file is `output`; SLURM's number of the job.

    A job that an earlier, killed `make` left behind for the same run is cancelled, and this one
    starts when that one has ended: no two jobs work on one run. Raises CalledProcessError if
    SLURM refuses it.
    """
    at = _place(Path(output).parent.name, Path(output).stem)
    log = _log(at)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)  # a new one proves that the job sees this directory
    at.failure.unlink(missing_ok=True)
    # Studies of one name and different outputs have jobs of different names.
    digest = hashlib.sha256(str(Path.cwd()).encode()).hexdigest()[:8]
    job_name = f"edge-eval/{digest}/{at.stage}/{at.name}"
    _ask("scancel", "--quiet", f"--user={os.getuid()}", f"--name={job_name}")
    job = _ask(
        *("sbatch", "--parsable", "--export=ALL", "--no-requeue", "--nodes=1", "--ntasks=1"),
        *(f"--job-name={job_name}", "--dependency=singleton", f"--output={log}"),
        *wanted(gpus, _ask("sinfo", "--noheader", "--Node", "--format=%P %c %m %G")),
        *options,
        jobscript,
    ).partition(";")[0]
    _log(at).with_suffix(JOB).write_text(job, encoding="utf-8")
    return job


def standing(directory: Path, stage: str, name: str) -> str | None:
    """Say how the job of a run stands, for `make status`; None if none was submitted.

    Args:
        directory: The outputs of its study.
        stage: The run's.
        name: The run's.
    """
    file = directory / "slurm" / stage / f"{name}{JOB}"
    try:
        job = file.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    try:
        shown = _ask("scontrol", "--oneliner", "show", "job", job)
    except subprocess.CalledProcessError:
        return f"SLURM's job {job}, of which SLURM says nothing"
    fields = dict(pair.split("=", 1) for pair in shown.split() if "=" in pair)
    state, node, why = (fields.get(key, "") for key in ("JobState", "NodeList", "Reason"))
    if state in ENDED_BADLY or state == "COMPLETED":
        return f"SLURM's job {job}, which has ended ({state.lower()})"
    where = f" on {node}" if node not in ("", "(null)") else ""
    because = f" ({why})" if state == "PENDING" and why not in ("", "None") else ""
    return f"SLURM's job {job}, {state.lower()}{where}{because}"


def wanted(gpus: int, nodes: str) -> list[str]:
    """Return sbatch's options for what a run has to itself, from sinfo's `%P %c %m %G` of nodes.

    Where SLURM manages GPUs: as many as are given, each with an equal share of its node's
    processors and memory; one for a page that needs none, for such nodes may refuse a job without.
    Elsewhere: a whole node. Nodes are those of SBATCH_PARTITION, else of the default partition.
    """
    rows = [line.split(maxsplit=3) for line in nodes.splitlines() if line.strip()]
    partition = os.environ.get("SBATCH_PARTITION")
    chosen = partition.split(",") if partition else {r[0] for r in rows if r[0].endswith("*")}
    shares = []
    for named, processors, memory_mb, resources in rows:
        owned = sum(int(count) for count in re.findall(r"\bgpu(?::[^:,(]+)?:(\d+)", resources))
        if owned and (not chosen or {named, named.rstrip("*")} & set(chosen)):
            shares.append((max(int(processors) // owned, 1), int(memory_mb) // owned))
    if not shares:
        return ["--exclusive", "--mem=0"]
    processors, memory_mb = (min(share) for share in zip(*shares, strict=True))
    # SLURM says 1 MB where its configuration does not say how much there is.
    memory = [f"--mem-per-gpu={memory_mb}M"] if memory_mb > 1 else []
    return [f"--gpus={max(gpus, 1)}", f"--cpus-per-gpu={processors}", *memory]


def status(job: str) -> str:
    """Return `running`, `success` or `failed`, as Snakemake wants it; keep why a job failed.

    A job that SLURM has forgotten is a success: Snakemake then looks for its output. While
    SLURM does not answer, every job is running.
    """
    try:
        shown = _ask("scontrol", "--oneliner", "show", "job", job)
    except subprocess.CalledProcessError as error:
        return "success" if "Invalid job id" in error.stderr else "running"
    fields = dict(pair.split("=", 1) for pair in shown.split() if "=" in pair)
    state, node = fields.get("JobState", ""), fields.get("NodeList", "(null)")
    if state != "COMPLETED" and state not in ENDED_BADLY:
        return "running"
    at = _place(*fields["JobName"].split("/", 3)[2:])
    ran = node not in ("", "(null)")
    reason = None
    if ran and not _appears(_log(at)):
        reason = (
            f"{node} does not share {Path.cwd()} with {socket.gethostname()}; let "
            "EDGE_EVAL_OUTPUTS name a directory of a file system that all nodes can write."
        )
    elif state != "COMPLETED":
        where = (f" on {node}", f" (see {_log(at)})") if ran else ("", "")
        reason = f"SLURM's job {job} {ENDED_BADLY[state]}{where[0]}{where[1]}."
    if reason is None:
        return "success"
    _keep_failure(at, reason)
    return "failed"


def _place(stage: str, name: str) -> Place:
    outputs = Path.cwd()
    return Place(outputs.parent / "paper" if stage == "paper" else outputs, stage, name)


def _log(at: Place) -> Path:
    return Path.cwd() / "slurm" / at.stage / f"{at.name}.log"


def _appears(file: Path) -> bool:
    ends = time.monotonic() + SEEN_WITHIN_S
    while file.name not in os.listdir(file.parent):  # a listing is not answered from a cache
        if time.monotonic() > ends:
            return False
        time.sleep(0.5)
    return True


def _keep_failure(at: Place, reason: str) -> None:
    """Write why the run failed, unless it has written that itself."""
    if not at.failure.is_file():
        write_failure(at, reason)


def _ask(*command: str) -> str:
    """Ask a command of SLURM's; CalledProcessError if it refuses, or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        message = f"this machine has no {command[0]}: PROFILE=slurm is for a SLURM cluster"
        raise subprocess.CalledProcessError(127, command, stderr=message) from error
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, stderr=done.stderr)
    return done.stdout.strip()


def main(arguments: list[str]) -> None:
    """Do what the command line says."""
    if arguments[0] == "status":
        print(status(arguments[1]))
        return
    _, gpus, output, *options, jobscript = arguments
    # SLURM and NVML number GPUs in PCI order; CUDA does so only if asked.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    try:
        print(submit(int(gpus), output, options, jobscript))
    except subprocess.CalledProcessError as error:
        why = " ".join(error.stderr.split()) or f"{error.cmd[0]} failed ({error.returncode})"
        _keep_failure(
            _place(Path(output).parent.name, Path(output).stem), f"SLURM takes no job: {why}."
        )
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
