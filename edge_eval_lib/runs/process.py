"""Processes that end with the one that started them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from typing import IO

from edge_eval_lib.paths import project_root

PR_SET_PDEATHSIG = 1
INTERRUPT_S = 10.0  # how long an interrupted command may take to stop what it started

_LIBC = ctypes.CDLL(None)  # before any fork: a forked child must not import


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send this process `signal_number` when its parent ends (Linux)."""
    if sys.platform == "linux":
        _LIBC.prctl(PR_SET_PDEATHSIG, signal_number)


def supervised(command: list[str], log: IO[str] | int, environment: dict[str, str]) -> int:
    """Run a command to its end, and end it with this process; its exit code."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stderr=log,
        env=environment,
        cwd=project_root(),
        start_new_session=True,  # an interrupt reaches it through us alone
        preexec_fn=lambda: die_with_parent(signal.SIGKILL),
    )
    try:
        return process.wait()
    except BaseException:
        _stop(process)
        raise


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a command and the runs it started; kill what does not end by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(INTERRUPT_S)
        except BaseException:  # too slow, or a second interrupt
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
