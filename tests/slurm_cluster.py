"""A real SLURM of one node, started and stopped by a test, with every file in its own directory.

Needs the programs of Debian's slurm-wlm and munge; no installed daemon is used or disturbed.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from edge_eval_lib.runs.process import die_with_parent

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "sinfo", "squeue", "scontrol")
START_WITHIN_S = 30
STOP_WITHIN_S = 20
DEVICES = ("/dev/null", "/dev/zero")  # any two that are there
# Debian keeps daemons where a user's PATH does not look.
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
MinJobAge=300
KillWait=2
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN {gres}
PartitionName=test Nodes={host} Default=YES MaxTime=60 State=UP
"""


def missing_programs() -> list[str]:
    """What this machine lacks to run a SLURM of its own."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


@contextlib.contextmanager
def slurm(
    directory: Path, gpus: int = 0, node_prefix: tuple[str, ...] = ()
) -> Iterator[dict[str, str]]:
    """A running SLURM; yields the environment in which sbatch and the like reach it.

    `gpus` (2 at most) makes it manage that many devices as if they were GPUs; `node_prefix` is
    put before the command of the node's daemon. At the end every job is cancelled and every
    daemon is stopped, whatever happened.
    """
    directory.mkdir(mode=0o700)
    for name in ("state", "spool"):
        (directory / name).mkdir()
    key = directory / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(1024))
    host = socket.gethostname().partition(".")[0]
    controller_port, node_port = _free_ports(2)
    text = CONFIGURATION.format(
        host=host,
        user=getpass.getuser(),
        directory=directory,
        controller_port=controller_port,
        node_port=node_port,
        cpus=psutil.cpu_count(),
        gres=f"Gres=gpu:{gpus}" if gpus else "",
    )
    configuration = directory / "slurm.conf"
    configuration.write_text(text, encoding="utf-8")
    devices = [f"NodeName={host} Name=gpu File={device}\n" for device in DEVICES[:gpus]]
    (directory / "gres.conf").write_text("".join(devices), encoding="utf-8")
    environment = os.environ | {"SLURM_CONF": str(configuration), "PATH": PATH}
    munge = [f"--socket={directory}/munge.socket", f"--key-file={key}"]
    munge += [f"--{what}-file={directory}/munge.{what}" for what in ("pid", "seed", "log")]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in (
            ["munged", "--foreground", "--force", *munge],
            ["slurmctld", "-D", "-f", str(configuration)],
            [*node_prefix, "slurmd", "-D", "-f", str(configuration)],
        ):
            daemons.append(_start(command, environment, directory))
            if command[0] == "munged":
                _wait_until((directory / "munge.socket").exists, daemons, directory)
        _wait_until(
            lambda: _ask(environment, "sinfo", "-h", "-o", "%T") == "idle", daemons, directory
        )
        yield environment
    finally:
        _stop(daemons, environment, directory)


def _start(
    command: list[str], environment: dict[str, str], directory: Path
) -> subprocess.Popen[bytes]:
    with (directory / "daemons.log").open("ab") as log:
        return subprocess.Popen(
            command,
            env=environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )


def _ask(environment: dict[str, str], *command: str) -> str | None:
    """What a client command answers within a few seconds; None if it does not."""
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=5)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _wait_until(
    condition: Callable[[], bool], daemons: list[subprocess.Popen[bytes]], directory: Path
) -> None:
    until = time.monotonic() + START_WITHIN_S
    while not condition():
        ended = [daemon.args for daemon in daemons if daemon.poll() is not None]
        if ended or time.monotonic() > until:
            logs = [path.read_text(errors="replace")[-2000:] for path in directory.glob("*.log")]
            raise RuntimeError("\n".join([f"SLURM did not start ({ended})", *logs]))
        time.sleep(0.1)


def _stop(
    daemons: list[subprocess.Popen[bytes]], environment: dict[str, str], directory: Path
) -> None:
    until = time.monotonic() + STOP_WITHIN_S
    if len(daemons) == 3:
        _ask(environment, "scancel", f"--user={os.getuid()}")
        while _ask(environment, "squeue", "-h") and time.monotonic() < until:
            time.sleep(0.2)
    for daemon in reversed(daemons):
        daemon.terminate()
        try:
            daemon.wait(max(1.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    for process in _left(directory):  # steps whose daemon was killed
        with contextlib.suppress(psutil.Error):
            process.kill()


def _left(directory: Path) -> list[psutil.Process]:
    """Processes that know of this SLURM's configuration, and are not the caller."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            known = process.environ().get("SLURM_CONF")
            if known == str(directory / "slurm.conf") and process.pid != os.getpid():
                found.append(process)
    return found


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
