"""What a run says of itself while it is made, so that others can say where it is.

It lies in the run's scratch directory and is gone with it. It is written when the kernel starts and
between cells: a measured window never waits for it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from edge_eval_lib.artefacts.place import Place, read_json, write_atomically

FILE = "under_way.json"


@dataclass(frozen=True)
class UnderWay:
    """A run that was begun and has not ended; `alive` is None where that cannot be seen from here.

    `begun_s` is a time, in seconds since the epoch; of its `cells`, `completed` are done.
    """

    begun_s: float
    host: str
    process: int
    completed: int
    cells: int
    alive: bool | None


def begin(at: Place) -> None:
    """Note that this process makes the run from now on."""
    content = {"host": socket.gethostname(), "process": os.getpid(), "begun_s": time.time()}
    write_atomically(at.running / FILE, content)


def note(at: Place, completed: int, cells: int) -> None:
    """Note how many of its cells a run has completed; a full disk is not ours to report."""
    content = read_json(at.running / FILE)
    if content:
        with contextlib.suppress(OSError):
            write_atomically(at.running / FILE, content | {"completed": completed, "cells": cells})


def read(at: Place) -> UnderWay | None:
    """Read what a run said last; None if it is not begun, or waits for a device."""
    content = read_json(at.running / FILE)
    if not content:
        return None
    here = content["host"] == socket.gethostname()
    process, begun_s = content["process"], content["begun_s"]
    alive = lives(process, begun_s) if here else None
    counts = content.get("completed", 0), content.get("cells", 0)
    return UnderWay(begun_s, content["host"], process, *counts, alive)


def lives(process: int, since_s: float) -> bool:
    """Decide whether a process of this machine still lives: not a later one of its number."""
    try:
        return psutil.Process(process).create_time() <= since_s + 1.0
    except psutil.Error:
        return False


def make_at_work(directory: Path) -> tuple[int, float] | None:
    """Find the `make` at work on a study's outputs, on this machine: its process and start."""
    lock = directory / ".lock"
    try:
        process, since_s = int(lock.read_text(encoding="utf-8")), lock.stat().st_mtime
    except (OSError, ValueError):
        return None
    return (process, since_s) if lives(process, since_s) else None
