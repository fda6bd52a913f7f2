"""Processes that end with the one that started them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO

from edge_eval_lib.paths import project_root

PR_SET_PDEATHSIG = 1
LAST_WORDS_S = 2.0
INTERRUPT_S = 10.0  # how long an interrupted command may take to stop what it started

_LIBC = ctypes.CDLL(None)  # before any fork: a forked child must not import


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send this process `signal_number` when its parent ends (Linux)."""
    if sys.platform == "linux":
        _LIBC.prctl(PR_SET_PDEATHSIG, signal_number)


def supervised(
    command: list[str],
    log: IO[str] | int,
    environment: dict[str, str],
    hear: Callable[[str], None] | None = None,
) -> int:
    """Run a command to its end, and end it with this process; its exit code.

    `hear` is called with each line that it prints, in a thread of its own.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=None if hear is None else subprocess.PIPE,
        stderr=log,
        env=environment,
        cwd=project_root(),
        start_new_session=True,  # an interrupt reaches it through us alone
        preexec_fn=lambda: die_with_parent(signal.SIGKILL),
    )
    listening = threading.Thread(target=_listen, args=(process.stdout, hear), daemon=True)
    listening.start()
    try:
        code = process.wait()
        listening.join(LAST_WORDS_S)  # what it started may hold its output open
        return code
    except BaseException:
        _stop(process)
        raise


def _listen(lines: IO[bytes] | None, hear: Callable[[str], None] | None) -> None:
    """Read to the end, whatever becomes of the hearer: an unread line would hold the command up."""
    for line in lines or ():
        try:
            if hear is not None:
                hear(line.decode(errors="replace").rstrip("\n"))
        except Exception as error:
            hear = None
            print(f"Nothing more is shown: {type(error).__name__}: {error}", file=sys.stderr)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a command and the runs it started; kill what does not end by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(INTERRUPT_S)
        except BaseException:  # too slow, or a second interrupt
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
